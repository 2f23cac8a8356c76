"""Dask bag, with its scheduler of two processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import common
import dask
import dask.bag as db
import pools
from functions import index, matching, parted, words


def bag(function: Callable[[str, str], Iterable[Any]], paths: list[str]) -> Any:
    """Return what a mapper yields for each line of each piece."""

    def mapped(piece: pools.Piece) -> list[Any]:
        return [pair for path, line in pools.lines_of(piece) for pair in function(path, line)]

    pieces = common.pieces(paths)
    return db.from_sequence(pieces, npartitions=len(pieces)).map(mapped).flatten()


def first(pair: tuple[Any, Any]) -> Any:
    """The key of a pair."""
    return pair[0]


def add(total: int, pair: tuple[str, int]) -> int:
    """Add a pair's count."""
    return total + pair[1]


def plus(one: int, other: int) -> int:
    """Add two counts."""
    return one + other


def join(names: set[str], pair: tuple[str, str]) -> set[str]:
    """Add a pair's name."""
    names = names or set()  # never into the initial value, which is shared
    names.add(pair[1])
    return names


def do_words(paths: list[str]) -> Iterator[str]:
    """Count words."""
    return common.pair_lines(sorted(bag(words, paths).foldby(first, add, 0, plus, 0).compute()))


def do_index(paths: list[str]) -> Iterator[str]:
    """Index words."""
    found = bag(index, paths).foldby(first, join, set(), set.union, set()).compute()
    return common.index_lines(sorted(found))


def do_grep(paths: list[str]) -> Iterator[str]:
    """Find lines."""
    return common.pair_lines(bag(matching, paths).compute())


def do_sort(paths: list[str]) -> Iterator[str]:
    """Sort records; a bag has no sort, so its pieces are merged here."""
    return common.pair_lines(sorted(bag(parted, paths).compute()))


if __name__ == "__main__":
    with dask.config.set(scheduler="processes", num_workers=2):
        common.main({"words": do_words, "index": do_index, "grep": do_grep, "sort": do_sort})
