"""Shuffle `size` bytes for each line in values of `piece`, of one key or of many; tell how much memory it took.

The peak of the work-horse in a reduce task is a counter that the views show; the output doesn't depend on memory.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from rqmr import Job


class Huge(Job):
    size: int = 1 << 20
    piece: int = 100
    keys: int = 1

    def setup(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # so that the peak is that of this task

    def mapper(self, source: str, line: str) -> Iterator[tuple[int, bytes]]:
        dice = random.Random(line)
        for _ in range(self.size // self.piece):
            yield dice.randrange(self.keys), dice.randbytes(self.piece)

    def reducer(self, key: int, values: Iterable[bytes]) -> Iterator[tuple[int, tuple[int, int]]]:
        total = count = 0
        for value in values:
            total, count = zlib.crc32(value, total), count + 1
        if key in (0, self.keys - 1):
            self.count("MiB at most", f"up to key {key}", _peak() >> 20)
        yield key, (count, total)


class HugeSorted(Huge):
    sort_values = True


def _peak() -> int:
    """The most bytes of memory that this process has had."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10
