"""Inputs that can be read only once, standard input and a program's own lines: they are written down first."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rqmr.codec import shorten
from rqmr.errors import InputError
from rqmr.inputs import Source, expand, source_of

STDIN = "-"


@dataclass(frozen=True)
class Text:
    """Lines from a program as an input: they are written down when the run begins, and read as a file would be."""

    lines: Iterable[str]
    name: str = "lines"  # what the mapper gets as its key


Input = str | os.PathLike[str] | Text


def spool(inputs: Sequence[Input], stage: Path) -> list[Source]:
    """Keep what can be read only once in the stage, so that workers can read it in pieces and again.

    Raises:
        InputError: one isn't fit to be read.
    """
    sources = []
    for number, given in enumerate(inputs):
        if isinstance(given, Text):
            kept = stage / f"text-{number}"
            _write_lines(kept, given)
            sources.append(source_of(str(kept), given.name))
        elif given == STDIN:
            kept = stage / "stdin"
            if not kept.exists():
                _copy_stdin(kept)
            sources.append(source_of(str(kept), STDIN))
        else:
            sources += expand([given])
    return sources


def _write_lines(path: Path, text: Text) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for line in text.lines:
            if not isinstance(line, str) or "\n" in line:
                raise InputError(f"{text.name} has {shorten(line)}; each of its lines has to be a str without newlines")
            file.write(f"{line}\n")


def _copy_stdin(path: Path) -> None:
    if sys.stdin is None:
        raise InputError("standard input is closed; give files, or pipe something in")
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
