"""Count words, many lines at a time."""

from collections import Counter

from functions import words, words_of_text

from rqmr import Job, Sum


class CountWordsByBatch(Job):
    mapper = staticmethod(words)
    reducer = Sum()

    def map_batch(self, source: str, text: str) -> Counter[str]:
        return words_of_text(text)
