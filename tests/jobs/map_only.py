"""Number the long words of each line: what the mapper yields is the output, in the order of the input."""

from __future__ import annotations

from collections.abc import Iterator

from rqmr import Job


class MapOnly(Job):
    def mapper(self, source: str, line: str) -> Iterator[tuple[str, int]]:
        for position, word in enumerate(line.split()):
            if len(word) > 6:
                yield word, position
