"""Count the lines of each word through sets and dicts, whose order differs with PYTHONHASHSEED, and tell that hash."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from rqmr import Job


class Hashes(Job):
    seconds: float = 0.0  # that each line takes

    def setup(self) -> None:
        # Not in the output: it is what differs from process to process.
        self.count("hash of rqmr", str(hash("rqmr")))

    def mapper(self, source: str, line: str) -> Iterator[tuple[tuple[str, int], int]]:
        time.sleep(self.seconds)
        for word in set(line.lower().split()):
            yield (word, len(word)), 1

    def combiner(self, key: tuple[str, int], counts: Iterable[int]) -> Iterator[tuple[tuple[str, int], int]]:
        yield key, sum(counts)

    def reducer(self, key: tuple[str, int], counts: Iterable[int]) -> Iterator[tuple[tuple[str, int], int]]:
        yield key, sum(counts)
