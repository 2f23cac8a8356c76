"""A private server, real `rq worker`s and the real command, for one run of a benchmark."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from rqmr.connection import connect
from rqmr.server import Server, find_server, server_command
from rqmr.sessions import die_with, members, send


class Cluster:
    """A private server, its workers, and the command that follows the run."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.url = url
        self.client = connect(url)
        self.command: subprocess.Popen[bytes] | None = None
        self._workers: dict[str, subprocess.Popen[bytes]] = {}
        self._started = 0

    def start_worker(self) -> None:
        """Start one more `rq worker`. Each has a new name: RQ takes the old one for alive."""
        self._started += 1
        name, parent = f"worker-{self._started}", os.getpid()
        with (self.directory / f"{name}.log").open("wb") as log:
            self._workers[name] = subprocess.Popen(
                [sys.executable, "-m", "rq.cli", "worker", "--name", name, "rqmr"],
                env={**os.environ, "RQ_REDIS_URL": self.url},
                cwd=self.directory, stdout=log, stderr=log, start_new_session=True,
                preexec_fn=lambda: die_with(parent),
            )  # fmt: skip

    def wait_for_workers(self) -> None:
        """Return when all workers that were started listen."""
        deadline = time.monotonic() + 60
        while self.client.scard("rq:workers:rqmr") < self._started:
            if time.monotonic() > deadline:
                raise SystemExit("the workers didn't start:\n" + (self.directory / "worker-1.log").read_text())
            time.sleep(0.05)

    def kill(self, name: str) -> None:
        """SIGKILL a worker together with its work-horse, as a machine that goes down does."""
        worker = self._workers.pop(name)
        family = members({worker.pid})
        send(signal.SIGKILL, [worker.pid, *family - {worker.pid}])
        worker.wait()

    def rqmr(self, *arguments: object) -> None:
        """Start a command of rqmr on this server."""
        with (self.directory / "rqmr.log").open("ab") as log:
            self.command = subprocess.Popen(
                [sys.executable, "-m", "rqmr", *map(str, arguments), "--redis-url", self.url, "--quiet"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def wait(self, seconds: float) -> int | None:
        """Wait for the command for some time; return its exit status, None if it still runs."""
        assert self.command is not None
        with suppress(subprocess.TimeoutExpired):
            return self.command.wait(seconds)
        return None

    def close(self) -> None:
        """End all that was started but the server."""
        if self.command and self.command.poll() is None:
            self.command.kill()
            self.command.wait()
        for name in list(self._workers):
            self.kill(name)
        self.client.close()


@contextmanager
def started(workers: int) -> Iterator[Cluster]:
    """A server and workers that listen, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="rqmr-faults-") as name, ExitStack() as stack:
        directory = Path(name)
        socket = directory / "r.sock"
        server = Server(server_command(find_server(), directory, socket), directory=directory, socket=socket)
        stack.callback(server.end)
        while not server.serves():
            time.sleep(0.01)
        found = stack.enter_context(closing(Cluster(directory, f"unix://{socket}?db=0")))
        for _ in range(workers):
            found.start_worker()
        found.wait_for_workers()
        yield found
