"""The stage where attempts write, and what makes an output directory complete.

An attempt writes its part into the run's stage, ``OUT/.rqmr-RUN/``, under its own name. Collecting renames the
winners' files to ``part-00000`` … and writes ``_SUCCESS`` last. Renames can be repeated: a source that is gone and a
destination of the recorded size and checksum is done.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO
from zlib import crc32

from rqmr.errors import OutputError, WorkerUnfit
from rqmr.model import Part, Skipped, TaskId
from rqmr.parts import to_json
from rqmr.remote import path_at, remove_tree, size_of

SUCCESS = "_SUCCESS"
#: What the workers printed, if they printed anything.
LOG = "_log"
#: The records that were left out, if any were.
SKIPPED = "_skipped.jsonl"
_STAGE = ".rqmr-"
_OLD = ".old"  # what is about to go


class Output:
    """A run's output directory and its stage."""

    def __init__(self, directory: str | os.PathLike[str], run: str, *, is_new: bool = True) -> None:
        """`directory`: or a URL; `is_new`: the run begins now; otherwise it began under another command."""
        self.directory = path_at(directory).absolute()
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
        try:
            self._check(overwrite=overwrite)
            self.made = [path for path in (self.directory, *self.directory.parents) if not path.exists()]
            self.stage.mkdir(parents=True)
        except OSError as error:
            self.discard()
            raise OutputError(f"the output directory {self.directory} can't be made: {error.strerror}") from error
        except WorkerUnfit as error:
            raise OutputError(f"{self.directory} can't be written from here: {error}") from None

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

    def has(self, index: int, part: Part) -> bool:
        """Whether a part is in the stage, or in its place already."""
        return (self.stage / part.file).is_file() or _is_same(self._path_of(index), part)

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
            remove_tree(path)

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
        if self._collected and not (self.directory / SUCCESS).exists():  # else a signal came just when it was there
            for path in self._collected:
                path.unlink(missing_ok=True)
        self._remove_stage()
        for path in self.made:
            with contextlib.suppress(OSError):  # it isn't empty, or wasn't made
                path.rmdir()


def _skipped_line(task: TaskId, skipped: Skipped) -> str:
    told = {"task": str(task), "source": skipped.source, "offset": skipped.offset, "record": skipped.record}
    return to_json({**told, "message": skipped.message}) + "\n"


def _is_output(path: Path) -> bool:
    return path.is_file() and re.fullmatch(rf"part-[0-9]{{5,}}|{SUCCESS}|{LOG}|{SKIPPED}", path.name) is not None


def _is_same(path: Path, part: Part) -> bool:
    return path.is_file() and size_of(path) == part.size and crc32(path.read_bytes()) == part.crc
