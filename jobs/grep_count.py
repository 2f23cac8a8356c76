"""Count, for each file, the lines that match a regular expression.

    rqmr run grep_count -p pattern=keeper input/*.txt

What is counted for a key belongs to the output; what is counted for the whole run is a counter's. Counters are told
when the run ends, and are exact: a task that ran twice is counted once.
"""

import re
from collections.abc import Iterator

from rqmr import Job, Sum


class GrepCount(Job):
    pattern: str
    ignore_case: bool = False

    def setup(self) -> None:
        self.matches = re.compile(self.pattern, re.IGNORECASE if self.ignore_case else 0).search

    def mapper(self, source: str, line: str) -> Iterator[tuple[str, int]]:
        self.count("grep", "lines read")
        if self.matches(line):
            self.count("grep", "lines that match")
            yield source, 1

    reducer = Sum()
