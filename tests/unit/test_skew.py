"""Skew is told when it is worth a word, and only then."""

from __future__ import annotations

import pytest

from rqmr.config import Config
from rqmr.model import Kind, Outcome, Phase, Settings, Spec
from rqmr.skew import skew

MIB = 1 << 20


def told(*phases: list[Outcome]) -> tuple[str, ...]:
    """What is said of reduce phases with these outcomes."""
    kinds = [Phase(0, Kind.MAP, 1), *(Phase(step, Kind.REDUCE, len(tasks)) for step, tasks in enumerate(phases))]
    spec = Spec("r-1", "r", "", "R", {}, tuple(kinds), "/out/.rqmr-r-1", Settings(), 1000, 1000, 1, 1, Config().queue)
    return skew(spec, [[Outcome(1, 1, 1, {})], *phases])


def sizes(*mib: int) -> list[Outcome]:
    return [Outcome(1, size * MIB, 1, {}) for size in mib]


def keys(*counts: tuple[int, str, int]) -> list[Outcome]:
    return [Outcome(1, 1, 1, {}, values=values, largest_key=(key, most)) for values, key, most in counts]


@pytest.mark.parametrize(
    ("mib", "line"),
    [
        ((10, 10, 10, 60, 10), "partition 3 has 60% of the shuffle"),
        ((10, 10, 10, 15, 10), ""),
        ((100, 1), ""),
        ((100,), ""),
        ((0, 0, 0, 9, 0), ""),
        ((1,) * 49 + (9,), "partition 49 has 16% of the shuffle"),
    ],
    ids=["one has most", "about even", "one of two", "all there are", "little all in all", "one of fifty"],
)
def test_a_partition_that_stands_out_is_told(mib: tuple[int, ...], line: str) -> None:
    assert told(sizes(*mib)) == ((line,) if line else ())


def test_a_key_that_has_a_fifth_of_all_values_is_told() -> None:
    """Of all partitions' together."""
    many = 10**6
    assert told(keys((many, "'the'", 800_000), (many, "'of'", 700_000))) == (
        "key 'the' has 40% of the values of the shuffle",
    )
    assert told(keys((many, "'the'", 300_000), (many, "'of'", 200_000))) == ()
    assert told(keys((900, "'the'", 900))) == (), "too few to say a word"


def test_of_several_steps_it_is_said_which() -> None:
    """Each has a shuffle of its own."""
    assert told(sizes(1, 1, 1), sizes(1, 40, 1, 1)) == ("partition 1 has 93% of the shuffle of step 1",)


def test_a_shuffle_without_anything_is_no_matter() -> None:
    """No keys, no bytes."""
    assert told([Outcome(0, 0, 0, {})]) == ()
