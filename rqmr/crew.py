"""A crew: some stock RQ workers of one host, started, watched, and started again, as `rqmr worker` does.

Each is an `rq worker` in a process and a session of its own. One that ends is replaced, after a pause that grows if
that happens again and again; none is started while Redis is away. The crew ends when it is told to, and they with it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import redis

from rqmr.access import Server
from rqmr.connection import clone
from rqmr.errors import RefusedError
from rqmr.sessions import die_with, end_sessions, members, send
from rqmr.supervise import LEAVE_SECONDS, TICK_SECONDS, Slot

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Crew:
    """Workers of one host on one Redis."""

    def __init__(
        self,
        server: Server,
        queues: Sequence[str],
        workers: int,
        *,
        max_memory: int = 0,
        verbose: bool = False,
        say: Callable[[str], None],
    ) -> None:
        """Take what to start; `max_memory`: bytes that one work-horse and what it starts may have, 0 for any.

        Raises:
            RefusedError: this system doesn't tell what a process has started, and how much memory that has.
        """
        if max_memory and not Path(f"/proc/self/task/{os.getpid()}/children").exists():
            raise RefusedError("--max-memory needs Linux, which tells what a process has started, and its memory")
        self._server = server
        self._queues = list(queues)
        self._max_memory = max_memory
        self._verbose = verbose
        self._say = say
        prefix = f"rqmr-{secrets.token_hex(3)}"
        self._slots = [Slot(f"{prefix}-w{number}") for number in range(1, workers + 1)]
        self._told_to_end = 0  # how often
        self._is_away = False
        self._killed: set[int] = set()  # work-horses that took too much

    def run(self) -> None:
        """Keep the workers running until a signal comes, and return when they have ended."""
        queues = " and ".join(f"'{queue}'" for queue in self._queues)
        count = "1 worker" if len(self._slots) == 1 else f"{len(self._slots)} workers"
        self._say(
            f"{count} on {'queue' if len(self._queues) == 1 else 'queues'} {queues} of {self._server.description}"
        )
        with self._signals():
            try:
                while not self._told_to_end:
                    self._look()
                    self._fill()
                    time.sleep(TICK_SECONDS)
                self._end()
            finally:
                end_sessions({slot.pid for slot in self._slots if slot.pid})

    def _look(self) -> None:
        """Bury the workers that have ended, and end the work-horses that take too much memory."""
        for slot in self._slots:
            if (status := slot.reap()) is not None:
                end_sessions({slot.pid})  # its work-horse may have outlived it
                slot.empty()
                if not self._told_to_end:
                    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
                    self._say(
                        f"{_short(slot)} ended ({how}); another one starts in {slot.due - time.monotonic():.1f} s"
                    )
        if self._max_memory:
            self._limit_memory()

    def _fill(self) -> None:
        empty = [slot for slot in self._slots if not slot.pid and time.monotonic() >= slot.due]
        if empty and self._answers():
            for slot in empty:
                slot.fill(self._start)

    def _answers(self) -> bool:
        """Whether Redis does: a worker that finds none ends, with a long story in its log."""
        with closing(clone(self._server.client, patient=False)) as client:
            try:
                client.ping()
            except redis.RedisError as error:
                if not self._is_away:
                    self._say(f"Redis doesn't answer ({error}): workers start when it does")
                self._is_away = True
                time.sleep(TICK_SECONDS)
                return False
        if self._is_away:
            self._say("Redis answers again")
        self._is_away = False
        return True

    def _start(self, name: str) -> int:
        """Start a worker; return its pid. This process has one thread, so it may fork."""
        crew = os.getpid()
        command = [
            sys.executable, "-P", "-m", "rq.cli", "worker", "-c", "rqmr.preload", "--name", name,
            *([] if self._verbose else ["--quiet"]), *self._queues,
        ]  # fmt: skip
        if pid := os.fork():
            return pid
        try:
            os.setsid()  # Ctrl-C in a terminal is for the crew, which passes it on
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            die_with(crew, signal.SIGTERM)  # as if it were told to stop
            # A URL's password must be in no argv.
            os.execve(sys.executable, command, os.environ | {"RQ_REDIS_URL": self._server.url})
        finally:
            os._exit(127)

    def _limit_memory(self) -> None:
        horses = {horse: slot for slot in self._slots if slot.pid for horse in _children(slot.pid)}
        self._killed &= set(horses)
        for horse in set(horses) - self._killed:
            family = _family(horse)
            taken = sum(map(_memory_of, family))
            if taken > self._max_memory:
                self._say(
                    f"{_short(horses[horse])}: its work-horse has {_in_words(taken)} of memory, more than --max-memory "
                    f"{_in_words(self._max_memory)}: killed; its task counts as lost, and is tried again"
                )
                send(signal.SIGKILL, family)
                self._killed.add(horse)

    def _end(self) -> None:
        """Let the workers leave: their work-horses give their tasks back. Told twice, end them at once."""
        workers = {slot.pid for slot in self._slots if slot.pid}
        self._say("ending: what the workers are at is given back (told again: at once)")
        send(signal.SIGTERM, workers)
        deadline = 0.0
        while any(slot.pid for slot in self._slots) and not (deadline and time.monotonic() > deadline):
            if self._told_to_end > 1 and not deadline:
                # Without work-horses they have nothing to wait for, and sign off by themselves.
                send(signal.SIGKILL, members(workers) - workers)
                deadline = time.monotonic() + LEAVE_SECONDS
            time.sleep(0.02)
            self._look()
        self._say("ended")

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def tell(*_: object) -> None:
            self._told_to_end += 1

        before = {number: signal.signal(number, tell) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _short(slot: Slot) -> str:
    return slot.name.split("-", 2)[2]


def _family(pid: int) -> set[int]:
    """Return a process and all that it has started."""
    found, new = set[int](), {pid}
    while new:
        found |= new
        new = {child for each in new for child in _children(each)} - found
    return found


def _children(pid: int) -> list[int]:
    """Return what a process, in any of its threads, has started. Far cheaper than a look at all processes."""
    found: list[int] = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, listing.read_text().split())
    return found


def _memory_of(pid: int) -> int:
    """Return the bytes of memory that a process has, 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def _in_words(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.0f} MiB"
