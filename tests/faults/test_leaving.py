"""A worker that is told to stop gives its task back at once, uncharged, and leaves; no lease has to run out."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bench import CUT, Bench, Run, horse_of, is_alive
from harness import JOBS, Workers, signal_all, wait_until

import rqmr
from rqmr.config import Config
from rqmr.sessions import end_sessions

#: A lease that would have to be waited for.
LONG = msgspec.structs.replace(CUT, lease_seconds=60.0)


def assert_given_back(run: Run, attempt: str, within: float, since: float) -> None:
    """The attempt was released, nothing was lost, and the task is tried again."""
    run.wait_until(lambda facts: attempt in run.events("released"), what=f"{attempt} is given back")
    took = time.monotonic() - since
    print(f"{attempt} was given back after {took:.1f} s")
    assert took < within
    assert not run.events("lost")
    assert not run.events("failed")


@pytest.mark.parametrize(
    ("whom", "arguments"),
    [("worker", []), ("horse", []), ("both", []), ("worker", ["-w", "rq.worker.SimpleWorker"])],
    ids=["a worker", "a work-horse", "both, as systemd does", "a simple worker"],
)
def test_sigterm_gives_the_task_back_within_a_heartbeat(
    whom: str, arguments: list[str], workers: Workers, bench: Bench
) -> None:
    leaver = workers.start(1, *arguments)[0]
    bench.write(1, lines=100)
    run = bench.start("crawl", LONG, seconds=0.05)
    bench.pid_of("crawls")
    horses = workers.horses_of(leaver)
    began = time.monotonic()
    signal_all(horses * (whom != "worker") + [leaver.pid] * (whom != "horse"), signal.SIGTERM)
    assert_given_back(run, "s0-m0000-a1", 3, began)
    if whom != "horse":
        wait_until(lambda: leaver.poll() is not None, timeout=5, what="the worker leaves")
        assert leaver.returncode == 0
        workers.start(1)
    bench.assert_right(run, "crawl", LONG)


def test_a_worker_pool_that_is_told_to_stop_gives_its_tasks_back(redis_url: str, redis: Any, bench: Bench) -> None:
    bench.write(2, lines=100)
    with subprocess.Popen(
        [sys.executable, "-m", "rq.cli", "worker-pool", "rqmr", "-n", "1", "--url", redis_url],
        cwd=bench.directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    ) as pool:  # fmt: skip
        try:
            run = bench.start("crawl", LONG, seconds=0.05)
            bench.pid_of("crawls")
            began = time.monotonic()
            pool.terminate()
            assert_given_back(run, "s0-m0000-a1", 5, began)
            assert pool.wait(10) == 0
        finally:
            end_sessions({pool.pid})


def test_code_that_comes_to_no_record_is_left_after_some_seconds_and_its_task_given_back_first(
    workers: Workers, bench: Bench
) -> None:
    leaver = workers.start(1)[0]
    bench.write(3, "crash")
    run = bench.start("crash", LONG, how="hang", times=1)
    bench.pid_of("crashed")
    horse = horse_of(workers, leaver)
    began = time.monotonic()
    leaver.terminate()
    assert_given_back(run, "s0-m0002-a1", 9, began)
    wait_until(lambda: leaver.poll() is not None, timeout=5, what="the worker leaves")
    assert not is_alive(horse)
    workers.start(1)
    bench.assert_right(run, "crash", LONG)
    assert not run.events("lost"), "its horse's end isn't charged"


def test_a_run_whose_workers_come_and_go_all_the_time_gives_what_the_oracle_gives(
    workers: Workers, bench: Bench, redis: Any
) -> None:
    bench.write(10, lines=20)
    run = bench.start("slow", LONG, seconds=0.02)
    here: list[subprocess.Popen[bytes]] = []
    for committed in (0, 1, 2):
        here += workers.start(1)
        run.wait_until(
            lambda facts, committed=committed: facts.committed >= committed and facts.running, what="work goes on"
        )
        if committed:
            here[0].terminate()
            here.pop(0).wait(10)
    bench.assert_right(run, "slow", LONG)
    assert not run.events("lost")


def test_what_a_job_forks_ends_at_sigterm_as_ever(workers: Workers, tmp_path: Path) -> None:
    workers.start(1)
    (tmp_path / "lines").write_text("a\n")
    with rqmr.run(
        str(JOBS / "children.py"), [tmp_path / "lines"], config=Config(workers=0), redis_url=workers.url
    ) as result:
        assert list(result) == [("a", [-signal.SIGTERM])]
