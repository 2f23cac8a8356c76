"""The shuffle of one task: pairs → sorted segments on the map side, segments → groups on the reduce side.

Map side: pairs are folded or grouped in a dict; at a memory bound, and at the end, it is sorted, cut by partition
and written: each time one sorted *run* for each partition. Reduce side: the runs of all segments are merged in
windows (one chunk of each run in memory), so that a partition may be larger than memory, and the values of a key
come in the order of (producer, emission), whatever ran where.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Protocol

from rqmr.aggregators import Aggregator
from rqmr.codec import UNMISTAKABLE, Key, one_signature, partition_for, same_type, seal, shorten, unseal, weight
from rqmr.errors import JobError, KeyFunctionError, MixedKeysError, SegmentLost
from rqmr.job import Reducer, Step

#: Pairs that are folded between two looks at the memory.
_BATCH = 1 << 14
#: In a segment: more than any server holds.
_MOST_CHUNKS = 1 << 32
_NOTHING: Any = object()
#: What a dict's entry takes besides its key and value.
_ENTRY = 100  # bytes


class Sink(Protocol):
    """Where a task's segments go."""

    def write(self, partition: int, chunk: int, data: bytes) -> None:
        """Store one chunk of this attempt's segment for a partition."""

    def discard(self) -> None:
        """Forget all chunks; others may follow."""


class Segments(Protocol):
    """The committed segments for one reduce task."""

    def heads(self) -> Iterator[tuple[int, bytes | None]]:
        """Yield each producer that has a segment, ascending, with its chunk 0 (None: missing)."""

    def chunk(self, producer: int, number: int) -> bytes | None:
        """Return one more chunk of a producer's segment (None: missing)."""


def check_pair(first: object) -> None:
    """Refuse text as a pair, TypeError: "is" would be unpacked into the key i and the value s."""
    if isinstance(first, str | bytes):
        raise TypeError(f"{first!r} was yielded; mapper and reducer yield pairs: yield key, value")


class Shuffler:
    """The map side: takes pairs, writes sorted runs to a sink."""

    def __init__(self, step: Step, partitions: int, sink: Sink, memory: int) -> None:
        self._step = step
        self._fold = step.fold
        self._codec = step.codec()
        self._partitions = partitions
        self._sink = sink
        self._memory = memory
        self._table: dict[Key, Any] = {}
        self._keys_weighed = 0  # keys of the table whose weight is in _held
        self._held = 0  # bytes
        self._runs: dict[int, list[int]] = {}  # partition -> chunks of each run
        self.key_type = self.key_example = ""

    def consume(self, pairs: Iterable[tuple[Key, Any]]) -> None:
        """Take all pairs.

        Raises:
            CarryError: a key or value can't be carried.
            MixedKeysError: keys differ in type.
        """
        pairs = iter(pairs)
        first = next(pairs, _NOTHING)
        if first is _NOTHING:
            return
        pairs = chain((first,), pairs)
        check_pair(first)
        is_pair = isinstance(first, tuple | list) and len(first) == 2  # if not, unpacking it says so
        if is_pair and type(first[0]) not in UNMISTAKABLE:
            pairs = same_type(pairs)
        weighs = self._fold is None or self._fold.grows
        take = self._group if self._fold is None else self._fold.fold
        for pair in pairs:
            following = self._weighed(pairs) if weighs else islice(pairs, _BATCH)
            take(self._table, chain((pair,), following))
            self._weigh_new_keys()
            if self._held > self._memory:
                self._spill(last=False)

    def finish(self) -> set[int]:
        """Write what is left; return the partitions that have a segment."""
        self._spill(last=True)
        return set(self._runs)

    @staticmethod
    def _group(table: dict[Key, list[Any]], pairs: Iterable[tuple[Key, Any]]) -> None:
        for key, value in pairs:
            if key in table:
                table[key].append(value)
            else:
                table[key] = [value]

    def _weighed(self, pairs: Iterator[tuple[Key, Any]]) -> Iterator[tuple[Key, Any]]:
        """Yield pairs until they are a batch or weigh too much."""
        for pair in islice(pairs, _BATCH):
            self._held += 8 + weight(pair[1])
            yield pair
            if self._held > self._memory:
                return

    def _weigh_new_keys(self) -> None:
        # A dict keeps the order of insertion, so its new keys are its last ones.
        for key in islice(reversed(self._table), len(self._table) - self._keys_weighed):
            self._held += _ENTRY + weight(key)
        self._keys_weighed = len(self._table)

    def _spill(self, *, last: bool) -> None:
        table = self._combined()
        key_type = one_signature(table)
        if key_type and self.key_type and key_type != self.key_type:
            raise MixedKeysError(f"keys of one step must have one type: some are {self.key_type}, others {key_type}")
        if key_type and not self.key_type:
            self.key_type, self.key_example = key_type, shorten(next(iter(table)))
        by_partition = self._cut(sorted(table)) if table else {}
        if last:
            for partition in self._runs:
                by_partition.setdefault(partition, [])
        for partition, keys in by_partition.items():
            self._write_run(partition, keys, [table[key] for key in keys], last=last)
        self._table.clear()
        self._held = self._keys_weighed = 0

    def _combined(self) -> dict[Key, Any]:
        combiner = self._step.combiner
        if self._fold is not None:
            if self._fold is self._step.reducer:
                return self._table
            return {key: [self._fold.finish(value)] for key, value in self._table.items()}
        if combiner is None:
            return self._table
        assert not isinstance(combiner, Aggregator)
        table: dict[Key, list[Any]] = {}
        for key, values in self._table.items():
            try:
                self._group(table, combiner(key, iter(values)) or ())
            except Exception as error:
                raise KeyFunctionError(key) from error
        return table

    def _cut(self, keys: list[Key]) -> dict[int, list[Key]]:
        if self._partitions == 1:
            return {0: keys}
        partition_of = self._checked_partitioner() if self._step.partitioner else partition_for
        parts: dict[int, list[Key]] = {}
        for key in keys:
            parts.setdefault(partition_of(key, self._partitions), []).append(key)
        return parts

    def _checked_partitioner(self) -> Callable[[Key, int], int]:
        partitioner = self._step.partitioner
        assert partitioner is not None

        def partition_of(key: Key, partitions: int) -> int:
            try:
                partition = partitioner(key, partitions)
            except Exception as error:
                raise KeyFunctionError(key) from error
            if type(partition) is not int or not 0 <= partition < partitions:
                raise JobError(f"the partitioner gave {partition!r} for key {key!r}; it must be 0 <= p < {partitions}")
            return partition

        return partition_of

    def _write_run(self, partition: int, keys: list[Key], items: list[Any], *, last: bool) -> None:
        runs = self._runs.setdefault(partition, [])
        number = sum(runs) + 1
        bodies = self._codec.bodies(keys, items)
        held = next(bodies, b"")
        written = 0
        for body in bodies:
            self._sink.write(partition, number + written, seal(held))
            written += 1
            held = body
        # Chunk 0 comes last and tells how many there are: a segment that has it is whole.
        runs.append(written + 1)
        self._sink.write(partition, 0 if last else number + written, seal(held, tuple(runs) if last else ()))


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
