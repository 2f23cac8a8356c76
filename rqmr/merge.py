"""The reduce side of the shuffle: segments → keys with their items.

The sorted runs of all segments are merged in windows (one chunk of each run in memory), so that a partition may be
larger than memory, and the values of a key come in the order of (producer, emission), whatever ran where.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

from rqmr.aggregators import Aggregator
from rqmr.codec import Key, unseal
from rqmr.errors import SegmentLost
from rqmr.job import Reducer, Step

#: In a segment: more than any server holds.
_MOST_CHUNKS = 1 << 32


class Segments(Protocol):
    """The committed segments for one reduce task."""

    def heads(self) -> Iterator[tuple[int, bytes | None]]:
        """Yield each producer that has a segment, ascending, with its chunk 0 (None: missing)."""

    def chunk(self, producer: int, number: int) -> bytes | None:
        """Return one more chunk of a producer's segment (None: missing)."""


class _SortedRun:
    """One sorted run, of which one chunk at a time is decoded."""

    def __init__(self, numbers: Sequence[int], load: Callable[[int], tuple[list[Key], list[Any]]]) -> None:
        """`numbers`: those of its chunks, as many as the segment says; `load` returns the keys and items of one."""
        self._numbers = numbers
        self._load = load
        self._loaded = 0  # chunks
        self._keys: list[Key] = []
        self._items: list[Any] = []
        self._at = 0

    def fill(self) -> bool:
        """Load the next chunk if all of this one is taken; whether there is anything left."""
        while self._at == len(self._keys):
            if not self.has_more:
                return False
            self._keys, self._items = self._load(self._numbers[self._loaded])
            self._loaded += 1
            self._at = 0
        return True

    @property
    def has_more(self) -> bool:
        """Whether the run goes on behind the chunk that is loaded."""
        return self._loaded < len(self._numbers)

    @property
    def last(self) -> Key:
        """The greatest key that is loaded."""
        return self._keys[-1]

    def take(self, below: Key, *, everything: bool) -> Iterable[tuple[Key, Any]]:
        """Take the loaded entries with keys less than a bound."""
        start = self._at
        # None is a key of its own type: nothing is less than it.
        self._at = len(self._keys) if everything else start if below is None else bisect_left(self._keys, below, start)
        return zip(self._keys[start : self._at], self._items[start : self._at], strict=True)

    def take_equal(self, key: Key) -> Iterator[Any]:
        """Take the items of one key, loading on while it lasts."""
        while self.fill() and self._keys[self._at] == key:
            self._at += 1
            yield self._items[self._at - 1]


def merge(runs: Iterable[_SortedRun]) -> Iterator[tuple[Key, Iterable[Any]]]:
    """Yield each key, ascending, with its items in the order of the runs.

    What is less than the last loaded key of every unfinished run is complete and can go, each key with a list. When
    that is nothing, one key fills a whole chunk: its items are then streamed, run after run, by an iterator that ends
    when the next key is asked.
    """
    live = [run for run in runs if run.fill()]
    while live:
        bounds = [run.last for run in live if run.has_more]
        bound = None if not bounds or bounds[0] is None else min(bounds)
        groups: dict[Key, list[Any]] = {}
        for run in live:
            for key, item in run.take(bound, everything=not bounds):
                if key in groups:
                    groups[key].append(item)
                else:
                    groups[key] = [item]
        for key in sorted(groups):
            yield key, groups[key]
        if bounds and not groups:
            items = chain.from_iterable([run.take_equal(bound) for run in live])
            yield bound, items
            deque(items, maxlen=0)
        live = [run for run in live if run.fill()]


class SegmentReader:
    """The reduce side: opens the committed segments of one partition and merges them."""

    def __init__(self, step: Step, segments: Segments) -> None:
        self._codec = step.codec()
        self._segments = segments
        self.chunks = 0  # in all segments
        self.loaded = 0
        self.size = 0  # bytes loaded

    def groups(self) -> Iterator[tuple[Key, Iterable[Any]]]:
        """Yield each key with its items, as `merge` does.

        Raises:
            SegmentLost: a chunk is missing or damaged.
        """
        heads = list(self._segments.heads())
        if missing := [producer for producer, head in heads if head is None]:
            raise SegmentLost(missing, "missing")  # all at once, so that they are made again side by side
        return merge([run for producer, head in heads for run in self._open(producer, head)])

    def _open(self, producer: int, head: bytes | None) -> Iterator[_SortedRun]:
        runs = self._checked(producer, head, _runs_of)
        total = sum(runs)
        self.chunks += total
        last = 0
        for length in runs:
            first, last = last + 1, last + length
            yield _SortedRun(range(first, last + 1), self._loader(producer, total, head))

    def _loader(self, producer: int, total: int, head: bytes | None) -> Callable[[int], tuple[list[Key], list[Any]]]:
        def load(number: int) -> tuple[list[Key], list[Any]]:
            # The last chunk of all is stored as 0.
            stored = head if number == total else self._segments.chunk(producer, number)
            decoded: tuple[list[Key], list[Any]]
            decoded = self._checked(producer, stored, lambda stored: self._codec.items(unseal(stored)))
            self.loaded += 1
            self.size += len(stored or b"")
            return decoded

        return load

    @staticmethod
    def _checked(producer: int, stored: bytes | None, decode: Callable[[bytes], Any]) -> Any:
        if stored is None:
            raise SegmentLost([producer], "missing")
        try:
            return decode(stored)
        except ValueError as error:
            raise SegmentLost([producer], f"not readable: {error}") from error


def _runs_of(head: bytes) -> tuple[int, ...]:
    runs = unseal(head).runs
    if not runs or min(runs) < 1 or sum(runs) > _MOST_CHUNKS:
        raise ValueError(f"no segment has {sum(runs)} chunks in {len(runs)} runs")
    return runs


def reduced(step: Step, key: Key, items: Iterable[Any]) -> Iterable[tuple[Key, Any]]:
    """Return the pairs that a step's reducer makes of a key and its items."""
    reducer = step.reducer
    if isinstance(reducer, Aggregator):
        accumulator = reducer.zero()
        for item in items:
            accumulator = reducer.merge(accumulator, item)
        return ((key, reducer.finish(accumulator)),)
    assert reducer is not None
    values = chain.from_iterable(items)
    return _call(reducer, key, iter(sorted(values)) if step.sort_values else values)


def _call(reducer: Reducer, key: Key, values: Iterator[Any]) -> Iterable[tuple[Key, Any]]:
    pairs = reducer(key, values)
    return () if pairs is None else pairs
