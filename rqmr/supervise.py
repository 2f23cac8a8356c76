"""Start the private server and the workers, and end them when the parent ends: a process of its own.

`rqmr.local` runs `main` and speaks JSON lines with it:

    stdin    an Order; then {"remove": path, "if_empty": bool}, to be done if the parent dies; last {"bye": true}
    stdout   {"loading": true} now and then while the server loads its data; {"ready": url} or {"error": text};
             {"worker": name, "pid": …, "log": path} for each worker started;
             {"worker_died": name, "pid": …, "status": …}; {"server_died": status, "log": tail}

A process of its own, because nothing inside the parent runs when the parent is killed. One thread and no
connection, so that a worker is a fork of what is imported already. It ends everything when stdin ends, when it is
told bye, when it gets SIGTERM, or when the server is gone; Ctrl-C is the parent's to handle.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rqmr.included import PLACE
from rqmr.server import TAIL_CHARACTERS, Server, StartError
from rqmr.sessions import die_with, end_sessions, members, send

#: In an order's directory: what the supervisor prints, which is why it ended if it shouldn't have.
LOG = "supervisor.log"
#: What is imported one by one until an order comes; asyncio is a third of what redis imports.
AHEAD = ("asyncio", "redis", "rq", "rqmr.worker")
#: How long a death can go unnoticed.
TICK_SECONDS = 0.2
#: A worker of a named Redis gets this long to finish its RQ job, and as long again to leave without finishing it.
LEAVE_SECONDS = 1.5
#: The wait before a worker that ended is replaced: doubled each time, and short again after a good life.
FIRST_DELAY_SECONDS, LAST_DELAY_SECONDS, GOOD_LIFE_SECONDS = 0.1, 5.0, 30.0


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the parent asks for. It comes through a pipe: a URL's password must be in no argv."""

    parent: int  # its pid
    preload: list[str]  # modules that every worker needs, imported once
    directory: str  # the socket and the logs are in it; it is removed at the end
    server: list[str]  # the command that starts the private server; empty where the url names a Redis
    socket: str  # where that server will listen
    lock: int | None  # an inherited descriptor that holds the data's directory, if that server is a durable one
    url: str
    queue: str
    workers: int
    prefix: str  # of the workers' names; nobody else on this Redis has it


class Parent:
    """The pipes to the process that gave the order, and whether it still lives."""

    def __init__(self) -> None:
        self.said_bye = False
        self.to_remove: dict[str, bool] = {}  # path -> whether only if it is empty
        self._unread = b""
        self._closed = False
        # A parent that doesn't read must not stop us: a message that doesn't fit in the pipe is dropped.
        os.set_blocking(sys.stdout.fileno(), False)

    def import_meanwhile(self, modules: Sequence[str]) -> None:
        """Import modules until there is an order to read, or never will be."""
        before = sys.dont_write_bytecode
        sys.dont_write_bytecode = True  # who isn't needed is killed, whatever it is at
        with contextlib.suppress(Exception):  # those that are needed are imported later, and then that is told
            for module in modules:
                if select.select([sys.stdin], [], [], 0)[0]:
                    break
                importlib.import_module(module)
        sys.dont_write_bytecode = before

    def read_order(self) -> Order | None:
        """Wait for the first line, which is the order; None if the parent ends before it gave one."""
        while b"\n" not in self._unread:
            if not self._read():
                return None
        line, _, self._unread = self._unread.partition(b"\n")
        order = Order(**json.loads(line))
        self._pid = order.parent
        return order

    def tell(self, **message: object) -> None:
        """Send one message, if the parent can still hear it."""
        with contextlib.suppress(BrokenPipeError, BlockingIOError):
            os.write(sys.stdout.fileno(), json.dumps(message).encode() + b"\n")

    def listen(self, seconds: float) -> None:
        """Take in what the parent says, waiting at most *seconds* for it to begin."""
        while not self._closed and select.select([sys.stdin], [], [], seconds)[0] and self._read():
            seconds = 0
        *lines, self._unread = self._unread.split(b"\n")
        for message in map(json.loads, lines):
            self._heed(message)

    @property
    def is_gone(self) -> bool:
        """Whether the parent has ended. A process that it forked can hold the pipe open, so the pid counts too."""
        return self._closed or os.getppid() != self._pid

    def _read(self) -> bool:
        data = os.read(sys.stdin.fileno(), 65536)
        self._unread += data
        self._closed = not data
        return bool(data)

    def _heed(self, message: dict[str, Any]) -> None:
        if "remove" in message:
            self.to_remove[message["remove"]] = message["if_empty"]
        self.said_bye |= "bye" in message


