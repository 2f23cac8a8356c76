"""Records ⇄ bytes: what the wire carries, the order of keys, the stable hash, and chunks of segments.

The wire is msgpack, so what comes from Redis is data and never code. It carries None, bool, int up to 64 bits,
float, str, bytes, list and dict; a tuple comes back as a list, but as a tuple in a key. With an annotation on the
mapper (`Iterator[tuple[str, Reading]]`) whatever msgspec knows is carried and comes back as that type.
"""

from __future__ import annotations

import contextlib
import math
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any
from zlib import crc32

import msgspec
from msgspec import Struct, structs

from rqmr.errors import CarryError, MixedKeysError
from rqmr.values import SCALARS, are_plain

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Key = Any
_ORDERED = frozenset({str, bytes, int, float, bool, type(None)})
_STORED = _ORDERED | {list}  # a tuple comes back as a list
#: Keys that are encoded as they are; of floats and tuples not all.
_PLAIN = frozenset({str, bytes, int, bool, type(None)})
#: Keys that can only be equal to keys of their own type. 1 == True == 1.0, and a dict would take them for one key.
UNMISTAKABLE = frozenset({str, bytes, type(None)})

_encode = msgspec.msgpack.Encoder().encode

#: Raw bytes that a chunk aims at, and may not exceed unless one single value does, and how many entries it has at most.
#: Small, since a reduce task holds one chunk of every run, where they are about ten times as large; but packed it is
#: above the ~10 KB below which Redis is bound by commands and not by bytes.
_CHUNK_TARGET, _CHUNK_LIMIT, _CHUNK_ENTRIES = 64 << 10, 128 << 10, 1 << 12
#: Values that an entry has at most: a key with more has several entries.
_MOST_VALUES = 1 << 12
#: The longest body: a value of Redis can't be longer. What unpacks to more is nothing that was written here.
_BODY_LIMIT = 512 << 20
_SMALL = 256  # bytes; below, compression costs more than it saves


def check_pair(first: object) -> None:
    """Refuse text as a pair, TypeError: "is" would be unpacked into the key i and the value s."""
    if isinstance(first, str | bytes):
        raise TypeError(f"{first!r} was yielded; mapper and reducer yield pairs: yield key, value")


def partition_for(key: Key, partitions: int) -> int:
    """Return the partition of a key: the same in every process, on every machine (never Python's own `hash`).

    Raises:
        CarryError: the wire can't carry the key.
    """
    return crc32(_encoded_key(key)) % partitions


def partitions_for(keys: Sequence[Key], partitions: int) -> list[int]:
    """Return the partition of each key, as `partition_for` does."""
    if set(map(type, keys)) <= _PLAIN:
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            return [hashed % partitions for hashed in map(crc32, map(_encode, keys))]
    return [partition_for(key, partitions) for key in keys]


def signature(key: Key) -> str:
    """Return the exact type of a key, a tuple's element by element: ``str``, ``(str,int)``.

    Raises:
        CarryError: the type has no order or can't be carried, or the key is NaN, which is not even equal to itself.
    """
    kind = type(key)
    if kind in _ORDERED:
        if kind is float and math.isnan(key):
            raise CarryError("NaN can't be a key: it is not equal to itself")
        return "None" if key is None else kind.__name__
    if kind is tuple:
        return f"({','.join(map(signature, key))})"
    raise CarryError(
        f"a key can't be of type {_type_name(kind)} (key {shorten(key)}); keys are str, int, float, bool, bytes, "
        f"None or tuples of these"
    )


def one_signature(keys: Sequence[Key]) -> str:
    """Return the signature that all keys share, "" if there are none.

    Raises:
        MixedKeysError: two keys differ in type; names both.
        CarryError: as `signature`.
    """
    kinds = set(map(type, keys))
    if len(kinds) == 1 and next(iter(kinds)) in UNMISTAKABLE | {int, bool}:
        return signature(keys[0])
    seen: dict[str, Key] = {}
    for key in keys:
        seen.setdefault(signature(key), key)
        if len(seen) > 1:
            (one, first), (other, second) = seen.items()
            raise _mixed(first, one, second, other)
    return next(iter(seen), "")


def same_type(pairs: Iterable[tuple[Key, Any]]) -> Iterator[tuple[Key, Any]]:
    """Pass pairs on, but stop at the first key whose type differs from the first one's.

    Only for keys that a dict could take for each other (see `UNMISTAKABLE`); others are checked when they're written.
    """
    first, expected = None, ""
    for pair in pairs:
        found = signature(pair[0])
        if found != expected:
            if expected:
                raise _mixed(first, expected, pair[0], found)
            first, expected = pair[0], found
        yield pair


