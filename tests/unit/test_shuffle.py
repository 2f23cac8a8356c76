"""The shuffle: merging gives what grouping and sorting in one process gives, however the pairs were cut."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rqmr.codec
import rqmr.shuffle
from rqmr import Ones
from rqmr.aggregators import Aggregator, Collect, Count, Distinct, Max, Mean, Min, Sum, Top
from rqmr.codec import partition_for
from rqmr.errors import CarryError, JobError, MixedKeysError, SegmentLost
from rqmr.job import Step
from rqmr.merge import SegmentReader, folds_in_bulk, reducing
from rqmr.shuffle import Shuffler
from rqmr.values import weight

Pair = tuple[Any, Any]
PLENTY = 64 << 20


class Store:
    """What map tasks write and a reduce task reads: producer -> partition -> number -> chunk."""

    def __init__(self) -> None:
        self.chunks: dict[int, dict[int, dict[int, bytes]]] = {}

    def sink(self, producer: int) -> Sink:
        return Sink(self.chunks.setdefault(producer, {}))

    def segments(self, partition: int) -> Segments:
        return Segments({task: parts[partition] for task, parts in self.chunks.items() if partition in parts})


class Sink:
    def __init__(self, partitions: dict[int, dict[int, bytes]]) -> None:
        self.partitions = partitions

    def write(self, partition: int, chunk: int, data: bytes) -> None:
        chunks = self.partitions.setdefault(partition, {})
        assert chunk not in chunks, "no chunk is written twice"
        assert 0 not in chunks, "chunk 0 is written last"
        chunks[chunk] = data


class Segments:
    def __init__(self, producers: dict[int, dict[int, bytes]]) -> None:
        self.stored = producers
        self.fetched = 0

    def producers(self) -> list[int]:
        return sorted(self.stored)

    def chunks(self, wanted: Sequence[tuple[int, int]]) -> list[bytes | None]:
        self.fetched += 1
        return [self.stored[producer].get(number) for producer, number in wanted]


def identity(key: Any, value: Any) -> Iterable[Pair]:
    yield key, value


def all_values(key: Any, values: Iterable[Any]) -> Iterable[Pair]:
    """Reduce a key to its values, in their order."""
    yield key, list(values)


def mapped(step: Step, tasks: list[list[Pair]], partitions: int, memory: int = PLENTY) -> Store:
    """Run the map side of every task."""
    store = Store()
    for number, pairs in enumerate(tasks):
        sink = store.sink(number)
        shuffler = Shuffler(step, partitions, sink, memory)
        shuffler.consume([pairs])
        assert shuffler.finish() == set(sink.partitions), "what is told of partitions is what was written"
    return store


def reduce_all(step: Step, store: Store, partitions: int, memory: int = PLENTY) -> list[list[Pair]]:
    """Run the reduce side of every partition; both ways, if there are two."""
    parts = [
        [
            pair
            for key, values in SegmentReader(step, store.segments(partition), memory).groups()
            for pair in reducing(step)(key, values)
        ]
        for partition in range(partitions)
    ]
    if folds_in_bulk(step):
        readers = (SegmentReader(step, store.segments(partition), memory) for partition in range(partitions))
        in_bulk = [[pair for window in reader.folded() for pair in zip(*window, strict=True)] for reader in readers]
        assert same(in_bulk, parts)
    return parts


def run(step: Step, tasks: list[list[Pair]], partitions: int, memory: int = PLENTY) -> list[list[Pair]]:
    return reduce_all(step, mapped(step, tasks, partitions, memory), partitions, max(memory, 5000))


def oracle(
    tasks: list[list[Pair]],
    partitions: int,
    finish: Callable[[list[Any]], Any] = list,
    partitioner: Callable[[Any, int], int] = partition_for,
) -> list[list[Pair]]:
    """What grouping all pairs one after the other, then sorting the keys, gives."""
    groups: dict[Any, list[Any]] = {}
    for key, value in itertools.chain.from_iterable(tasks):
        groups.setdefault(key, []).append(value)
    parts: list[list[Pair]] = [[] for _ in range(partitions)]
    for key in sorted(groups) if len(groups) > 1 else groups:
        parts[partitioner(key, partitions)].append((key, finish(groups[key])))
    return parts


def same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)


def cut_small(patch: pytest.MonkeyPatch, batch: int = 3, chunk: int = 40) -> None:
    """Make every table spill often and every run have many chunks."""
    patch.setattr(rqmr.shuffle, "_BATCH", batch)
    patch.setattr(rqmr.shuffle, "_SAMPLE", max(1, 2 * batch))
    patch.setattr(rqmr.codec, "_CHUNK_TARGET", chunk)
    patch.setattr(rqmr.codec, "_CHUNK_LIMIT", 2 * chunk)
    patch.setattr(rqmr.codec, "_MOST_VALUES", 3)


words = st.sampled_from(["a", "b", "c", "dd", "é", "", "a\tb", "\n", "hot"])
KEYS = st.sampled_from(
    [
        words,
        st.integers(-3, 3),
        st.sampled_from([0.5, -1.0, 1e300, float("inf")]),
        st.booleans(),
        st.none(),
        st.binary(max_size=1),
        st.tuples(words, st.integers(0, 2)),
        st.tuples(st.none(), words),
    ]
)
numbers = st.integers(-100, 100)


@st.composite
def cut_into_tasks(draw: st.DrawFn, value: st.SearchStrategy[Any] = numbers) -> list[list[Pair]]:
    pair = st.tuples(draw(KEYS), value)
    return draw(st.lists(st.lists(pair, max_size=25), max_size=5))


# --- merge equals sorted -----------------------------------------------------------------------------------------


@given(tasks=cut_into_tasks(), partitions=st.integers(1, 5), memory=st.sampled_from([0, 300, PLENTY]), data=st.data())
@settings(max_examples=120, deadline=None)
def test_merging_gives_what_grouping_and_sorting_gives(
    tasks: list[list[Pair]], partitions: int, memory: int, data: st.DataObject
) -> None:
    """Keys ascend in each partition, and the values of a key come by map task, then as they were emitted."""
    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch, batch=data.draw(st.integers(1, 8)), chunk=data.draw(st.sampled_from([1, 20, 60])))
        assert same(run(Step(identity, all_values), tasks, partitions, memory), oracle(tasks, partitions))


AGGREGATORS: list[tuple[Aggregator, Callable[[list[Any]], Any]]] = [
    (Sum(), sum),
    (Count(), len),
    (Min(), min),
    (Max(), max),
    (Mean(), lambda values: sum(values) / len(values)),
    (Top(2), lambda values: sorted(values, reverse=True)[:2]),
    (Distinct(), lambda values: sorted(set(values))),
    (Collect(), list),
]


@pytest.mark.parametrize(("aggregator", "finish"), AGGREGATORS, ids=lambda value: type(value).__name__)
@given(tasks=cut_into_tasks(), partitions=st.integers(1, 4), memory=st.sampled_from([0, PLENTY]), data=st.data())
@settings(max_examples=25, deadline=None)
def test_folding_where_it_is_mapped_changes_nothing(
    aggregator: Aggregator, finish: Any, tasks: list[list[Pair]], partitions: int, memory: int, data: st.DataObject
) -> None:
    """Folded in tables that spill, then merged: as if all values had been added one after the other."""
    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch, batch=data.draw(st.integers(1, 8)), chunk=data.draw(st.sampled_from([1, 30])))
        found = run(Step(identity, aggregator), tasks, partitions, memory)
    assert same(found, oracle(tasks, partitions, finish))


@given(tasks=cut_into_tasks(st.floats(-1e6, 1e6)), partitions=st.integers(1, 3), memory=st.sampled_from([0, PLENTY]))
@settings(max_examples=50, deadline=None)
def test_float_sums_are_the_same_each_time(tasks: list[list[Pair]], partitions: int, memory: int) -> None:
    """Floats don't add up the same in another order, so the order is always that of the input."""
    step = Step(identity, Sum())
    store = mapped(step, tasks, partitions, memory)
    turned = Store()
    turned.chunks = dict(reversed(store.chunks.items()))  # tasks committed in another order
    assert same(reduce_all(step, store, partitions), reduce_all(step, turned, partitions))


