"""Passwords stay where they were given: in no command line, log, error, view, output or key."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from harness import JOBS, RedisServer, Workers, wait_until

from rqmr.access import Server
from rqmr.connection import check_server, connect
from rqmr.errors import RedisError
from rqmr.signing import VARIABLE
from rqmr.where import Where, hide_password

#: What can't be there by chance.
MARK = f"hunter2-{secrets.token_hex(8)}"


class CommandLines:
    """Looks at the command lines of all processes while the block runs."""

    def __init__(self) -> None:
        self.found: set[str] = set()
        self.looks = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> CommandLines:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.03):
            self.looks += 1
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    if MARK.encode() in (line := path.read_bytes()):
                        self.found.add(line.replace(b"\0", b" ").decode())


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[str]:
    """The URL, with the password, of a server that wants one."""
    hashed = hashlib.sha256(MARK.encode()).hexdigest()
    (tmp_path / "users.acl").write_text(f"user default on #{hashed} ~* &* +@all\n")
    server = RedisServer(tmp_path, ["--aclfile", str(tmp_path / "users.acl")])
    server.start()
    url = f"{server.url}&password={MARK}"
    client = connect(url)
    wait_until(lambda: answers(client), timeout=10, what="the server answers")
    client.close()
    yield url
    server.close()


def answers(client: Any) -> bool:
    with contextlib.suppress(redis_py.ConnectionError):
        return bool(client.ping())
    return False


def everything_in(client: Any) -> Iterator[bytes]:
    """All that is in the database, RQ's keys too, with the tracebacks that it packs."""
    readers = {
        b"string": lambda key: [client.get(key)],
        b"hash": lambda key: [*client.hkeys(key), *client.hvals(key)],
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": lambda key: client.smembers(key),
        b"zset": lambda key: client.zrange(key, 0, -1),
        b"stream": lambda key: [part for _, fields in client.xrange(key) for part in [*fields, *fields.values()]],
        b"none": lambda key: [],
    }
    for key in client.scan_iter("*", count=1000):
        yield key
        yield from readers[client.type(key)](key)


def test_a_password_is_nowhere_but_where_it_was_given(
    locked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the environment of commands and workers, that is; so is the secret that signs."""
    here = tmp_path / "cwd"
    here.mkdir()
    (here / "words").write_text("a word\n" * 50)
    (here / "bad").write_text("error\n")
    for name in ("REDIS_URL", "RQ_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RQMR_REDIS_URL", locked)
    monkeypatch.setenv(VARIABLE, f"secret-{MARK}")
    workers = Workers(locked, here)
    told: list[str] = []

    def rqmr(*arguments: object, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "rqmr", *map(str, arguments)],
            cwd=here, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        told.append(done.stdout + done.stderr)
        return told[-1]

    with CommandLines() as lines, contextlib.ExitStack() as stack:
        stack.callback(workers.stop)
        waiting = rqmr("run", "wordcount", "words", "-o", "out", "--detach").splitlines()[0]
        assert waiting in rqmr("ps")
        rqmr("status", waiting, "--json")
        with (here / "crew.log").open("w") as log:
            crew = subprocess.Popen(
                [sys.executable, "-m", "rqmr", "worker", "-n", "1"], cwd=here, stdout=log, stderr=log, process_group=0
            )
        stack.callback(crew.kill)
        workers.start(1)
        assert "succeeded" in rqmr("attach", waiting)
        failed = rqmr("run", JOBS / "bad.py", "bad", "-o", "failed")
        assert "the run failed" in failed
        assert "has failed already" in rqmr("cancel", re.findall(r"resume (\S+)", failed)[0])
        assert "succeeded" in rqmr("run", "wordcount", "words", "-o", "local", "-w", 1)
        workers.stop()
        crew.terminate()
        assert crew.wait(20) == 0
        wrong = [locked.replace(MARK, f"wrong-{MARK}"), f"redis://user:{MARK}@127.0.0.1:1/0", f"rdis://x:{MARK}@h"]
        with ThreadPoolExecutor() as threads:
            problems = list(threads.map(lambda url: rqmr("ps", RQMR_REDIS_URL=url), wrong))
        assert [problem[:6] for problem in problems] == ["rqmr: "] * 3
        assert "RQMR_SECRET has" in rqmr("run", "wordcount", "words", "-o", "short", RQMR_SECRET=MARK[:9])
    client = connect(locked)
    kept = [value for value in everything_in(client) if MARK.encode() in value]
    client.close()

    assert lines.looks > 20
    assert not lines.found
    assert not [text for text in told if MARK in text]
    assert not kept
    logs = [path for path in here.rglob("*") if path.is_file()]
    assert [path for path in logs if path.suffix == ".log"]
    assert not [path for path in logs if MARK in path.read_text(errors="replace")]


def test_what_is_printed_for_whoever_debugs_has_no_password() -> None:
    """Such as by a debugger, or a log of local variables."""
    url = f"redis://:{MARK}@cache:6379/0"
    assert MARK not in repr(Where(url)) + repr(Server(None, url, "a server"))


def test_a_url_without_a_password_is_told_how_to_have_one(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, ["--requirepass", MARK])
    try:
        server.start()
        path = Path(server.url.removeprefix("unix://").partition("?")[0])
        wait_until(path.exists, timeout=10, what="it is up")
        with pytest.raises(RedisError, match=r"wants a password: write it into the URL, as redis://:PASSWORD@"):
            check_server(connect(server.url), server.url)
        wrong = server.url.replace("unix://", "unix://:wrong@")
        with pytest.raises(RedisError, match="refuses this user or password"):
            check_server(connect(wrong), wrong)
    finally:
        server.close()


@pytest.mark.parametrize(
    "url",
    [
        "redis://:{}@h:6379/0",
        "rediss://user:{}@h:6379/0?ssl_ca_certs=/ca.pem",
        "redis://user:a@{}/?@h:6379/0",
        "redis://h?password={}&db=0",
        "unix://user@/r.sock?db=0&PASSWORD={}",
        "redis://h?db=0&ssl_password={}",
        "redis://user:{}@h?password={}",
        "://:{}@",
        "redis://user:x:{}@h",
    ],
)
def test_no_spelling_of_a_password_is_shown(url: str) -> None:
    assert MARK not in hide_password(url.replace("{}", MARK))
