"""rq-mr: functions over whole pieces as RQ jobs on two workers; their results are joined in this process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import common
import pools
from redis import Redis
from rq import Queue
from rq_mr import ComputationEngine


@contextmanager
def queue() -> Iterator[Queue]:
    """A private server and two workers, as rqmr's own command starts them."""
    with tempfile.TemporaryDirectory(prefix="rq-mr-") as name:
        socket = Path(name) / "r.sock"
        server = os.environ.get("RQMR_REDIS_SERVER") or shutil.which("valkey-server") or shutil.which("redis-server")
        if not server:
            raise SystemExit("rq-mr needs a server; set RQMR_REDIS_SERVER")
        options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no", "--dir", name]
        started = [subprocess.Popen([server, *options], stdout=subprocess.DEVNULL)]
        try:
            while not socket.exists():
                time.sleep(0.01)
            worker = [sys.executable, "-m", "rq.cli", "worker", "--url", f"unix://{socket}", "--quiet", "mr"]
            started += [subprocess.Popen(worker) for _ in range(2)]
            yield Queue("mr", connection=Redis(unix_socket_path=str(socket)))
        finally:
            for process in reversed(started):
                process.terminate()
            for process in started:
                process.wait()


def run(work: Callable[[Any], Any], join: Callable[[Iterable[Any]], Iterator[str]]) -> Callable[[list[str]], Any]:
    """Return what does a work of the pools' with rq-mr."""

    def do(paths: list[str]) -> list[str]:
        pieces = common.pieces(paths)
        with queue() as where:
            engine = ComputationEngine(
                where,
                counter=len,
                splitter=iter,
                atomic_computation=work,
                joiner=lambda data, results: list(join(results.values())),
                data=pieces,  # type: ignore[arg-type]
                wait_time=0.05,
            )
            engine.run()
        return engine.result

    return do


if __name__ == "__main__":
    names = {"words": "words", "chunks": "chunks", "index": "index", "grep": "grep", "sort": "sort"}
    common.main({name: run(*pools.PROGRAMS[name]) for name in names})
