"""Shuffle bytes that can't be compressed: `size` of them for each line."""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Iterable, Iterator

from rqmr import Job


class Bulky(Job):
    size: int = 1 << 16
    seconds: float = 0.0  # a line
    marks: str = ""

    def mapper(self, source: str, line: str) -> Iterator[tuple[str, bytes]]:
        time.sleep(self.seconds)
        yield line.split()[0], random.Random(line).randbytes(self.size)

    def reducer(self, word: str, values: Iterable[bytes]) -> Iterator[tuple[str, int]]:
        total = 0
        for value in values:
            total = zlib.crc32(value, total)
        yield word, total
