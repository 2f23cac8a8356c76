"""Chunks that are spilled: kept in files, or objects of a store, while Redis holds a *stub* for each, which says where.

A run's are in a directory of their own, ``DIR/.rqmr-spill-RUN/``, made by its driver and by no attempt: where it is
gone, so is the run. An attempt writes many chunks, for whatever partitions, as one file of a new name (a temporary file
that is renamed, or one PUT), so that a big shuffle is not millions of objects.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from rqmr.errors import OutputError, WorkerUnfit
from rqmr.remote import UrlPath, path_at, remove_tree
from rqmr.urls import file_system, is_url, shown, told

#: How a stub begins; a chunk doesn't, as `c1` is used by no msgpack.
_SIGN = b"rqmr:stub\xc1"
_DIRECTORY = ".rqmr-spill-"
#: Names that can't lead out of the directory.
_NAME = re.compile(r"\w[\w-]*", re.ASCII)


class Stub(Struct, frozen=True, array_like=True):
    """Where a chunk is. Whether it is that chunk is told by the chunk's own checksum."""

    file: str
    start: int
    size: int

    def encode(self) -> bytes:
        """Return what stands for the chunk in its hash."""
        return _SIGN + msgspec.msgpack.encode(self)


def stub_in(stored: bytes | None) -> Stub | None:
    """Return the stub that stands in a chunk's place, None if there is none."""
    if stored is None or not stored.startswith(_SIGN):
        return None
    try:
        return msgspec.msgpack.decode(stored[len(_SIGN) :], type=Stub)
    except msgspec.DecodeError:
        return Stub("", 0, 0)  # of no file


class Spill:
    """The directory, or what is below a URL, that one run's chunks are spilled to."""

    def __init__(self, place: str, run: str) -> None:
        """`place`: an absolute path, or a URL.

        Raises:
            OutputError: the URL has credentials in it, or nothing can be written there.
        """
        self._place = place
        self._directory = path_at(place) / f"{_DIRECTORY}{run}"

    @property
    def directory(self) -> Path:
        """Where the run's files are."""
        return self._directory

    def prepare(self) -> None:
        """Make the directory, if it isn't there.

        Raises:
            OutputError: it can't be made.
        """
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except (OSError, WorkerUnfit) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise OutputError(f"--spill: {shown(self._place)} can't be written to: {why}") from None

    def is_there(self) -> bool:
        """Whether this process sees the directory.

        Raises:
            WorkerUnfit: that can't be known.
        """
        try:
            place = str(self._directory)
            return UrlPath(place).is_stage() if is_url(place) else self._directory.is_dir()
        except OSError as error:
            raise self._unfit(error) from None

    def write(self, name: str, data: bytes) -> None:
        """Write a file; it is there as a whole, or not at all.

        Raises:
            FileNotFoundError: the directory isn't there.
            WorkerUnfit: it can't be written.
        """
        path = self._directory / name
        try:
            if is_url(self._place):
                self._put(path, data)
            else:
                arriving = path.with_name(f"{name}.new")
                arriving.write_bytes(data)
                arriving.replace(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._unfit(error) from None

    def read(self, stubs: Sequence[Stub]) -> list[bytes | None]:
        """Return the chunks that stubs stand for; None for one whose file is gone, or that can't be of this run.

        Raises:
            FileNotFoundError: the directory isn't there.
            WorkerUnfit: a file can't be read.
        """
        good = [each for each in stubs if _NAME.fullmatch(each.file) and each.start >= 0 and each.size > 0]
        try:
            found = dict(zip(good, self._get(good) if is_url(self._place) else map(self._part, good), strict=True))
        except OSError as error:
            raise self._unfit(error) from None
        if None in found.values() and not self.is_there():
            raise FileNotFoundError(self._directory)
        return [found.get(each) for each in stubs]

    def remove(self, names: Sequence[str]) -> None:
        """Remove files, as far as that can be done."""
        for name in names:
            try:
                (self._directory / name).unlink(missing_ok=True)
            except (OSError, WorkerUnfit):
                return  # they go with the run

    def remove_all_of(self, beginnings: Sequence[str]) -> None:
        """Remove the files whose names begin so, as far as that can be done."""
        with suppress(OSError, WorkerUnfit):
            self.remove([path.name for path in self._directory.iterdir() if path.name.startswith(tuple(beginnings))])

    def clear(self) -> None:
        """Remove the directory, as far as that can be done: nothing is spilled any more."""
        if is_url(self._place):
            with suppress(WorkerUnfit):
                remove_tree(self._directory)
            return
        old = self._directory.with_name(f"{self._directory.name}.old")
        remove_tree(old)  # of one who was killed at it
        with suppress(OSError):
            self._directory.replace(old)  # a file that is written meanwhile would else keep it
        remove_tree(old)

    def _part(self, stub: Stub) -> bytes | None:
        try:
            with (self._directory / stub.file).open("rb") as file:
                file.seek(stub.start)
                return file.read(stub.size)
        except FileNotFoundError:
            return None

    def _put(self, path: Path, data: bytes) -> None:
        if not self.is_there():
            raise FileNotFoundError(self._directory)
        with told(str(path)):
            files, where = file_system(str(path))
            files.pipe_file(where, data)
        if not self.is_there():  # the run has ended meanwhile, and nothing of it shall be left
            path.unlink(missing_ok=True)
            raise FileNotFoundError(self._directory)

    def _get(self, stubs: Sequence[Stub]) -> list[bytes | None]:
        """Read ranges of objects side by side, as each of them takes a request."""
        if not stubs:
            return []
        with told(str(self._directory)):
            files, below = file_system(str(self._directory))
            parts: list[Any] = files.cat_ranges(
                [f"{below}/{each.file}" for each in stubs],
                [each.start for each in stubs],
                [each.start + each.size for each in stubs],
                on_error="return",
            )
            for part in parts:
                if isinstance(part, Exception) and not isinstance(part, FileNotFoundError):
                    raise part
        return [None if isinstance(part, Exception) else bytes(part) for part in parts]

    def _unfit(self, error: OSError) -> WorkerUnfit:
        return WorkerUnfit(f"it can't use the spill directory {shown(self._place)}: {error.strerror or error}")
