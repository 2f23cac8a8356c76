"""Marks that outlive a process: files in a directory, so that jobs can tell a first attempt from a second."""

from __future__ import annotations

import os
import time
from pathlib import Path


def first(directory: str, name: str, times: int) -> bool:
    """Whether this is one of the first `times` calls with that name, in whatever process."""
    for number in range(times):
        try:
            file = os.open(Path(directory, f"{name}.{number}"), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            continue
        os.write(file, str(os.getpid()).encode())
        os.close(file)
        return True
    return False


def count(directory: str, name: str) -> None:
    """Leave one more mark."""
    first(directory, name, 10_000)


def wait_for(directory: str, name: str, seconds: float = 30) -> None:
    """Wait until somebody makes a file of that name."""
    deadline = time.monotonic() + seconds
    while not Path(directory, name).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
