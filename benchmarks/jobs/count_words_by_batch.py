"""Count words, a block of lines at a time."""

from collections.abc import Iterable

from functions import words

from rqmr import Count, Job, Ones


class CountWordsByBatch(Job):
    mapper = staticmethod(words)
    reducer = Count()

    def map_batch(self, source: str, lines: str) -> Iterable[tuple[str, int]]:
        return Ones(lines.lower().split())
