"""Time whole commands, everything that they start included, and compare what they wrote."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rqmr.sessions import processes

LONGEST_SECONDS = 1800
#: What would lead a command to another Redis than one of its own.
NAMES_OF_REDIS = ("RQMR_REDIS_URL", "REDIS_URL", "RQ_REDIS_URL")


@dataclass(frozen=True)
class Usage:
    """What one command took."""

    seconds: float
    cpu: float  # seconds, of all its processes
    own_cpu: float = 0.0  # seconds, of the command's own process and of those it waited for
    own_peak: int = 0  # bytes, of the largest of these


def run(command: Sequence[object], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Usage:
    """Run a command to its end; SystemExit with what it said if it fails."""
    _adopt_orphans()
    environment = {**os.environ, **(env or {})}
    for name in NAMES_OF_REDIS:
        environment.pop(name, None)
    _reap_orphans()  # of what was measured before: their time is not this one's
    with tempfile.TemporaryFile() as said:
        cpu, began = _children_cpu(), time.monotonic()
        process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=cwd, env=environment
        )
        with _limited(process):
            _, status, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        _reap_orphans()
        if process.returncode:
            said.seek(0)
            text = said.read().decode(errors="replace")[-4000:]
            raise SystemExit(f"{' '.join(map(str, command[:4]))} … failed ({process.returncode}):\n{text}")
    return Usage(seconds, _children_cpu() - cpu, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


@contextlib.contextmanager
def _limited(process: subprocess.Popen[bytes]) -> Iterator[None]:
    timer = threading.Timer(LONGEST_SECONDS, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _adopt_orphans() -> None:
    """Become the parent of processes whose own ends first, so that their time counts, too. Linux only."""
    if sys.platform == "linux":
        pr_set_child_subreaper = 36
        ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1)


def _reap_orphans() -> None:
    """Wait for those that end now; others, such as the workers of a cluster, are waited for by who started them."""
    alive = {pid for pid, parent, _ in processes() if parent == os.getpid()}
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline and (dead := [pid for pid in _zombies() if pid not in alive]):
        for pid in dead:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _zombies() -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state == "Z" and int(parent) == os.getpid():
                found.append(int(stat.parent.name))
    return found


# --- the memory of what runs --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What was seen of a process."""

    parent: int
    command: str
    peak: int  # bytes of memory at most
    cpu: float  # seconds

    @property
    def is_server(self) -> bool:
        """Whether it is Redis."""
        return "valkey-server" in self.command or "redis-server" in self.command

    @property
    def is_command(self) -> bool:
        """Whether this process has started it itself; all others that it started are the command's."""
        return self.parent == os.getpid()


class Watch:
    """Looks, while its block runs, what each descendant of this process takes."""

    def __init__(self, every: float = 0.05) -> None:
        self._every = every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._seen: dict[int, Seen] = {}

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def seen(self) -> list[Seen]:
        """All that were there, as they were when last seen."""
        return list(self._seen.values())

    def _look(self) -> None:
        while not self._over.wait(self._every):
            parents = {pid: parent for pid, parent, _ in processes()}
            for pid in parents:
                if _descends(pid, os.getpid(), parents):
                    with contextlib.suppress(OSError, ValueError):
                        self._note(pid, parents[pid])

    def _note(self, pid: int, parent: int) -> None:
        place = Path("/proc") / str(pid)
        peak = re.search(r"VmHWM:\s*(\d+) kB", (place / "status").read_text())
        command = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        if peak and command:
            ticks = (place / "stat").read_text(errors="replace").rpartition(")")[2].split()[11:13]
            cpu = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
            first = self._seen.get(pid)
            # One whose parent ends first becomes this process's.
            self._seen[pid] = Seen(first.parent if first else parent, command, int(peak[1]) * 1024, cpu)


def _descends(pid: int, ancestor: int, parents: Mapping[int, int]) -> bool:
    while (pid := parents.get(pid, 0)) > 1:
        if pid == ancestor:
            return True
    return False


# --- what was written ---------------------------------------------------------------------------------------------


_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_PLAIN = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}


def digest(paths: Iterable[Path], *, is_ordered: bool = False, is_escaped: bool = False) -> str:
    """Return what two outputs of the same lines have in common, in any order of lines unless `is_ordered`.

    `is_escaped`: tabs and the like in a field are spelled as rqmr's part files spell them.
    """
    if is_ordered:
        whole = hashlib.blake2b(digest_size=16)
        for path in paths:
            with path.open("rb") as file:
                while data := file.read(1 << 20):
                    whole.update(data)
        return whole.hexdigest()
    lines = total = 0
    for path in paths:
        with path.open("rb") as file:
            for line in file:
                plain = _unescaped(line) if is_escaped and b"\\" in line else line
                total += hash(plain)
                lines += 1
    return f"{lines} lines, {total % 2**64:016x}"


def _unescaped(line: bytes) -> bytes:
    return _ESCAPED.sub(lambda match: _PLAIN.get(match[1], match[1]), line)


def warm(paths: Iterable[Path]) -> None:
    """Read files, so that all that follow find them in memory."""
    for path in paths:
        with path.open("rb") as file:
            while file.read(1 << 20):
                pass


# --- many of them -------------------------------------------------------------------------------------------------


def spread(values: Sequence[float], form: str = "{:.2f}") -> str:
    """The median, and the least and the most if they differ."""
    told = [form.format(value) for value in (statistics.median(values), min(values), max(values))]
    return told[0] if told[1] == told[2] else f"{told[0]} [{told[1]} … {told[2]}]"