def check_carried(value: Any) -> None:
    """Return if the wire gives the value back as it is.

    Raises:
        CarryError: names the type that it can't carry.
    """
    kind = type(value)
    if kind is int and not -(2**63) <= value < 2**64:
        raise CarryError(f"the int {shorten(value)} has more than 64 bits")
    if kind in SCALARS:
        return
    if kind in (list, tuple):
        for element in value:
            check_carried(element)
    elif kind is dict:
        for key, element in value.items():
            check_carried(key)
            check_carried(element)
    else:
        raise CarryError(
            f"the wire can't carry a value of type {_type_name(kind)} ({shorten(value)}); yield str, int, float, bool, "
            f"None, bytes, list or dict, or annotate the mapper, e.g. -> Iterator[tuple[str, {kind.__name__}]]"
        )


def restores(annotation: Any) -> bool:
    """Whether values annotated so need their type restored: anything beyond what the wire gives back by itself."""
    if annotation in (Any, object, None) or annotation in SCALARS or annotation in (list, dict):
        return False
    origin = typing.get_origin(annotation)
    if origin in (list, dict, typing.Union, types.UnionType):
        return any(restores(argument) for argument in typing.get_args(annotation))
    return not isinstance(annotation, typing.TypeVar)


class Chunk(Struct, frozen=True, array_like=True):
    """Part of a segment as it is stored, behind its checksum.

    `runs` is set in chunk 0 only, which is written last: how many chunks each sorted run of the segment has. The
    chunks of a segment are 1, 2, … and, as the last of all, 0.
    """

    runs: tuple[int, ...]
    packed: bool  # whether the body is zstd
    single: bool  # whether an item is one value, where else it is a list of them
    body: bytes


