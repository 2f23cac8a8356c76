"""Where values are held, what a fused loop takes is what a generator's loop takes, and is held within memory, too."""

from __future__ import annotations

import importlib.util
import itertools
import random
import sys
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
from test_shuffle import PLENTY, Pair, Sink, Store, all_values, cut_small, identity, oracle, reduce_all, same

import rqmr.shuffle
from rqmr.aggregators import Collect, Distinct, Sum, Top
from rqmr.codec import unseal
from rqmr.fuse import Yielded
from rqmr.job import Step
from rqmr.shuffle import Shuffler
from rqmr.values import weight

MAPPERS = """
def of_list(source, pairs):
    for key, value in pairs:
        yield key, value

def of_tuple(source, pairs):
    for key, value in tuple(pairs):
        yield key, value

def of_iterator(source, pairs):
    for pair in iter(pairs):
        yield pair[0], pair[1]

def many_values(source, size):
    for number in list(range(size)):
        yield "abcdefg"[number % 7], str(number) * 10

def many_values_one_by_one(source, size):
    for number in iter(range(size)):
        yield "abcdefg"[number % 7], str(number) * 10

def many_values_within(source, size):
    for number in iter(range(size // 100)):
        for other in range(100):
            yield "abcdefg"[number % 7], str(number) * 10

def many_keys_within(source, size):
    for number in iter(range(size // 100)):
        for other in range(100):
            yield f"{number}-{other}", 1

def large_values(source, size):
    if size > 0:
        yield "key", str(size) * size

def few(source, size):
    for number in list(range(size)):
        if number % 1000 == 999:
            yield f"key{number}", "v" * 100
"""
Mapper = Callable[[str, Any], Iterable[Pair]]


@pytest.fixture(scope="module")
def mappers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """They have their source where `fuse` looks for it."""
    path = tmp_path_factory.mktemp("code") / "held_mappers.py"
    path.write_text(MAPPERS)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[path.stem] = made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    yield made
    del sys.modules[path.stem]


class Fused:
    """Counts the blocks that a fused loop took."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.blocks = 0
        fused = Yielded.fused

        def counted(*arguments: Any, **options: Any) -> Any:
            run = fused(*arguments, **options)
            self.blocks += run is not None
            return run

        patch.setattr(Yielded, "fused", counted)


def shuffle(shuffler: Shuffler, mapper: Mapper, blocks: Iterable[Sequence[Any]]) -> None:
    shuffler.consume(Yielded(mapper, zip(itertools.repeat("s"), block), is_held=True) for block in blocks)


def combiner(key: Any, values: Iterable[Any]) -> Iterable[Pair]:
    """Keep all, and tell them from those that weren't combined by their order only."""
    for value in values:
        yield key, value