def test_a_map_task_without_pairs_has_no_segment() -> None:
    """Absent is not lost: the task tells that there is none."""
    step = Step(identity, all_values)
    store = mapped(step, [[], [("a", 1)], []], 3)
    assert store.chunks[0] == store.chunks[2] == {}
    assert [len(part) for part in reduce_all(step, store, 3)] == [
        partition_for("a", 3) == number for number in range(3)
    ]


def test_a_partition_without_keys_is_empty() -> None:
    """More reducers than keys are no mistake."""
    parts = run(Step(identity, Sum()), [[("a", 1), ("b", 2)]], 50)
    assert sorted(pair for part in parts for pair in part) == [("a", 1), ("b", 2)]
    assert len(parts) == 50


def test_a_partition_that_only_an_early_spill_had_is_whole() -> None:
    """Its last run is empty, and still its chunk 0 tells of the runs before."""
    keys = [f"k{number}" for number in range(100)]
    first = next(key for key in keys if partition_for(key, 2) == 0)
    second = next(key for key in keys if partition_for(key, 2) == 1)
    step = Step(identity, all_values)
    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch, batch=1)
        parts = run(step, [[(first, n) for n in range(5)] + [(second, n) for n in range(5)]], 2, memory=0)
    assert parts == [[(first, [0, 1, 2, 3, 4])], [(second, [0, 1, 2, 3, 4])]]


