"""Aggregators: folding any cut of the values and merging gives what adding them all gives."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rqmr
from rqmr.aggregators import Aggregator, Collect, Count, Distinct, Max, Mean, Min, Sum, Top
from rqmr.codec import ChunkCodec, seal, unseal

integers = st.integers(-(10**6), 10**6)
words = st.text(max_size=3)
#: Counts and words, as in "the ten most frequent words".
pairs = st.tuples(st.integers(0, 3), words)


class Span(Aggregator):
    """A user's own: how far the values lie apart."""

    def zero(self) -> Any:
        return None

    def add(self, accumulator: Any, value: Any) -> Any:
        return self.merge(accumulator, [value, value])

    def merge(self, accumulator: Any, other: Any) -> Any:
        return other if accumulator is None else [min(accumulator[0], other[0]), max(accumulator[1], other[1])]

    def finish(self, accumulator: Any) -> Any:
        return accumulator[1] - accumulator[0]


CASES: list[tuple[Aggregator, st.SearchStrategy[Any], Callable[[list[Any]], Any]]] = [
    (Sum(), integers, sum),
    (Sum(), st.decimals(-100, 100, places=2), sum),
    (Count(), words, len),
    (Count(), st.none(), len),
    (Min(), integers, min),
    (Min(), words, min),
    (Min(), pairs.map(list), min),
    (Max(), integers, max),
    (Max(), st.binary(max_size=2), max),
    (Mean(), integers, lambda values: sum(values) / len(values)),
    (Mean(), st.decimals(-100, 100, places=2), lambda values: sum(values) / len(values)),
    (Top(1), integers, lambda values: sorted(values, reverse=True)[:1]),
    (Top(3), words, lambda values: sorted(values, reverse=True)[:3]),
    (Top(3), pairs, lambda values: sorted(map(list, values), reverse=True)[:3]),
    (Top(100), integers, lambda values: sorted(values, reverse=True)),
    (Distinct(), integers, lambda values: sorted(set(values))),
    (Distinct(), pairs, lambda values: sorted(set(values))),
    (Collect(), integers, list),
    (Collect(), words, list),
    (Span(), integers, lambda values: max(values) - min(values)),
]


def name(value: object) -> str | None:
    return type(value).__name__ if isinstance(value, Aggregator) else None


def folded(aggregator: Aggregator, values: list[Any]) -> Any:
    """Return the accumulator of some values, as a map task makes it."""
    table: dict[str, Any] = aggregator.table()
    aggregator.fold(table, (("k", value) for value in values))
    return table["k"]


def travelled(accumulator: Any) -> Any:
    """Return what comes back of an accumulator from the wire; values that need an annotation stay as they are."""
    codec = ChunkCodec(grouped=False)
    (body,) = codec.bodies(["k"], [accumulator])
    return codec.items(unseal(seal(body)))[1][0]


def merged(aggregator: Aggregator, accumulators: list[Any]) -> Any:
    return aggregator.finish(functools.reduce(aggregator.merge, accumulators, aggregator.zero()))


@pytest.mark.parametrize(("aggregator", "value", "expected"), CASES, ids=name)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_cut_folded_and_merged_gives_what_adding_all_gives(
    aggregator: Aggregator, value: st.SearchStrategy[Any], expected: Any, data: st.DataObject
) -> None:
    """Whatever the map tasks and spills were, and after a journey over the wire where that needs no annotation."""
    cut = data.draw(st.lists(st.lists(value, min_size=1, max_size=8), min_size=1, max_size=5))
    values = [each for piece in cut for each in piece]
    right = expected(values)
    assert aggregator.finish(functools.reduce(aggregator.add, values, aggregator.zero())) == right
    assert merged(aggregator, [folded(aggregator, piece) for piece in cut]) == right
    if not isinstance(values[0], Decimal):
        assert merged(aggregator, [travelled(folded(aggregator, piece)) for piece in cut]) == right


@pytest.mark.parametrize(("aggregator", "value", "expected"), CASES, ids=name)
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_the_fast_fold_gives_what_add_gives(
    aggregator: Aggregator, value: st.SearchStrategy[Any], expected: Any, data: st.DataObject
) -> None:
    """Several keys in one table, and a table that has been begun already."""
    some = data.draw(st.lists(st.tuples(st.sampled_from("abc"), value), max_size=15))
    more = data.draw(st.lists(st.tuples(st.sampled_from("abc"), value), max_size=15))
    fast: dict[str, Any] = aggregator.table()
    plain: dict[str, Any] = {}
    for each in (some, more):
        aggregator.fold(fast, iter(each))
        Aggregator.fold(aggregator, plain, iter(each))
    assert list(fast) == list(plain)
    assert {key: aggregator.finish(each) for key, each in fast.items()} == {
        key: aggregator.finish(each) for key, each in plain.items()
    }


