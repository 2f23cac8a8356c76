"""What tests share: a private server for the session, an empty database for each test, real `rq worker` processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from bench import Bench
from harness import ROOT, Workers, wait_until

from rqmr.connection import connect
from rqmr.errors import RunFailed
from rqmr.server import find_server

# Under nohup, or behind an &, these are ignored, and so they are in all that tests start and send signals to.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of a private server that the session started; nobody else's data is in it."""
    binary = find_server()
    with tempfile.TemporaryDirectory(prefix="rqmr-test-") as directory:
        socket = f"{directory}/r.sock"
        process = subprocess.Popen(
            [str(binary), "--port", "0", "--unixsocket", socket, "--unixsocketperm", "700", "--save", "",
             "--appendonly", "no", "--dir", directory, "--maxmemory-policy", "noeviction"],
            stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        url = f"unix://{socket}?db=0"
        try:
            client = connect(url)
            wait_until(lambda: _answers(client), timeout=10, what="the server answers")
            client.close()
            yield url
        finally:
            process.kill()
            process.wait()


def _answers(client: Any) -> bool:
    with contextlib.suppress(redis_py.RedisError):
        return bool(client.ping())
    return False


@pytest.fixture
def redis_url(server: str) -> Iterator[str]:
    """The server's URL, its database empty; afterwards every key of rqmr that is left must have a TTL."""
    client = connect(server)
    client.flushdb()
    yield server
    forever = [key.decode() for key in client.scan_iter("rqmr:*") if client.ttl(key) == -1]
    client.flushdb()
    client.close()
    assert not forever, f"keys without TTL: {sorted(forever)}"


@pytest.fixture
def redis(redis_url: str) -> Iterator[Any]:
    client = connect(redis_url)
    yield client
    client.close()


@pytest.fixture
def workers(redis_url: str, tmp_path: Path) -> Iterator[Workers]:
    directory = tmp_path / "workers"
    directory.mkdir()
    group = Workers(redis_url, directory)
    yield group
    group.stop()


@pytest.fixture
def bench(tmp_path: Path, redis_url: str, redis: Any) -> Iterator[Bench]:
    """A bench whose runs end with the test; nothing is left in Redis of those that have ended by themselves."""
    bench = Bench(tmp_path, redis_url)
    yield bench
    bench.open_gate()
    for command in bench.commands:
        command.end()
    over = [run for run in bench.runs if run.is_over]
    for run in bench.runs:
        run.end()
    whole = [run for run in over if not isinstance(run.error, RunFailed)]  # else it can be resumed
    left = {key.decode() for run in whole for key in redis.scan_iter(f"rqmr:{run.id}*", count=1000)}
    assert left <= {f"rqmr:{run.id}:end" for run in whole}, "keys of a run that ended"


@pytest.fixture(scope="session")
def books(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Real books if RQMR_TEST_BOOKS names a directory that has some, else the clone's own short texts, repeated."""
    directory = os.environ.get("RQMR_TEST_BOOKS")
    if directory:
        found = sorted(Path(directory).glob("*.txt"))
        assert found, f"RQMR_TEST_BOOKS={directory} has no .txt"
        return found
    made = tmp_path_factory.mktemp("books")
    for path in sorted((ROOT / "input").glob("*.txt")):
        (made / path.name).write_bytes(path.read_bytes() * 400)
    return sorted(made.iterdir())


@pytest.fixture
def rqmr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the real command in an empty directory (`cwd`), with no Redis in its environment."""
    for name in ("RQMR_REDIS_URL", "REDIS_URL", "RQ_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    here = tmp_path / "cwd"
    here.mkdir()

    def run(
        *arguments: object, cwd: Path = here, timeout: float = 60, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "rqmr", *map(str, arguments)],
            cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False, **options,
        )  # fmt: skip

    return run