class ChunkCodec:
    """Encodes and decodes chunks whose items (accumulators, or lists of values) have one type."""

    def __init__(self, item_type: Any = Any, *, grouped: bool) -> None:
        """`grouped`: an item is a list of values of `item_type`, not one accumulator of it."""
        self._rich = restores(item_type)
        self.is_grouped = grouped
        item = list[item_type] if grouped else item_type
        if not self._rich:
            item = list[Any] if grouped else Any
        columns: Any = tuple[list[Any], list[item]]  # type: ignore[valid-type]
        self._decode: Callable[[bytes], tuple[list[Any], list[Any]]] = msgspec.msgpack.Decoder(columns).decode
        #: The codec of chunks that have an entry for each value, and no lists.
        self.single: ChunkCodec = ChunkCodec(item_type, grouped=False) if grouped else self

    def bodies(self, keys: Sequence[Key], items: Sequence[Any]) -> Iterator[bytes]:
        """Encode a sorted run as bodies of about the chunk's target size.

        Raises:
            CarryError: a value can't be carried; names its key and type.
        """
        if self.is_grouped:
            keys, items = _cut_long_groups(keys, items, _MOST_VALUES)
        start, count, is_probe = 0, 256, True
        while start < len(keys):
            end = min(start + count, len(keys))
            body = self._encode(keys[start:end], items[start:end])
            count = max(1, min((end - start) * _CHUNK_TARGET // len(body), _CHUNK_ENTRIES))
            # The first chunk is as large as the others, since a reduce task takes it for one of them.
            is_small, is_probe = is_probe and end < len(keys) and count > 2 * (end - start), False
            if is_small or (len(body) > _CHUNK_LIMIT and end - start > 1):
                continue
            if len(body) > _CHUNK_LIMIT and self.is_grouped and len(items[start]) > 1:
                # One key's values are many bytes though they are few.
                most = max(1, len(items[start]) * _CHUNK_TARGET // len(body))
                yield from self.bodies(*_cut_long_groups(keys[start:end], items[start:end], most))
                start = end
                continue
            if len(body) > _BODY_LIMIT:
                raise CarryError(f"key {shorten(keys[start])}: a value has more than {_BODY_LIMIT >> 20} MiB")
            yield body
            start = end

    def _encode(self, keys: Sequence[Key], items: Sequence[Any]) -> bytes:
        if not self._rich:
            self._check(keys, items)
        try:
            body = _encode((keys, items))
            if self._rich:
                self._decode(body)
        except (TypeError, ValueError, OverflowError) as error:
            self._blame(keys, items, error)
        return body

    def _check(self, keys: Sequence[Key], items: Sequence[Any]) -> None:
        # Ints that are too long are told by the encoder.
        if self.is_grouped and set(map(type, chain.from_iterable(items))) <= SCALARS:
            return  # without a list of them all
        if are_plain(list(chain.from_iterable(items)) if self.is_grouped else items):
            return
        for key, item in zip(keys, items, strict=True):
            try:
                check_carried(item)
            except CarryError as error:
                raise CarryError(f"key {shorten(key)}: {error}") from None

    def _blame(self, keys: Sequence[Key], items: Sequence[Any], error: Exception) -> typing.NoReturn:
        """Find the key or value that can't be encoded."""
        for key, item in zip(keys, items, strict=True):
            _encoded_key(key)
            for value in item if self.is_grouped else (item,):
                try:
                    self._decode(_encode(((key,), ([value] if self.is_grouped else value,))))
                except (TypeError, ValueError, OverflowError) as cause:
                    kind = _type_name(type(value))
                    raise CarryError(
                        f"key {shorten(key)}: the wire can't carry the value {shorten(value)} of type {kind}: {cause}"
                    ) from None
        raise CarryError(f"the wire can't carry these records: {error}") from error

    def items(self, chunk: Chunk) -> tuple[list[Key], list[Any]]:
        """Decode a chunk's keys and items.

        Raises:
            ValueError: the bytes aren't a body of this type.
        """
        if chunk.single:
            if not self.is_grouped:
                raise ValueError("it has values where accumulators should be")
            keys, values = self.single.items(structs.replace(chunk, single=False))
            return keys, [[value] for value in values]
        body = _unpacked(chunk.body) if chunk.packed else chunk.body
        if not body:
            return [], []
        try:
            keys, items = self._decode(body)
        except RecursionError:
            raise ValueError("values lie too deep in each other") from None
        if len(keys) != len(items):
            raise ValueError("keys and items differ in number")
        kinds = set(map(type, keys))
        if len(kinds) > 1 or not kinds <= _STORED:
            raise ValueError(f"keys are of the types {', '.join(sorted(kind.__name__ for kind in kinds))}")
        return as_keys(keys), items


def as_keys(keys: list[Any]) -> list[Key]:
    """Return keys of one type as they were before they were stored.

    Raises:
        ValueError: a tuple holds what no key holds.
    """
    return [_as_tuple(key) for key in keys] if keys and type(keys[0]) is list else keys


def _unpacked(packed: bytes) -> bytes:
    """Decompress a body; ValueError if it is none, or too long."""
    unpacker = zstd.ZstdDecompressor()
    try:
        body = unpacker.decompress(packed, _BODY_LIMIT + 1)
    except zstd.ZstdError as error:
        raise ValueError(str(error)) from None
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError(
            "unpacked it is too long" if len(body) > _BODY_LIMIT else "its end is missing, or more follows"
        )
    return body


def seal(body: bytes, runs: tuple[int, ...] = (), *, single: bool = False) -> bytes:
    """Return a chunk as it is stored: checksum, then the chunk."""
    packed = len(body) >= _SMALL
    chunk = _encode(Chunk(runs, packed, single, zstd.compress(body, 1) if packed else body))
    return crc32(chunk).to_bytes(4, "little") + chunk


_decode_chunk = msgspec.msgpack.Decoder(Chunk).decode


def unseal(stored: bytes) -> Chunk:
    """Return the chunk that `seal` stored.

    Raises:
        ValueError: the checksum is wrong, or it is no chunk.
    """
    if int.from_bytes(stored[:4], "little") != crc32(stored[4:]):
        raise ValueError("damaged (its checksum is wrong)")
    return _decode_chunk(stored[4:])


def shorten(value: Any, limit: int = 200) -> str:
    """Return a value's repr, cut for a message."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


def as_text(text: str) -> str:
    """Return a str that can be encoded: what isn't text, which user code may have put into it, is spelled."""
    return text.encode(errors="backslashreplace").decode()


def _encoded_key(key: Key) -> bytes:
    try:
        return _encode(_without_negative_zero(key))
    except (TypeError, ValueError, OverflowError) as error:
        raise CarryError(f"the wire can't carry the key {shorten(key)}: {error}") from None


def _without_negative_zero(key: Key) -> Key:
    # 0.0 == -0.0, so they are one key and belong into one partition.
    if type(key) is float:
        return key + 0.0
    return tuple(map(_without_negative_zero, key)) if type(key) is tuple else key


def _cut_long_groups(
    keys: Sequence[Key], items: Sequence[list[Any]], limit: int
) -> tuple[Sequence[Key], Sequence[Any]]:
    """Give a key with many values several entries, so that no chunk has to hold them all."""
    if max(map(len, items), default=0) <= limit:
        return keys, items
    cut_keys, cut_items = [], []
    for key, item in zip(keys, items, strict=True):
        for start in range(0, len(item), limit):
            cut_keys.append(key)
            cut_items.append(item[start : start + limit])
    return cut_keys, cut_items


def _mixed(first: Key, its_type: str, second: Key, other_type: str) -> MixedKeysError:
    return MixedKeysError(
        f"keys of one step must have one type: {shorten(first)} is {its_type}, {shorten(second)} is {other_type}"
    )


def _as_tuple(key: Any) -> Any:
    if type(key) is list:
        return tuple(key) if _ORDERED.issuperset(map(type, key)) else tuple(_as_tuple(element) for element in key)
    if type(key) not in _ORDERED:
        raise ValueError(f"a key has a {type(key).__name__}")
    return key


def _type_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
