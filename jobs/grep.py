"""Find the lines that match a regular expression.

    rqmr run grep -p pattern=keeper input/*.txt

An annotated attribute is a parameter of the job, required if it has no default; what has to be made of it once, and
not for each line, is made in `setup`. A job without a reducer is map-only: what its mapper yields is the output.
"""

import re
from collections.abc import Iterator

from rqmr import Job


class Grep(Job):
    pattern: str
    ignore_case: bool = False

    def setup(self) -> None:
        self.matches = re.compile(self.pattern, re.IGNORECASE if self.ignore_case else 0).search

    def mapper(self, source: str, line: str) -> Iterator[tuple[str, str]]:
        if self.matches(line):
            yield source, line