class Slot:
    """A slot for one worker: the process in it or, when that has ended, the time for the next."""

    def __init__(self, label: str) -> None:
        self.name = self._label = label
        self.pid = 0
        self._generation = 0
        self._delay = FIRST_DELAY_SECONDS
        self._filled_at = self.due = time.monotonic()  # `due`: when an empty slot is filled again

    def fill(self, start: Callable[[str], int]) -> None:
        """Start a worker here; `start` takes its name, and returns its pid."""
        self._generation += 1
        if self._generation > 1:  # RQ refuses the name of a worker that was killed
            self.name = f"{self._label}-{self._generation}"
        self.pid = start(self.name)
        self._filled_at = time.monotonic()

    def reap(self) -> int | None:
        """The exit status, negative for a signal, of a worker that has ended; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG) if self.pid else (0, 0)
        return os.waitstatus_to_exitcode(status) if pid else None

    def empty(self) -> None:
        """Its worker has ended: set the time for the next."""
        now = time.monotonic()
        if now - self._filled_at > GOOD_LIFE_SECONDS:
            self._delay = FIRST_DELAY_SECONDS
        self.pid = 0
        self.due = now + self._delay
        self._delay = min(2 * self._delay, LAST_DELAY_SECONDS)


class Supervisor:
    """Everything that one order starts, and its end."""

    def __init__(self, parent: Parent, order: Order) -> None:
        self._parent = parent
        self._order = order
        self._server: Server | None = None
        self._slots = [Slot(f"{order.prefix}-w{number}") for number in range(1, order.workers + 1)]
        self._was_terminated = False
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def run(self) -> None:
        """Start, watch and end everything."""
        try:
            self._start()
            self._watch()
        except StartError as error:
            self._parent.tell(error=str(error).strip())
        except Exception:
            self._parent.tell(error=traceback.format_exc()[-TAIL_CHARACTERS:])
        finally:
            self._end()

    def _start(self) -> None:
        order = self._order
        if order.lock is not None:
            os.set_inheritable(order.lock, False)
        if order.server:
            self._server = Server(
                order.server, directory=Path(order.directory), socket=Path(order.socket), lock=order.lock
            )
        importlib.import_module("redis")  # which takes about as long as the server's start
        if self._server:
            self._wait_for(self._server)
            if self._is_to_end:
                return
        if order.lock is not None:
            forget_workers(order.url)
        self._parent.tell(ready=order.url)
        for module in ("rq", *self._order.preload):
            importlib.import_module(module)
        gc.freeze()  # no collection in a worker shall copy the memory that all of them share
        gc.enable()

    def _wait_for(self, server: Server) -> None:
        """Return once the server serves, or isn't wanted any more. Raises StartError."""
        told_at = 0.0
        while not server.serves() and not self._is_to_end:
            if server.is_loading and time.monotonic() > told_at + 1:
                self._parent.tell(loading=True)
                told_at = time.monotonic()
            self._parent.listen(0.02 if server.is_loading else 0.002)

    @property
    def _is_to_end(self) -> bool:
        return self._was_terminated or self._parent.said_bye or self._parent.is_gone

    def _watch(self) -> None:
        while not self._is_to_end:
            if self._server and (status := self._server.status) is not None:
                self._parent.tell(server_died=status, log=self._server.last_words)
                return
            self._bury_the_dead()
            for slot in self._slots:
                if not slot.pid and time.monotonic() >= slot.due:
                    slot.fill(lambda name: fork_worker(self._order, name, self._log_of(name)))
                    self._parent.tell(worker=slot.name, pid=slot.pid, log=self._log_of(slot.name))
            self._parent.listen(TICK_SECONDS)

    def _log_of(self, name: str) -> str:
        return f"{self._order.directory}/{name}.log"

    def _bury_the_dead(self) -> None:
        for slot in self._slots:
            if (status := slot.reap()) is not None:
                end_sessions({slot.pid})  # its work-horse may have outlived it
                self._parent.tell(worker_died=slot.name, pid=slot.pid, status=status)
                slot.empty()

    def _end(self) -> None:
        if not self._server:
            self._let_workers_sign_off()
        doomed = {slot.pid for slot in self._slots if slot.pid}
        end_sessions(doomed | {self._server.pid} if self._server and not self._server.is_durable else doomed)
        if self._server:
            self._server.end()
        shutil.rmtree(self._order.directory, ignore_errors=True)
        self._parent.listen(0)  # to what it said last
        if self._parent.is_gone and not self._parent.said_bye:
            for path, if_empty in self._parent.to_remove.items():
                with contextlib.suppress(OSError):
                    Path(path).rmdir() if if_empty else shutil.rmtree(path)

    def _let_workers_sign_off(self) -> None:
        """A Redis that lives on shall know that they left: after their RQ job or, if it takes long, without its end.

        Not by a second SIGTERM: RQ would leave the job's hash behind for good, as that of a job under way.
        """
        workers = {slot.pid for slot in self._slots if slot.pid}
        for number in (signal.SIGTERM, signal.SIGKILL):
            send(number, workers if number == signal.SIGTERM else members(workers) - workers)
            deadline = time.monotonic() + LEAVE_SECONDS
            while any(slot.pid for slot in self._slots) and time.monotonic() < deadline:
                time.sleep(0.01)
                self._bury_the_dead()

    def _on_sigterm(self, *_: object) -> None:
        self._was_terminated = True