def test_a_table_that_fits_is_one_run_and_one_that_does_not_spills() -> None:
    """The bound is on what the keys and values weigh."""
    pairs = [(f"key {number % 50_000}", "x" * 20) for number in range(100_000)]
    step = Step(identity, lambda key, values: [(key, sum(1 for _ in values))])
    for memory, spills in ((PLENTY, False), (2 << 20, True)):
        store = mapped(step, [pairs], 1, memory)
        runs = rqmr.codec.unseal(store.chunks[0][0][0]).runs
        assert (len(runs) > 1) == spills
        assert reduce_all(step, store, 1) == [[(key, 2) for key in sorted({key for key, _ in pairs})]]


@pytest.mark.parametrize("length", [1, 2, 3, 200, 256, 257, 300, 1000, 5000])
def test_what_is_held_is_known_however_the_pairs_come(length: int) -> None:
    """Not every value is weighed, and nobody counts what a block gives."""
    shuffler = Shuffler(Step(identity, all_values), 1, Store().sink(0), PLENTY)
    values = ["v" * (number % 50) for number in range(20_000)]
    streams = [values[start : start + length] for start in range(0, len(values), length)]

    shuffler.consume([("k", value) for value in stream] for stream in streams)

    assert 0.7 < shuffler._held / (sum(map(weight, values)) + 8 * len(values)) < 1.5


def test_a_fold_that_stays_small_does_not_spill() -> None:
    """A million ones of few keys need no memory."""
    store = mapped(Step(identity, Sum()), [[(n % 10, 1) for n in range(200_000)]], 1, memory=1 << 20)
    assert rqmr.codec.unseal(store.chunks[0][0][0]).runs == (1,)


def test_a_fold_that_grows_spills() -> None:
    """Collect keeps every value, so its values count."""
    pairs = [("k", "x" * 1000) for _ in range(40_000)]
    store = mapped(Step(identity, Collect()), [pairs], 1, memory=1 << 20)
    assert len(rqmr.codec.unseal(store.chunks[0][0][0]).runs) > 1
    assert reduce_all(Step(identity, Collect()), store, 1) == [[("k", ["x" * 1000] * 40_000)]]


# --- keys that nearly all differ ---------------------------------------------------------------------------------


def is_single(store: Store, task: int) -> bool:
    """Whether a task's segments have an entry for each value, and no lists."""
    (single,) = {rqmr.codec.unseal(chunk).single for part in store.chunks[task].values() for chunk in part.values()}
    return single


def test_where_keys_differ_no_list_is_made_for_each() -> None:
    """It is told by a task's first pairs, however they come, and what is read is the same."""
    different = [(f"{n * 7919 % 10_007:05}", n) for n in range(10_000)]
    often = [(f"{n * 7919 % 1_009:05}", n) for n in range(10_000)]
    some = [(f"{n * 7919 % 10_007:05}", n) for n in range(9_500) for _ in range(1 + (n % 20 == 0))]
    tasks = [different, often, different[:50], often[:1010] + often[:1010], some, different[:1500] + often]
    store = mapped(Step(identity, all_values), tasks, 3)
    assert [is_single(store, task) for task in range(6)] == [True, False, True, False, True, True]
    assert reduce_all(Step(identity, all_values), store, 3) == oracle(tasks, 3)


