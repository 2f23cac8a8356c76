"""Bring all lines together under one key."""

from collections.abc import Iterable, Iterator

from rqmr import Job


class OneKey(Job):
    def mapper(self, source: str, line: str) -> Iterator[tuple[str, str]]:
        yield "all", line

    def reducer(self, key: str, lines: Iterable[str]) -> Iterator[tuple[str, list[int]]]:
        count = size = 0
        for line in lines:
            count, size = count + 1, size + len(line)
        yield key, [count, size]
