"""Count words with mappers that never come back: asleep, waiting for a child, or in C code that holds the GIL."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterable, Iterator

from marks import first

from rqmr import Job


class Stuck(Job):
    marks: str = ""  # a directory: "stuck.0" is in it as soon as one is stuck
    how: str = "sleep"  # sleep, child or regex
    where: str = "map"  # or reduce
    prints: bool = False

    def mapper(self, source: str, line: str) -> Iterator[tuple[str, int]]:
        if self.where == "map":
            self.get_stuck()
        for word in line.split():
            yield word, 1

    def reducer(self, word: str, counts: Iterable[int]) -> Iterator[tuple[str, int]]:
        if self.where == "reduce":
            self.get_stuck()
        yield word, sum(counts)

    def get_stuck(self) -> None:
        if self.prints:
            print("about to be stuck")
        if self.how == "child":
            child = subprocess.Popen(["sleep", "100"])
            first(self.marks, "stuck", 1000)
            child.wait()
        elif self.how == "regex":
            first(self.marks, "stuck", 1000)
            re.match("(a+)+$", "a" * 40 + "b")
        else:
            first(self.marks, "stuck", 1000)
            time.sleep(100)