def test_pairs_of_different_keys_are_held_within_memory() -> None:
    """Keys count as values do."""
    pairs = [(f"{'k' * 100}{n * 7919 % 100_003}", n) for n in range(100_000)]
    step = Step(identity, all_values)
    for memory, runs in ((64 << 20, 1), (8 << 20, 3), (2 << 20, 12)):
        store = mapped(step, [pairs], 1, memory)
        assert runs <= len(rqmr.codec.unseal(store.chunks[0][0][0]).runs) <= 2 * runs
        assert reduce_all(step, store, 1, memory) == oracle([pairs], 1)


def test_what_is_yielded_may_be_changed_later() -> None:
    """A mapper may use one list for all its pairs."""
    pair: list[Any] = [None, None]

    def pairs() -> Iterator[list[Any]]:
        for pair[0], pair[1] in enumerate("abc"):
            yield pair

    store = Store()
    shuffler = Shuffler(Step(identity, all_values), 1, store.sink(0), PLENTY)
    shuffler.consume([pairs()])  # type: ignore[list-item]
    shuffler.finish()
    assert is_single(store, 0)
    assert reduce_all(Step(identity, all_values), store, 1) == [[(0, ["a"]), (1, ["b"]), (2, ["c"])]]


class Held(list[Any]):
    """A list that can be seen to be gone."""


@pytest.mark.parametrize(("form", "items"), [(Ones, ["a", "b"]), (iter, [("a", 1), ("b", 2)])])
@pytest.mark.parametrize("reducer", [Count(), Sum(), Collect(), all_values])
def test_what_a_stream_is_made_of_is_let_go_of_before_the_next_one_is_made(
    form: Callable[[Any], Any], items: list[Any], reducer: Any
) -> None:
    """Or twice as much would be held, of which a processor's cache has room for one."""
    made: list[weakref.ref[Held]] = []

    def streams() -> Iterator[Any]:
        for _ in range(5):
            assert not any(each() is not None for each in made)
            held = Held(items)
            made.append(weakref.ref(held))
            stream = form(held)
            del held
            yield stream
            del stream

    Shuffler(Step(identity, reducer), 2, Sink({}), PLENTY).consume(streams())
    assert len(made) == 5


@pytest.mark.parametrize("form", [set, lambda pair: {pair[0]: 0, pair[1]: 0}, dict.fromkeys])
def test_a_pair_is_whatever_can_be_unpacked_as_one(form: Callable[[Any], Any]) -> None:
    """Though it has no first and second."""
    pairs = [form((n, n + 100_000)) for n in range(3000)]
    for step in (Step(identity, all_values), Step(identity, all_values, sort_values=True)):
        found = [pair for part in run(step, [pairs], 2) for pair in part]
        assert {(key, *values) for key, values in found} == {tuple(pair) for pair in pairs}


def test_keys_that_begin_to_repeat_are_grouped_from_the_next_run_on() -> None:
    """Else what a task's first pairs are would decide for millions."""
    pairs = [(f"{n:05}", n) for n in range(2000)] + [(f"{n % 50:05}", n) for n in range(200_000)]
    step = Step(identity, all_values)
    shuffler = Shuffler(step, 1, Store().sink(0), 8 << 20)
    shuffler.consume([pairs])
    assert shuffler._groups
    assert run(step, [pairs], 2, 8 << 20) == oracle([pairs], 2)


def test_a_few_large_values_do_not_tell_of_the_keys() -> None:
    """A run that is written before there are enough pairs to tell."""
    pairs: list[Pair] = [("a", "x" * 600_000), ("b", "x" * 600_000), *(("hot", n) for n in range(10_000))]
    shuffler = Shuffler(Step(identity, all_values), 1, Store().sink(0), 1 << 20)
    shuffler.consume([pairs])
    assert shuffler._groups
    for keys in (["a", "b"], [None, None], [None]):
        pairs = [(key, "x" * 600_000) for key in keys] * 2
        assert run(Step(identity, all_values), [pairs], 3, 1 << 20) == oracle([pairs], 3)


def test_where_values_are_sorted_or_combined_they_are_in_lists() -> None:
    """Both look at all values of a key."""
    pairs = [(f"{n:05}", n) for n in range(2000)]
    for step in (Step(identity, all_values, sort_values=True), Step(identity, all_values, combiner=all_values)):
        assert not is_single(mapped(step, [pairs], 1), 0)


# --- hot keys ----------------------------------------------------------------------------------------------------