STEPS = {
    "a reducer": (Step(identity, all_values), list),
    "a combiner": (Step(identity, all_values, combiner=combiner), list),
    "sorted values": (Step(identity, all_values, sort_values=True), sorted),
    "Collect": (Step(identity, Collect()), list),
    "Distinct": (Step(identity, Distinct()), lambda values: sorted(set(values))),
    "Top": (Step(identity, Top(2)), lambda values: sorted(values, reverse=True)[:2]),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("memory", [300, 30_000, PLENTY])
@pytest.mark.parametrize("mapper", ["of_list", "of_tuple", "of_iterator"])
def test_a_fused_loop_holds_what_a_generators_loop_holds(name: str, memory: int, mapper: str, mappers: Any) -> None:
    step, finish = STEPS[name]
    with pytest.MonkeyPatch.context() as patch:
        fused = Fused(patch)
        for seed in range(4):
            print("seed", seed)
            dice = random.Random(seed)
            cut_small(patch, batch=dice.choice([1, 3, 8]))
            patch.setattr(rqmr.shuffle, "_HELD_BATCH", dice.choice([1, 16]))
            tasks, store = [], Store()
            for task in range(3):
                blocks = [
                    [
                        [(str(dice.randrange(keys)), dice.randrange(100)) for _ in range(dice.randrange(20))]
                        for _ in range(dice.randrange(1, 40))
                    ]
                    for keys in dice.choices([3, 30, 10**9], k=dice.randrange(12))
                ]
                shuffler = Shuffler(step, 2, store.sink(task), memory)
                shuffle(shuffler, getattr(mappers, mapper), blocks)
                shuffler.finish()
                tasks.append([pair for block in blocks for record in block for pair in record])

            assert same(reduce_all(step, store, 2), oracle(tasks, 2, finish))
    assert fused.blocks > 10


@pytest.mark.parametrize("length", [1, 2, 10, 300, 3000])
@pytest.mark.parametrize("step", [Step(identity, all_values), Step(identity, Collect())])
def test_what_a_fused_loop_holds_is_known(step: Step, length: int, mappers: Any) -> None:
    """Some pairs are weighed, and it is counted how many go by, whatever the blocks."""
    shuffler = Shuffler(step, 1, Store().sink(0), PLENTY)
    dice = random.Random(1)
    records = [[("k", "v" * dice.randrange(50))] * dice.randrange(4) for _ in range(20_000)]
    with pytest.MonkeyPatch.context() as patch:
        fused = Fused(patch)
        starts = range(0, len(records), length)
        shuffle(shuffler, mappers.of_list, (records[start : start + length] for start in starts))

    held = [value for record in records for _, value in record]
    assert fused.blocks
    assert 0.7 < shuffler._held / (sum(map(weight, held)) + 8 * len(held)) < 1.5


class Nowhere(Sink):
    """Only counts the runs."""

    runs = 0

    def write(self, partition: int, chunk: int, data: bytes) -> None:
        self.runs = max(self.runs, len(unseal(data).runs))


MEMORY = 4 << 20


def peak_of(reducer: Any, mapper: Mapper, blocks: Iterable[Sequence[Any]]) -> tuple[int, int]:
    """Return the memory that a map task took at most, in bytes, and its runs."""
    sink = Nowhere({})
    shuffler = Shuffler(Step(identity, reducer), 1, sink, MEMORY)
    tracemalloc.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            fused = Fused(patch)
            shuffle(shuffler, mapper, blocks)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    shuffler.finish()
    assert fused.blocks
    return peak, sink.runs


@pytest.mark.parametrize("reducer", [all_values, Distinct(), Collect()])
@pytest.mark.parametrize("mapper", ["many_values", "many_values_one_by_one", "many_values_within"])
@pytest.mark.parametrize("size", [100, 1_000, 200_000])
def test_what_a_fused_loop_takes_is_held_within_memory(reducer: Any, mapper: str, size: int, mappers: Any) -> None:
    """However much it makes of a record."""
    blocks = [[1] * 64, [1] * 64 + [size] * (200_000 // size)]
    peak, _ = peak_of(reducer, getattr(mappers, mapper), [[100] * 20, *blocks])
    assert peak < 4 * MEMORY + (40 * size if mapper == "many_values" else 0)  # the list itself


@pytest.mark.parametrize("reducer", [all_values, Distinct(), Collect()])
@pytest.mark.parametrize("block", [[-1, 9_000], [*[-1] * 64, *[3_000] * 448]])
def test_values_that_are_larger_than_those_before_them_are_held_within_memory(
    reducer: Any, block: list[int], mappers: Any
) -> None:
    """As where each file has a header. Few of them go by until one is weighed."""
    peak, runs = peak_of(reducer, mappers.large_values, [[10] * 2_000, *[block] * (20_000_000 // sum(block) // 4)])
    assert peak < 4 * MEMORY
    assert runs > 1 or isinstance(reducer, Distinct)


@pytest.mark.parametrize("reducer", [all_values, Collect()])
def test_what_a_mapper_leaves_out_takes_no_memory(reducer: Any, mappers: Any) -> None:
    _, runs = peak_of(reducer, mappers.few, [[2_000] * 50 for _ in range(30)])
    assert runs == 1


def test_loops_in_loops_are_counted(mappers: Any) -> None:
    """Those over keys, too, of what holds no values."""
    peak, _ = peak_of(Sum(), mappers.many_keys_within, [[100], [200_000]])
    assert peak < 3 * MEMORY
