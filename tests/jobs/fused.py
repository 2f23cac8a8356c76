"""Count words; the reducer raises where it is fused."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from rqmr import Job


class Fused(Job):
    marks: str = ""

    def mapper(self, source: str, line: str) -> Iterator[tuple[str, int]]:
        for word in line.split():
            yield word, 1

    def reducer(self, word: str, counts: Iterable[int]) -> Iterator[tuple[str, int]]:
        if ".given" in sys._getframe().f_code.co_varnames:
            raise RuntimeError("fused")
        yield word, sum(counts)
