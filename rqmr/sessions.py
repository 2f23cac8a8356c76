"""Processes by session: which there are, and their end together with that of their parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path


def die_with(parent: int, number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when *parent*, which has one thread, ends somehow. Linux only."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, number)
    if os.getppid() != parent:  # it ended before the kernel knew
        os._exit(1)


def end_sessions(leaders: Collection[int], seconds: float = 3.0) -> None:
    """SIGKILL what is in the sessions of *leaders*, and every descendant, until none is left.

    By session, as a work-horse has a process group of its own and so may what it starts.
    """
    deadline = time.monotonic() + seconds
    while (doomed := members(leaders)) and time.monotonic() < deadline:
        send(signal.SIGKILL, doomed)
        time.sleep(0.005)


def send(number: int, pids: Collection[int]) -> None:
    """Send a signal to those of the processes that still are there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def members(leaders: Collection[int]) -> set[int]:
    """The living processes in the sessions of *leaders*, and their descendants in whatever session."""
    table = list(processes())
    # A leader counts before it has made its session.
    found = {pid for pid, _, session in table if session in leaders or pid in leaders}
    while more := {pid for pid, parent, _ in table if parent in found} - found:
        found |= more
    return found


def processes() -> Iterator[tuple[int, int, int]]:
    """Pid, parent and session of every process that isn't a zombie."""
    if sys.platform == "linux":
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, parent, _, session = stat.read_text(errors="replace").rpartition(")")[2].split()[:4]
                if state not in "ZX":
                    yield int(stat.parent.name), int(parent), int(session)
    else:
        listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True).stdout
        for pid, parent, state in map(str.split, listing.splitlines()):
            with contextlib.suppress(OSError):
                if not state.startswith("Z"):
                    yield int(pid), int(parent), os.getsid(int(pid))
