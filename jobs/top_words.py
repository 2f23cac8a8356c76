"""Find the words that occur most often.

    rqmr run top_words -p k=5 input/*.txt

What one step reduces, the next one maps. The first counts; the second sends all counts to one key, and yet only `k`
words travel from each reducer of the first: `Top`, as every aggregator, folds before it sends.
"""

from collections.abc import Iterator

from rqmr import Job, Step, Sum, Top


class TopWords(Job):
    k: int = 10

    def steps(self) -> list[Step]:
        return [
            Step(self.words, Sum()),
            Step(self.counted, Top(self.k)),
            Step(self.ranked),  # no reducer: nothing is shuffled, it only spells the output
        ]

    def words(self, source: str, line: str) -> Iterator[tuple[str, int]]:
        for word in line.lower().split():
            yield word, 1

    def counted(self, word: str, count: int) -> Iterator[tuple[str, tuple[int, str]]]:
        yield "top", (count, word)  # of equal counts, the word that is later in the alphabet is greater

    def ranked(self, _: str, top: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
        yield from top
