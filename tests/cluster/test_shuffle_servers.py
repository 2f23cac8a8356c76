"""A shuffle over several servers: `--shuffle-url`."""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis as redis_py
from bench import Bench, Run
from harness import RedisServer, Workers, wait_until

import rqmr
from rqmr import scheduler, tick
from rqmr.config import Config
from rqmr.connection import LOGIN, connect
from rqmr.errors import RedisError, RefusedError
from rqmr.model import Failure, RunState
from rqmr.runs import cancel, remove, resume
from rqmr.state import State
from rqmr.view import Silent
from rqmr.where import Where

#: What can't be there by chance.
MARK = f"hunter2-{secrets.token_hex(8)}"
CUT = Config(workers=0, reducers=7, split_bytes=4 << 10, lease_seconds=2)


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Start servers of the test's own, beside that of the run."""
    servers: list[RedisServer] = []

    def start(*options: str) -> RedisServer:
        directory = tmp_path / f"server{len(servers)}"
        directory.mkdir()
        servers.append(RedisServer(directory, options))
        servers[-1].start()
        wait_until(lambda: answers(servers[-1].url), timeout=10, what="the server answers")
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def others(start_server: Callable[..., RedisServer]) -> list[RedisServer]:
    return [start_server(), start_server()]


def answers(url: str) -> bool:
    try:
        with contextlib.closing(redis_py.Redis.from_url(url)) as client:
            return bool(client.ping())
    except redis_py.AuthenticationError:
        return True
    except redis_py.ConnectionError:
        return False


def over(servers: Sequence[RedisServer], config: Config = CUT) -> Config:
    return msgspec.structs.replace(config, shuffle_urls=tuple(server.url for server in servers))


def keys_of(server: RedisServer, **login: str) -> set[str]:
    with contextlib.closing(redis_py.Redis.from_url(server.url, **login)) as client:
        return {key.decode() for key in client.scan_iter("*")}


def shuffled(run: Run, keys: set[str]) -> set[int]:
    """The reducers whose segments are among the keys."""
    prefix = f"rqmr:{run.id}:s0:shuffle:"
    return {int(key.removeprefix(prefix)) for key in keys if key.startswith(prefix)}


def mapped(workers: Workers, bench: Bench, servers: Sequence[RedisServer]) -> Run:
    """A run whose maps are done, and whose reduce tasks wait at the gate."""
    workers.start(2)
    bench.write(6, lines=8)
    run = bench.start("pieces", over(servers), gate=str(bench.marks / "open"))
    run.wait_until(lambda facts: facts.phase == 1 and facts.running, what="it reduces")
    return run


def test_each_server_has_its_reducers_and_nothing_in_the_end(
    workers: Workers, bench: Bench, redis: Any, others: list[RedisServer]
) -> None:
    """Reducer r's segments are on server r modulo three; what one server would have given is what comes out."""
    run = mapped(workers, bench, others)
    own = {key.decode() for key in redis.scan_iter(f"rqmr:{run.id}*")}
    assert shuffled(run, own) == {0, 3, 6}
    for number, server in enumerate(others, 1):
        assert keys_of(server) == {
            f"rqmr:{run.id}", *(f"rqmr:{run.id}:s0:shuffle:{r}" for r in range(7) if r % 3 == number)
        }  # fmt: skip
        client = connect(server.url)
        assert all(client.pttl(key) > 0 for key in client.scan_iter("*"))
        client.close()

    bench.open_gate()
    bench.assert_right(run, "pieces", CUT)
    assert [keys_of(server) for server in others] == [set(), set()]


@pytest.mark.parametrize("moment", ["while it maps", "while it reduces"])
def test_a_server_that_is_started_again_empty_has_its_maps_run_again(
    workers: Workers, bench: Bench, others: list[RedisServer], moment: str
) -> None:
    """What was on it is made again, and it is written to again."""
    if moment == "while it reduces":
        run = mapped(workers, bench, others)
    else:
        workers.start(2)
        bench.write(20, lines=8)
        run = bench.start("pieces", over(others), gate=str(bench.marks / "open"))
        run.wait_for("committed", 3)
    others[1].kill()
    others[1].start()
    bench.open_gate()
    bench.assert_right(run, "pieces", CUT, timeout=60)
    assert run.events("reopened")
    assert not run.events("failed")
    assert [keys_of(server) for server in others] == [set(), set()]


