"""The map side of the shuffle: pairs → sorted segments.

Pairs are folded or grouped in a dict, or held as they come where nearly all keys differ. At a memory bound, and at the
end, what is held is cut by partition, sorted and written: each time one sorted *run* for each partition. `merge` is the
other side.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, cycle, islice, tee
from operator import itemgetter
from typing import Any, Protocol

from rqmr.aggregators import Aggregator, Collect, Count
from rqmr.batch import Ones
from rqmr.codec import UNMISTAKABLE, Key, check_pair, one_signature, partitions_for, same_type, seal, shorten
from rqmr.errors import JobError, KeyFunctionError, MixedKeysError
from rqmr.fuse import Yielded
from rqmr.job import Step
from rqmr.order import TotalOrder
from rqmr.values import weight, weight_by_sample, weights
from rqmr.windows import sort

#: Pairs that are folded between two looks at the memory.
_BATCH = 1 << 14
#: The same where values are held, some of which may be far larger than those before; and how many of them at most go
#: by until the next one is weighed: most of what weighing all would cost is spared.
_HELD_BATCH, _UNWEIGHED = 256, 7
#: Where a mapper is fused, of how many pairs one is weighed: of 64 in the mean, and in step with nothing that yields.
_STRIDES = random.Random(1).sample(range(1, 128), 127)
_NOTHING: Any = object()
#: By how many pairs it is told whether nearly all keys differ, and how many of a thousand do then.
_SAMPLE, _DIFFERING = 1000, 900
#: What has a length that costs nothing to ask for.
_SIZED = frozenset({list, tuple, str, dict, set, frozenset, range, *map(type, ({}.keys(), {}.values(), {}.items()))})
_key_of, _value_of = itemgetter(0), itemgetter(1)
#: What a dict's entry takes besides its key and value, and what a pair does.
_ENTRY, _PAIR = 100, 64  # bytes
#: Appends the value of every pair to its key's list in a table.
_group = Collect().fold


class Sink(Protocol):
    """Where a task's segments go."""

    def write(self, partition: int, chunk: int, data: bytes) -> None:
        """Store one chunk of this attempt's segment for a partition."""

    def discard(self) -> None:
        """Forget all chunks; others may follow."""


def _batches(pairs: Iterator[tuple[Key, Any]]) -> Iterator[Iterable[tuple[Key, Any]]]:
    # Each iterator that a pair goes through costs a few percent of what folding it does.
    yield islice(pairs, _BATCH)
    for pair in pairs:
        yield (pair,)
        yield islice(pairs, _BATCH)


