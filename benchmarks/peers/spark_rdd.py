"""PySpark's RDDs, local[2], with the same functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import common
import pools
from functions import index, matching, parted, words
from pyspark import SparkConf, SparkContext


def mapped(context: SparkContext, function: Callable[[str, str], Iterable[Any]], paths: list[str]) -> Any:
    """Return what a mapper yields for each line of each piece."""
    pieces = common.pieces(paths)

    def of_pieces(given: Iterator[pools.Piece]) -> Iterator[Any]:
        for piece in given:
            for path, line in pools.lines_of(piece):
                yield from function(path, line)

    return context.parallelize(pieces, len(pieces)).mapPartitions(of_pieces)


def add(one: int, other: int) -> int:
    """Add two counts."""
    return one + other


def with_name(names: set[str], name: str) -> set[str]:
    """Add a name."""
    names.add(name)
    return names


def main() -> None:
    """Do the work; each partition of the result is brought here and written in order."""
    conf = SparkConf().setMaster("local[2]").set("spark.ui.enabled", "false").set("spark.driver.memory", "4g")
    context = SparkContext(conf=conf.set("spark.driver.maxResultSize", "0"))
    context.setLogLevel("ERROR")
    works: dict[str, Callable[[list[str]], Iterable[str]]] = {
        "words": lambda paths: common.pair_lines(
            mapped(context, words, paths).reduceByKey(add, 2).sortByKey().toLocalIterator()
        ),
        "index": lambda paths: common.index_lines(
            mapped(context, index, paths).aggregateByKey(set(), with_name, set.union, 2).sortByKey().toLocalIterator()
        ),
        "grep": lambda paths: common.pair_lines(mapped(context, matching, paths).toLocalIterator()),
        "sort": lambda paths: common.pair_lines(
            mapped(context, parted, paths).sortByKey(numPartitions=2).toLocalIterator()
        ),
    }
    common.main(works)
    context.stop()


if __name__ == "__main__":
    main()
