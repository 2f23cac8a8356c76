"""Count words; the first attempt takes `seconds` for each line."""

from __future__ import annotations

import time
from collections.abc import Iterator

from marks import first

from rqmr import Job, Sum


class Crawl(Job):
    marks: str = ""  # a directory
    seconds: float = 0.0

    def setup(self) -> None:
        self.crawls = bool(self.seconds) and first(self.marks, "crawls", 1)

    def mapper(self, source: str, line: str) -> Iterator[tuple[str, int]]:
        if self.crawls:
            time.sleep(self.seconds)
        for word in line.split():
            yield word, 1

    reducer = Sum()