def hot_pairs(count: int) -> list[Pair]:
    return [("a", -1), *(("hot", number) for number in range(count)), ("z", -2)]


def test_one_key_with_all_the_values_keeps_their_order() -> None:
    """Over several tasks, each with many chunks of the same key, between keys before and behind it."""
    step = Step(identity, all_values)
    tasks = [hot_pairs(60_000), [], hot_pairs(5), hot_pairs(30_000)]
    assert run(step, tasks, 1) == oracle(tasks, 1)


def test_the_values_of_a_hot_key_are_loaded_while_they_are_read() -> None:
    """A reducer that takes one value after the other needs no memory for all of them."""
    step = Step(identity, all_values)
    tasks = [[("hot", "x" * 100) for _ in range(20_000)] for _ in range(3)]
    reader = SegmentReader(step, mapped(step, tasks, 1).segments(0))
    groups = reader.groups()
    key, values = next(groups)
    next(values)
    assert key == "hot"
    assert reader.chunks >= 15
    assert reader.loaded <= 4, "one chunk of each task's run, and the one that is read"
    assert sum(1 for _ in values) == 59_999
    assert reader.loaded == reader.chunks
    assert next(groups, None) is None


def test_only_a_window_of_a_large_partition_is_loaded_at_a_time() -> None:
    """A partition larger than memory works, because a chunk of each run is all that is held."""
    step = Step(identity, Sum())
    tasks = [[(f"{number:06}-{task}", "x" * 50) for number in range(20_000)] for task in range(3)]
    step = Step(identity, all_values)
    reader = SegmentReader(step, mapped(step, tasks, 1).segments(0))
    most = 0
    for number, _ in enumerate(reader.groups(), 1):
        most = max(most, reader.loaded - number * reader.chunks // 60_000)
    assert reader.loaded == reader.chunks > 15
    assert most <= 7


def test_a_reducer_that_does_not_read_its_values_skips_them() -> None:
    """Or reads some only: the next key gets its own."""
    taken = {"a": 0, "hot": 3, "z": 1}
    seen = {}

    def reducer(key: str, values: Iterator[int]) -> Iterable[Pair]:
        seen[key] = list(itertools.islice(values, taken[key]))
        return ((key, len(seen[key])),)

    step = Step(identity, reducer)
    tasks = [hot_pairs(20_000), hot_pairs(20_000)]
    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch, batch=1 << 14, chunk=500)
        assert run(step, tasks, 1) == [[("a", 0), ("hot", 3), ("z", 1)]]
    assert seen == {"a": [], "hot": [0, 1, 2], "z": [-2]}


def test_values_kept_beyond_their_key_are_over() -> None:
    """Who keeps the iterator finds no other key's values in it."""
    kept = []

    def reducer(key: str, values: Iterator[int]) -> Iterable[Pair]:
        kept.append(values)
        return ((key, next(values)),)

    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch, batch=1 << 14, chunk=500)
        assert len(run(Step(identity, reducer), [hot_pairs(20_000)], 1)[0]) == 3
    assert -2 not in list(kept[1])


@pytest.mark.parametrize("key", [None, ("a", None), "", b"", (), False])
def test_a_key_of_any_type_can_have_all_the_values(key: Any) -> None:
    """None, which has no order, included."""
    step = Step(identity, all_values)
    tasks = [[(key, number) for number in range(3000)] for _ in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch, batch=500, chunk=200)
        for memory in (0, PLENTY):
            assert run(step, tasks, 2, memory) == oracle(tasks, 2)


def test_equal_float_keys_meet_in_one_group() -> None:
    """0.0 and -0.0 are one key to a dict, so they are one key here, whichever task they come from."""
    parts = run(Step(identity, all_values), [[(0.0, 1), (1.0, 9)], [(-0.0, 2)]], 7)
    groups = {key: values for part in parts for key, values in part}
    assert sum(len(part) for part in parts) == 2
    assert groups == {0.0: [1, 2], 1.0: [9]}


# --- reducers, combiners, partitioners ---------------------------------------------------------------------------


def test_a_reducer_may_give_nothing_or_several_pairs() -> None:
    """None, an empty list, a generator: all are iterables of pairs, or nothing."""
    made = {"a": None, "b": [], "c": [("c", 1), ("cc", 2)], "d": iter([("d", 3)])}
    step = Step(identity, lambda key, values: made[key])
    assert run(step, [[(key, 0) for key in "abcd"]], 1) == [[("c", 1), ("cc", 2), ("d", 3)]]


