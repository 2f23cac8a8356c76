"""A partition larger than memory is merged in passes, which changes nothing but where it waits meanwhile."""

from __future__ import annotations

import errno
import itertools
import os
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_shuffle import (
    PLENTY,
    Pair,
    Store,
    all_values,
    cut_into_tasks,
    cut_small,
    identity,
    mapped,
    numbers,
    oracle,
    reduce_all,
    same,
)

import rqmr.windows
from rqmr.aggregators import Collect, Count, Distinct, Max, Mean, Sum
from rqmr.errors import AttemptEnded, JobError, KeyFunctionError, RecordError
from rqmr.job import Step
from rqmr.merge import SegmentReader

#: Less than ten small chunks take.
LITTLE = 6000


def many_runs(key: Callable[[random.Random], Any], seed: int, tasks: int = 60) -> list[list[Pair]]:
    """Pairs of so many map tasks that their first chunks are far more than LITTLE; some keys are hot."""
    dice = random.Random(seed)
    return [[(key(dice), dice.randrange(1000)) for _ in range(dice.randrange(80))] for _ in range(tasks)]


KEYS: dict[str, Callable[[random.Random], Any]] = {
    "str": lambda dice: dice.choice(["hot", f"k{dice.randrange(300)}"]),
    "float": lambda dice: dice.choice([0.0, -0.0, dice.randrange(100) / 8]),
    "tuple": lambda dice: (dice.choice("ab"), dice.choice([1, dice.randrange(100)])),
    "None": lambda dice: None,
}


def written_by(step: Step, store: Store, memory: int) -> int:
    """Chunks that merging two partitions puts into temporary files."""
    written = 0
    for partition in range(2):
        reader = SegmentReader(step, store.segments(partition), memory)
        for _, values in reader.groups():
            consume(values)
        written += reader._passes.written
    return written


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("map_memory", [500, PLENTY])
@pytest.mark.parametrize(
    ("reducer", "finish"),
    [(all_values, list), (Sum(), sum), (Max(), max), (Mean(), None), (Collect(), list), (Count(), len)],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_merging_in_passes_gives_what_grouping_and_sorting_gives(
    kind: str, map_memory: int, reducer: Any, finish: Any
) -> None:
    """Whatever the keys, for functions and aggregators, and though each pass has room for a few chunks only."""
    seed = random.randrange(10**6)
    print("seed", seed)
    tasks = many_runs(KEYS[kind], seed)
    step = Step(identity, reducer)
    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch, batch=50, chunk=200)
        store = mapped(step, tasks, 2, map_memory)
        found = reduce_all(step, store, 2, LITTLE)
        assert written_by(step, store, LITTLE) > 0
        assert same(found, reduce_all(step, store, 2, PLENTY))
    assert same(found, oracle(tasks, 2, finish or (lambda values: sum(values) / len(values))))


@given(tasks=cut_into_tasks(), memory=st.integers(1, 3000), window=st.sampled_from([1, 5, 1 << 16]), data=st.data())
@settings(max_examples=80, deadline=None)
def test_any_pairs_can_be_merged_in_passes(
    tasks: list[list[Pair]], memory: int, window: int, data: st.DataObject
) -> None:
    """Also with windows of few entries."""
    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch, batch=data.draw(st.integers(1, 8)), chunk=data.draw(st.sampled_from([1, 20, 60])))
        patch.setattr(rqmr.windows, "_WINDOW", window)
        for reducer, finish in ((all_values, list), (Sum(), sum), (Distinct(), lambda values: sorted(set(values)))):
            step = Step(identity, reducer)
            assert same(reduce_all(step, mapped(step, tasks, 2, 300), 2, memory), oracle(tasks, 2, finish))


def test_sums_of_floats_do_not_depend_on_the_passes() -> None:
    """They are added in the order of the map tasks, whatever was merged before."""
    dice = random.Random(7)
    tasks = [[(f"k{dice.randrange(40)}", dice.uniform(-1e9, 1e9)) for _ in range(60)] for _ in range(50)]
    step = Step(identity, Sum())
    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch, batch=100, chunk=100)
        store = mapped(step, tasks, 1)
        assert written_by(step, store, LITTLE) > 0
        for memory in (1, LITTLE, 50_000):
            assert same(reduce_all(step, store, 1, memory), reduce_all(step, store, 1, PLENTY))


def test_few_keys_of_very_many_maps_are_folded_as_they_come() -> None:
    """So that little is written, and that little is merged again; not everything again and again."""
    tasks = [[(f"k{number}", 1) for number in range(20)] for _ in range(500)]
    step = Step(identity, Sum())
    store = mapped(step, tasks, 1)
    memory = 100_000
    reader = SegmentReader(step, store.segments(0), memory)
    assert dict(pair for window in reader.folded() for pair in zip(*window, strict=True)) == {
        f"k{number}": 500 for number in range(20)
    }
    assert 0 < reader._passes.written < 50


