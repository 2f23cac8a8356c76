"""How many words occur how often: the counts of one step are the keys of the next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rqmr import Count, Job, Step, Sum


class TwoSteps(Job):
    def steps(self) -> list[Step]:
        return [Step(self.words, Sum()), Step(self.counts, self.reduce_counts, combiner=Count())]

    def words(self, source: str, line: str) -> Iterator[tuple[str, int]]:
        for word in line.lower().split():
            yield word, 1

    def counts(self, word: str, count: int) -> Iterator[tuple[int, str]]:
        self.count("second step", "words")
        yield count, word

    def reduce_counts(self, count: int, words: Iterable[int]) -> Iterator[tuple[int, int]]:
        yield count, sum(words)
