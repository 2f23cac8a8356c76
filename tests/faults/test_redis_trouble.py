"""A Redis that is full, away or empty: a run waits and is right, or ends at once and says why."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bench import CUT, Bench, Run
from harness import RedisServer, Workers
from terminals import Desk

import rqmr
from rqmr import driver, scheduler, tick
from rqmr.connection import connect
from rqmr.runs import resume
from rqmr.view import Silent
from rqmr.where import Where

#: As long as a lease should be that has to survive an outage, and a map task for each file.
CALM = msgspec.structs.replace(CUT, lease_seconds=5)
MIB = 1 << 20


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A server of the test's own; its options are the fixture's parameter."""
    directory = tmp_path / "server"
    directory.mkdir()
    server = RedisServer(directory, getattr(request, "param", ()))
    server.start()
    yield server
    server.close()


@pytest.fixture
def redis_url(server: RedisServer) -> str:
    client = connect(server.url)
    client.ping()
    client.close()
    return server.url


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver gives up after 3 s without hope."""
    monkeypatch.setattr(tick, "policy_of", lambda spec: scheduler.Policy(patience_ms=3_000))


def alive(workers: Workers) -> list[bool]:
    return [worker.poll() is None for worker in workers.processes]


@pytest.fixture
def bench(tmp_path: Path, redis_url: str) -> Iterator[Bench]:
    """A bench whose runs end with the test; what they leave goes with the server."""
    bench = Bench(tmp_path, redis_url)
    yield bench
    bench.open_gate()
    for run in bench.runs:
        run.end()


# --- memory -------------------------------------------------------------------------------------------------------


def test_a_shuffle_that_does_not_fit_fails_with_the_memory_that_it_takes_and_with_that_it_goes_on(
    workers: Workers, bench: Bench, redis: Any, impatient: None
) -> None:
    """About 40 MiB, on a server of 20."""
    redis.config_set("maxmemory", 20 * MIB)
    workers.start(3)
    bench.write(20, lines=32)
    run = bench.start("bulky", CALM)
    with pytest.raises(rqmr.RunFailed) as failed:
        run.result()
    told = failed.value.failure.message
    assert re.match(
        r"the Redis server is full \(\d\d\.\d of 20\.0 MiB used\) and waiting didn't help; this run's segments take ",
        told,
    )
    assert run.events("paused") == ["run"]
    assert not run.events("lost")
    assert not refused_writes(redis)
    assert alive(workers) == [True] * 3

    wanted = re.search(r"set maxmemory to (\d+)mb or more", told)
    assert wanted, told
    assert 50 <= int(wanted[1]) <= 75
    redis.config_set("maxmemory", f"{wanted[1]}mb")
    resume(run.id, Where(bench.url), Silent())
    bench.assert_files(run, "bulky", CALM)


def test_memory_that_comes_free_lets_a_run_go_on(workers: Workers, bench: Bench, redis: Any) -> None:
    """Somebody else's keys were in the way."""
    redis.config_set("maxmemory", 24 * MIB)
    redis.set("ballast", bytes(10 * MIB))
    workers.start(2)
    bench.write(8, lines=32)
    run = bench.start("bulky", CALM)
    run.wait_for("paused")
    run.wait_until(
        lambda facts: not facts.running or all(each.progress.waits for each in facts.running), what="all wait"
    )
    redis.delete("ballast")
    run.wait_for("went on")
    bench.assert_right(run, "bulky", CALM)
    assert not run.events("lost")
    assert not refused_writes(redis)
    assert alive(workers) == [True] * 2


def test_of_two_runs_that_do_not_fit_the_younger_gives_way(
    workers: Workers, bench: Bench, redis: Any, impatient: None
) -> None:
    """Its segments go, so that the older one can end."""
    redis.config_set("maxmemory", 24 * MIB)
    other = msgspec.structs.replace(CALM, queue="other")
    workers.start(1)
    workers.start(1, queue="other")
    bench.write(8, lines=32)
    older, younger = (bench.start("bulky", config, seconds=0.01) for config in (CALM, other))
    with pytest.raises(rqmr.RunFailed, match="what this run held was removed, so that others can go on"):
        younger.result()
    assert not list(redis.scan_iter(f"rqmr:{younger.id}:s0*"))
    bench.assert_right(older, "bulky", CALM)
    resume(younger.id, Where(bench.url), Silent())
    bench.assert_files(younger, "bulky", other)
    assert alive(workers) == [True] * 2


def refused_writes(redis: Any) -> int:
    """How often the server has refused to write: RQ's workers exit when that is for them."""
    return redis.info("errorstats").get("errorstat_OOM", {}).get("count", 0)


# --- a server that is away ------------------------------------------------------------------------------------------


def test_a_server_that_stands_still_for_8_seconds_is_waited_for(
    server: RedisServer, workers: Workers, bench: Bench
) -> None:
    workers.start(2)
    run = begun(bench)
    assert server.process
    server.process.send_signal(signal.SIGSTOP)
    time.sleep(8)
    server.process.send_signal(signal.SIGCONT)
    bench.assert_right(run, "slow", CALM)
    assert 5 < run.away_for < 20
    assert alive(workers) == [True] * 2


@pytest.mark.parametrize("server", [("--appendonly", "yes")], indirect=True)
def test_a_server_that_comes_back_with_its_data_is_waited_for(
    server: RedisServer, workers: Workers, bench: Bench
) -> None:
    """Workers that were busy have exited meanwhile; others take their place."""
    workers.keep(2)
    run = begun(bench)
    server.kill()
    time.sleep(6)
    server.start()
    bench.assert_right(run, "slow", CALM)
    assert 5 < run.away_for < 20


@pytest.mark.parametrize("server", [("--appendonly", "yes")], indirect=True)
def test_a_server_that_is_restarted_just_when_the_output_is_collected_hears_of_the_success(
    workers: Workers, desk: Desk, server: RedisServer
) -> None:
    """Else it would keep the run's segments, and tell of a run that nobody has collected."""
    workers.start(1)
    desk.write("some words", "more words")
    driver, run = desk.begin("slow", struck="rqmr.driver end_run 1 SIGSTOP")
    desk.wait_for_marks("struck")
    server.kill()
    driver.signal(signal.SIGCONT).says("Redis doesn't answer")
    server.start()
    driver.ends(0)
    desk.assert_right(run, "slow")


def test_a_server_that_comes_back_empty_fails_the_run_at_once(
    server: RedisServer, workers: Workers, bench: Bench, redis: Any
) -> None:
    """Nothing is written for it any more."""
    workers.keep(2)
    run = begun(bench)
    server.kill()
    server.start()
    with pytest.raises(rqmr.RunFailed, match=f"{run.id} is gone from Redis: was it flushed or restarted without"):
        run.result(5)
    assert not run.output.exists()
    workers.stop()
    assert not list(redis.scan_iter("rqmr:*"))


def test_a_server_that_stays_away_is_given_up_with_how_to_go_on(
    server: RedisServer, workers: Workers, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a minute; the run isn't over for that."""
    monkeypatch.setattr(driver, "_PATIENCE_SECONDS", 1)
    workers.start(1)
    run = begun(bench)
    server.kill()
    with pytest.raises(rqmr.RunFailed, match="Redis doesn't answer any more") as error:
        run.result(5)
    assert f"rqmr attach {run.id}" in error.value.advice


def begun(bench: Bench) -> Run:
    """A run of which some is done, and more is being done."""
    bench.write(6)
    run = bench.start("slow", CALM, seconds=0.05)
    run.wait_until(lambda facts: facts.phases[0].committed and facts.running, what="some is done, more is being done")
    return run
