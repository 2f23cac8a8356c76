"""Count words; a word that names a way to go wrong does so, in the map or in the reduce, each time that it is met."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterable, Iterator

from rqmr import Job


class Bad(Job):
    where: str = "map"  # or reduce, or nowhere

    def mapper(self, source: str, line: str) -> Iterator[tuple[str, int]]:
        self.count("seen", "lines")
        for word in line.split():
            self.count("seen", "words")
            yield word, 1
            if self.where == "map":
                go_wrong(word)

    def reducer(self, word: str, counts: Iterable[int]) -> Iterator[tuple[str, int]]:
        self.count("seen", "keys")
        yield word, sum(counts)
        if self.where == "reduce":
            go_wrong(word)


def go_wrong(how: str) -> None:
    match how:
        case "error":
            raise ValueError("this record is bad")
        case "quit":
            sys.exit("the job calls sys.exit")
        case "memory":
            bytearray(1 << 60)  # more than any machine has
        case "exit":
            os._exit(3)
        case "kill":  # as the kernel does when memory runs out
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            ctypes.string_at(0)