def test_sort_values_gives_them_ascending() -> None:
    """Over all tasks and spills."""
    step = Step(identity, all_values, sort_values=True)
    tasks = [[("k", (number * 7919) % 1000) for number in range(500)] for _ in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch, batch=50, chunk=100)
        assert run(step, tasks, 1, memory=0) == oracle(tasks, 1, sorted)


@given(tasks=cut_into_tasks(), partitions=st.integers(1, 4), memory=st.sampled_from([0, PLENTY]))
@settings(max_examples=50, deadline=None)
def test_a_combiner_that_keeps_the_sum_changes_nothing(tasks: list[list[Pair]], partitions: int, memory: int) -> None:
    """It runs on some of a key's values, any number of times."""

    def total(key: Any, values: Iterable[int]) -> Iterable[Pair]:
        yield key, sum(values)

    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch)
        found = run(Step(identity, total, combiner=total), tasks, partitions, memory)
    assert same(found, oracle(tasks, partitions, sum))


def test_a_combiner_may_drop_or_multiply_pairs() -> None:
    """Its pairs are what is shuffled."""

    def combiner(key: str, values: Iterable[int]) -> Iterable[Pair] | None:
        return None if key == "drop" else [(key, value) for value in values for _ in range(2)]

    step = Step(identity, all_values, combiner=combiner)
    assert run(step, [[("drop", 1), ("keep", 2)], [("keep", 3)]], 1) == [[("keep", [2, 2, 3, 3])]]


def test_a_combiner_that_is_an_aggregator_feeds_a_reducer_function() -> None:
    """The reducer gets one finished value from each map task."""
    step = Step(identity, all_values, combiner=Max())
    assert run(step, [[("k", 1), ("k", 5)], [("k", 3)]], 1) == [[("k", [5, 3])]]


def test_a_combiner_that_changes_the_type_of_its_values_is_not_held_to_the_mappers_annotation() -> None:
    """The mapper yields Decimals, the combiner counts them: the reducer gets ints, as the combiner made them."""

    def mapper(key: Any, value: Any) -> Iterator[tuple[str, Decimal]]:
        yield key, Decimal(value)

    step = Step(mapper, all_values, combiner=Count())
    parts = run(step, [[("k", Decimal(1)), ("k", Decimal(2))], [("k", Decimal(3))]], 1)
    assert same(parts, [[("k", [2, 1])]])


def test_an_aggregator_as_reducer_leaves_a_combiner_function_without_work() -> None:
    """The aggregator folds at the map side itself, and the result is the same."""

    def total(key: Any, values: Iterable[int]) -> Iterable[Pair]:
        yield key, sum(values)

    assert run(Step(identity, Sum(), combiner=total), [[("k", 1), ("k", 2)], [("k", 3)]], 1) == [[("k", 6)]]


def test_the_restored_type_of_values_is_that_of_the_annotation() -> None:
    """Through spills and chunks, grouped or folded."""

    def mapper(key: Any, value: Any) -> Iterator[tuple[str, Decimal]]:
        yield key, value

    tasks = [[("k", Decimal("0.10")), ("j", Decimal(1))], [("k", Decimal("0.20"))]]
    assert same(run(Step(mapper, all_values), tasks, 1), oracle(tasks, 1))
    assert same(run(Step(mapper, Sum()), tasks, 1), oracle(tasks, 1, sum))
    assert same(run(Step(mapper, Mean()), tasks, 1)[0][1], ("k", Decimal("0.15")))


def test_a_custom_partitioner_decides() -> None:
    """Keys still ascend in each partition."""

    def by_first_letter(key: str, partitions: int) -> int:
        return ord(key[0]) % partitions

    tasks = [[(f"{letter}{number}", number) for letter in "cab" for number in range(3)]]
    step = Step(identity, all_values, partitioner=by_first_letter)
    assert run(step, tasks, 3) == oracle(tasks, 3, partitioner=by_first_letter)


@pytest.mark.parametrize("gives", [3, -1, "1", 1.0, None, True])
def test_a_partitioner_that_gives_no_partition_is_told(gives: Any) -> None:
    """With what it gave, for which key, and what it must give."""
    step = Step(identity, all_values, partitioner=lambda key, partitions: gives)
    with pytest.raises(JobError) as caught:
        mapped(step, [[("some key", 1)]], 3)
    assert repr(gives) in str(caught.value)
    assert "'some key'" in str(caught.value)
    assert "0 <= p < 3" in str(caught.value)