class Shuffler:
    """The map side: takes pairs, writes sorted runs to a sink."""

    def __init__(self, step: Step, partitions: int, sink: Sink, memory: int) -> None:
        self._step = step
        self._fold = step.fold
        self._codec = step.codec()
        self._partitions = partitions
        self._sink = sink
        self._memory = memory
        self._table: dict[Key, Any] = self._fold.table() if self._fold else {}
        #: Whether values are held by key, in the table. Where nearly all keys differ they aren't: to make, encode and
        #: decode a list for each key would cost more than all else.
        self._groups = step.fold is not None or step.combiner is not None or step.sort_values
        self._holds = step.fold is None or step.fold.grows  # values, so that more than keys takes memory
        self._has_looked = self._groups
        self._pairs: list[tuple[Key, Any]] = []
        self._keys_weighed = 0  # keys of the table whose weight is in _held
        self._held = 0  # bytes
        self._passed = 0  # pairs, or items that a fused mapper has looped over, since the last look
        self._strides = cycle(_STRIDES)
        self._stride = 1  # pairs until the next one that is weighed
        self.left = 0  # of these
        self._batch = 1  # values to hold until they are weighed
        self._runs: dict[int, list[int]] = {}  # partition -> chunks of each run
        self.key_type = self.key_example = ""

    def consume(self, streams: Iterable[Iterable[tuple[Key, Any]]]) -> None:
        """Take all pairs of some streams, each when those before it are taken.

        Raises:
            CarryError: a key or value can't be carried.
            MixedKeysError: keys differ in type.
        """
        streams = iter(streams)
        for stream in streams:
            pairs = iter(stream)
            first: Any = next(pairs, _NOTHING)
            if first is not _NOTHING:
                break
        else:
            return
        check_pair(first)
        streams = chain((chain((first,), pairs),), streams)
        is_pair = isinstance(first, tuple | list) and len(first) == 2  # if not, unpacking it says so
        if is_pair and type(first[0]) not in UNMISTAKABLE:
            streams = (same_type(chain.from_iterable(streams)),)
        del stream, first, pairs
        for stream in streams:
            if isinstance(stream, Ones) and type(self._fold) is Count:  # a subclass may count otherwise
                self._take_by(self._fold.count, stream.keys(_BATCH))
            elif not (isinstance(stream, Yielded) and self._take_fused(stream)):
                self._take(iter(stream))
            # Else the next one's keys would be made beside this one's, and a processor's cache has room for those of
            # one block.
            del stream

    def _take(self, pairs: Iterator[tuple[Key, Any]]) -> None:
        take = self._hold if self._fold is None else self._fold.fold
        self._take_by(take, self._weighed(pairs) if self._holds else _batches(pairs))

    def _take_by(self, take: Callable[[dict[Key, Any], Iterable[Any]], None], batches: Iterable[Iterable[Any]]) -> None:
        for batch in batches:
            take(self._table, batch)
            self._look_at_memory()

    def _take_fused(self, yielded: Yielded) -> bool:
        """Take all that a mapper yields in a loop that is fused with it; False if that can't be."""
        take = self._hold_singly if not self._groups else _group if self._fold is None else self._fold.fold
        # Between the pairs of a loop of the user's own no table may be written.
        if not self._has_looked or take.__module__ not in (Aggregator.__module__, __name__):
            return False
        run = yielded.fused(take, sampler=self) if self._holds else yielded.fused(take, self._watched)
        if run is None:
            return False
        run(self._table)
        self._look_at_memory()
        return True

    def _watched(self, items: Iterable[Any]) -> Iterable[Any]:
        """Return what a mapper loops over as it yields; look at the memory before or meanwhile, once in many items."""
        if type(items) not in _SIZED or len(items) > _BATCH:  # type: ignore[arg-type]
            return self._looking(items)
        # `fuse` counts the items of lists by itself.
        self._pass(_BATCH if type(items) is list else len(items))  # type: ignore[arg-type]
        return items

    def _looking(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            yield item
            self._passed += 1
            if self._passed >= _BATCH:  # else a call for each would be what is dear
                self._pass(0)

    def _pass(self, count: int) -> None:
        self._passed += count
        if self._passed >= _BATCH:
            self._passed = 0
            self._look_at_memory()

    def weigh(self, key: Key, value: Any) -> int:
        """Weigh a pair that a fused mapper yields, for those that went by since the last one; return how many will."""
        weighed = 8 + weight(value) if self._groups else 8 + _PAIR + weight(key) + weight(value)
        self._held += self._stride * weighed
        self._passed += self._stride
        if self._held > self._memory or self._passed >= (1 + _UNWEIGHED) * _HELD_BATCH:
            self._passed = 0
            self._look_at_memory()
        self._stride = max(1, min(next(self._strides), self._memory // (1024 * weighed)))
        return self._stride - 1

    def _look_at_memory(self) -> None:
        if self._groups and self._pairs:  # only since the last look, and a loop that is fused went on with pairs
            _group(self._table, self._pairs)
            self._pairs.clear()
        self._weigh_new_keys()
        if self._held > self._memory:
            self._make_room()

    def _hold(self, table: dict[Key, Any], pairs: Iterable[tuple[Key, Any]]) -> None:
        if self._groups:
            _group(table, pairs)
            return
        self._hold_singly(table, pairs)
        if not self._has_looked and len(self._pairs) >= _SAMPLE:
            self._has_looked = True
            self._look_at_keys()

    def _hold_singly(self, _: dict[Key, Any], pairs: Iterable[tuple[Key, Any]]) -> None:
        hold = self._pairs.append
        for key, value in pairs:
            hash(key)  # what can't be a key raises at its own record
            hold((key, value))

    def _look_at_keys(self) -> None:
        """Group the pairs that are held, and all that follow, unless nearly all keys of a sample differ."""
        sample = self._pairs[:: max(1, len(self._pairs) // _SAMPLE)]
        self._groups = len(set(map(_key_of, sample))) * 1000 < len(sample) * _DIFFERING
        if self._groups:
            _group(self._table, self._pairs)
            self._pairs.clear()
            self._weigh_anew()  # the last batch is weighed once more: better too much than too little

    def finish(self) -> set[int]:
        """Write what is left; return the partitions that have a segment."""
        self._write(self._combined(), last=True)
        return set(self._runs)

    def _weighed(self, pairs: Iterator[tuple[Key, Any]]) -> Iterator[Iterable[tuple[Key, Any]]]:
        """Yield pairs in batches, heavy ones in smaller batches, and weigh the values of some when they are taken.

        Where they are light, as many others go by and are assumed to weigh as much. A stream is of one block of the
        input, and its first batch is weighed, so values can't be much heavier unawares.
        """
        seen = 0
        while True:
            # Both are lazy: a pair that can't be taken is the record's at which the mapper is just then.
            size = self._batch
            batch, taken = tee(islice(pairs, size))
            yield batch
            if self._groups:
                values = [value for _, value in taken]
                weighed = 8 * len(values) + weights(values)
            else:
                keys, values = _columns((key, value) for key, value in taken)
                weighed = (8 + _PAIR) * len(values) + weights(keys) + weights(values)
            if not values:
                return
            self._held += weighed
            self._batch = max(1, min(2 * size, _HELD_BATCH, self._memory * len(values) // (16 * weighed)))
            if len(values) < size:
                return
            seen += size
            if self._batch == _HELD_BATCH:
                unweighed = min(seen, _UNWEIGHED * _HELD_BATCH)
                yield islice(pairs, unweighed)
                following = next(pairs, _NOTHING)
                if following is _NOTHING:
                    self._held += unweighed // 2 * weighed // size
                    return
                self._held += unweighed * weighed // size
                seen += unweighed
                yield (following,)

    def _make_room(self) -> None:
        """Write what is held as a run, unless it takes far less when it is combined or weighed anew."""
        combines = self._fold is None and self._step.combiner is not None
        if combines:
            combined = self._combined()
            self._table.clear()  # and no other table: a loop that is fused goes on with this one
            self._table.update(combined)
        if combines or (self._fold and self._fold.grows):
            self._weigh_anew()
        if self._held > self._memory // 2:
            self._write(self._table if combines else self._combined(), last=False)

    def _weigh_anew(self) -> None:
        self._held, self._keys_weighed = 0, 0
        self._weigh_new_keys()
        self._held += weight_by_sample(list(self._table.values()))

    def _weigh_new_keys(self) -> None:
        # A dict keeps the order of insertion, so its new keys are its last ones.
        new = list(islice(reversed(self._table), len(self._table) - self._keys_weighed))
        self._held += _ENTRY * len(new) + weights(new)
        self._keys_weighed = len(self._table)

    def _write(self, table: dict[Key, Any], *, last: bool) -> None:
        """Write a table, or the pairs that are held, as one sorted run for each partition."""
        if not self._groups:
            # Those that come later may be of few keys. And keys that have no order, of which there is only None, are
            # told from others here: they are one key, so they don't differ.
            self._look_at_keys()
        self._write_runs(table, last=last)
        # All that refers to what is held is gone by now. So it is let go of as it lies in memory, in the order in which
        # it came: in that of the keys it would take as long as sorting them.
        self._table.clear()
        self._pairs.clear()
        self._held = self._keys_weighed = 0

    def _write_runs(self, table: dict[Key, Any], *, last: bool) -> None:
        keys = list(table) if self._groups else list(map(_key_of, self._pairs))
        key_type = one_signature(keys)
        if key_type and self.key_type and key_type != self.key_type:
            raise MixedKeysError(f"keys of one step must have one type: some are {self.key_type}, others {key_type}")
        if key_type and not self.key_type:
            self.key_type, self.key_example = key_type, shorten(keys[0])
        by_partition = {}
        if keys:
            by_partition = self._cut(keys, keys) if self._groups else self._cut(keys, self._pairs, _key_of)
        if last:
            for partition in self._runs:
                by_partition.setdefault(partition, [])
        if self._step.sort_values and self._codec.is_grouped:
            for key, values in table.items():
                sort(key, values)
        for partition, part in by_partition.items():
            if self._groups:
                self._write_run(partition, part, list(map(table.__getitem__, part)), last=last)
            else:
                self._write_run(partition, *_columns(part), last=last)

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
                _group(table, combiner(key, iter(values)) or ())
            except Exception as error:
                raise KeyFunctionError(key) from error
        return table

    def _cut(
        self, keys: list[Key], entries: list[Any], key_of: Callable[[Any], Key] | None = None
    ) -> dict[int, list[Any]]:
        """Return each partition's entries, sorted; `keys`: theirs."""
        if self._partitions == 1:
            return {0: sorted(entries, key=key_of)}
        if isinstance(self._step.partitioner, TotalOrder):
            return self._ranges(self._step.partitioner, sorted(entries, key=key_of), key_of)
        # Cut before they are sorted: a dict's keys lie in memory in the order in which they came, so they are read
        # there one after the other, and less is sorted at a time.
        parts: list[list[Any]] = [[] for _ in range(self._partitions)]
        for entry, partition in zip(entries, self._partitions_of(keys), strict=True):
            parts[partition].append(entry)
        for part in parts:
            part.sort(key=key_of)
        return {partition: part for partition, part in enumerate(parts) if part}

    def _ranges(
        self, order: TotalOrder, entries: list[Any], key_of: Callable[[Any], Key] | None
    ) -> dict[int, list[Any]]:
        try:
            return dict(order.cut(entries, self._partitions, key_of))
        except TypeError as error:
            raise MixedKeysError(
                f"keys of one step must have one type, and bounds of a TotalOrder, too: {error}"
            ) from None

    def _partitions_of(self, keys: list[Key]) -> list[int]:
        if self._step.partitioner is None:
            return partitions_for(keys, self._partitions)
        partition_of = self._checked_partitioner()
        return [partition_of(key, self._partitions) for key in keys]

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
        single = not self._groups
        bodies = (self._codec.single if single else self._codec).bodies(keys, items)
        held = next(bodies, b"")
        written = 0
        for body in bodies:
            self._sink.write(partition, number + written, seal(held, single=single))
            written += 1
            held = body
        # Chunk 0 comes last and tells how many there are: a segment that has it is whole.
        runs.append(written + 1)
        head = seal(held, tuple(runs) if last else (), single=single)
        self._sink.write(partition, 0 if last else number + written, head)


def _columns(pairs: Iterable[tuple[Key, Any]]) -> tuple[list[Key], list[Any]]:
    pairs = list(pairs)
    return list(map(_key_of, pairs)), list(map(_value_of, pairs))
