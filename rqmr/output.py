"""Part files: how records are spelled, the stage where attempts write, and what makes an output directory complete.

An attempt writes its part into the run's stage, ``OUT/.rqmr-RUN/``, under its own name. Collecting renames the
winners' files to ``part-00000`` … and writes ``_SUCCESS`` last. Renames can be repeated: a source that is gone and a
destination of the recorded size and checksum is done.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import math
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, TextIO
from zlib import crc32

import msgspec

from rqmr.codec import shorten
from rqmr.errors import CarryError, OutputError
from rqmr.model import Part, Skipped, TaskId

SUCCESS = "_SUCCESS"
#: What the workers printed, if they printed anything.
LOG = "_log"
#: The records that were left out, if any were.
SKIPPED = "_skipped.jsonl"
_STAGE = ".rqmr-"
_OLD = ".old"  # what is about to go
_BUFFER = 256 << 10  # bytes
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def to_json(value: Any) -> str:
    """Spell a value as compact JSON. What JSON has no word for is an object of one member whose name begins with $.

    ``{"$bytes":"aGk="}`` (base64), ``{"$float":"nan"}`` (nan, inf, -inf), ``{"$decimal":"1.10"}``,
    ``{"$date":"2026-11-21"}``, ``{"$datetime":…}``, ``{"$time":…}``, and ``{"$dict":[[key,value],…]}`` for a dict
    with a key that isn't a str or begins with $. Tuples are arrays, dataclasses objects.

    Raises:
        CarryError: the value's type has no spelling.
    """
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
    if form == "jsonl":
        return lambda key, value: f"[{to_json(key)},{to_json(value)}]\n"
    return lambda key, value: f"{tsv_field(key)}\t{tsv_field(value)}\n"


class PartWriter:
    """Writes one attempt's part into the stage.

    Raises:
        FileNotFoundError: the stage is gone, so the run has ended. It is never created here.
    """

    def __init__(self, stage: Path, attempt: str, form: str) -> None:
        self._file = (stage / attempt).open("wb")
        self._name = attempt
        self._spell = spell(form)
        self._lines: list[bytes] = []
        self._held = self._size = self._crc = 0
        self.records = 0

    def write(self, key: Any, value: Any) -> None:
        """Add one record.

        Raises:
            CarryError: it has no spelling; names key and type.
        """
        try:
            line = self._spell(key, value).encode()
        except CarryError as error:
            raise CarryError(f"key {shorten(key)}: {error}") from None
        except UnicodeEncodeError as error:
            text = shorten(error.object[error.start : error.end])
            raise CarryError(f"key {shorten(key)}: {text} is no text that can be written") from None
        self.records += 1
        self._lines.append(line)
        self._held += len(line)
        if self._held > _BUFFER:
            self._flush()

    def _flush(self) -> None:
        data = b"".join(self._lines)
        self._file.write(data)
        self._size += len(data)
        self._crc = crc32(data, self._crc)
        self._lines.clear()
        self._held = 0

    def close(self) -> Part:
        """Finish the part."""
        self._flush()
        self._file.close()
        return Part(self._name, self._size, self._crc)

    def discard(self) -> None:
        """Remove what was written."""
        self._file.close()
        Path(self._file.name).unlink(missing_ok=True)


class Output:
    """A run's output directory and its stage."""

    def __init__(self, directory: Path, run: str, *, is_new: bool = True) -> None:
        """`is_new`: the run begins now; otherwise it began under another command."""
        self.directory = directory.absolute()
        self.stage = self.directory / f"{_STAGE}{run}"
        self.made: list[Path] = []  # directories that `prepare` made, the deepest first
        self.is_kept = False  # whether somebody else goes on with it, so that `discard` has to leave it
        self._is_new = is_new
        self._log: TextIO | None = None
        self._collected: list[Path] = []  # without _SUCCESS yet

    def prepare(self, *, overwrite: bool) -> None:
        """Create the stage.

        Raises:
            OutputError: the directory isn't empty, can't be made, or has something that isn't a run's output.
        """
        self._check(overwrite=overwrite)
        try:
            self.made = [path for path in (self.directory, *self.directory.parents) if not path.exists()]
            self.stage.mkdir(parents=True)
        except OSError as error:
            self.discard()
            raise OutputError(f"the output directory {self.directory} can't be made: {error.strerror}") from error

    def prepare_again(self) -> None:
        """Create the stage of a run that goes on, if it is gone.

        Raises:
            OutputError: it can't be made, or the directory has an output by now.
        """
        if not self.stage.is_dir() and (self.directory / SUCCESS).exists():
            raise OutputError(f"{self.directory} has another output by now: move it away first")
        try:
            self.stage.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"the output directory {self.directory} can't be made: {error.strerror}") from error

    def _check(self, *, overwrite: bool) -> None:
        if not self.directory.exists():
            return
        if not self.directory.is_dir():
            raise OutputError(f"the output {self.directory} is a file; give -o a directory")
        for path in sorted(self.directory.iterdir()):
            if path.name == LOG or (overwrite and _is_output(path)):
                continue
            if path.name.startswith(_STAGE):
                other = path.name.removeprefix(_STAGE).removesuffix(_OLD)
                raise OutputError(
                    f"{self.directory} has what run {other} has made so far: go on with it (rqmr attach or resume "
                    f"{other}), remove it (rqmr cancel or rm {other}; or rm -r {path}), or give another -o"
                )
            if overwrite:
                raise OutputError(f"{self.directory} has {path.name}, which no run wrote: it is kept; give another -o")
            raise OutputError(f"the output directory {self.directory} is not empty; give another -o, or --overwrite")

    def collect(self, parts: Sequence[Part], skipped: Sequence[tuple[TaskId, Skipped]] = ()) -> list[Path]:
        """Move the winners' parts to their names, list what they skipped, and write _SUCCESS last. Can be repeated.

        Raises:
            OutputError: a part is neither in the stage nor in its place.
        """
        self._put_away(self._outdated(len(parts)))
        paths = [self._path_of(index) for index in range(len(parts))]
        for part, path in zip(parts, paths, strict=True):
            source = self.stage / part.file
            self._collected.append(path)
            try:
                source.replace(path)
            except FileNotFoundError:
                self._collected.pop()
                if not _is_same(path, part):  # else it was done before, by this driver or another
                    raise OutputError(f"{source} is gone before it was collected; was it removed?") from None
        if skipped:
            self._collected.append(self.directory / SKIPPED)
            lines = [_skipped_line(task, each) for task, each in skipped]
            (self.directory / SKIPPED).write_text("".join(lines), encoding="utf-8")
        self._remove_stage()
        (self.directory / SUCCESS).touch()
        self._collected.clear()
        return paths

    def withdraw(self, parts: Iterable[tuple[int, Part]]) -> None:
        """Remove those of the parts, each of them with its number, that were moved to their names without _SUCCESS."""
        if not (self.directory / SUCCESS).exists():
            for index, part in parts:
                if _is_same(path := self._path_of(index), part):
                    path.unlink()
                    (self.directory / SKIPPED).unlink(missing_ok=True)

    def _path_of(self, index: int) -> Path:
        return self.directory / f"part-{index:05d}"

    def take_back(self, paths: Iterable[Path]) -> None:
        """Remove what was collected."""
        for path in (self.directory / SUCCESS, self.directory / SKIPPED, *paths):
            path.unlink(missing_ok=True)

    def _put_away(self, paths: Iterable[Path]) -> None:
        # Into the stage, which goes: so a collector that has slept while another was faster takes nothing away.
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                path.replace(self.stage / f"{path.name}{_OLD}")

    def _remove_stage(self) -> None:
        # Under another name first: attempts that are late may still open files in it, but not in what isn't there.
        gone = self.stage.with_name(self.stage.name + _OLD)
        with contextlib.suppress(OSError):
            self.stage.replace(gone)
        for path in (gone, self.stage):
            shutil.rmtree(path, ignore_errors=True)

    def _outdated(self, parts: int) -> Iterator[Path]:
        # What an older run left. A part of this run in its place already (a repeated collect) is replaced or kept.
        yield from self.directory.glob(SUCCESS)
        yield from self.directory.glob(SKIPPED)
        if self._log is None and self._is_new:
            yield from self.directory.glob(LOG)
        for path in filter(_is_output, self.directory.glob("part-*")):
            if int(path.name.removeprefix("part-")) >= parts:
                yield path

    def log(self, line: str) -> None:
        """Keep a line that a worker printed, in the directory's _log."""
        if self._log is None:
            if self._is_new:
                (self.directory / LOG).unlink(missing_ok=True)
            self._log = (self.directory / LOG).open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
        self._log.write(f"{line}\n")

    @property
    def log_path(self) -> Path | None:
        """The _log, if anything was printed."""
        return self.directory / LOG if self._log else None

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()

    def discard(self) -> None:
        """Remove what is not a whole output: the stage, parts without _SUCCESS, empty directories that were made."""
        if self.is_kept:
            return
        for path in self._collected:
            path.unlink(missing_ok=True)
        self._remove_stage()
        for path in self.made:
            with contextlib.suppress(OSError):  # it isn't empty, or wasn't made
                path.rmdir()


def read_records(paths: Sequence[Path], form: str) -> Iterator[tuple[Any, Any]]:
    """Yield the records of part files; those of TSV as strings."""
    for path in paths:
        with path.open(encoding="utf-8", newline="\n") as lines:
            for line in lines:
                text = line.removesuffix("\n")
                if form == "jsonl":
                    key, value = from_json(text)
                    yield _tuples(key), value
                else:
                    key, _, value = text.partition("\t")
                    yield _unescape(key), _unescape(value)


def _skipped_line(task: TaskId, skipped: Skipped) -> str:
    told = {"task": str(task), "source": skipped.source, "offset": skipped.offset, "record": skipped.record}
    return _json({**told, "message": skipped.message}) + "\n"


def _is_output(path: Path) -> bool:
    return path.is_file() and re.fullmatch(rf"part-[0-9]{{5,}}|{SUCCESS}|{LOG}|{SKIPPED}", path.name) is not None


def _is_same(path: Path, part: Part) -> bool:
    return path.is_file() and path.stat().st_size == part.size and crc32(path.read_bytes()) == part.crc


def _needs_escape(text: str) -> bool:
    return "\t" in text or "\n" in text or "\\" in text or "\r" in text


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
