"""Sort lines by what they begin with, as one whole over all part files.

    rqmr run sort_lines -p key_length=10 input/*.txt

Within each part file keys ascend in any job. Which keys a part file has says the partitioner: a hash of the key unless
the job has another one. `TotalOrder` cuts all keys into ranges, by a sample of the input.
"""

from collections.abc import Iterable, Iterator

from rqmr import Job, TotalOrder


class SortLines(Job):
    key_length: int = 10

    def mapper(self, source: str, line: str) -> Iterator[tuple[str, str]]:
        yield line[: self.key_length], line[self.key_length :]

    partitioner = TotalOrder()

    def reducer(self, key: str, rests: Iterable[str]) -> Iterator[tuple[str, str]]:
        for rest in rests:
            yield key, rest
