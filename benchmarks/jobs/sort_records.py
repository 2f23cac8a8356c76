"""Sort records; the part files, one after the other, are in order."""

from collections.abc import Iterable, Iterator

from functions import parted

from rqmr import Job, TotalOrder


class SortRecords(Job):
    mapper = staticmethod(parted)
    partitioner = TotalOrder()

    def reducer(self, key: str, values: Iterable[str]) -> Iterator[tuple[str, str]]:
        for value in values:
            yield key, value
