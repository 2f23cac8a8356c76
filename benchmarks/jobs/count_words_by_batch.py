"""Count words, many lines at a time."""

from collections import Counter

from functions import words, words_of_lines

from rqmr import Job, Sum


class CountWordsByBatch(Job):
    mapper = staticmethod(words)
    reducer = Sum()

    def map_batch(self, source: str, lines: list[str]) -> Counter[str]:
        return words_of_lines(lines)
