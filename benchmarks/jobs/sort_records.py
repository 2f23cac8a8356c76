"""Sort records; the part files, one after the other, are in order."""

import string
from collections.abc import Iterable, Iterator

from functions import parted

from rqmr import Job

#: What keys begin with, each as often as any other, in order.
LETTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase


class SortRecords(Job):
    mapper = staticmethod(parted)

    def partitioner(self, key: str, partitions: int) -> int:
        return LETTERS.index(key[0]) * partitions // len(LETTERS)

    def reducer(self, key: str, values: Iterable[str]) -> Iterator[tuple[str, str]]:
        for value in values:
            yield key, value
