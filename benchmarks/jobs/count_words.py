"""Count words, line by line."""

from functions import words

from rqmr import Job, Sum


class CountWords(Job):
    mapper = staticmethod(words)
    reducer = Sum()
