"""Count words, some of them late: the reducer sleeps over those with "sherlock" or "tom" in them.

With `marks`, who maps the word "gate" waits until there is a file "open".
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from marks import count, wait_for

from rqmr import Job


class Late(Job):
    marks: str = ""  # a directory
    seconds: float = 0.0

    def mapper(self, source: str, line: str) -> Iterator[tuple[str, int]]:
        for word in line.split():
            if word == "gate" and self.marks:
                count(self.marks, "waiting")
                wait_for(self.marks, "open")
            yield word, 1

    def reducer(self, word: str, counts: Iterable[int]) -> Iterator[tuple[str, int]]:
        if "sherlock" in word or "tom" in word:
            if self.marks:
                count(self.marks, "reducing")
            time.sleep(self.seconds)
        yield word, sum(counts)
