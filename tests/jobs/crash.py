"""Count words, and in the first `times` attempts that meet the word `at`, end in one of many ways.

What is left when `times` is 0 is the right output, so that is what the oracle is given.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator

from marks import count, first, wait_for

from rqmr import Job


class Crash(Job):
    marks: str = ""  # a directory
    at: str = "crash"
    times: int = 0
    how: str = "exit"  # exit, kill, segfault, stop, hold, grip, hang, hoard; error, quit, interrupt, odd
    where: str = "map"  # or reduce
    gate: str = ""  # a word: who meets it waits until there is a file "open"

    def mapper(self, source: str, line: str) -> Iterator[tuple[str, int]]:
        self.count("seen", "lines")
        for word in line.lower().split():
            if word == self.at and self.where == "map":
                self.crash()
            if self.where == "map":
                self.wait(word)
            self.count("seen", "words")
            yield word, 1

    def reducer(self, word: str, counts: Iterable[int]) -> Iterator[tuple[str, int]]:
        if word == self.at and self.where == "reduce":
            self.crash()
        if self.where == "reduce":
            self.wait(word)
        self.count("seen", "keys")
        yield word, sum(counts)

    def wait(self, word: str) -> None:
        if word == self.gate and self.marks:
            wait_for(self.marks, "open")

    def crash(self) -> None:
        if self.marks:
            count(self.marks, "executed")
        if not self.times or not first(self.marks, "crashed", self.times):
            return
        getattr(self, self.how)()

    def exit(self) -> None:
        os._exit(3)

    def kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def segfault(self) -> None:
        ctypes.string_at(0)

    def stop(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def hold(self) -> None:
        ctypes.PyDLL(None).usleep(1_800_000)  # unlike CDLL, it keeps the interpreter to itself: no heartbeat

    def grip(self) -> None:
        ctypes.PyDLL(None).usleep(60_000_000)

    def hoard(self) -> None:
        self.held = [bytearray(1 << 20) for _ in range(300)]  # MiB
        self.hang()

    def hang(self) -> None:
        time.sleep(60)

    def error(self) -> None:
        raise ValueError("this is the job's own error")

    def quit(self) -> None:
        sys.exit("the job calls sys.exit")

    def interrupt(self) -> None:
        raise KeyboardInterrupt("the job's own interrupt")

    def odd(self) -> None:
        raise FileNotFoundError(os.fsdecode(b"a name that is no text: \xff"))