@pytest.mark.parametrize("aggregator", [Sum(), Min(), Max(), Top(2), Collect(), Distinct(), Mean(), Count(), Span()])
def test_an_accumulator_is_not_shared_between_keys_or_runs(aggregator: Aggregator) -> None:
    """Zero is new each time, although accumulators are changed in place."""
    assert aggregator.finish(folded(aggregator, [3, 1])) == aggregator.finish(folded(aggregator, [3, 1]))
    table: dict[str, Any] = aggregator.table()
    aggregator.fold(table, [("a", 1), ("b", 5), ("a", 2)])
    alone: dict[str, Any] = aggregator.table()
    aggregator.fold(alone, [("b", 5)])
    assert table["b"] == alone["b"]


class SumOfSquares(Sum):
    def add(self, accumulator: Any, value: Any) -> Any:
        return accumulator + value * value


class Longest(Max):
    def merge(self, accumulator: Any, other: Any) -> Any:
        return other if accumulator is None or len(other) > len(accumulator) else accumulator


def test_a_subclass_with_a_function_of_its_own_has_it_called() -> None:
    """The fast loops that it inherits don't know of it."""
    squares: dict[str, int] = {}
    SumOfSquares().fold(squares, [("k", 2), ("k", 3)])
    assert squares == {"k": 13}
    longest: dict[str, str] = {}
    Longest().merge_all(longest, [("k", "z"), ("k", "aa"), ("k", "b")])
    assert longest == {"k": "aa"}


@pytest.mark.parametrize("aggregator", [Sum(), Count(), Min(), Max()], ids=lambda value: type(value).__name__)
@given(pairs=st.lists(st.tuples(st.sampled_from("ab"), st.floats(-9, 9) | st.sampled_from([1, True]))))
def test_the_fast_merge_gives_what_merge_gives(aggregator: Aggregator, pairs: list[tuple[str, Any]]) -> None:
    slow: dict[str, Any] = {}
    fast: dict[str, Any] = {}
    Aggregator.merge_all(aggregator, slow, pairs)
    aggregator.merge_all(fast, pairs)
    assert repr(fast) == repr(slow)


def test_of_equal_values_the_first_is_the_extreme() -> None:
    """1 and 1.0 are equal: the result doesn't depend on which task came first, but on the input's order."""
    for aggregator in (Min(), Max()):
        assert repr(merged(aggregator, [folded(aggregator, [1]), folded(aggregator, [1.0])])) == "1"
        assert repr(merged(aggregator, [folded(aggregator, [1.0, 1]), folded(aggregator, [1])])) == "1.0"


def test_min_and_max_take_what_has_an_order() -> None:
    """Dates, fractions, lists."""
    days = [date(2026, 11, 21), date(2026, 1, 1)]
    assert Min().finish(folded(Min(), days)) == date(2026, 1, 1)
    assert Max().finish(folded(Max(), [Fraction(1, 3), Fraction(1, 2)])) == Fraction(1, 2)


def test_a_falsy_value_is_a_value() -> None:
    """0, "" and False are the least there is, not nothing."""
    assert Min().finish(folded(Min(), [0, 5])) == 0
    assert Max().finish(folded(Max(), [-5, 0, -1])) == 0
    assert Min().finish(folded(Min(), ["a", ""])) == ""


def test_sum_adds_whatever_adds_to_zero() -> None:
    """Decimals stay exact."""
    assert Sum().finish(folded(Sum(), [Decimal("0.1")] * 3)) == Decimal("0.3")
    assert Sum().finish(folded(Sum(), [Fraction(1, 3)] * 3)) == 1


def test_the_sum_of_values_that_do_not_add_to_zero_is_an_error() -> None:
    """As with Python's own sum."""
    with pytest.raises(TypeError):
        folded(Sum(), [timedelta(1)])


@pytest.mark.parametrize("k", [0, -1])
def test_top_of_nothing_is_refused(k: int) -> None:
    """When the job is written, not when it runs."""
    with pytest.raises(ValueError, match=r"Top\(.*at least 1"):
        Top(k)


def test_top_of_pairs_is_given_as_lists_whether_they_travelled_or_not() -> None:
    """Else the output of one map task would be spelled otherwise than that of two."""
    assert merged(Top(2), [folded(Top(2), [(1, "a"), (2, "b")])]) == [[2, "b"], [1, "a"]]
    assert merged(Top(2), [[[1, "a"]], [[2, "b"]]]) == [[2, "b"], [1, "a"]]


def test_an_aggregator_without_its_four_functions_says_so() -> None:
    """They are what a user writes."""
    for call in (lambda a: a.zero(), lambda a: a.add(0, 1), lambda a: a.merge(0, 1)):
        with pytest.raises(NotImplementedError):
            call(Aggregator())
    assert Aggregator().finish(7) == 7


def test_every_aggregator_is_a_name_of_the_package() -> None:
    """From rqmr import Sum, Count, …"""
    for aggregator in (Aggregator, Sum, Count, Min, Max, Mean, Top, Distinct, Collect):
        assert getattr(rqmr, aggregator.__name__) is aggregator
        assert aggregator.__name__ in rqmr.__all__
