"""Sorted runs that don't fit into memory side by side: some are merged into a temporary file, until all others do."""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import repeat
from operator import length_hint
from typing import IO, Any

from rqmr.aggregators import Aggregator
from rqmr.codec import ChunkCodec, Key, seal, unseal
from rqmr.errors import KeyFunctionError, RecordError, RqmrError
from rqmr.job import Step
from rqmr.model import Failure
from rqmr.values import weight
from rqmr.windows import Slice, SortedRun, Stream, sort, windows

#: What an entry takes in the lists of its run and in the dict of a window.
_ENTRY = 64  # bytes
#: How many entries of a chunk are weighed, and how many values of an entry.
_SAMPLE = 32
#: What is collected before it is encoded.
_BATCH = 2 << 20  # bytes
#: About how many times as much as on disk it is in memory.
_UNPACKED = 16


class Passes:
    """Merges runs of one step until the others fit into memory; what they are merged into is on disk."""

    def __init__(self, step: Step, memory: int, check: Callable[[], None]) -> None:
        """`memory`: bytes of decoded chunks, of all runs together; `check` is called often, to raise what ends it."""
        self._step = step
        self._codec = step.codec()
        self._memory = memory
        self._check = check
        self._file: _TemporaryFile | None = None
        self.written = 0  # chunks
        self.loaded = 0  # of these

    def close(self) -> None:
        """Remove what is on disk."""
        if self._file:
            self._file.close()

    def fit(self, runs: Iterable[SortedRun], count: int) -> list[SortedRun]:
        """Return runs with the entries of the given ones, in the same order, so few that a chunk of each fits.

        `count`: how many are given, at least. With an aggregator those at the beginning may be folded into one.

        Raises:
            RecordError: the temporary file can't be written.
            KeyFunctionError: the aggregator raised.
        """
        merged: list[SortedRun] = []
        held: list[SortedRun] = []
        weights: list[int] = []
        weight = 0  # of all that are held
        for taken, run in enumerate(runs, 1):
            if not run.fill():
                continue
            held.append(run)
            weights.append(chunk_weight(run.loaded))
            weight += weights[-1]
            if len(held) > 2 and weight > self._memory:
                size = self._enough(held, merged, count - taken)
                one, is_small = self._merge(held[:size], fold=not merged)
                held[:size], weights[:size] = [], []
                if is_small:
                    held.insert(0, one)
                    weights.insert(0, chunk_weight(one.loaded) if one.fill() else 0)
                else:
                    merged.append(one)
                weight = sum(weights)
        if not merged:
            return held
        weights += [chunk_weight(run.loaded) for run in merged if run.fill()]
        runs = merged + held
        if len(runs) > 2 and sum(weights) > self._memory:
            return self.fit(runs, len(runs))
        return runs

    def _enough(self, held: Sequence[SortedRun], merged: Sequence[SortedRun], coming: int) -> int:
        """Return how many of the runs held to merge: no more than it takes, as they are written and read once more."""
        if not merged and isinstance(self._step.reducer, Aggregator):
            return len(held)  # what they are folded into is hardly more than one of them
        fitting = len(held) - 1
        return max(2, min(fitting, len(merged) + len(held) + coming - fitting + 1))

    def _merge(self, runs: Sequence[SortedRun], *, fold: bool) -> tuple[SortedRun, bool]:
        """Return one run with the entries of several, and whether it is small enough to be merged time and again."""
        reducer = self._step.reducer
        folds = fold and isinstance(reducer, Aggregator)
        writer = _Writer(self._codec, self._opened())
        entries = self._folded(runs) if folds else self._entries(runs)
        for keys, items in entries:
            self._check()
            self.written += writer.add(keys, items)
        self.written += writer.finish()
        run = _TemporaryRun(self._codec, self._opened(), writer.places, self._note_load)
        return run, folds and writer.size * _UNPACKED < self._memory

    def _note_load(self) -> None:
        self.loaded += 1

    def _opened(self) -> _TemporaryFile:
        self._file = self._file or _TemporaryFile()
        return self._file

    def _entries(self, runs: Sequence[SortedRun]) -> Iterator[Slice]:
        is_grouped = not isinstance(self._step.reducer, Aggregator)
        for window in windows(runs):
            if isinstance(window, Stream):
                is_sorted = is_grouped and self._step.sort_values
                for item in window.values_in_order() if is_sorted else window.items():
                    yield Slice([window.key], [item])
            elif is_grouped:
                yield _in_order(grouped(window, sort_values=self._step.sort_values))
            else:
                yield _apart(together(window))

    def _folded(self, runs: Sequence[SortedRun]) -> Iterator[Slice]:
        reducer = self._step.reducer
        assert isinstance(reducer, Aggregator)
        for window in windows(runs):
            yield _in_order(folded(window, reducer))


def grouped(window: Sequence[Slice], *, sort_values: bool) -> dict[Key, list[Any]]:
    """Return the values of each key of a window. Raises as `windows.sort`."""
    groups: dict[Key, list[Any]] = {}
    for keys, items in window:
        for key, values in zip(keys, items, strict=True):
            held = groups.setdefault(key, values)
            if held is not values:
                held += values
    if sort_values:
        for key, values in groups.items():
            sort(key, values)
    return groups


