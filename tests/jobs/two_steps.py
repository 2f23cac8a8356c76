"""How many words occur how often: the counts of one step are the keys of the next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from marks import wait_for

from rqmr import Count, Job, Step, Sum


class TwoSteps(Job):
    marks: str = ""  # a directory
    gate: str = ""  # a word: the second mapper waits at it until there is a file "open"

    def steps(self) -> list[Step]:
        return [Step(self.words, Sum()), Step(self.counts, self.reduce_counts, combiner=Count())]

    def words(self, source: str, line: str) -> Iterator[tuple[str, int]]:
        for word in line.lower().split():
            yield word, 1

    def counts(self, word: str, count: int) -> Iterator[tuple[int, str]]:
        self.count("second step", "words")
        if word == self.gate and self.marks:
            wait_for(self.marks, "open")
        yield count, word

    def reduce_counts(self, count: int, words: Iterable[int]) -> Iterator[tuple[int, int]]:
        yield count, sum(words)
