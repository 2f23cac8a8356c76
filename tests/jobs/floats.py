"""Sum numbers whose sum depends on the order: the same on each run, or it is seen in the last digits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rqmr import Job


class Floats(Job):
    def mapper(self, source: str, line: str) -> Iterator[tuple[str, float]]:
        for word in line.split():
            number = sum(map(ord, word))
            yield word[:1], (number - 500) * 10.0 ** (number % 17 - 8) / 3

    def reducer(self, letter: str, values: Iterable[float]) -> Iterator[tuple[str, float]]:
        total = 0.0
        for value in values:  # not sum(), which is exact from Python 3.12 on
            total += value
        yield letter, total
