"""A shuffle of pieces whose number and size are given, which can't be compressed; what comes out tells them all."""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from rqmr import Job


class Pieces(Job):
    pieces: int = 64  # of each line
    size: int = 4096  # bytes, of each
    gate: str = ""  # a file that reduce tasks wait for
    bad: str = ""  # a file
    lines: int = 12  # of it, then its mapper raises
    marks: str = ""

    def setup(self) -> None:
        self.mapped = 0

    def mapper(self, source: str, line: str) -> Iterator[tuple[int, bytes]]:
        chance = random.Random(f"{source.rpartition('/')[2]} {line}")
        for _ in range(self.pieces):
            yield chance.randrange(1000), chance.randbytes(self.size)
        self.mapped += 1
        if self.bad and source.endswith(self.bad) and self.mapped == self.lines:
            raise ValueError("that was the last straw")

    def reducer(self, number: int, found: Iterable[bytes]) -> Iterator[tuple[int, int]]:
        while self.gate and not Path(self.gate).exists():
            time.sleep(0.02)
        total = 0
        for piece in found:
            total = zlib.crc32(piece, total)
        yield number, total
