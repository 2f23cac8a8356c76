"""Outputs at URLs (`-o s3://bucket/out`): what an output directory is made of, where there are no directories.

`UrlPath` is as much of a `pathlib.Path` as an output needs. A stage is a prefix with a mark in it, which is the first
to go when it is removed. An attempt writes only where the mark is, and looks again when it has written, so that
nothing of one that is late is left behind: stores like S3 show each writer what those before it have done.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from rqmr.errors import AttemptEnded, OutputError
from rqmr.parts import PartFile, StagedFile
from rqmr.urls import file_system, is_url, refuse_credentials, told

#: What says that a stage is one.
_MARK = "_stage"
_WEB = ("http://", "https://")


class UrlPath:
    """A place in a store. Whatever fails is an OSError whose words can be shown."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def __str__(self) -> str:
        return self._url

    __fspath__ = __str__

    def __repr__(self) -> str:
        return f"UrlPath({self._url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UrlPath) and self._url == other._url

    def __hash__(self) -> int:
        return hash(self._url)

    def __lt__(self, other: UrlPath) -> bool:
        return self._url < other._url

    def __truediv__(self, name: str) -> UrlPath:
        return UrlPath(f"{self._url}/{name}")

    @property
    def name(self) -> str:
        """The last part."""
        return self._url.rpartition("/")[2]

    @property
    def parent(self) -> UrlPath:
        """What it is in."""
        return UrlPath(self._url.rpartition("/")[0])

    @property
    def parents(self) -> tuple[UrlPath, ...]:
        """None that would have to be made."""
        return ()

    def absolute(self) -> UrlPath:
        """Return it."""
        return self

    def with_name(self, name: str) -> UrlPath:
        """Return its neighbour."""
        return self.parent / name

    def exists(self) -> bool:
        """Whether there is something at it, or below it."""
        return bool(self._do("exists"))

    def is_dir(self) -> bool:
        """Whether there is something below it."""
        return bool(self._do("isdir"))

    def is_file(self) -> bool:
        """Whether it is an object."""
        return bool(self._do("isfile"))

    def size(self) -> int:
        """Return its bytes."""
        return int(self._do("size") or 0)

    def iterdir(self) -> Iterator[UrlPath]:
        """Yield what is directly below it."""
        with contextlib.suppress(FileNotFoundError):
            names = {str(each).rstrip("/").rpartition("/")[2] for each in self._do("ls", detail=False)}
            yield from (self / name for name in sorted(names) if name and name != self.name)

    def glob(self, pattern: str) -> Iterator[UrlPath]:
        """Yield what is directly below it and matches."""
        return (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Make a stage of it."""
        (self / _MARK).touch()

    def rmdir(self) -> None:
        """Do nothing: what has nothing in it isn't there."""

    def remove_tree(self) -> None:
        """Remove a stage, and what is in it."""
        (self / _MARK).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self._do("rm", recursive=True)

    def is_stage(self) -> bool:
        """Whether attempts may write to it."""
        return (self / _MARK).exists()

    def touch(self) -> None:
        """Make it an empty object."""
        self._do("pipe_file", b"")

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove the object."""
        with contextlib.suppress(*([FileNotFoundError] if missing_ok else [])):
            self._do("rm_file")

    def replace(self, target: UrlPath) -> None:
        """Copy it there, and remove it; FileNotFoundError if there is no such object."""
        with told(self._url):
            files, path = file_system(self._url)
            files.cp_file(path, file_system(str(target))[1])
        self.unlink(missing_ok=True)

    def read_bytes(self) -> bytes:
        """Return its content."""
        return bytes(self._do("cat_file"))

    def write_text(self, text: str, encoding: str) -> None:
        """Make it an object of that content."""
        self._do("pipe_file", text.encode(encoding))

    def open(self, mode: str = "r", **options: Any) -> IO[Any]:
        """Open it for reading; or, with mode "a", make it an object of what is written until it is closed."""
        if mode == "a":
            return _Written(self)
        with told(self._url):
            files, path = file_system(self._url)
            return io.TextIOWrapper(files.open(path, "rb"), **options)

    def _do(self, what: str, *arguments: Any, **options: Any) -> Any:
        with told(self._url):
            files, path = file_system(self._url)
            return getattr(files, what)(path, *arguments, **options)


class _Written(io.StringIO):
    def __init__(self, path: UrlPath) -> None:
        super().__init__()
        self._path = path

    def close(self) -> None:
        if not self.closed:
            self._path.write_text(self.getvalue().encode(errors="backslashreplace").decode(), "utf-8")
        super().close()


def path_at(place: str | os.PathLike[str]) -> Path:
    """Return the path of a directory; or of what is at a URL, which is as much of one as an output needs.

    Raises:
        OutputError: the URL has credentials in it, or nothing can be written there.
    """
    text = os.fspath(place)
    if not is_url(text):
        return Path(text)
    refuse_credentials(text, OutputError)
    if text.lower().startswith(_WEB):
        raise OutputError(f"{text}: a web server takes no output; name a directory, or a store such as s3://")
    return cast(Path, UrlPath(text))


def remove_tree(path: Path) -> None:
    """Remove a directory, or a stage at a URL, as far as that can be done."""
    if is_url(str(path)):
        with contextlib.suppress(OSError):
            UrlPath(str(path)).remove_tree()
    else:
        shutil.rmtree(path, ignore_errors=True)


def size_of(path: Path) -> int:
    """Return the bytes of a file."""
    return UrlPath(str(path)).size() if is_url(str(path)) else path.stat().st_size


def open_part(stage: str, name: str) -> PartFile:
    """Open a new part in a stage. Raises as `StagedFile` and `StoredFile`."""
    return StoredFile(UrlPath(stage), name) if is_url(stage) else StagedFile(Path(stage, name))


class StoredFile:
    """A part that an attempt writes into a stage at a URL; there is nothing of it until it is closed.

    Raises:
        FileNotFoundError: the stage is gone, so the run has ended.
        OSError: it can't be written, now or later.
        WorkerUnfit: this process lacks what it takes.
    """

    def __init__(self, stage: UrlPath, name: str) -> None:
        self._stage, self._path = stage, stage / name
        if not stage.is_stage():
            raise FileNotFoundError(errno.ENOENT, "there is no such stage", str(stage))
        with told(str(self._path)):
            files, path = file_system(str(self._path))
            self._file = files.open(path, "wb", autocommit=False)

    def write(self, data: bytes) -> None:
        """Add to it."""
        with told(str(self._path)):
            self._file.write(data)

    def close(self) -> int:
        """Finish it; it doesn't travel. AttemptEnded: the run has ended meanwhile, and nothing is left of it."""
        with told(str(self._path)):
            self._file.close()
            self._file.commit()
        if not self._stage.is_stage():
            self._path.unlink(missing_ok=True)
            raise AttemptEnded("the stage was removed")
        return 0

    def discard(self) -> None:
        """Remove it."""
        with contextlib.suppress(Exception):  # what was never finished isn't there
            if not self._file.closed:
                self._file.close()
                self._file.discard()
