"""Reading what Redis holds: whatever is there, it is read as what it should be, or told as damaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import msgspec

from rqmr.errors import DamagedError

T = TypeVar("T")

_MOST = 2**63 - 1  # as in Redis


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Raise DamagedError, naming `what`, for whatever the block can't read."""
    try:
        yield
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        raise DamagedError(
            f"{what} in Redis can't be what rqmr wrote: {_shortened(f'{type(error).__name__}: {error}')}"
        ) from error


def unpacked(data: bytes, kind: type[T], what: str) -> T:
    """Return the record that is packed in some bytes.

    Raises:
        DamagedError: none is.
    """
    with reading(what):
        return msgspec.msgpack.decode(data, type=kind)


def whole(text: bytes | str | float) -> int:
    """Return a number that counts something; ValueError if it can't."""
    number = int(text)
    if not 0 <= number <= _MOST:
        raise ValueError(f"{number!r:.40} counts nothing")
    return number


def as_words(text: bytes) -> str:
    """Return text to be shown."""
    return text.decode(errors="replace")


def _shortened(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"
