"""Paths → splits: which files the inputs stand for, and what each map task reads of them."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn
from zlib import crc32

from msgspec import Struct

from rqmr.errors import InputError
from rqmr.files import compression_of
from rqmr.model import Piece, Split
from rqmr.urls import find, is_url

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": _KIB, "mib": _MIB, "gib": _GIB}
_PIECE_COST = 4 * _KIB  # what a small file counts for when files are packed: opening one isn't free
_NEAR = 16  # a split ends where a file does, not within the next one, if that makes it smaller by no more than 1/16


#: Of splits that are cut, if nothing else is asked for. 16 MiB is the low end of the MapReduce paper's §3.5: little is
#: lost with a task. Below 1 MiB a task isn't worth its costs.
LARGEST_SPLIT, LEAST_SPLIT = 16 * _MIB, _MIB
#: A smaller input makes one part file: nobody likes to look into eight. A larger one makes so many that about this much
#: of it goes into each.
LEAST_TO_PART, MOST_OF_A_PART = _MIB, 128 * _MIB


class Source(Struct, frozen=True):
    """One input file, or what is at one URL."""

    name: str  # as given or found, the mapper's key; bytes that aren't UTF-8 are replaced
    path: bytes  # absolute, as the file system spells it; or the URL
    size: int  # bytes on disk
    compression: str = ""  # "gzip", "bz2", "xz" or "zst", by what the file begins with
    version: str = ""  # of what is at a URL
    is_whole: bool = False  # its server can't give a part of it

    def piece(self, start: int, stop: int | None) -> Piece:
        """Return what is between two of its bytes, or all of it as a file that is read whole."""
        size = self.size if stop is None else stop - start
        return Piece(self.name, self.path, start, stop, size, self.size, self.version)


def expand(inputs: Sequence[str | os.PathLike[str]]) -> list[Source]:
    """Return the files that inputs stand for, in the order given; InputError if one stands for none, or can't be read.

    A directory stands for the files below it, sorted, without names that begin with "." or "_"; a glob, if nothing has
    that very name, for what it matches, sorted. What is given itself is taken as it is, and twice if given twice.
    So does a URL, where its store can list; a web server's is one file.
    """
    if not inputs:
        raise InputError("no input given; name files, directories or globs, or - for standard input")
    return [source for given in inputs for source in _sources(os.fspath(given))]


def _sources(given: str) -> list[Source]:
    if not is_url(given):
        return [source_of(path) for path in _paths(given)]
    return [
        Source(
            name=found.name,
            path=os.fsencode(found.url),
            size=found.size,
            compression=compression_of(found.start),
            version=found.version,
            is_whole=not found.has_ranges,
        )
        for found in find(given)
    ]


def source_of(path: str, name: str | None = None) -> Source:
    """Return the source of a file, under another name if one is given; InputError if it can't be read."""
    name = _readable(path if name is None else name)
    try:
        # Asked before it is opened: opening a pipe waits until someone writes into it.
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise InputError(f"{name} is a pipe, socket or device, not a regular file; give it as standard input, -")
        with Path(path).open("rb") as file:
            compression, size = compression_of(file.peek()), os.fstat(file.fileno()).st_size
    except OSError as error:
        _refuse(error, path)
    return Source(name, os.fsencode(Path(path).absolute()), size, compression)


def _paths(given: str) -> list[str]:
    """Return the paths of the files that one input stands for, at least one."""
    paths: list[str] = []
    for match in [given] if os.path.lexists(given) else _matches(given):
        paths += (path for _, files in _walk(match) for path in files) if Path(match).is_dir() else [match]
    if not paths:
        raise InputError(
            f"no file matches {_readable(given)!r} (looked from {Path.cwd()}); names that "
            f"begin with . or _ are read only when they are given themselves"
        )
    return paths


