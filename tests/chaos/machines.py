"""What the storm goes over: a real server that keeps its data, real `rq worker`s that are started again, processes."""

from __future__ import annotations

import contextlib
import ctypes
import heapq
import itertools
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import redis

from rqmr.connection import Client, clone, connect
from rqmr.server import find_server, server_command
from rqmr.sessions import die_with, members, processes, send

QUEUE = "rqmr"
#: As systemd waits before it starts a service again that has ended by itself.
_RESTART_SECONDS = 1.0


class Broken(Exception):
    """A promise was broken."""


def adopt_orphans() -> None:
    """Make this process the parent of all that its children leave behind, so that nothing can get lost. Linux only."""
    pr_set_child_subreaper = 36
    if sys.platform != "linux" or ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1) != 0:
        sys.exit("this needs Linux: work-horses that outlive their worker couldn't be found")


def descendants() -> set[int]:
    """All living processes that this one has started, directly or not."""
    me = os.getpid()
    return members({pid for pid, parent, _ in processes() if parent == me})


def end_all(seconds: float = 10) -> None:
    """Kill all that this process has started."""
    deadline = time.monotonic() + seconds
    while (doomed := descendants()) and time.monotonic() < deadline:
        send(signal.SIGKILL, doomed)
        time.sleep(0.01)


def start(command: list[str], log: Path, *, stdout: Path | None = None, cwd: Path) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, which ends with this process at the latest; its words are in `log`."""
    me = os.getpid()
    unwanted = {"RQMR_REDIS_URL", "REDIS_URL", "RQ_REDIS_URL"}
    with log.open("ab") as errors, contextlib.ExitStack() as stack:
        output = stack.enter_context(stdout.open("wb")) if stdout else errors
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            cwd=cwd,
            env={name: value for name, value in os.environ.items() if name not in unwanted},
            start_new_session=True,
            preexec_fn=lambda: die_with(me),
        )


class Agenda:
    """What is to be done later."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()

    def add(self, seconds: float, action: Callable[[], object]) -> None:
        """Do something in so many seconds."""
        heapq.heappush(self._entries, (time.monotonic() + seconds, next(self._numbers), action))

    def work(self, *, all_of_it: bool = False) -> None:
        """Do what is due, or all that is left."""
        while self._entries and (all_of_it or self._entries[0][0] <= time.monotonic()):
            heapq.heappop(self._entries)[2]()


class Server:
    """A server on a unix socket, all of whose replies are on the disk before they are sent."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        data = directory / "data"
        data.mkdir()
        socket = directory / "redis.sock"
        self.url = f"unix://{socket}?db=0"
        command = server_command(find_server(), directory, socket, durable=data)
        self._command = [*command, "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0"]
        self._process: subprocess.Popen[bytes] | None = None
        self._is_paused = False
        self._sizes: deque[tuple[float, Path, int]] = deque(maxlen=200)  # of its file, and when
        self.patient: Client = connect(self.url)
        #: For those who ask again anyway.
        self.client: Client = clone(self.patient, patient=False)

    @property
    def is_there(self) -> bool:
        """Whether it runs, as far as the storm knows."""
        return self._process is not None and not self._is_paused

    def check(self) -> None:
        """Raise Broken if it has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            raise Broken(f"the server ended by itself with status {self._process.returncode}; see server.log")

    def begin(self) -> None:
        """Start it, with the data of before."""
        if self._process is None:
            self._process = start(self._command, self.directory / "server.log", cwd=self.directory)

    def answers(self) -> bool:
        """Whether it does, and has loaded its data."""
        with contextlib.suppress(redis.RedisError):
            return bool(self.is_there and self.client.ping())
        return False

    def end(self, number: signal.Signals) -> None:
        """End it, by SIGTERM or SIGKILL; its data stay."""
        if self._process is not None:
            self.go_on()
            self._process.send_signal(number)
            self._process.wait(20)
            self._process = None

    def look(self) -> None:
        """Remember how much it has written by now."""
        files = list((self.directory / "data" / "appendonlydir").glob("*.incr.aof"))
        if self.is_there and len(files) == 1:
            self._sizes.append((time.monotonic(), files[0], files[0].stat().st_size))

    def forget(self, seconds: float) -> bool:
        """Kill it, and let it forget what it did in the last seconds, as one whose machine goes down may.

        Return whether that is known; nothing is done if it isn't.
        """
        known = [each for each in self._sizes if each[0] < time.monotonic() - seconds]
        if known:
            self.end(signal.SIGKILL)
            _, path, size = known[-1]
            os.truncate(path, size)
            self._sizes.clear()
            self.begin()
        return bool(known)

    def pause(self) -> None:
        """Stop its process."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)
        self._is_paused = True

    def go_on(self) -> None:
        """Let it go on after a pause."""
        if self._process is not None and self._is_paused:
            self._process.send_signal(signal.SIGCONT)
            self._is_paused = False

    def compact(self) -> None:
        """Forget in its file what is over, so that it loads fast."""
        if self.patient.info("persistence")["aof_current_size"] > 32 << 20:
            self.patient.bgrewriteaof()
            wait_until(
                lambda: not self.patient.info("persistence")["aof_rewrite_in_progress"],
                seconds=60,
                what="the server has compacted its file",
            )
            self._sizes.clear()


@dataclass
class Worker:
    """A place for one `rq worker`, which is started again whenever it has ended."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    start_at: float = 0.0

    @property
    def is_alive(self) -> bool:
        """Whether its process runs, or is stopped."""
        return self.process is not None and self.process.poll() is None


