"""Files that travel with a job's code (`--include PATH`): read where the run begins, given to the job as paths."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from rqmr.errors import JobError

_PREFIX = "rqmr-included-"
#: The variable that names another place for them than the system's for what is temporary.
PLACE = "RQMR_INCLUDED_DIR"
#: A directory that is younger may be one whose owner is about to lock it.
_YOUNG_SECONDS = 60


class Included:
    """A job's included files in one process. They are on a disk from when the first is asked for, until `close`."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        """`files`: their content, by names with ``/`` in them if they were in a directory."""
        self._files = files
        self._directory: Path | None = None
        self._remove: Callable[[], object] = lambda: None

    def path(self, name: str) -> Path:
        """Return where a file, or a directory of files, is.

        Raises:
            JobError: it isn't included.
        """
        if name not in self._files and not any(each.startswith(f"{name}/") for each in self._files):
            there = f"; there are {', '.join(sorted(self._files))}" if self._files else ""
            raise JobError(f"no file {name} travels with the job; begin a new run with --include PATH/{name}{there}")
        if self._directory is None:
            self._write()
        assert self._directory
        return self._directory / name

    def close(self) -> None:
        """Remove them; asked for again, they are written again."""
        self._remove()
        self._directory = None

    def _write(self) -> None:
        paths = {name: checked_name(name) for name in self._files}
        _sweep()
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=os.environ.get(PLACE)))
        # Whoever finds the lock free knows that the process was killed.
        lock = os.open(directory, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._remove = weakref.finalize(self, _removed, directory, lock, os.getpid())
        for name, path in paths.items():
            file = directory / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(self._files[name])
        self._directory = directory


#: What a job has that nothing travels with.
NOTHING = Included({})


def checked_name(name: str) -> PurePosixPath:
    """Return an included file's name as a path that stays below a directory; JobError if it wouldn't."""
    path = PurePosixPath(name)
    if not path.parts or "\0" in name or path.is_absolute() or ".." in path.parts or str(path) != name:
        raise JobError(f"the job's package has a file {name!r}, which is no name for one")
    return path


def files_in(path: Path, limit: int) -> Iterator[tuple[str, bytes]]:
    """Yield a file's name and content, or those of all files below a directory but Python's and hidden ones.

    Raises:
        JobError: one can't be read, or they have more than `limit` bytes.
    """
    paths = sorted(_below(path)) if path.is_dir() else [path]
    try:
        if (size := sum(each.stat().st_size for each in paths)) > limit:
            raise JobError(f"{path} has {size >> 20} MiB; at most {limit >> 20} MiB can travel to the workers")
        for each in paths:
            yield each.relative_to(path.parent).as_posix(), each.read_bytes()
    except OSError as error:
        raise JobError(f"{error.filename} can't be included: {error.strerror}") from error


def _below(directory: Path) -> Iterator[Path]:
    for where, directories, files in os.walk(directory):
        directories[:] = [name for name in directories if not name.startswith(".") and name != "__pycache__"]
        yield from (Path(where, name) for name in files if not name.startswith(".") and not name.endswith(".py"))


def _removed(directory: Path, lock: int, owner: int) -> None:
    if os.getpid() == owner:  # not by a process that it has forked
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _sweep() -> None:
    """Remove what processes have left that were killed."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, locked, or gone just now
            about = directory.lstat()
            if about.st_uid != os.getuid() or about.st_mtime > time.time() - _YOUNG_SECONDS:
                continue
            lock = os.open(directory, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
            finally:
                os.close(lock)
