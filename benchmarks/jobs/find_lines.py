"""Find the lines that match a regular expression."""

import re
from collections.abc import Iterator

from functions import PATTERN

from rqmr import Job


class FindLines(Job):
    def setup(self) -> None:
        self.matches = re.compile(PATTERN).search

    def mapper(self, source: str, line: str) -> Iterator[tuple[str, str]]:
        if self.matches(line):
            yield source, line
