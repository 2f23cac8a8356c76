"""Count words, slowly: `seconds` a line and `reduce_seconds` a word; maps or reduces wait at a gate if one is named.

The first attempt that meets the word `straggle` takes `straggle_seconds` more.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from marks import first, wait_for

from rqmr import Job


class Slow(Job):
    seconds: float = 0.0
    reduce_seconds: float = 0.0
    marks: str = ""  # a directory
    gate: str = ""  # a word: who meets it waits until there is a file "open"
    gate_in: str = "map"  # or reduce
    straggle: str = ""
    straggle_seconds: float = 0.0

    def mapper(self, source: str, line: str) -> Iterator[tuple[str, int]]:
        time.sleep(self.seconds)
        for word in line.lower().split():
            self.count("seen", "words")
            if self.gate_in == "map":
                self.wait(word)
            yield word, 1

    def wait(self, word: str) -> None:
        if word == self.gate and self.marks:
            first(self.marks, "waiting", 1000)
            wait_for(self.marks, "open")
        if word == self.straggle and self.marks and first(self.marks, "straggled", 1):
            time.sleep(self.straggle_seconds)

    def reducer(self, word: str, counts: Iterable[int]) -> Iterator[tuple[str, int]]:
        time.sleep(self.reduce_seconds)
        if self.gate_in == "reduce":
            self.wait(word)
        self.count("seen", "keys")
        yield word, sum(counts)
