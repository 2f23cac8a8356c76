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
from rqmr.aggregators import Collect, Distinct, Top
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

def large_values(source, size):
    yield "key", f"{source}{size}" * size
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
    """Counts the records that a fused loop took."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.records = 0
        fused = Yielded.fused

        def counted(yielded: Yielded, *arguments: Any) -> Any:
            run = fused(yielded, *arguments)

            def running(*given: Any) -> None:
                assert run is not None
                assert yielded.size is not None
                self.records += yielded.size
                run(*given)

            return run and running

        patch.setattr(Yielded, "fused", counted)


def shuffle(shuffler: Shuffler, mapper: Mapper, blocks: Iterable[Sequence[Any]]) -> None:
    shuffler.consume(Yielded(mapper, zip(itertools.repeat("s"), block), len(block)) for block in blocks)


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
        for seed in range(7):
            print("seed", seed)
            dice = random.Random(seed)
            cut_small(patch, batch=dice.choice([1, 3, 8]))
            patch.setattr(rqmr.shuffle, "_RECORDS", dice.choice([2, 3, 16]))
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
    if memory > 300:  # what is heavy for the memory is weighed
        assert fused.records > 200


@pytest.mark.parametrize("length", [1, 2, 10, 300, 3000])
@pytest.mark.parametrize("step", [Step(identity, all_values), Step(identity, Collect())])
def test_what_a_fused_loop_holds_is_known(step: Step, length: int, mappers: Any) -> None:
    """Of each part of a block some is weighed."""
    shuffler = Shuffler(step, 1, Store().sink(0), PLENTY)
    dice = random.Random(1)
    records = [[("k", "v" * dice.randrange(50))] * dice.randrange(4) for _ in range(20_000)]
    with pytest.MonkeyPatch.context() as patch:
        fused = Fused(patch)
        shuffle(
            shuffler, mappers.of_list, (records[start : start + length] for start in range(0, len(records), length))
        )

    held = [value for record in records for _, value in record]
    assert (fused.records > 10_000) == (length >= 10)
    assert 0.7 < shuffler._held / (sum(map(weight, held)) + 8 * len(held)) < 1.5


@pytest.mark.parametrize("reducer", [all_values, Distinct(), Collect()])
@pytest.mark.parametrize(
    ("mapper", "size", "count"),
    [
        (each, size, 200_000 // size)
        for each in ("many_values", "many_values_one_by_one")
        for size in (5, 1_000, 200_000)
    ]
    + [("large_values", 10_000, 512)],
)
def test_what_a_fused_loop_takes_is_held_within_memory(
    reducer: Any, mapper: str, size: int, count: int, mappers: Any
) -> None:
    """However much it makes of a record."""

    class Nowhere(Sink):
        def write(self, partition: int, chunk: int, data: bytes) -> None:
            pass

    memory = 4 << 20
    shuffler = Shuffler(Step(identity, reducer), 1, Nowhere({}), memory)
    tracemalloc.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            fused = Fused(patch)
            # Values that are larger at once are known from the next block on.
            blocks = [[1] * 64, [size] * count] if mapper == "large_values" else [[1] * 64 + [size] * count]
            shuffle(shuffler, getattr(mappers, mapper), [[1] * 2_000, *blocks])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert fused.records
    assert peak < 4 * memory + (40 * size if mapper == "many_values" else 0)  # the list itself
