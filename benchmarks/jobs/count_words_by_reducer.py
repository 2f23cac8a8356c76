"""Count words with a reducer that is a function, and is the combiner, too."""

from functions import added, words

from rqmr import Job


class CountWordsByReducer(Job):
    mapper = staticmethod(words)
    reducer = combiner = staticmethod(added)