def test_chunks_of_many_segments_are_fetched_in_one_go() -> None:
    """A thousand map tasks don't cost a thousand round trips."""
    step = Step(identity, Sum())
    segments = mapped(step, [[(f"k{number}", 1)] for number in range(1000)], 1).segments(0)
    assert len(list(SegmentReader(step, segments).groups())) == 1000
    assert segments.fetched <= 1000 // 256 + 3


def test_what_is_fetched_ahead_is_bounded() -> None:
    """Half a gigabyte isn't asked for because the chunks before were small."""
    step = Step(identity, all_values)
    tasks = [[(f"{number:05}", os.urandom(50)) for number in range(20_000)] for _ in range(8)]
    segments = mapped(step, tasks, 1).segments(0)
    most = 0
    real = segments.chunks

    def chunks(wanted: Any) -> Any:
        nonlocal most
        stored = real(wanted)
        most = max(most, sum(map(len, stored)))
        return stored

    segments.chunks = chunks  # type: ignore[method-assign]
    for _ in SegmentReader(step, segments).groups():
        pass
    assert 1 << 20 < most < 8 << 20
    assert segments.fetched < 30


# --- sort_values -------------------------------------------------------------------------------------------------


@given(
    tasks=cut_into_tasks(numbers | st.sampled_from([1, True, 1.0, 2.5])),
    map_memory=st.sampled_from([0, 300, PLENTY]),
    memory=st.sampled_from([1, 1000, PLENTY]),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_values_are_sorted_whatever_the_cuts(
    tasks: list[list[Pair]], map_memory: int, memory: int, data: st.DataObject
) -> None:
    """Equal ones, such as 1 and 1.0, in the order of the input."""
    step = Step(identity, all_values, sort_values=True)
    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch, batch=data.draw(st.integers(1, 8)), chunk=data.draw(st.sampled_from([1, 20, 60])))
        patch.setattr(rqmr.windows, "_WINDOW", data.draw(st.sampled_from([2, 1 << 16])))
        assert same(reduce_all(step, mapped(step, tasks, 2, map_memory), 2, memory), oracle(tasks, 2, sorted))