# --- what can't be shuffled --------------------------------------------------------------------------------------

MIXED: list[list[Any]] = [["a", 1], [1, True], [True, 1], [1, 1.0], [1.0, 1], [0.0, False], [("a", 1), ("a", True)]]


@pytest.mark.parametrize("keys", MIXED, ids=repr)
@pytest.mark.parametrize("step", [Step(identity, all_values), Step(identity, Sum())], ids=["grouped", "folded"])
@pytest.mark.parametrize("batch", [0, 100])
def test_keys_of_two_types_are_never_taken_for_one(keys: list[Any], step: Step, batch: int) -> None:
    """A dict would put 1, True and 1.0 together; in one table or over a spill, they are told apart."""
    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch, batch=batch)
        with pytest.raises(MixedKeysError):
            mapped(step, [[(key, 1) for key in keys]], 2, memory=0)


@pytest.mark.parametrize("key", [float("nan"), ("a", float("nan")), Decimal(1), 2**70, "\ud800", ("a", [1])])
@pytest.mark.parametrize("step", [Step(identity, all_values), Step(identity, Count())], ids=["grouped", "folded"])
@pytest.mark.parametrize("partitions", [1, 3])
def test_a_key_that_is_none_is_told(key: Any, step: Step, partitions: int) -> None:
    """As an error about the key, whatever the number of partitions."""
    with pytest.raises((CarryError, TypeError)) as caught:
        mapped(step, [[(key, 1)]], partitions)
    if not isinstance(key, tuple) or not isinstance(key[1], list):  # that one has no hash, which Python says itself
        assert isinstance(caught.value, CarryError)


@pytest.mark.parametrize("memory", [0, PLENTY])
def test_a_value_that_is_not_carried_is_told_with_its_key(memory: int) -> None:
    """Also when it is found at a spill, long after it was yielded."""
    with pytest.raises(CarryError, match=r"key 'bad'.*set"):
        mapped(Step(identity, all_values), [[("good", 1), ("bad", {1, 2})]], 2, memory)


def test_a_sum_beyond_64_bits_is_told() -> None:
    """Not wrapped around, and not lost."""
    with pytest.raises(CarryError, match=r"key 'k'.*(64 bits|2\*\*64)"):
        mapped(Step(identity, Sum()), [[("k", 2**63), ("k", 2**63)]], 1)


# --- lost and damaged segments -----------------------------------------------------------------------------------


def many_chunks() -> tuple[Step, Store]:
    step = Step(identity, all_values)
    tasks = [[(f"{task}-{number:04}", "x" * 30) for number in range(2000)] for task in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch, batch=1 << 14, chunk=4000)
        return step, mapped(step, tasks, 1)


def consume_groups(step: Step, store: Store) -> None:
    for _, items in SegmentReader(step, store.segments(0)).groups():
        for _ in items:
            pass


@pytest.mark.parametrize("producer", [0, 1, 2])
@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_missing_chunk_tells_whose_it_was(producer: int, number: int) -> None:
    """So that that map task can run again; none of the others has to."""
    step, store = many_chunks()
    assert len(store.chunks[producer][0]) > 3
    del store.chunks[producer][0][number]
    with pytest.raises(SegmentLost, match="missing") as caught:
        consume_groups(step, store)
    assert caught.value.producers == [producer]


def test_all_segments_that_are_missing_are_told_at_once() -> None:
    """So that their map tasks can run again side by side."""
    step, store = many_chunks()
    for producer in (0, 2):
        del store.chunks[producer][0][0]
    with pytest.raises(SegmentLost, match="missing") as caught:
        consume_groups(step, store)
    assert caught.value.producers == [0, 2]


@pytest.mark.parametrize("number", [0, 2])
def test_a_damaged_chunk_tells_whose_it_was(number: int) -> None:
    """A flipped bit, a chunk cut short, nothing left of it: all are found by the checksum."""
    for damage in (lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data[:50], lambda data: b""):
        step, store = many_chunks()
        store.chunks[1][0][number] = damage(store.chunks[1][0][number])
        with pytest.raises(SegmentLost, match="not readable") as caught:
            consume_groups(step, store)
        assert caught.value.producers == [1]