def _matches(pattern: str) -> list[str]:
    """Return what a glob matches, sorted; of one with ``**/`` only the files."""
    head, *tail = re.split(r"(?<![^/])\*\*/", pattern, maxsplit=1)
    if not tail:
        return sorted(glob.glob(pattern))  # noqa: PTH207 - Path forgets how a path was spelled
    # Not by glob itself: it goes round in circles of links until paths are too long.
    places = [where for place in glob.glob(head or ".") for where, _ in _walk(place)]  # noqa: PTH207
    found = {match for where in places for match in _matches(str(Path(glob.escape(where), tail[0])))}
    return sorted(match for match in found if not Path(match).is_dir())


def _walk(directory: str) -> Iterator[tuple[str, list[str]]]:
    """Yield a directory and those below it, each followed once, with its files, and without names in . or _."""
    seen = set()
    for where, directories, files in os.walk(directory, followlinks=True, onerror=_refuse):
        here = os.path.realpath(where)
        directories[:] = sorted(name for name in directories if name[0] not in "._" and here not in seen)
        if here not in seen:
            yield where, [os.path.join(where, name) for name in sorted(files) if name[0] not in "._"]  # noqa: PTH118
        seen.add(here)


def _refuse(error: OSError, path: str = "") -> NoReturn:
    path = path or error.filename
    hint = "; it is a link to nothing" if Path(path).is_symlink() and not Path(path).exists() else ""
    raise InputError(f"{_readable(path)} can't be read: {error.strerror}{hint}") from error


def _readable(path: str | os.PathLike[str]) -> str:
    return os.fsencode(path).decode("utf-8", "replace")  # text that can be printed and sent


