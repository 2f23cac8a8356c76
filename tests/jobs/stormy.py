"""Word count, inverted index, sort and others, whose code raises or dawdles now and then, as often as marks allow.

Without `marks` they don't, and the output is the same: that is what the oracle is given.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from zlib import crc32

from marks import first

from rqmr import Distinct, Job, Step, Sum

_RARE = 997
_OFTEN = 61


class Stormy(Job):
    marks: str = ""  # a directory
    seed: int = 0
    raises: int = 0  # calls of the mapper that raise, in the whole run, and as many of the reducer
    dawdles: int = 0  # likewise, calls that take long:
    dawdle_seconds: float = 0.0
    pause_seconds: float = 0.0  # of one call in sixty-one, so that tasks take some time and no power

    def weather(self, where: str, about: str) -> None:
        """Do what happens in a call, which depends on the record that it is about."""
        if not self.marks:
            return
        dice = crc32(about.encode(), self.seed)
        if dice % _OFTEN == 0:
            time.sleep(self.pause_seconds)
        if dice % _RARE == 0 and first(self.marks, f"raised-{where}", self.raises):
            raise ValueError(f"bad weather in {where}")
        if dice % _RARE == 1 and first(self.marks, f"dawdled-{where}", self.dawdles):
            time.sleep(self.dawdle_seconds)


class Words(Stormy):
    combiner = Sum()

    def mapper(self, source: str, line: str) -> Iterator[tuple[str, int]]:
        self.weather("map", line)
        self.count("seen", "lines")
        for word in line.lower().split():
            yield word, 1

    def reducer(self, word: str, counts: Iterable[int]) -> Iterator[tuple[str, int]]:
        self.weather("reduce", word)
        self.count("seen", "words")
        yield word, sum(counts)


class Lengths(Stormy):
    """Two steps: how often each word occurs, then the words of each length with their numbers."""

    def steps(self) -> list[Step]:
        return [Step(self.words, self.total, combiner=Sum()), Step(self.measured, self.listed)]

    def words(self, source: str, line: str) -> Iterator[tuple[str, int]]:
        self.weather("map", line)
        for word in line.lower().split():
            yield word, 1

    def total(self, word: str, counts: Iterable[int]) -> Iterator[tuple[str, int]]:
        self.weather("reduce", word)
        yield word, sum(counts)

    def measured(self, word: str, total: int) -> Iterator[tuple[int, str]]:
        self.count("of length", str(len(word)))
        yield len(word), f"{word} {total}"

    def listed(self, length: int, words: Iterable[str]) -> Iterator[tuple[int, str]]:
        for word in words:
            self.weather("reduce", word)
            yield length, word


class Matches(Stormy):
    """Map only."""

    def mapper(self, source: str, line: str) -> Iterator[tuple[str, str]]:
        self.weather("map", line)
        if "the" in line:
            yield Path(source).name, line


class Index(Stormy):
    reducer = Distinct()

    def mapper(self, source: str, line: str) -> Iterator[tuple[str, str]]:
        self.weather("map", line)
        name = Path(source).name
        for word in set(line.lower().split()):
            self.count("words of", name)
            yield word, name


class Sort(Stormy):
    """Lines by their first word, which is of hexadecimal digits. By hash: the keys of each part are ascending."""

    def mapper(self, source: str, line: str) -> Iterator[tuple[str, str]]:
        self.weather("map", line)
        key, _, rest = line.partition(" ")
        yield key, rest

    def reducer(self, key: str, values: Iterable[str]) -> Iterator[tuple[str, str]]:
        self.weather("reduce", key)
        for value in values:
            self.count("seen", "lines")
            yield key, value


class SortByRange(Sort):
    """Likewise, and the keys of a part are all before those of the next."""

    def partitioner(self, key: str, partitions: int) -> int:
        return int(key[:4], 16) * partitions >> 16
