"""The embedded server and local workers, as a context manager: they all end when this process ends.

A supervisor, a process of its own (`rqmr.supervise`), does the work; this side orders it and hears what it and the
workers say. Nothing here forks, starts a thread or installs a signal handler: the caller may be any program.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Self

from rqmr import ahead, supervise
from rqmr.durable import hold
from rqmr.errors import RedisError
from rqmr.server import FLUSH_SECONDS, LOADING_SECONDS, START_SECONDS, find_server, server_command
from rqmr.sockets import SOCKET, choose_directory, url_of

#: The supervisor, which waits for the server, shall be the first to lose patience.
READY_SECONDS, LOADED_SECONDS = START_SECONDS + 5, LOADING_SECONDS + 5
CLOSE_SECONDS = 6.0
#: What one call of new_lines reads at most, and where a line without an end is cut.
READ_BYTES, LINE_BYTES = 1 << 20, 1 << 16


def default_workers() -> int:
    """Return how many local workers to start when none were asked for: one for each core that we may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Local:
    """A private server, unless *url* names a Redis, and *workers* RQ workers on *queue*, while the block runs.

    They end within six seconds of this process, in whatever way it ends. For one thread at a time.

    With a *durable* directory the server begins with the data that are there, and keeps its own there: all of them,
    but for the last second or two if the machine itself goes down. It may take ten seconds more to end. One server at
    a time has a directory; it is made, if it isn't there, and never removed.
    """

    def __init__(
        self,
        *,
        workers: int,
        queue: str,
        url: str | None = None,
        durable: Path | None = None,
        preload: Sequence[str] = ("rqmr.worker",),
    ) -> None:
        self._url = url
        self._durable = durable.absolute() if durable else None
        self._workers = workers
        self._queue = queue
        self._preload = list(preload)
        self._prefix = f"rqmr-{secrets.token_hex(3)}"
        self._owner = os.getpid()
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._directory = choose_directory()
        self._socket = self._directory / SOCKET
        self._unread = b""
        self._is_ready = self._is_over = False
        self._deadline = 0.0  # for what is to be heard next, while the server starts
        self._problem = ""
        self._events: list[dict[str, Any]] = []
        self._logs = Logs()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:  # also a signal's, which may come at any line
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the supervisor and return at once: the caller has work of its own to do meanwhile.

        Only for a durable directory whose last command was just killed it waits, until that one's server has ended.

        Raises:
            RedisError: there is no server to start, or it can't have the directory.
        """
        if self._url is not None and self._durable:
            raise RedisError("a Redis that is named keeps its own data; name a Redis, or a directory, but not both")
        binary = find_server() if self._url is None else None
        with contextlib.ExitStack() as stack:
            # Held by the supervisor and the server from then on. Not by this process: a fork of it may outlive them.
            lock = stack.enter_context(hold(self._durable, url_of(self._socket))) if self._durable else None
            self._directory.mkdir(mode=0o700)
            self._supervisor = ahead.take() if lock is None else None
            if not self._supervisor:
                errors = stack.enter_context((self._directory / supervise.LOG).open("wb"))
                self._supervisor = ahead.start(str(self._directory), errors, lock)
        order = self._order(binary, lock)
        self._url = order.url
        self._say(asdict(order))

    def wait_ready(self) -> str:
        """Return the URL of the server as soon as it answers.

        Raises:
            RedisError: it doesn't. Nothing is left running.
        """
        assert self._supervisor, "start() comes first"
        self._deadline = max(self._deadline, time.monotonic() + READY_SECONDS)  # it may load already
        while not self._is_ready:
            self._hear(max(0.0, self._deadline - time.monotonic()))
            if time.monotonic() > self._deadline:
                self._problem = self._problem or "there is no answer"
            if self._problem:
                self.close()
                data = f"Its data are in {self._durable}; name another directory to begin without them.\n"
                raise RedisError(
                    f"the local server and workers did not start: {self._problem}\n"
                    f"{data if self._durable else ''}"
                    "Name another server's binary, RQMR_REDIS_SERVER=/path/to/valkey-server, "
                    "or a Redis that runs, --redis-url redis://host:6379"
                )
        return str(self._url)

    def remove_on_death(self, path: Path, *, if_empty: bool = False) -> None:
        """Have the directory *path* removed as well if this process ends without close()."""
        self._say({"remove": str(path.absolute()), "if_empty": if_empty})

    def events(self) -> list[dict[str, Any]]:
        """What happened since the last call, as `rqmr.supervise` words it, or {"supervisor_died": status}."""
        self._hear(0)
        events, self._events = self._events, []
        return events

    def new_lines(self) -> list[tuple[str, str]]:
        """What the workers printed since the last call, a mebibyte at most: (worker, whole line)."""
        self._hear(0)
        return self._logs.new_lines()

    def drain(self) -> list[tuple[str, str]]:
        """All that is left of what the workers printed, also lines without an end. Call it before close()."""
        self._hear(0)
        return self._logs.drain()

    def close(self) -> None:
        """End the workers and the server, and return when they have ended. A second call does nothing."""
        if os.getpid() != self._owner:  # a fork of the owner has no say
            return
        if self._supervisor is not None:
            self._say({"bye": True})
            supervisor, self._supervisor = self._supervisor, None
            with supervisor:
                assert supervisor.stdin
                supervisor.stdin.close()
                assert supervisor.stdout
                wait_for_end_of(supervisor.stdout, CLOSE_SECONDS + (FLUSH_SECONDS if self._durable else 0))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    supervisor.wait(0.1)
                supervisor.kill()  # where that wasn't enough
        self._logs.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _order(self, binary: Path | None, lock: int | None) -> supervise.Order:
        return supervise.Order(
            parent=os.getpid(),
            preload=self._preload,
            directory=str(self._directory),
            server=server_command(binary, self._directory, self._socket, self._durable) if binary else [],
            socket=str(self._socket),
            lock=lock,
            url=self._url if self._url is not None else url_of(self._socket),
            queue=self._queue,
            workers=self._workers,
            prefix=self._prefix,
        )

    def _say(self, message: dict[str, Any]) -> None:
        """Send one message; if the supervisor has ended there is nothing left to say."""
        if self._supervisor and self._supervisor.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._supervisor.stdin.write(json.dumps(message).encode() + b"\n")

    def _hear(self, seconds: float) -> None:
        """Take in what the supervisor says, waiting at most *seconds* for it to begin."""
        if self._supervisor is None or self._is_over:
            return
        pipe = self._supervisor.stdout
        assert pipe
        while is_readable(pipe.fileno(), seconds):
            data = pipe.read(65536)
            if not data:
                self._is_over = True
                self._heed({"supervisor_died": self._supervisor.wait()})
                return
            *lines, self._unread = (self._unread + data).split(b"\n")
            for line in lines:
                self._heed(json.loads(line))
            seconds = 0

    def _heed(self, message: dict[str, Any]) -> None:
        match message:
            case {"loading": _}:
                self._deadline = time.monotonic() + LOADED_SECONDS
            case {"ready": _}:
                self._is_ready = True
            case {"error": problem}:
                self._problem = problem
            case {"supervisor_died": status}:
                self._problem = self._problem or f"their supervisor ended with status {status}"
            case {"worker": name, "log": path}:
                self._logs.add(name.removeprefix(f"{self._prefix}-"), path)
            case {"worker_died": name}:
                self._logs.has_ended(name.removeprefix(f"{self._prefix}-"))
        self._events.append(message)


class Logs:
    """What the workers print: a file for each, read as it grows."""

    def __init__(self) -> None:
        self._tails: dict[str, Tail] = {}

    def add(self, worker: str, path: str) -> None:
        """A worker started."""
        with contextlib.suppress(FileNotFoundError):  # it has all ended since
            self._tails[worker] = Tail(path)

    def has_ended(self, worker: str) -> None:
        """Nothing will be added to what this worker printed."""
        if worker in self._tails:
            self._tails[worker].is_complete = True

    def new_lines(self) -> list[tuple[str, str]]:
        """The next whole lines of every worker, READ_BYTES of them at most."""
        lines = []
        for worker, tail in list(self._tails.items()):
            data = tail.read(READ_BYTES // len(self._tails))
            lines += [(worker, line) for line in tail.cut(data, at_end=tail.is_complete and not data)]
            if tail.is_complete and not data:
                self._tails.pop(worker).close()
        return lines

    def drain(self) -> list[tuple[str, str]]:
        """The next lines of every worker, READ_BYTES of each at most, with the one that has no end yet."""
        return [
            (worker, line)
            for worker, tail in self._tails.items()
            for line in tail.cut(tail.read(READ_BYTES), at_end=True)
        ]

    def close(self) -> None:
        """Let go of the files."""
        for tail in self._tails.values():
            tail.close()
        self._tails.clear()


class Tail:
    """One file that grows, read by lines."""

    def __init__(self, path: str) -> None:
        self.is_complete = False
        self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115  (close() closes it)
        self._rest = b""
        self.close = self._file.close

    def read(self, most: int) -> bytes:
        """What was added, *most* bytes at most."""
        return self._file.read(most)

    def cut(self, data: bytes, *, at_end: bool) -> list[str]:
        """The lines that *data* ends; *at_end* or where it gets too long, also the one without an end."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if self._rest and (at_end or len(self._rest) > LINE_BYTES):
            lines.append(self._rest)
            self._rest = b""
        return [line.decode(errors="replace").rstrip("\r") for line in lines]


def wait_for_end_of(pipe: IO[bytes], seconds: float) -> None:
    """Return when nobody can write to *pipe* any more, or after *seconds*. `Popen.wait` looks now and then."""
    deadline = time.monotonic() + seconds
    while is_readable(pipe.fileno(), max(0.0, deadline - time.monotonic())):
        if not pipe.read(65536):
            return


def is_readable(descriptor: int, seconds: float) -> bool:
    """Whether a read wouldn't wait, after *seconds* at most. Unlike select, with any number of open files."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
