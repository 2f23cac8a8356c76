"""Workers that end, die or stand still, in maps and in reduces: the output is the oracle's all the same."""

from __future__ import annotations

import os
import random
import signal
import time
from functools import partial
from typing import Any

import msgspec
import pytest
from bench import CUT, Bench
from harness import Workers, signal_all, wait_until

from rqmr.facts import Facts


def seed_of_this_run() -> int:
    seed = int(os.environ.get("RQMR_TEST_SEED", time.time_ns() % 10**6))
    print(f"RQMR_TEST_SEED={seed}")
    return seed


@pytest.mark.parametrize("whole_workers", [False, True])
def test_calls_of_which_a_third_end_their_process_are_made_until_all_have_succeeded(
    whole_workers: bool, workers: Workers, bench: Bench
) -> None:
    """Either the work-horse ends alone, or its worker is killed too and another is started."""
    seed = seed_of_this_run()
    bench.write(8)
    workers.start(3)
    command = bench.command("fates", "-r", 4, "--split-size", "4KiB", "--lease", 1)
    command.start(marks=bench.marks, seed=seed, seconds=0.6)

    def is_over() -> bool:
        for number, worker in enumerate(workers.processes, 1):
            if whole_workers and worker.poll() is None and bench.marked(f"ended.worker-{number}"):
                workers.kill(worker)
                workers.begin()
        return command.is_over

    wait_until(is_over, timeout=90, what="the command exits")
    command.assert_right()
    print(f"{bench.marked('ended')} calls ended their process, {len(workers.processes) - 3} workers were replaced")
    assert sum(worker.poll() is None for worker in workers.processes) == 3


def test_a_task_may_be_lost_more_often_than_it_may_fail(workers: Workers, bench: Bench) -> None:
    """Five times, and code has four tries."""
    workers.start(2)
    bench.write(3, "crash")
    run = bench.start("crash", how="exit", where="reduce", times=5)
    bench.assert_right(run, "crash")
    assert len(run.events("lost")) == 5
    assert not run.events("failed")


def test_all_workers_may_die_with_their_work_horses_in_maps_and_again_in_reduces(
    workers: Workers, bench: Bench
) -> None:
    config = msgspec.structs.replace(CUT, reducers=3)
    workers.start(3)
    bench.write(6, lines=4)
    run = bench.start("slow", config, seconds=0.1, reduce_seconds=0.01)
    for phase in (0, 1):
        run.wait_until(partial(all_three_are_in, phase), what="all three are at work")
        for worker in workers.processes[-3:]:
            workers.kill(worker)
            workers.begin()
    bench.assert_right(run, "slow", config)
    assert any("-m" in attempt for attempt in run.events("lost"))
    assert any("-r" in attempt for attempt in run.events("lost"))
    assert not run.events("failed")


def all_three_are_in(phase: int, facts: Facts) -> bool:
    return facts.phase == phase and len(facts.running) == 3


def test_a_reduce_that_comes_too_late_changes_nothing(workers: Workers, bench: Bench, redis: Any) -> None:
    """It has stood still for longer than its lease, and has written a part file of its own; the run still runs."""
    workers.start(3)
    bench.write(4, "crash gate")  # two keys of two partitions
    run = bench.start("crash", how="stop", where="reduce", times=1, gate="gate")
    stopped = bench.pid_of("crashed")
    try:
        (late,) = run.wait_for("lost")
        winner = late.replace("-a1", "-a2")
        run.wait_until(lambda _: winner in run.events("committed"), what="another attempt wins")
    finally:
        os.kill(stopped, signal.SIGCONT)
    wait_until(
        lambda: redis.hget(f"rqmr:{run.id}:attempts", late) == b"stale", timeout=10, what="the late one hears of it"
    )
    bench.open_gate()
    bench.assert_right(run, "crash")
    assert late not in run.events("committed")
    assert bench.marked("executed") == 2


def test_workers_may_stand_still_for_longer_than_their_lease_at_any_moment(workers: Workers, bench: Bench) -> None:
    """Whether what they do then comes first or too late, the output is right."""
    chance = random.Random(seed_of_this_run())
    workers.start(3)
    bench.write(12, lines=6)
    run = bench.start("slow", seconds=0.1, reduce_seconds=0.01)
    frozen = 0
    while not run.is_over and frozen < 3:
        time.sleep(chance.uniform(0, 0.3))  # another moment of the work each time
        pids = workers.freeze(chance.choice(workers.processes))
        time.sleep(chance.uniform(1.1, 1.8))
        signal_all(pids, signal.SIGCONT)
        frozen += 1
    bench.assert_right(run, "slow")
    print(f"{frozen} frozen, lost {run.events('lost')}, revived {run.events('revived')}")
    assert not run.events("failed")