def test_a_server_that_stays_away_fails_the_run_and_names_it(
    workers: Workers, bench: Bench, others: list[RedisServer]
) -> None:
    """No attempt is charged for it, and once it is back the run can be resumed."""
    workers.start(2)
    bench.write(40, lines=8)
    run = bench.start("pieces", over(others))
    run.wait_for("committed", 1)
    others[0].kill()
    with pytest.raises(rqmr.RunFailed) as failed:
        run.result(90)
    told = failed.value.failure.message
    assert told.startswith("no worker that listens can run it: worker worker-")
    assert f"it can't use the shuffle server {others[0].url}: " in told
    assert set(run.events("failed")) <= {"run"}, "no attempt: that is told of the run, by whoever has ended it"
    assert not run.events("lost")
    assert all(worker.poll() is None for worker in workers.processes)

    others[0].start()
    wait_until(lambda: answers(others[0].url), timeout=10, what="the server answers")
    resume(run.id, Where(bench.url), Silent())
    bench.assert_files(run, "pieces", CUT)
    assert [keys_of(server) for server in others] == [set(), set()]


def test_a_server_that_does_not_answer_is_told_before_anything_is_done(bench: Bench, others: list[RedisServer]) -> None:
    others[1].kill()
    bench.write(1)
    with pytest.raises(RedisError, match=f"no Redis answers at {re.escape(others[1].url)}"):
        rqmr.run("wordcount", bench.inputs, config=over(others), redis_url=bench.url, output=bench.directory / "out")
    assert not (bench.directory / "out").exists()


def test_a_server_that_is_named_twice_or_is_the_runs_own_counts_once(
    workers: Workers, bench: Bench, others: list[RedisServer]
) -> None:
    """Else all reducers but a few would be on one."""
    workers.start(1)
    bench.write(2)
    again = msgspec.structs.replace(CUT, shuffle_urls=(bench.url, others[0].url, others[0].url))
    run = bench.start("pieces", again, gate=str(bench.marks / "open"))
    run.wait_until(lambda facts: facts.phase == 1 and facts.running, what="it reduces")
    assert shuffled(run, keys_of(others[0])) == {1, 3, 5}
    bench.open_gate()
    bench.assert_right(run, "pieces", CUT)


def test_a_private_server_has_no_others(bench: Bench) -> None:
    """What is on others would stay when it ends."""
    bench.write(1)
    config = Config(shuffle_urls=("redis://elsewhere:6379/0",))
    with pytest.raises(RefusedError, match=r"name that one, too, --redis-url URL"):
        rqmr.run("wordcount", bench.inputs, config=config, output=bench.directory / "out")


@pytest.mark.parametrize("end", ["cancel", "rm"])
def test_a_run_that_is_cancelled_or_removed_leaves_nothing_anywhere(
    workers: Workers, bench: Bench, others: list[RedisServer], end: str
) -> None:
    """One that failed keeps what a resume needs, until it is removed."""
    run = mapped(workers, bench, others)
    if end == "cancel":
        cancel(run.id, Where(bench.url))
    else:
        client = connect(bench.url)
        State(client, run.id).finish(RunState.FAILED, Failure("somebody said so"))
        client.close()
        wait_until(lambda: run.is_over, timeout=10, what="it has failed")
        assert shuffled(run, keys_of(others[0])) == {1, 4}
        remove(run.id, Where(bench.url))
    wait_until(lambda: run.is_over, timeout=10, what="the run is over")
    wait_until(lambda: not any(keys_of(server) for server in others), timeout=10, what="nothing is left")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver gives up after 3 s without hope."""
    monkeypatch.setattr(tick, "policy_of", lambda spec: scheduler.Policy(patience_ms=3_000))


def test_one_of_them_that_is_full_lets_the_run_wait_and_is_named(
    workers: Workers, bench: Bench, start_server: Callable[..., RedisServer], impatient: None
) -> None:
    """No write is refused, as no worker writes more than there is room for."""
    small = start_server("--maxmemory", "12mb")
    workers.start(2)
    bench.write(20, lines=32)
    run = bench.start("bulky", over([small]))
    with pytest.raises(rqmr.RunFailed) as failed:
        run.result(60)
    assert failed.value.failure.message.startswith(f"the shuffle server {small.url} is full (")
    assert re.search(r"set maxmemory to \d+mb or more", failed.value.failure.message)
    assert run.events("paused") == ["run"]
    client = connect(small.url)
    assert "errorstat_OOM" not in client.info("errorstats")
    client.config_set("maxmemory", "100mb")
    client.close()
    resume(run.id, Where(bench.url), Silent())
    bench.assert_files(run, "bulky", CUT)


# --- logging in -----------------------------------------------------------------------------------------------------


@pytest.fixture
def locked(tmp_path: Path, start_server: Callable[..., RedisServer]) -> RedisServer:
    """A server that wants a password."""
    hashed = hashlib.sha256(MARK.encode()).hexdigest()
    (tmp_path / "users.acl").write_text(f"user default on #{hashed} ~* &* +@all\n")
    return start_server("--aclfile", str(tmp_path / "users.acl"))


def test_a_password_comes_from_the_environment_and_is_in_no_key(
    workers: Workers, bench: Bench, redis: Any, locked: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the command, and of each worker; the run's spec has only the URL."""
    monkeypatch.setenv(LOGIN, f":{MARK}")
    run = mapped(workers, bench, [locked])
    assert shuffled(run, keys_of(locked, password=MARK)) == {1, 3, 5}
    assert locked.url.encode() in redis.hget(f"rqmr:{run.id}", "spec")
    stored = [value for name in redis.scan_iter("*") if redis.type(name) == b"hash" for value in redis.hvals(name)]
    assert not any(MARK.encode() in value for value in stored)
    bench.open_gate()
    bench.assert_right(run, "pieces", CUT)
    assert not keys_of(locked, password=MARK)
    assert MARK not in repr(run.seen)