def cut(sources: Sequence[Source], split_bytes: int, splittable: bool) -> list[Split]:
    """Return splits, at least one; their pieces in order are the sources in order.

    They are about equal, and none but of a file that can't be cut is larger than `split_bytes`.
    """
    least = min(_PIECE_COST, split_bytes)
    total = sum(max(source.size, least) for source in sources)
    count = max(1, -(-total // split_bytes))
    near = min(total // (count * _NEAR), split_bytes - -(-total // count))
    return _packed(sources, _Packing(total, count, near), least, splittable)


def cut_for(workers: int, sources: Sequence[Source], splittable: bool) -> list[Split]:
    """Return splits as `cut` does, of a size and number that suit the input and the workers."""
    total = sum(max(source.size, _PIECE_COST) for source in sources)
    count = choose_splits(total, workers)
    return _packed(sources, _Packing(total, count, total // (count * _NEAR)), _PIECE_COST, splittable)


def _packed(sources: Sequence[Source], packing: _Packing, least: int, splittable: bool) -> list[Split]:
    for source in sources:
        if source.compression or source.is_whole or not splittable:
            packing.add_whole(source.piece(0, None), max(source.size, least))
            continue
        if source.size <= least:
            if least > packing.room:
                packing.close()
            packing.add(source.piece(0, source.size), least)
            continue
        start = 0
        while source.size - start > packing.room:
            stop = start + packing.room
            packing.add(source.piece(start, stop), stop - start)
            start = stop
        packing.add(source.piece(start, source.size), source.size - start)
    packing.close()
    return packing.splits or [Split(())]


class _Packing:
    """Splits as they are filled: up to edges at equal distances, or to the end of a file a little before one."""

    def __init__(self, total: int, count: int, near: int) -> None:
        """`total`: what all pieces cost; `near`: how much before an edge a split may end."""
        self.splits: list[Split] = []
        self._pieces: list[Piece] = []
        self._total, self._count, self._near = max(1, total), count, near
        self._left = total  # behind where the edges begin
        self._position = 0  # from there on
        self._edge = self._nth_edge(1)

    def _nth_edge(self, number: int) -> int:
        return -(-self._total * number // self._count)

    @property
    def room(self) -> int:
        """What may be added to the split that is being filled."""
        return self._edge - self._position

    def add(self, piece: Piece, cost: int) -> None:
        self._pieces.append(piece)
        self._position += cost
        if self.room <= (self._near if self._edge < self._left else 0):  # what is left at the end goes with the last
            self.close()

    def add_whole(self, piece: Piece, cost: int) -> None:
        """Add a file that can't be cut: where its middle is, but if it is large, where there is room."""
        is_large = 2 * cost * self._count > self._total
        if cost > (self.room if is_large else 2 * self.room):
            self.close()
        self.add(piece, cost)

    def close(self) -> None:
        """Begin the next split, if this one isn't empty."""
        if not self._pieces:
            return
        self.splits.append(Split(tuple(self._pieces)))
        self._pieces = []
        if self.room > self._near:  # of a file that can't be cut: the edges begin anew
            self._left, self._position = self._left - self._position, 0
        self._edge = self._nth_edge((self._position + self._near) * self._count // self._total + 1)


def choose_splits(total: int, workers: int) -> int:
    """Return the number of splits for `total` bytes of input.

    As many for each worker, so that none is left for one alone: three, or more if they were too large, or one or two
    if they were too small; fewer than workers if not even each of these would get a mebibyte.
    """
    workers = max(1, workers)
    rounds = max(3, -(-total // (LARGEST_SPLIT * workers)))
    most = max(1, total // LEAST_SPLIT)
    return min(rounds * workers, most - most % workers if most > workers else most)


def choose_reducers(total: int, workers: int) -> int:
    """Return the number of reduce tasks for `total` bytes of input."""
    # A small multiple of the workers (the MapReduce paper, §3.5), as each makes a part file: one for each, and more if
    # partitions were large.
    workers = max(1, workers)
    return 1 if total < LEAST_TO_PART else workers * max(1, min(-(-total // (MOST_OF_A_PART * workers)), 4))


def parse_size(text: str) -> int:
    """Return the bytes that a size like "16MiB" stands for; ValueError if it isn't a positive one."""
    match = re.fullmatch(r"([0-9]+)\s*([a-z]*)", text.strip().lower())
    if not match or match[2] not in _UNITS or not int(match[1]):
        raise ValueError(f"{text!r} is no size; write bytes, as 4096 or 4096B, or use a unit: KiB MiB GiB, KB MB GB")
    return int(match[1]) * _UNITS[match[2]]


class InputMark(Struct, frozen=True):
    """How an input file was when the run was planned: enough to tell another one."""

    name: str
    size: int
    head: int  # crc32 of its first bytes
    tail: int  # and of the last ones before `size`


_SAMPLE = 4 * _KIB  # of the beginning and the end of a file


def marks_of(sources: Iterable[Source]) -> dict[bytes, InputMark]:
    """Return how each file is now, by its path. URLs have none: whoever reads them compares their version."""
    return {source.path: _mark(source.name, source.path, source.size) for source in sources if not is_url(source.path)}


def path_of(path: bytes) -> Path:
    """Return the path of a file, from how the file system spells it."""
    return Path(os.fsdecode(path))


def is_as_marked(path: bytes, mark: InputMark) -> bool:
    """Whether there is such a file here and it is as it was, or has only grown."""
    try:
        return _mark(mark.name, path, mark.size) == mark
    except OSError:
        return False


def check_unchanged(marks: Mapping[bytes, InputMark]) -> None:
    """Return if the files are as they were, or have only grown; InputError names one that isn't."""
    for path, mark in marks.items():
        try:
            now = _mark(mark.name, path, mark.size)
        except OSError as error:
            raise InputError(f"{mark.name} can't be read any more: {error.strerror}") from error
        if now != mark:
            raise InputError(
                f"{mark.name} has changed since the run was planned, so it can't be resumed: run the job anew"
            )


def _mark(name: str, path: bytes, size: int) -> InputMark:
    with Path(os.fsdecode(path)).open("rb") as file:
        head = file.read(min(size, _SAMPLE))
        file.seek(max(0, size - _SAMPLE))
        tail = file.read(min(size, _SAMPLE))
        return InputMark(name, min(size, os.fstat(file.fileno()).st_size), crc32(head), crc32(tail))
