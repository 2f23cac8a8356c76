"""What tests and fixtures share: waiting for facts, programs and what they start, real `rq worker` processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rqmr.connection import connect
from rqmr.server import find_server
from rqmr.sessions import end_sessions, members, processes

ROOT = Path(__file__).resolve().parent.parent
JOBS = Path(__file__).resolve().parent / "jobs"


def wait_until(predicate: Callable[[], Any], *, timeout: float, what: str) -> Any:
    """Wait for a fact; return what the predicate gave."""
    deadline = time.monotonic() + timeout
    while True:
        if value := predicate():
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout:g} s in vain until {what}")
        time.sleep(0.01)


def signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to those of the processes that are there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@contextlib.contextmanager
def running(program: str, *arguments: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program with its own process group, as a terminal gives it; gone at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
        process_group=0,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def family(pid: int) -> set[int]:
    """All that *pid* has started, and what that has started."""
    return members({pid}) - {pid}


def alive(pids: set[int]) -> set[int]:
    return pids & {pid for pid, _, _ in processes()}


@dataclass
class Workers:
    """Real `rq worker` processes, each in a session of its own."""

    url: str
    directory: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _keeper: threading.Thread | None = None
    _is_stopped: threading.Event = field(default_factory=threading.Event)

    def start(
        self, count: int = 1, *arguments: str, queue: str = "rqmr", **environment: str
    ) -> list[subprocess.Popen[bytes]]:
        """Start workers and wait until they listen."""
        client = connect(self.url)
        key = f"rq:workers:{queue}"
        before = client.scard(key)
        started = [self.begin(*arguments, queue=queue, **environment) for _ in range(count)]
        wait_until(lambda: client.scard(key) >= before + count, timeout=20, what=f"{count} workers listen")
        client.close()
        return started

    def begin(self, *arguments: str, queue: str = "rqmr", **environment: str) -> subprocess.Popen[bytes]:
        """Start one worker without waiting for it."""
        number = len(self.processes) + 1
        with (self.directory / f"worker-{number}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "rq.cli", "worker", "--name", f"worker-{number}", *arguments, queue],
                env={**os.environ, "RQ_REDIS_URL": self.url, **environment},
                cwd=self.directory, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def horses_of(self, worker: subprocess.Popen[bytes]) -> list[int]:
        """The pids of a worker's work-horses."""
        children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children")
        return [int(pid) for pid in children.read_text().split()] if children.exists() else []

    def freeze(self, worker: subprocess.Popen[bytes]) -> list[int]:
        """Stop a worker and its work-horse; return the pids of both."""
        os.kill(worker.pid, signal.SIGSTOP)  # first, so that it forks no more
        pids = [worker.pid, *self.horses_of(worker)]
        signal_all(pids, signal.SIGSTOP)
        return pids

    def kill(self, worker: subprocess.Popen[bytes]) -> None:
        """Kill a worker together with its work-horse, as a machine that goes down does."""
        signal_all(self.freeze(worker), signal.SIGKILL)
        worker.wait()

    def keep(self, count: int) -> list[subprocess.Popen[bytes]]:
        """Start workers, and start another for each that ends, as systemd does with `Restart=always`."""
        kept = [self.begin() for _ in range(count)]
        self._keeper = threading.Thread(target=self._keep, args=(kept,))
        self._keeper.start()
        client = connect(self.url)
        wait_until(lambda: client.scard("rq:workers:rqmr") >= count, timeout=30, what=f"{count} workers have listened")
        client.close()
        return kept

    def _keep(self, kept: list[subprocess.Popen[bytes]]) -> None:
        while not self._is_stopped.wait(0.1):
            for slot, worker in enumerate(kept):
                if worker.poll() is not None:
                    end_sessions({worker.pid})  # systemd ends all that the unit has started
                    kept[slot] = self.begin()

    def stop(self) -> None:
        self._is_stopped.set()
        if self._keeper:
            self._keeper.join()
        # With orphans, too: one that outlived its worker and this test would write into the next one's database.
        end_sessions({process.pid for process in self.processes})
        for process in self.processes:
            process.wait()


@dataclass
class RedisServer:
    """A server of a test's own, to be tormented."""

    directory: Path
    options: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self._sockets = tempfile.TemporaryDirectory(prefix="rqmr-test-")  # with a short path, as a socket's must be
        self.url = f"unix://{self._sockets.name}/r.sock?db=0"

    def start(self) -> None:
        """Start it, without waiting for it."""
        self.process = subprocess.Popen(
            [str(find_server()), "--port", "0", "--unixsocket", f"{self._sockets.name}/r.sock", "--save", "",
             "--dir", str(self.directory), "--maxmemory-policy", "noeviction", *self.options],
            stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def kill(self) -> None:
        if self.process:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        self.kill()
        self._sockets.cleanup()
