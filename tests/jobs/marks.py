"""Marks that outlive a process: files in a directory, so that jobs can tell a first attempt from a second."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path


def mark(directory: str, name: str, times: int = 10_000) -> int | None:
    """Leave one more mark, if there are less than `times`; return how many there were, None if it wasn't left."""
    for number in range(times):
        try:
            file = os.open(Path(directory, f"{name}.{number}"), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            continue
        os.write(file, str(os.getpid()).encode())
        os.close(file)
        return number
    return None


def first(directory: str, name: str, times: int) -> bool:
    """Whether this is one of the first `times` calls with that name, in whatever process."""
    return mark(directory, name, times) is not None


def count(directory: str, name: str) -> None:
    """Leave one more mark."""
    mark(directory, name)


def marked(directory: str, name: str) -> int:
    """How many marks of that name there are."""
    return len(list(Path(directory).glob(f"{name}.*")))


def wait_for(directory: str, name: str, seconds: float = 30) -> None:
    """Wait until somebody makes a file of that name."""
    _wait_until(lambda: Path(directory, name).exists(), seconds)


def wait_for_marks(directory: str, name: str, count: int, seconds: float = 20) -> bool:
    """Wait until there are so many marks of that name; return whether there are."""
    return _wait_until(lambda: marked(directory, name) >= count, seconds)


def _wait_until(predicate: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (value := predicate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return value
