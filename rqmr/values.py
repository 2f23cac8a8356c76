"""What many values have in common, found out at C speed: whether they are plain, and what they take in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import msgspec

SCALARS = frozenset({type(None), bool, int, float, str, bytes})
_TEXTS = frozenset({str, bytes})
#: How many values are weighed for all.
_SAMPLE = 1000
_SEQUENCES = frozenset({list, tuple})

_encode = msgspec.msgpack.Encoder().encode


def are_plain(values: Collection[Any]) -> bool:
    """Whether all values are scalars, or all lists of scalars, or all dicts of scalars."""
    kinds = set(map(type, values))
    if kinds and (kinds <= _SEQUENCES or kinds == {dict}):
        return all(set(map(type, elements)) <= SCALARS for elements in _elements(values))
    return kinds <= SCALARS


def weight(value: Any) -> int:
    """Return about how many bytes of memory a key or value takes.

    Counted from the value alone and not asked of the interpreter, so that every machine spills at the same record.
    """
    kind = type(value)
    if kind in _TEXTS:
        return 56 + len(value)
    if kind in SCALARS:
        return 32
    if kind in _SEQUENCES:
        return 64 + weights(value)
    if kind is dict:
        return 64 + weights(value) + weights(value.values())
    try:
        return 64 + 2 * len(_encode(value))
    except (TypeError, ValueError, OverflowError):
        return 64  # it can't be carried, which is told when it is written


def weights(values: Collection[Any]) -> int:
    """Return the sum of the weights of some values."""
    kinds = set(map(type, values))
    if kinds <= _TEXTS:
        return 56 * len(values) + sum(map(len, values))
    if kinds <= SCALARS - _TEXTS:
        return 32 * len(values)
    if kinds <= _SEQUENCES or kinds == {dict}:
        return 64 * len(values) + sum(weights(list(elements)) for elements in _elements(values))
    return sum(map(weight, values))


def weight_by_sample(values: Sequence[Any]) -> int:
    """Return about the sum of the weights of some lists or dicts: their elements are counted, and some are weighed."""
    if not values or not set(map(type, values)) <= _SEQUENCES | {dict}:
        return weights(values)
    sample = values[:: max(1, len(values) // _SAMPLE)]
    weighed, elements = weights(sample) - 64 * len(sample), sum(map(len, sample))
    return 64 * len(values) + sum(map(len, values)) * weighed // (elements or 1)


def _elements(values: Iterable[Any]) -> Iterator[Iterator[Any]]:
    """Yield all elements of some lists or tuples; of dicts all keys, then all values."""
    yield chain.from_iterable(values)
    if isinstance(next(iter(values)), dict):
        yield chain.from_iterable(map(dict.values, values))
