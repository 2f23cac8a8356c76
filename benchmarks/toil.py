"""Add up numbers, with work to do at each record: what the benchmarks run.

A line is numbers; each is a key, and the reducer counts it. Without `seconds` and `reduce_seconds` there is no work
and the same output, so that the oracle is quick.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from zlib import crc32

from rqmr import Job


class Toil(Job):
    seconds: float = 0.0  # of work at a line, on average
    reduce_seconds: float = 0.0  # and at a key
    cpu: bool = False  # whether it is this machine's processor that works; otherwise it is waited for
    slow: str = ""  # a file: who removes it is ten times slower at every line,
    slow_source: str = ""  # if it reads this input

    def setup(self) -> None:
        self._slowness = 0  # not known yet

    def mapper(self, source: str, line: str) -> Iterator[tuple[int, int]]:
        self._slowness = self._slowness or self._slowness_at(source)
        self._work(self.seconds * _weight(line), self._slowness)
        for word in line.split():
            yield int(word), 1

    def partitioner(self, key: int, partitions: int) -> int:
        return key % partitions  # as many keys, and as much work, for each

    def reducer(self, key: int, ones: Iterable[int]) -> Iterator[tuple[int, int]]:
        self._work(self.reduce_seconds * _weight(str(key)))
        yield key, sum(ones)

    def _slowness_at(self, source: str) -> int:
        """10 for the first attempt of the task that is to straggle, 1 for all others."""
        if not self.slow or Path(source).name != self.slow_source:
            return 1
        try:
            Path(self.slow).unlink()
        except FileNotFoundError:
            return 1
        return 10

    def _work(self, seconds: float, slowness: int = 1) -> None:
        if not self.cpu:
            time.sleep(seconds * slowness)
            return
        began, end = time.monotonic(), time.thread_time() + seconds
        while time.thread_time() < end:
            sum(range(1000))
        # What makes a machine slow doesn't make the others' work more: it waits for the rest of its time.
        time.sleep((time.monotonic() - began) * (slowness - 1))


def _weight(text: str) -> float:
    """0.5 to 1.5, always the same for the same text: real records don't take equally long."""
    return 0.5 + crc32(text.encode()) / 2**32
