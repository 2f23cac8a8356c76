"""`rqmr worker`: stock workers that are started, started again, limited and ended by one command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bench import Bench
from harness import RedisServer, family, wait_until

from rqmr.connection import connect
from rqmr.sessions import processes


@dataclass
class Crew:
    """A crew that runs, and what it has printed."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text()

    def hears(self, text: str) -> None:
        wait_until(lambda: text in self.said, timeout=15, what=f"the crew says {text!r}")

    def workers(self) -> list[int]:
        return sorted(pid for pid, parent, _ in processes() if parent == self.process.pid)


def idle(client: Any) -> int:
    """How many workers wait for work: all of them hear signals from then on."""
    names = [name.decode() for name in client.smembers("rq:workers:rqmr")]
    return [client.hget(name, "state") for name in names].count(b"idle")


Start = Callable[..., Crew]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a crew and wait until its workers listen; all of it is gone at the end."""
    crews: list[Crew] = []

    def begin(url: str, *arguments: object, workers: int = 2, **environment: str) -> Crew:
        log = tmp_path / f"crew-{len(crews)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "rqmr", "worker", "-n", str(workers), *map(str, arguments)],
                env={**os.environ, "RQMR_REDIS_URL": url, **environment},
                cwd=tmp_path, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        crews.append(Crew(process, log))
        client = connect(url)
        wait_until(lambda: idle(client) == workers, timeout=20, what=f"{workers} workers wait for work")
        client.close()
        return crews[-1]

    yield begin
    for crew in crews:
        started = family(crew.process.pid)
        crew.process.kill()
        crew.process.wait()
        wait_until(lambda started=started: not started & {pid for pid, _, _ in processes()}, timeout=15, what="all end")


def test_a_crew_does_the_work_with_work_horses_that_have_imported_rqmr_and_ends_without_a_trace(
    start: Start, redis_url: str, redis: Any, bench: Bench
) -> None:
    (bench.directory / "heavy.py").write_text("print('heavy is imported', flush=True)\n")
    crew = start(redis_url, RQMR_PRELOAD="heavy", PYTHONPATH=str(bench.directory))
    started = family(crew.process.pid)
    assert len(crew.workers()) == 2
    bench.write(6)
    bench.assert_right(bench.start("slow", seconds=0.01), "slow")
    assert crew.said.count("heavy is imported") == 2, "once in each worker, in none of the work-horses"
    crew.process.send_signal(signal.SIGINT)
    assert crew.process.wait(10) == 0
    assert not started & {pid for pid, _, _ in processes()}
    assert not redis.smembers("rq:workers"), "they have signed off"
    assert "2 workers on queue 'rqmr' of Valkey" in crew.said
    assert "Traceback" not in crew.said


def test_no_password_is_in_any_argv_or_in_what_a_crew_prints(tmp_path: Path, start: Start) -> None:
    server = RedisServer(tmp_path, ["--requirepass", "hush-hush"])
    url = server.url.replace("unix://", "unix://:hush-hush@")
    try:
        server.start()
        wait_until(
            lambda: Path(server.url.removeprefix("unix://").partition("?")[0]).exists(), timeout=10, what="it is up"
        )
        crew = start(url, workers=1)
        told = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in [crew.process.pid, *family(crew.process.pid)]]
        assert len(told) >= 2
        assert not [line for line in told if b"hush-hush" in line]
        assert "hush-hush" not in crew.said
    finally:
        server.close()


def test_a_worker_that_ends_is_replaced_and_a_crew_that_is_killed_takes_its_workers_along(
    start: Start, redis_url: str, redis: Any
) -> None:
    crew = start(redis_url, "--queue", "rqmr", "--queue", "other")
    before = crew.workers()
    os.kill(before[0], signal.SIGKILL)
    crew.hears("w1 ended (SIGKILL); another one starts in 0.1 s")
    wait_until(lambda: idle(redis) == 3, timeout=10, what="the new one waits for work, beside the dead")
    started = family(crew.process.pid)
    crew.process.kill()
    wait_until(lambda: not started & {pid for pid, _, _ in processes()}, timeout=10, what="the workers end, too")
    assert redis.scard("rq:workers:rqmr") == 1, "but for the one that was killed they have signed off"


def test_a_work_horse_that_takes_too_much_memory_is_killed_and_its_task_is_lost_and_tried_again(
    start: Start, redis_url: str, bench: Bench
) -> None:
    crew = start(redis_url, "--max-memory", "200MiB")
    bench.write(3, "crash")
    run = bench.start("crash", how="hoard", times=1)
    bench.assert_right(run, "crash")
    assert len(run.events("lost")) == 1
    assert "more than --max-memory 200 MiB: killed; its task counts as lost" in crew.said
    assert crew.said.count("killed;") == 1


def test_told_twice_a_crew_ends_at_once(start: Start, redis_url: str, redis: Any, bench: Bench) -> None:
    crew = start(redis_url, workers=1)
    bench.write(3, "crash")
    bench.start("crash", how="hang", times=1)
    bench.pid_of("crashed")
    crew.process.terminate()
    crew.hears("ending")
    began = time.monotonic()
    crew.process.terminate()
    crew.process.wait(10)
    assert time.monotonic() - began < 4, "sooner than code that comes to no record is given up"
    assert not redis.smembers("rq:workers")


def test_workers_are_started_again_when_redis_answers(tmp_path: Path, start: Start) -> None:
    server = RedisServer(tmp_path)
    try:
        server.start()
        wait_until(
            lambda: Path(server.url.removeprefix("unix://").partition("?")[0]).exists(), timeout=10, what="it is up"
        )
        crew = start(server.url, workers=1)
        server.kill()
        os.kill(crew.workers()[0], signal.SIGKILL)
        crew.hears("Redis doesn't answer")
        server.start()
        crew.hears("Redis answers again")
        client = connect(server.url)
        wait_until(lambda: client.scard("rq:workers:rqmr") == 1, timeout=15, what="a worker listens")
        client.close()
        assert crew.said.count("Redis doesn't answer") == 1
        assert "Traceback" not in crew.said
    finally:
        server.close()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "which Redis? name it: --redis-url redis://host:6379/0, or RQMR_REDIS_URL"),
        (["--redis-url", "redis://x", "--max-memory", "much"], "--max-memory: 'much' is no size"),
    ],
)
def test_a_crew_that_cannot_begin_says_what_to_do(arguments: list[str], told: str, rqmr: Any) -> None:
    done = rqmr("worker", *arguments)
    assert done.returncode == 2
    assert told in done.stderr
