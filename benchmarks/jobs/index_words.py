"""List the files that each word occurs in."""

from functions import index

from rqmr import Distinct, Job


class IndexWords(Job):
    mapper = staticmethod(index)
    reducer = Distinct()