def test_a_worker_without_the_password_leaves_the_run_to_others(
    workers: Workers, bench: Bench, locked: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says so; when no other is there, the run fails with that."""
    workers.start(1)
    monkeypatch.setenv(LOGIN, f":{MARK}")
    bench.write(2)
    run = bench.start("pieces", over([locked]))
    with pytest.raises(
        rqmr.RunFailed, match=r"it can't log in to the shuffle server unix://.* into RQMR_SHUFFLE_LOGIN="
    ):
        run.result(30)
    assert not run.events("claimed")


def test_the_password_of_the_runs_own_redis_is_tried(
    tmp_path: Path, locked: RedisServer, start_server: Callable[..., RedisServer]
) -> None:
    """Servers with the same users need no more than that."""
    other = start_server("--aclfile", str(tmp_path / "users.acl"))
    directory = tmp_path / "workers"
    directory.mkdir()
    url = f"{locked.url}&password={MARK}"
    workers, bench = Workers(url, directory), Bench(tmp_path, url)
    try:
        run = mapped(workers, bench, [other])
        assert shuffled(run, keys_of(other, password=MARK)) == {1, 3, 5}
        bench.open_gate()
        bench.assert_right(run, "pieces", CUT)
        assert not keys_of(other, password=MARK)
    finally:
        bench.open_gate()
        workers.stop()


def test_a_missing_or_wrong_password_is_told_without_it(
    bench: Bench, locked: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(1)

    def refusal() -> str:
        with pytest.raises(RedisError) as refused:
            rqmr.run("wordcount", bench.inputs, config=over([locked]), redis_url=bench.url)
        return str(refused.value)

    assert f"{locked.url} wants a password: put user and password into RQMR_SHUFFLE_LOGIN=USER:PASSWORD" in refusal()
    monkeypatch.setenv(LOGIN, f":{MARK}-no")
    assert f"{locked.url} refuses this user or password" in refusal()
    assert MARK not in refusal()
    monkeypatch.setenv(LOGIN, MARK)
    assert refusal() == "RQMR_SHUFFLE_LOGIN is no login: write USER:PASSWORD, or :PASSWORD"


@pytest.mark.parametrize(
    "url",
    [f"redis://:{MARK}@b:6379", f"rediss://me:{MARK}@b/0", f"redis://b:6379/0?password={MARK}", "http://b", "b:6379"],
)
def test_a_url_with_a_password_or_of_no_redis_is_refused(url: str) -> None:
    """It would be read by all who may look at the run."""
    with pytest.raises(RefusedError) as refused:
        Config(shuffle_urls=(url,))
    assert MARK not in str(refused.value)
    assert "shuffle URL" in str(refused.value)


def test_both_options_of_the_command_go_together_in_a_job_of_two_steps(
    workers: Workers, bench: Bench, start_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """What the reduce tasks of the first step write is spread and spilled as what the maps do."""
    small = [start_server("--maxmemory", "8mb"), start_server("--maxmemory", "8mb")]
    workers.start(2)
    spill = tmp_path / "spill"
    bench.write(12, lines=16)
    named = [word for server in small for word in ("--shuffle-url", server.url)]
    command = bench.command("relay", "-r", "5", "--split-size", "4096", *named, "--spill", spill).start()
    spilled: set[str] = set()
    wait_until(lambda: spilled.update(names_in(spill)) or command.is_over, timeout=60, what="the command exits")
    command.assert_right()
    assert {name[:4] for name in spilled} == {"s0-m", "s0-r"}
    assert not list(spill.iterdir())
    assert [keys_of(server) for server in small] == [set(), set()]


def names_in(spill: Path) -> list[str]:
    return [path.name for path in spill.glob(".rqmr-spill-*/*") if path.suffix != ".new"]


def test_one_url_that_is_no_tuple_is_refused() -> None:
    """Its letters would be taken for URLs."""
    with pytest.raises(RefusedError, match="it must be a tuple of URLs"):
        Config(shuffle_urls="redis://b:6379/0")  # type: ignore[arg-type]
