"""A job's `map_batch`: what it takes, and what becomes of what it returns."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import repeat
from typing import Any

from rqmr.codec import shorten
from rqmr.errors import JobError
from rqmr.readers import Block, TextLines

Pairs = Iterable[tuple[Any, Any]]


class Ones:
    """Pairs of keys, each with the value 1: what ``zip(keys, repeat(1))`` is, but `Count` counts them faster."""

    def __init__(self, keys: Iterable[Any]) -> None:
        """TypeError if the keys are a text, of which each letter would be one."""
        if isinstance(keys, str | bytes):
            raise TypeError(f"Ones takes many keys, and {shorten(keys, 50)} is one; Ones([key])?")
        self._keys = keys if isinstance(keys, list) else list(keys)

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        return zip(self._keys, repeat(1))

    def keys(self, most: int) -> Iterator[list[Any]]:
        """Yield the keys in lists of at most so many."""
        if len(self._keys) <= most:
            return iter((self._keys,))
        return (self._keys[start : start + most] for start in range(0, len(self._keys), most))


class BatchMapper:
    """Maps all records of a block in one call.

    Its function takes the input's name, and the records as a list or, if that parameter is annotated as `str`, as one
    text: the lines joined by newlines. It returns pairs, `Ones`, a dict (or `Counter`) of values by key, or None.
    """

    def __init__(self, function: Callable[[Any, Any], Pairs | Mapping[Any, Any] | None]) -> None:
        self._function = function
        self._takes_text = _second_annotation(function) is str

    def __call__(self, source: str, records: Any) -> Pairs:
        """Return the pairs of records that `records_of` has given."""
        made = self._function(source, records)
        if made is None:
            return ()
        return made.items() if isinstance(made, Mapping) else made

    def map_one(self, source: str, record: Any) -> Pairs:
        """Return the pairs of one record: the mapper of a job that has no other."""
        return self(source, record if self._takes_text else [record])

    def records_of(self, block: Block) -> tuple[Any, int]:
        """Return a block's records as the function takes them, and their number.

        Raises:
            JobError: it takes text, and they are none.
        """
        records = block.records
        if self._takes_text and isinstance(records, TextLines):
            return records.text, len(records)
        records = list(records)
        if not self._takes_text:
            return records, len(records)
        try:
            return "\n".join(records), len(records)
        except TypeError:
            told = f"map_batch takes text, but the reader's records are of type {type(records[0]).__name__}"
            raise JobError(f"{told}; annotate its second parameter as a list of them") from None


def _second_annotation(function: Callable[..., Any]) -> Any:
    try:
        hints = typing.get_type_hints(function)
        names = list(inspect.signature(function).parameters)
    except (NameError, TypeError, ValueError):
        return None  # e.g. names that are imported under TYPE_CHECKING only
    return hints.get(names[1]) if len(names) > 1 else None
