"""Part files: how records are spelled, written and read back."""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NoReturn, Protocol
from zlib import crc32

import msgspec

from rqmr.codec import as_text, check_pair, shorten
from rqmr.errors import CarryError
from rqmr.fuse import Yielded
from rqmr.model import Part

_BUFFER = 256 << 10  # characters that are held before they are written
#: Records that are spelled at a time at most, where they are given in columns.
_MOST_AT_ONCE = 1 << 8
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_encode_json = msgspec.json.Encoder().encode  # spells text as `_json` does, and far faster
_json_text: Callable[[str], str] = json.encoder.encode_basestring
_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def to_json(value: Any) -> str:
    """Spell a value as compact JSON. What JSON has no word for is an object of one member whose name begins with $.

    ``{"$bytes":"aGk="}`` (base64), ``{"$float":"nan"}`` (nan, inf, -inf), ``{"$decimal":"1.10"}``,
    ``{"$date":"2026-11-21"}``, ``{"$datetime":…}``, ``{"$time":…}``, and ``{"$dict":[[key,value],…]}`` for a dict
    with a key that isn't a str or begins with $. Tuples are arrays, dataclasses objects.

    Raises:
        CarryError: the value's type has no spelling.
    """
    kind = type(value)
    if kind is str:
        return _json_text(value)
    if kind is int or (kind is float and math.isfinite(value)):
        return repr(value)
    if kind is list and set(map(type, value)) == {str}:  # what Distinct and Collect mostly give
        try:
            return _encode_json(value).decode()
        except UnicodeEncodeError:
            pass  # told where the line is written
    return _json(_spelled(value))


def from_json(text: str | bytes) -> Any:
    """Return the value that `to_json` spelled."""
    return json.loads(text, object_hook=_unspelled)


def tsv_field(value: Any) -> str:
    r"""Spell a key or value for TSV: a str as it is with \\, \t, \n and \r escaped, all else as JSON."""
    if type(value) is str:
        return value.translate(_ESCAPES) if _needs_escape(value) else value
    return str(value) if type(value) is int else to_json(value)


def spell(form: str) -> Callable[[Any, Any], str]:
    """Return the function that spells a record as a line of that format, "tsv" or "jsonl"."""
    return _jsonl_line if form == "jsonl" else _tsv_line


def _jsonl_line(key: Any, value: Any) -> str:
    return f"[{to_json(key)},{to_json(value)}]\n"


def _tsv_line(key: Any, value: Any) -> str:
    if type(key) is str and type(value) is int and key.isalnum():  # a word and its number
        return f"{key}\t{value}\n"
    if type(key) is str and (type(value) is str or type(value) is int):
        text = f"{key}\t{value}"
        if text.count("\t") == 1 and not ("\n" in text or "\\" in text or "\r" in text):
            return f"{text}\n"
    return f"{tsv_field(key)}\t{tsv_field(value)}\n"


class PartFile(Protocol):
    """Where one attempt's part is written."""

    def write(self, data: bytes) -> object:
        """Add to it."""

    def close(self) -> int:
        """Finish it; return how many chunks it travels in, 0 if it is in the stage."""

    def discard(self) -> None:
        """Remove what was written."""


class StagedFile:
    """A part in the stage.

    Raises:
        FileNotFoundError: the stage is gone, so the run has ended. It is never created here.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self.write = self._file.write

    def close(self) -> int:
        """Finish it; it doesn't travel."""
        self._file.close()
        return 0

    def discard(self) -> None:
        """Remove it."""
        self._file.close()
        Path(self._file.name).unlink(missing_ok=True)


class Columns:
    """Records: their keys, and in the same order their values."""

    def __init__(self, keys: Sequence[Any], values: Sequence[Any]) -> None:
        self.keys = keys
        self.values = values

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return zip(self.keys, self.values, strict=True)


