"""`python -m rqmr` is `rqmr`."""

from rqmr.cli import main

main()
