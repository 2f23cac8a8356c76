"""Two steps, each of which shuffles as much as the other: pieces that can't be compressed, and the same again."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Iterator

from rqmr import Job, Step


class Relay(Job):
    size: int = 4096  # bytes of each of the 64 pieces of a line

    def steps(self) -> list[Step]:
        return [Step(self.cut, self.pass_on), Step(self.deal, self.add_up)]

    def cut(self, source: str, line: str) -> Iterator[tuple[int, bytes]]:
        chance = random.Random(line)
        for _ in range(64):
            yield chance.randrange(1000), chance.randbytes(self.size)

    def pass_on(self, number: int, pieces: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
        for piece in pieces:
            yield number, piece

    def deal(self, number: int, piece: bytes) -> Iterator[tuple[int, bytes]]:
        yield number % 77, piece

    def add_up(self, number: int, pieces: Iterable[bytes]) -> Iterator[tuple[int, int]]:
        total = 0
        for piece in pieces:
            total = zlib.crc32(piece, total)
        yield number, total