class PartWriter:
    """Writes one attempt's part."""

    def __init__(self, file: PartFile, name: str, form: str) -> None:
        self._file = file
        self._name = name
        self._spell = spell(form)
        self._form = form
        self._size = self._crc = 0
        self._lines: list[str] = []  # not written yet
        #: Of each of these lines the key and value that are in it as they are, if so. Whether they had to be escaped is
        #: looked at for all together, which takes far less than for each; once some had to be, each is.
        self._unchecked: list[tuple[str, str] | None] = []
        self._spells_each = form != "tsv"
        self._held = 0  # characters of them
        self._at_once = 64  # records of columns that are spelled at a time
        self.records = 0  # written

    def write(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        """Add records: fastest if they are `Columns`, or `Yielded` and can be fused.

        Raises:
            CarryError: one has no spelling, or one of them or before can't be encoded; names key and type.
            TypeError: it is no pair.
        """
        if isinstance(pairs, Columns):
            self._write_columns(pairs)
        elif isinstance(pairs, Yielded) and (write := pairs.fused(self._write_each)):
            write()
        else:
            self._write_each(pairs)

    def _write_each(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        spell, lines, unchecked, held = self._spell, self._lines, self._unchecked, self._held
        for pair in pairs:
            if type(pair) is not tuple:
                check_pair(pair)
            key, value = pair
            if type(value) is str and type(key) is str and not self._spells_each:
                line = f"{key}\t{value}\n"
                unchecked.append((key, value))  # and not the pair: it may be a list that is used again
            else:
                try:
                    line = spell(key, value)
                except CarryError as error:
                    raise CarryError(f"key {shorten(key)}: {error}") from None
                unchecked.append(None)
            lines.append(line)
            held += len(line)
            if held > _BUFFER:
                self._flush()
                held = 0
        self._held = held

    def _write_columns(self, columns: Columns) -> None:
        start = 0
        while start < len(columns.keys):
            end = start + self._at_once
            keys, values = columns.keys[start:end], columns.values[start:end]
            start = end
            if self._form == "tsv" and (fields := _fields(keys)) and (more := _fields(values)):
                lines = [f"{key}\t{value}\n" for key, value in zip(fields, more, strict=True)]
                characters = sum(map(len, lines))
                # Not more of them than a write takes, as far as can be told from those before.
                self._at_once = max(1, min(2 * self._at_once, _MOST_AT_ONCE, len(lines) * _BUFFER // characters))
                self._lines += lines
                self._unchecked += repeat(None, len(lines))
                self._held += characters
                if self._held > _BUFFER:
                    self._flush()
            else:
                self.write(zip(keys, values, strict=True))

    def _flush(self) -> None:
        text = "".join(self._lines)
        if any(self._unchecked) and not _is_plain(text, len(self._lines)):
            self._spells_each = True
            lines = zip(self._lines, self._unchecked, strict=True)
            self._lines[:] = [self._spell(*pair) if pair else line for line, pair in lines]
            text = "".join(self._lines)
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            self._blame(shorten(error.object[error.start : error.end]))
        self._file.write(data)
        self._size += len(data)
        self._crc = crc32(data, self._crc)
        self.records += len(self._lines)
        self._lines.clear()
        self._unchecked.clear()
        self._held = 0

    def _blame(self, text: str) -> NoReturn:
        """Tell of the first line that can't be encoded, since of `text` in it."""
        line = next(line for line in self._lines if as_text(line) != line)
        key, _ = _record_of(line.removesuffix("\n"), self._form)
        raise CarryError(f"key {shorten(key)}: {text} is no text that can be written")

    def close(self) -> Part:
        """Finish the part.

        Raises:
            CarryError: as `write`.
        """
        if self._lines:
            self._flush()
        chunks = self._file.close()
        return Part(self._name, self._size, self._crc, chunks)

    def discard(self) -> None:
        """Remove what was written."""
        self._file.discard()


def read_records(paths: Sequence[Path], form: str) -> Iterator[tuple[Any, Any]]:
    """Yield the records of part files; those of TSV as strings."""
    for path in paths:
        with path.open(encoding="utf-8", newline="\n") as lines:
            for line in lines:
                yield _record_of(line.removesuffix("\n"), form)


def _record_of(line: str, form: str) -> tuple[Any, Any]:
    if form == "jsonl":
        key, value = from_json(line)
        return _tuples(key), value
    key, _, value = line.partition("\t")
    return _unescape(key), _unescape(value)


def _fields(column: Sequence[Any]) -> Sequence[Any] | None:
    """Return a column as TSV has it, as `tsv_field` does, if that can be told of all at once."""
    kinds = set(map(type, column))
    if kinds == {int} or (kinds == {str} and not _needs_escape("".join(column))):
        return column
    if kinds == {list} and set(map(type, chain.from_iterable(column))) <= {str, int}:
        with contextlib.suppress(UnicodeEncodeError, OverflowError):  # it is told of the one that it is about
            return list(map(bytes.decode, map(_encode_json, column)))
    return None


def _needs_escape(text: str) -> bool:
    return "\t" in text or "\n" in text or "\\" in text or "\r" in text


def _is_plain(text: str, lines: int) -> bool:
    """Whether in so many lines there is nothing to escape."""
    return text.count("\t") == lines == text.count("\n") and "\\" not in text and "\r" not in text


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    plain = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}
    pieces = iter(text)
    return "".join(plain.get(following := next(pieces, ""), following) if piece == "\\" else piece for piece in pieces)


def _tuples(key: Any) -> Any:
    return tuple(_tuples(element) for element in key) if isinstance(key, list) else key


def _spelled(value: Any) -> Any:
    kind = type(value)
    if value is None or kind in (str, int, bool):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$float": str(value)}
    if kind in (list, tuple):
        return [_spelled(element) for element in value]
    if kind is dict:
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: _spelled(element) for key, element in value.items()}
        return {"$dict": [[_spelled(key), _spelled(element)] for key, element in value.items()]}
    if kind is bytes:
        return {"$bytes": base64.b64encode(value).decode()}
    if kind is Decimal:
        return {"$decimal": str(value)}
    if kind in (datetime.datetime, datetime.date, datetime.time):
        return {f"${kind.__name__}": value.isoformat()}
    try:
        # Dataclasses and what else the wire carries by annotation; sets sorted, so that they are spelled one way.
        plain = msgspec.to_builtins(value, builtin_types=_SPELLED_TYPES, order="deterministic")
    except TypeError:
        plain = value
    if type(plain) is kind:
        raise CarryError(
            f"the output has no spelling for a value of type {kind.__module__}.{kind.__qualname__} ({shorten(value)}); "
            f"yield str, int, float, list, dict, or a dataclass of these"
        )
    return _spelled(plain)


_SPELLED_TYPES = (bytes, Decimal, datetime.datetime, datetime.date, datetime.time)
_UNSPELL: dict[str, Callable[[Any], Any]] = {
    "$bytes": base64.b64decode,
    "$float": float,
    "$decimal": Decimal,
    "$date": datetime.date.fromisoformat,
    "$datetime": datetime.datetime.fromisoformat,
    "$time": datetime.time.fromisoformat,
    "$dict": lambda pairs: {_tuples(key): value for key, value in pairs},
}


def _unspelled(value: dict[str, Any]) -> Any:
    if len(value) == 1:
        ((name, spelled),) = value.items()
        if name in _UNSPELL:
            return _UNSPELL[name](spelled)
    return value
