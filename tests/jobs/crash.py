"""Count words, and in the first `times` attempts that meet the word `at`, end in one of many ways.

What is left when `times` is 0 is the right output, so that is what the oracle is given.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterable, Iterator

from marks import count, first

from rqmr import Job


class Crash(Job):
    marks: str = ""  # a directory
    at: str = "crash"
    times: int = 0
    how: str = "exit"  # exit, kill, segfault, raise or stop
    where: str = "map"  # or reduce
    seconds: float = 0.0  # that each record takes

    def mapper(self, source: str, line: str) -> Iterator[tuple[str, int]]:
        time.sleep(self.seconds)
        self.count("seen", "lines")
        for word in line.lower().split():
            if word == self.at and self.where == "map":
                self.crash()
            self.count("seen", "words")
            yield word, 1

    def reducer(self, word: str, counts: Iterable[int]) -> Iterator[tuple[str, int]]:
        if word == self.at and self.where == "reduce":
            self.crash()
        self.count("seen", "keys")
        yield word, sum(counts)

    def crash(self) -> None:
        if self.marks:
            count(self.marks, "executed")
        if not self.times or not first(self.marks, "crashed", self.times):
            return
        if self.how == "exit":
            os._exit(3)
        elif self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.how == "segfault":
            ctypes.string_at(0)
        elif self.how == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        else:
            raise ValueError("this is the job's own error")
