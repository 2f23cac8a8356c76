"""Sorted runs, merged in windows: of each run one chunk at a time is in memory.

Whatever has the same key comes out in the order of the runs.
"""

from __future__ import annotations

import operator
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, pairwise
from typing import Any, NamedTuple

from rqmr.codec import Key, shorten
from rqmr.errors import JobError

#: Entries that a window has at most of all runs together, so that it takes little memory besides theirs.
_WINDOW = 1 << 16


class SortedRun:
    """Entries, a key and an item each, of which one chunk at a time is decoded. Keys ascend, and may be repeated."""

    def __init__(self) -> None:
        self._keys: list[Key] = []
        self._items: list[Any] = []
        self._at = 0

    @property
    def has_more(self) -> bool:
        """Whether the run goes on behind the chunk that is loaded."""
        raise NotImplementedError

    def _load(self) -> tuple[list[Key], list[Any]]:
        """Return the next chunk's keys and items."""
        raise NotImplementedError

    @property
    def loaded(self) -> Slice:
        """The chunk that is loaded."""
        return Slice(self._keys, self._items)

    @property
    def key(self) -> Key:
        """The least key that is loaded and not taken."""
        return self._keys[self._at]

    def fill(self) -> bool:
        """Load the next chunk if all of this one is taken; return whether there is anything left."""
        while self._at == len(self._keys):
            if not self.has_more:
                return False
            self._keys, self._items = [], []  # let go of it first
            self._keys, self._items = self._load()
            self._at = 0
        return True

    def limits(self, most: int) -> tuple[Key, ...]:
        """Return a loaded key that no more than `most` entries are less than, unless all of the run is within that."""
        if len(self._keys) - self._at > most:
            return (self._keys[self._at + most],)
        return (self._keys[-1],) if self.has_more else ()

    def take(self, below: Key, *, everything: bool) -> Slice:
        """Take the loaded entries with keys less than a bound."""
        start = self._at
        # None is a key of its own type: nothing is less than it.
        self._at = len(self._keys) if everything else start if below is None else bisect_left(self._keys, below, start)
        return Slice(self._keys[start : self._at], self._items[start : self._at])

    def has_all_of(self, key: Key) -> bool:
        """Whether all entries of its least key are loaded; loads one chunk more to know."""
        if self._keys[-1] == key and self.has_more:
            keys, items = self._load()
            self._keys, self._items, self._at = self._keys[self._at :] + keys, self._items[self._at :] + items, 0
        return bool(self._keys[-1] != key) or not self.has_more

    def take_loaded(self, key: Key) -> Slice:
        """Take the loaded entries of its least key, if it is this one."""
        start = self._at
        self._at = len(self._keys) if key is None else bisect_right(self._keys, key, start)
        return Slice(self._keys[start : self._at], self._items[start : self._at])

    def take_equal(self, key: Key) -> Iterator[Any]:
        """Take the items of one key, loading on while it lasts."""
        while self.fill() and self._keys[self._at] == key:
            self._at += 1
            yield self._items[self._at - 1]


class Slice(NamedTuple):
    """Some entries of one run."""

    keys: list[Key]
    items: list[Any]


class Stream(NamedTuple):
    """One key that fills a whole chunk, and the runs that may have items of it."""

    key: Key
    runs: Sequence[SortedRun]

    def items(self) -> Iterator[Any]:
        """Take its items, run after run."""
        return chain.from_iterable([run.take_equal(self.key) for run in self.runs])

    def values_in_order(self) -> Iterator[list[Any]]:
        """Take its values ascending, where the items are lists of values that ascend in each run."""
        return _merged_values(self.key, [_Values(run, self.key) for run in self.runs])


def windows(runs: Iterable[SortedRun]) -> Iterator[list[Slice] | Stream]:
    """Yield all entries window after window, with keys ascending from one window to the next.

    What is less than the last loaded key of every unfinished run is complete, and can go: as slices in the order of the
    runs. When that is nothing, it is one key's turn. If that fills a whole chunk it is a stream: what isn't taken of it
    is passed over when the next window is asked.
    """
    live = [run for run in runs if run.fill()]
    while live:
        most = max(1, _WINDOW // len(live))
        limits = [limit for run in live for limit in run.limits(most)]
        bound = None if not limits or limits[0] is None else min(limits)
        window = [taken for run in live if (taken := run.take(bound, everything=not limits)).keys]
        if not window and all(run.has_all_of(bound) for run in live):
            window = [taken for run in live if (taken := run.take_loaded(bound)).keys]
        if window:
            yield window
        else:
            # Equal keys may look different: 0.0 and -0.0. It is the first one that is shown.
            stream = Stream(next(run.key for run in live if run.key == bound), live)
            yield stream
            deque(stream.items(), maxlen=0)
        del window
        live = [run for run in live if run.fill()]


def sort(key: Key, values: list[Any]) -> None:
    """Sort the values of a key, for `sort_values`; equal ones keep their order.

    Raises:
        JobError: they have no order, as values of different types or NaN; names the key.
    """
    try:
        values.sort()
        if all(map(operator.le, values, islice(values, 1, None))):
            return
        one, other = next((one, other) for one, other in pairwise(values) if not one <= other)
        problem = f"neither of {shorten(one, 50)} and {shorten(other, 50)} is less than the other"
    except TypeError as error:
        problem = str(error)
    raise JobError(f"sort_values: the values of key {shorten(key)} have no order: {problem}")


class _Values(SortedRun):
    """The values that a run has of one key, as keys of a run of their own."""

    def __init__(self, run: SortedRun, key: Key) -> None:
        super().__init__()
        self._lists = run.take_equal(key)
        self._next: list[Any] | None = next(self._lists, None)

    @property
    def has_more(self) -> bool:
        return self._next is not None

    def _load(self) -> tuple[list[Any], list[Any]]:
        values, self._next = self._next, next(self._lists, None)
        assert values is not None
        return values, values


def _merged_values(key: Key, runs: Sequence[SortedRun]) -> Iterator[list[Any]]:
    merged = windows(runs)
    while True:
        try:
            window = next(merged, None)
            if window is None:
                return
            if isinstance(window, Stream):
                for value in window.items():
                    yield [value]
                continue
        except TypeError as error:
            raise JobError(f"sort_values: the values of key {shorten(key)} have no order: {error}") from error
        values = list(chain.from_iterable(taken.keys for taken in window))
        sort(key, values)
        yield values
