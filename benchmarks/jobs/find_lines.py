"""Find the lines that match a regular expression."""

from functions import matching

from rqmr import Job


class FindLines(Job):
    mapper = staticmethod(matching)
