"""A durable server keeps its data through every end, one command at a time has them, and private servers are found."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import rq
from harness import alive, family, read_line, running, wait_until

from rqmr import local, server
from rqmr.durable import LOCK, live_url
from rqmr.errors import RedisError
from rqmr.local import Local
from rqmr.server import Server, StartError, find_server, server_command
from rqmr.sessions import send
from rqmr.sockets import private_servers, socket_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")

#: A program that writes and then does nothing. Arguments: the directory of the data, and how many workers.
PARENT = """
import os, pathlib, sys, time
import redis
from rqmr.local import Local

local = Local(workers=int(sys.argv[2]), queue="q", durable=pathlib.Path(sys.argv[1]), preload=[])
local.start()
with redis.Redis.from_url(local.wait_ready()) as client:
    while client.scard("rq:workers:q") < int(sys.argv[2]):
        time.sleep(0.01)
    client.mset({f"key-{number}": number for number in range(1000)})
    if fork := os.fork():  # which has all that this process had
        print(fork, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def tmp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A TMPDIR with a short path, as a socket's must be. Nothing may be left in it."""
    with tempfile.TemporaryDirectory(prefix="d-", dir="/tmp") as directory:
        monkeypatch.setattr(tempfile, "tempdir", directory)
        monkeypatch.setenv("TMPDIR", directory)
        yield Path(directory)
        assert not list(Path(directory).iterdir())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory that isn't there, with a name that has to be quoted."""
    return tmp_path / "new" / 'my "data" ü'


def fill(data: Path, count: int = 1000) -> None:
    """Write *count* keys into a durable server that then ends."""
    with durable(data) as run, redis.Redis.from_url(run.wait_ready()) as client:
        client.mset({f"key-{number}": number for number in range(count)})


def durable(data: Path, workers: int = 0) -> Local:
    return Local(workers=workers, queue="q", durable=data, preload=[])


def log_of(data: Path) -> Path:
    """The file that the server appends to."""
    return max(data.glob("appendonlydir/*.incr.aof"), key=lambda path: path.stat().st_size)


# --- data ---------------------------------------------------------------------------------------------------------


def test_the_next_command_begins_with_the_data_of_the_one_before(data: Path, tmp: Path) -> None:
    fill(data)
    with durable(data) as run, redis.Redis.from_url(run.wait_ready()) as client:
        assert client.dbsize() == 1000


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_data_survive_the_end_of_the_command(number: signal.Signals, data: Path, tmp: Path) -> None:
    """The next one may follow at once, though a fork of the first lives on."""
    with running(PARENT, data, 1) as parent:
        fork = int(read_line(parent))
        try:
            parent.send_signal(number)
            wait_until(lambda: not alive({parent.pid}), timeout=5, what="it is dead, but not what it started")
            with durable(data, workers=1) as run, redis.Redis.from_url(run.wait_ready()) as client:
                assert len(client.keys("key-*")) == 1000
                wait_until(lambda: client.scard("rq:workers:q"), timeout=10, what="a worker is registered")
                (worker,) = rq.Worker.all(queue=rq.Queue("q", connection=client))
                assert worker.pid in family(os.getpid()), "the worker that was killed is forgotten"
            assert alive({fork})
        finally:
            send(signal.SIGKILL, [fork])


def test_data_survive_when_everything_is_killed_at_once(data: Path, tmp: Path) -> None:
    with running(PARENT, data, 1) as parent:
        read_line(parent)
        url = live_url(data)
        assert url
        with redis.Redis.from_url(url) as client:
            wait_until(
                lambda: not client.info("persistence")["aof_buffer_length"], timeout=5, what="the log is written"
            )
        everything = family(parent.pid)
        assert len(everything) >= 4, "supervisor, server, worker, and the fork"
        supervisor = next(pid for pid in everything if "supervise" in command(pid))
        send(signal.SIGKILL, [supervisor, *everything, parent.pid])
        wait_until(lambda: not alive(everything | {parent.pid}), timeout=5, what="all are dead")
    assert live_url(data) is None
    assert found_in(tmp) == []
    with durable(data) as run, redis.Redis.from_url(run.wait_ready()) as client:
        assert len(client.keys("key-*")) == 1000
        assert not client.exists("rq:workers:q")
    (left,) = tmp.iterdir()  # nobody was there to remove it
    shutil.rmtree(left)


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_a_log_whose_tail_was_cut_off_loses_its_last_write_alone(data: Path, tmp: Path) -> None:
    fill(data)
    with durable(data) as run, redis.Redis.from_url(run.wait_ready()) as client:
        client.set("last", "x" * 100)
    with log_of(data).open("r+b") as log:
        log.truncate(log.seek(0, os.SEEK_END) - 50)
    with durable(data) as run, redis.Redis.from_url(run.wait_ready()) as client:
        assert client.dbsize() == 1000
        assert not client.exists("last")


def test_damaged_data_are_an_error_that_names_them(data: Path, tmp: Path) -> None:
    fill(data)
    with log_of(data).open("r+b") as log:
        log.seek(100)
        log.write(b"*what is this?")
    with pytest.raises(RedisError, match=r"(?s)Bad file format.*Its data are in .*my \"data\" ü"), durable(data) as run:
        run.wait_ready()


def test_what_a_killed_server_was_compacting_is_removed(data: Path, tmp: Path) -> None:
    fill(data)
    (data / "temp-rewriteaof-bg-1234.aof").write_bytes(b"half")
    fill(data)
    assert {path.name for path in data.iterdir()} == {LOCK, "appendonlydir"}


# --- its start and its end ----------------------------------------------------------------------------------------


@pytest.fixture
def slow_to_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that needs a quarter of a millisecond for each command that it loads, and answers after each 1,024."""
    program = tmp_path / "slow-server"
    program.write_text(f'#!/bin/sh\nexec {find_server()} "$@" --key-load-delay 250\n')
    program.chmod(0o700)
    monkeypatch.setenv("RQMR_REDIS_SERVER", str(program))


def fill_with_commands(data: Path, count: int) -> None:
    with durable(data) as run, redis.Redis.from_url(run.wait_ready()) as client:
        pipe = client.pipeline(transaction=False)
        for number in range(count):
            pipe.set(f"key-{number}", number)
        pipe.execute()


def test_a_server_that_loads_is_waited_for(
    data: Path, tmp: Path, slow_to_load: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_with_commands(data, 5000)
    with durable(data) as run:
        first = wait_until(run.events, timeout=10, what="the supervisor says something")
        assert first == [{"loading": True}]
        assert live_url(data), "it lives, though it doesn't serve yet"
        monkeypatch.setattr(local, "READY_SECONDS", 0)
        with redis.Redis.from_url(run.wait_ready()) as client:
            assert client.dbsize() == 5000


def test_a_server_that_loads_can_be_ended(data: Path, tmp: Path, slow_to_load: None) -> None:
    fill_with_commands(data, 40_000)
    with durable(data) as run:
        wait_until(run.events, timeout=10, what="it loads")
        began = time.monotonic()
    assert time.monotonic() - began < 6
    assert not live_url(data)


@contextlib.contextmanager
def started(directory: Path, data: Path | None) -> Iterator[Server]:
    """A server without a supervisor."""
    own = data or directory
    own.mkdir(parents=True, exist_ok=True)
    with Path(os.devnull).open() as lock:
        process = Server(
            server_command(find_server(), own, directory / "r.sock", data),
            directory=own, socket=directory / "r.sock", lock=lock.fileno() if data else None,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.end()
        for path in directory.iterdir():
            path.unlink()


def test_silence_while_it_loads_has_an_end(data: Path, tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LOADING_SECONDS", 0.1)
    answers = iter(["LOADING"])
    monkeypatch.setattr(server, "ping", lambda _: next(answers, ""))
    with started(tmp, data) as process, pytest.raises(StartError, match=r"silent after 0\.1 s"):
        wait_until(process.serves, timeout=5, what="it is an error")


@pytest.mark.parametrize("keeps", [True, False])
def test_a_durable_server_ends_by_itself_and_any_other_is_killed(keeps: bool, data: Path, tmp: Path) -> None:
    with started(tmp, data if keeps else None) as process:
        wait_until(process.serves, timeout=10, what="it serves")
        process.end()
        assert process.status == (0 if keeps else -signal.SIGKILL)


def test_a_durable_server_that_does_not_end_is_killed(data: Path, tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FLUSH_SECONDS", 0.1)
    with started(tmp, data) as process:
        wait_until(process.serves, timeout=10, what="it serves")
        with redis.Redis.from_url(f"unix://{tmp}/r.sock") as client:
            os.kill(client.info("server")["process_id"], signal.SIGSTOP)
        process.end()
        assert process.status == -signal.SIGKILL


# --- one command at a time ----------------------------------------------------------------------------------------


def test_a_second_command_is_refused_and_told_where_the_first_ones_server_is(data: Path, tmp: Path) -> None:
    assert live_url(data) is None
    with durable(data) as run:
        url = run.wait_ready()
        assert live_url(data) == url
        told = f"in use by another rqmr command (pid {os.getpid()}); its server can be shared: --redis-url '{url}'"
        with pytest.raises(RedisError, match=re.escape(told)):
            durable(data).start()
        with redis.Redis.from_url(url) as client:
            assert client.ping()
    assert live_url(data) is None
    fill(data)


def test_supervisor_and_server_hold_the_directory_and_nobody_who_may_outlive_them(data: Path, tmp: Path) -> None:
    with running(PARENT, data, 1) as parent:
        read_line(parent)
        found = family(parent.pid) | {parent.pid}
        holders = {pid for pid in found if any(lock.samefile(data / LOCK) for lock in files_of(pid))}
        assert len(holders) == 2
        assert all("supervise" in command(pid) or "unixsocket" in command(pid) for pid in holders), holders
        parent.kill()
        wait_until(lambda: not alive(holders), timeout=6, what="they have ended")
        send(signal.SIGKILL, found)


def files_of(pid: int) -> list[Path]:
    links = [link.readlink() for link in Path(f"/proc/{pid}/fd").iterdir()]
    return [link for link in links if link.is_absolute() and link.exists()]


def test_the_directory_is_made_for_this_user_alone(data: Path, tmp: Path) -> None:
    fill(data)
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    open_to_others = [path for path in data.rglob("*") if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert not open_to_others


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("a file", "is a file"),
        ("below a file", "Not a directory"),
        ("full of other things", "isn't rqmr's"),
        ("another server's", "isn't rqmr's"),
        ("writable by all", "others can write"),
        ("someone else's", "others can write"),
        ("with a link for a lock", "can't keep a server's data"),
    ],
)
def test_a_directory_that_is_not_fit_is_refused_and_left_alone(what: str, told: str, tmp_path: Path, tmp: Path) -> None:
    place = tmp_path / "place"
    place.mkdir(mode=0o700)
    data = place
    match what:
        case "a file" | "below a file":
            (place / "file").write_text("text")
            data = place / "file" if what == "a file" else place / "file" / "data"
        case "full of other things":
            (place / "letter").write_text("text")
        case "another server's":
            (place / "appendonlydir").mkdir()
        case "writable by all":
            place.chmod(0o777)
        case "someone else's":
            if os.geteuid():
                pytest.skip("only root can give a directory away")
            os.chown(place, 65534, 65534)
        case "with a link for a lock":
            (place / LOCK).symlink_to(tmp_path / "elsewhere")
    before = {path: path.lstat().st_mtime_ns for path in (place, *place.rglob("*"))}
    with pytest.raises(RedisError, match=told):
        durable(data).start()
    assert {path: path.lstat().st_mtime_ns for path in (place, *place.rglob("*"))} == before
    assert not (tmp_path / "elsewhere").exists()


def test_a_redis_that_is_named_keeps_no_data_of_ours(data: Path, tmp: Path) -> None:
    with pytest.raises(RedisError, match="not both"):
        Local(workers=1, queue="q", url="redis://localhost", durable=data).start()
    assert not data.exists()


# --- finding them -------------------------------------------------------------------------------------------------


def found_in(tmp: Path) -> list[str]:
    """Those of the servers found that are below *tmp*: others of this machine's may be found, too."""
    return [url for url in private_servers() if f"{tmp}/" in url]


def test_the_private_servers_that_live_are_found_the_oldest_first(data: Path, tmp: Path) -> None:
    assert found_in(tmp) == []
    with durable(data) as first:
        urls = [first.wait_ready()]
        with Local(workers=0, queue="q") as second:
            urls.append(second.wait_ready())
            assert found_in(tmp) == urls
        assert found_in(tmp) == urls[:1]
    assert found_in(tmp) == []


def test_a_server_that_others_could_have_made_is_not_found(tmp: Path) -> None:
    with Local(workers=0, queue="q") as run:
        socket = socket_of(run.wait_ready())
        link = tmp / f"rqmr-{'0' * 16}"
        link.symlink_to(socket.parent)
        assert len(found_in(tmp)) == 1
        link.unlink()
        socket.parent.chmod(0o755)
        assert found_in(tmp) == []
        socket.parent.chmod(0o700)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
@pytest.mark.parametrize("what", ["directory", "socket"])
def test_a_server_of_someone_else_is_not_found(what: str, tmp: Path) -> None:
    with Local(workers=0, queue="q") as run:
        url = run.wait_ready()
        path = socket_of(url).parent if what == "directory" else socket_of(url)
        os.chown(path, 65534, 65534)
        assert found_in(tmp) == []
        os.chown(path, 0, 0)
        assert found_in(tmp) == [url]


def test_a_server_that_does_not_answer_is_not_found(tmp: Path) -> None:
    with Local(workers=0, queue="q") as run:
        socket = socket_of(run.wait_ready())
        with redis.Redis(unix_socket_path=str(socket)) as client:
            os.kill(client.info("server")["process_id"], signal.SIGSTOP)
            assert found_in(tmp) == []
