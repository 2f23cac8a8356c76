"""Print each line that is mapped and each word that is reduced, on both standard streams."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from rqmr import Job


class Prints(Job):
    def mapper(self, source: str, line: str) -> Iterator[tuple[str, int]]:
        print("mapped", line)
        for word in line.split():
            yield word, 1

    def reducer(self, word: str, counts: Iterable[int]) -> Iterator[tuple[str, int]]:
        print("reduced", word, file=sys.stderr)
        yield word, sum(counts)
