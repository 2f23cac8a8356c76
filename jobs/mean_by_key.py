r"""Average the numbers of each key, in lines such as "oslo 4.5".

    printf 'oslo 4.5\nlyon 21\noslo 7\n' | rqmr run mean_by_key -

A combiner is a reducer for what one map task has seen, so that less has to travel. Here the reducer can't be the
combiner: a mean of means is wrong if one stands for two numbers and another for ten. Sums and counts can be added.
(`reducer = Mean()` is all this in one word.)
"""

from collections.abc import Iterable, Iterator

from rqmr import Job

SumAndCount = tuple[float, int]


class MeanByKey(Job):
    def mapper(self, source: str, line: str) -> Iterator[tuple[str, SumAndCount]]:
        try:
            key, text = line.split()
            number = float(text)
        except ValueError:
            self.count("mean_by_key", "bad lines")
        else:
            yield key, (number, 1)

    def combiner(self, key: str, pairs: Iterable[SumAndCount]) -> Iterator[tuple[str, SumAndCount]]:
        sums, counts = zip(*pairs, strict=True)
        yield key, (sum(sums), sum(counts))

    def reducer(self, key: str, pairs: Iterable[SumAndCount]) -> Iterator[tuple[str, float]]:
        sums, counts = zip(*pairs, strict=True)
        yield key, sum(sums) / sum(counts)