def folded(window: Sequence[Slice] | Stream, aggregator: Aggregator) -> dict[Key, Any]:
    """Return the accumulator of each key of a window, or of a stream.

    Raises:
        KeyFunctionError: the aggregator raised; names the key.
    """
    table: dict[Key, Any] = {}
    slices = (Slice([window.key], [item]) for item in window.items()) if isinstance(window, Stream) else window
    for keys, items in slices:
        upcoming = iter(keys)
        try:
            aggregator.merge_all(table, zip(upcoming, items, strict=False))
        except RqmrError:
            raise
        except Exception as error:
            raise KeyFunctionError(keys[len(keys) - length_hint(upcoming) - 1]) from error
    return table


def chunk_weight(chunk: Slice) -> int:
    """Return about how many bytes of memory the entries of a chunk take, by some of them."""
    keys, items = chunk
    sample = range(0, len(keys), max(1, len(keys) // _SAMPLE))
    weighed = sum(_ENTRY + weight(keys[at]) + _item_weight(items[at]) for at in sample)
    return weighed * len(keys) // (len(sample) or 1)


def _item_weight(item: Any) -> int:
    if type(item) is not list or len(item) <= _SAMPLE:
        return weight(item)
    sample = item[:: len(item) // _SAMPLE]
    return 64 + len(item) * (8 + weight(sample) // len(sample))


def together(window: Sequence[Slice]) -> dict[Key, list[Any]]:
    """Return the accumulators of each key of a window."""
    groups: dict[Key, list[Any]] = {}
    for keys, items in window:
        for key, item in zip(keys, items, strict=True):
            if key in groups:
                groups[key].append(item)
            else:
                groups[key] = [item]
    return groups


def ascending(groups: dict[Key, Any]) -> list[Key]:
    """Return the keys in their order."""
    return sorted(groups) if len(groups) > 1 else list(groups)  # of None, which has no order, there is one


def _in_order(groups: dict[Key, Any]) -> Slice:
    keys = ascending(groups)
    return Slice(keys, list(map(groups.__getitem__, keys)))


def _apart(groups: dict[Key, list[Any]]) -> Slice:
    """Return an entry for each accumulator. They aren't merged, since that would add floats in another order."""
    entries = Slice([], [])
    for key in ascending(groups):
        entries.keys.extend(repeat(key, len(groups[key])))
        entries.items.extend(groups[key])
    return entries


class _TemporaryFile:
    """A file in TMPDIR that has no name, so that it is gone when its process is, however that ends."""

    def __init__(self) -> None:
        with _telling():
            self._file: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        self._end = 0

    def write(self, data: bytes) -> tuple[int, int]:
        """Add to it; return where that is and its size."""
        place = self._end, len(data)
        left = memoryview(data)
        while left:
            with _telling():
                written = os.pwrite(self._file.fileno(), left, self._end)
            left = left[written:]
            self._end += written
        return place

    def read(self, start: int, size: int) -> bytes:
        """Return some of it."""
        with _telling():
            return os.pread(self._file.fileno(), size, start)

    def close(self) -> None:
        """Remove it."""
        with suppress(OSError):
            self._file.close()


@contextmanager
def _telling() -> Iterator[None]:
    """Tell of a disk that is full, or not there."""
    try:
        yield
    except OSError as error:
        place = tempfile.tempdir or "the temporary directory"  # it is known once there is one
        raise RecordError(
            Failure(
                f"this worker can't keep in {place} what is more than --memory: {error.strerror or error}; make room "
                f"there, set its TMPDIR to a larger disk, or raise --memory"
            )
        ) from error


class _Writer:
    """Writes one sorted run into a temporary file."""

    def __init__(self, codec: ChunkCodec, file: _TemporaryFile) -> None:
        self._codec = codec
        self._file = file
        self._keys: list[Key] = []
        self._items: list[Any] = []
        self._held = 0  # bytes of memory
        self.places: deque[tuple[int, int]] = deque()
        self.size = 0  # bytes

    def add(self, keys: list[Key], items: list[Any]) -> int:
        """Add entries; return how many chunks that made."""
        self._keys += keys
        self._items += items
        self._held += chunk_weight(Slice(keys, items))
        return self.finish() if self._held > _BATCH else 0

    def finish(self) -> int:
        """Write what is held; return how many chunks it is."""
        count = 0
        for count, body in enumerate(self._codec.bodies(self._keys, self._items), 1):  # noqa: B007
            data = seal(body)
            self.places.append(self._file.write(data))
            self.size += len(data)
        self._keys, self._items, self._held = [], [], 0
        return count


class _TemporaryRun(SortedRun):
    """A sorted run in a temporary file."""

    def __init__(
        self, codec: ChunkCodec, file: _TemporaryFile, places: deque[tuple[int, int]], note: Callable[[], None]
    ) -> None:
        super().__init__()
        self._codec = codec
        self._file = file
        self._places = places
        self._note = note

    @property
    def has_more(self) -> bool:
        return bool(self._places)

    def _load(self) -> tuple[list[Key], list[Any]]:
        stored = self._file.read(*self._places.popleft())
        self._note()
        try:
            return self._codec.items(unseal(stored))
        except ValueError as error:
            raise RecordError(Failure(f"a temporary file of this worker is damaged: {error}")) from error