@dataclass
class Workers:
    """All workers."""

    server: Server
    directory: Path
    all: list[Worker] = field(default_factory=list)
    _orphans: set[int] = field(default_factory=set)

    def add(self, count: int) -> None:
        """Have so many more."""
        self.all += [Worker(len(self.all) + each) for each in range(1, count + 1)]

    def keep(self) -> None:
        """Start those again that have ended, as a supervisor of services does."""
        now = time.monotonic()
        for worker in self.all:
            if worker.is_alive:
                continue
            if worker.process is not None:
                worker.process = None
                worker.start_at = max(worker.start_at, now + _RESTART_SECONDS)
            if now >= worker.start_at:
                self._start(worker)
        self._bury()

    def kill(self, worker: Worker, seconds: float) -> None:
        """Kill a worker, and start it again in so many seconds."""
        assert worker.process
        worker.process.kill()
        worker.process.wait()
        worker.process = None
        worker.start_at = time.monotonic() + seconds

    def alive(self) -> list[Worker]:
        """The workers that are there."""
        return [worker for worker in self.all if worker.is_alive]

    def horses_of(self, worker: Worker) -> list[int]:
        """A worker's work-horse, if it has one now."""
        return [pid for pid, parent, _ in processes() if worker.process and parent == worker.process.pid]

    def horses(self) -> list[int]:
        """All work-horses, also those whose worker is dead: this process has inherited them."""
        return sorted({*self.orphans(), *(pid for worker in self.alive() for pid in self.horses_of(worker))})

    def orphans(self) -> set[int]:
        """The work-horses whose worker is dead: they are in its session, and whatever else is started leads its own."""
        me = os.getpid()
        return {pid for pid, parent, session in processes() if parent == me and session not in (pid, os.getsid(0))}

    def end(self) -> None:
        """Ask all to end, as an operator does; raise Broken if one doesn't."""
        workers = self.alive()
        for worker in workers:
            assert worker.process
            worker.process.terminate()
        wait_until(lambda: not self.alive(), seconds=30, what="the workers end when they are asked to")

    def _start(self, worker: Worker) -> None:
        worker.starts += 1
        name = f"w{worker.number}-{worker.starts}"
        command = [sys.executable, "-m", "rq.cli", "worker", "--name", name, "--url", self.server.url, QUEUE]
        worker.process = start(command, self.directory / f"{name}.log", cwd=self.directory)

    def _bury(self) -> None:
        orphans = self.orphans()
        for pid in self._orphans - orphans:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        self._orphans = orphans


def wait_until(predicate: Callable[[], object], *, seconds: float, what: str) -> None:
    """Wait for a fact; raise Broken if it doesn't come true."""
    deadline = time.monotonic() + seconds
    while not predicate():
        if time.monotonic() > deadline:
            raise Broken(f"waited {seconds:g} s in vain until {what}")
        time.sleep(0.02)