def forget_workers(url: str) -> None:
    """Take RQ's workers out of the data that a server has loaded: they ended with the server before it.

    Those that were killed are counted for ever otherwise.
    """
    import redis

    with redis.Redis.from_url(url) as connection:
        if keys := list(connection.scan_iter("rq:worker*", count=1000)):
            connection.unlink(*keys)


def fork_worker(order: Order, name: str, log: str) -> int:
    """Start an RQ worker that leads a session of its own and prints into *log*; return its pid."""
    supervisor = os.getpid()
    Path(log).touch(0o600)  # the parent may open it as soon as it hears of the worker
    if pid := os.fork():
        return pid
    status = 1
    try:
        become_worker(name, log, supervisor)
        if order.lock is not None:
            os.close(order.lock)  # what a job leaves behind shall not hold it
        work(order, name)
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)  # never back into the supervisor's code, of which this is a copy


def become_worker(name: str, log: str, supervisor: int) -> None:
    """Let go of the supervisor's session, signal handlers and pipes."""
    os.setsid()
    die_with(supervisor)
    worker = os.getpid()

    def bind_work_horse() -> None:
        # Not what user code forks: the kernel looks at the end of the thread that forked, not of the process.
        if os.getppid() == worker:
            die_with(worker)

    os.register_at_fork(after_in_child=bind_work_horse)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    with Path(os.devnull).open() as nothing, Path(log).open("a") as output:
        for source, standard in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source.fileno(), standard)
    # By lines, so that a print is seen at once, and isn't lost with a work-horse: that ends without flushing.
    sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    os.environ["RQMR_LOCAL_WORKER"] = name


def work(order: Order, name: str) -> None:
    """Be an RQ worker until told to stop."""
    import redis
    import rq

    os.environ[PLACE] = order.directory  # which goes, whatever becomes of this process
    with redis.Redis.from_url(order.url) as connection:
        rq.Worker([order.queue], name=name, connection=connection).work(logging_level="CRITICAL")


def main(directory: str) -> None:
    """Serve one order; if its directory is told before, that is removed even if no order comes."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    gc.disable()  # until all is imported, none of which is garbage
    parent = Parent()
    parent.import_meanwhile(AHEAD)
    if order := parent.read_order():
        if not directory:
            with contextlib.suppress(OSError), Path(order.directory, LOG).open("ab") as log:
                os.dup2(log.fileno(), 2)
        Supervisor(parent, order).run()
    elif directory:
        shutil.rmtree(directory, ignore_errors=True)
    os._exit(0)  # at once: there is nothing to clean up in here