def test_the_sorted_values_of_a_hot_key_are_loaded_while_they_are_read() -> None:
    """Who takes one after the other needs no memory for all of them."""
    dice = random.Random(3)
    step = Step(identity, all_values, sort_values=True)
    tasks = [[("hot", [dice.random(), "x" * 90]) for _ in range(20_000)] for _ in range(3)]
    reader = SegmentReader(step, mapped(step, tasks, 1).segments(0))
    key, values = next(reader.groups())
    first = next(values)
    assert key == "hot"
    assert reader.loaded <= 9 < 50 <= reader.chunks
    assert [first, *values] == sorted(value for task in tasks for _, value in task)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([1, "a"], "'<' not supported"),
        ([None, None], "'<' not supported"),
        ([{}, {}], "'<' not supported"),
        ([1.0, float("nan"), 0.5], "neither of"),
        ([[1, 2], [1, "a"]], "'<' not supported"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("tasks", [1, 2], ids=["of one map task", "of two"])
def test_values_without_an_order_are_told_with_their_key(values: list[Any], told: str, tasks: int) -> None:
    """Found where they meet."""
    step = Step(identity, all_values, sort_values=True)
    pairs = [("fine", 1), *(("the key", value) for value in values)]
    cut = [pairs] if tasks == 1 else [pairs[:2], pairs[2:]]
    with pytest.raises(JobError, match="sort_values: the values of key 'the key' have no order: .*" + told):
        reduce_all(step, mapped(step, cut, 1), 1)


# --- the temporary file ------------------------------------------------------------------------------------------


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def open_files() -> set[str]:
    with os.scandir("/proc/self/fd") as entries:
        return {str(Path(entry.path).readlink()) for entry in entries if os.path.lexists(entry.path)}


def spread() -> tuple[Step, Store]:
    step = Step(identity, all_values)
    return step, mapped(step, [[(f"{task}-{number}", "x" * 50) for number in range(50)] for task in range(40)], 1)


def consume(groups: Iterable[Any]) -> None:
    for _ in groups:
        pass


def test_the_temporary_file_has_no_name_and_is_closed_at_the_end(scratch: Path) -> None:
    """So it is gone when its process is, also one that is killed."""
    before = open_files()
    step, store = spread()
    reader = SegmentReader(step, store.segments(0), LITTLE)
    groups = reader.groups()
    next(groups)
    assert reader._passes.written > 0
    assert list(scratch.iterdir()) == []
    assert len([name for name in open_files() - before if str(scratch) in name]) == 1
    consume(groups)
    assert not [name for name in open_files() if str(scratch) in name]


def test_the_temporary_file_is_closed_when_the_reader_is_left(scratch: Path) -> None:
    """By an error of the reducer, say."""
    step, store = spread()
    groups = SegmentReader(step, store.segments(0), LITTLE).groups()
    next(groups)
    del groups
    assert not [name for name in open_files() if str(scratch) in name]


def test_a_partition_that_fits_needs_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor a directory to write to."""
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    step, store = spread()
    consume(SegmentReader(step, store.segments(0)).groups())


def test_a_disk_that_is_full_is_told(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the directory, and what to do."""

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", refuse)
    step, store = spread()
    with pytest.raises(RecordError) as caught:
        consume(SegmentReader(step, store.segments(0), LITTLE).groups())
    message = caught.value.failure.message
    assert "No space left on device" in message
    assert str(scratch) in message
    assert "TMPDIR" in message
    assert "--memory" in message
    assert not caught.value.failure.final, "another worker may have room"


def test_a_directory_that_is_not_there_is_told(scratch: Path) -> None:
    """As a disk that is full is."""
    scratch.rmdir()
    step, store = spread()
    with pytest.raises(RecordError, match=r"No such file or directory.*TMPDIR"):
        consume(SegmentReader(step, store.segments(0), LITTLE).groups())


def test_a_short_write_is_gone_on_with(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system may write less than it was given."""
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:7], at))
    step, store = spread()
    assert reduce_all(step, store, 1, LITTLE) == reduce_all(step, store, 1)


def test_a_stop_is_heard_between_passes() -> None:
    """Merging may take longer than an attempt is wanted."""
    step, store = spread()

    def check() -> None:
        raise AttemptEnded

    with pytest.raises(AttemptEnded):
        consume(SegmentReader(step, store.segments(0), LITTLE, check).groups())


def test_an_aggregator_that_raises_is_told_with_its_key() -> None:
    """Also where keys are folded many at a time."""
    step = Step(identity, Max())
    store = mapped(
        step, [[(f"k{number}", "a" if task and number == 7 else 1) for number in range(20)] for task in (0, 1)], 1
    )
    with pytest.raises(KeyFunctionError) as caught:
        consume(SegmentReader(step, store.segments(0)).folded())
    assert caught.value.key == "k7"
    assert isinstance(caught.value.__cause__, TypeError)


def test_a_stream_of_many_runs_is_merged_in_passes() -> None:
    """One key of thousands of runs, each with a chunk or more of it."""
    tasks = [[("a", -1), *(("hot", number) for number in range(task, 3000, 100)), ("z", 1)] for task in range(100)]
    for sort_values, finish in ((False, list), (True, sorted)):
        step = Step(identity, all_values, sort_values=sort_values)
        with pytest.MonkeyPatch.context() as patch:
            cut_small(patch, batch=1 << 14, chunk=20)
            store = mapped(step, tasks, 1)
            assert same(reduce_all(step, store, 1, LITTLE), oracle(tasks, 1, finish))


def test_values_are_let_go_of_when_the_next_key_is_asked() -> None:
    """Also when they were streamed from what passes have written."""
    step = Step(identity, lambda key, values: [(key, next(values))])
    tasks = [[(key, number) for key in ("a", "hot", "z") for number in range(200)] for _ in range(30)]

    def pairs() -> Iterator[Pair]:
        return itertools.chain.from_iterable(reduce_all(step, mapped(step, tasks, 1), 1, LITTLE))

    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch, batch=1 << 14, chunk=100)
        assert list(pairs()) == [("a", 0), ("hot", 0), ("z", 0)]


def test_the_key_with_most_values_is_known() -> None:
    """Whether it was streamed or grouped."""
    tasks = [[("hot", 1)] * 900 + [("mild", 1)] * 50 + [("cold", 1)] for _ in range(4)]
    step = Step(identity, lambda key, values: [(key, sum(values))])
    for chunk in (30, 64 << 10):
        with pytest.MonkeyPatch.context() as patch:
            cut_small(patch, batch=1 << 14, chunk=chunk)
            reader = SegmentReader(step, mapped(step, tasks, 1).segments(0))
            assert [sum(values) for _, values in reader.groups()] == [4, 3600, 200]
        assert (reader.values, reader.largest_key) == (3804, ("hot", 3600))


def test_a_key_at_the_end_of_a_chunk_comes_as_a_list() -> None:
    """Only one that fills a chunk is streamed: those can't be had again when a record is bad."""
    step = Step(identity, all_values)
    tasks = [[(f"{number:04}", number) for number in range(task, 400, 3)] for task in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch, batch=1 << 14, chunk=60)
        reader = SegmentReader(step, mapped(step, tasks, 1).segments(0))
        assert all(isinstance(values, list) for _, values in reader.groups())
        assert reader.chunks > 30
