"""Dead, hung or useless: each is told from the others, soon, and no worker stays wedged."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from bench import CUT, Bench, Run, is_alive
from harness import Workers, wait_until
from msgspec.structs import replace

import rqmr

#: Of no use against what is to be told without it.
LONG_LEASE = replace(CUT, lease_seconds=60)


def notes(run: Run, what: str) -> list[str]:
    return [event.note for event in run.seen if event.what == what]


# --- a work-horse that died ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "where", "told"),
    [("exit", "map", "exit status 3"), ("segfault", "map", "SIGSEGV"), ("kill", "reduce", "SIGKILL")],
)
def test_a_work_horse_that_dies_costs_moments_and_not_a_lease(
    how: str, where: str, told: str, workers: Workers, bench: Bench
) -> None:
    """RQ sees it end, and how."""
    workers.start(2)
    bench.write(6, "crash")
    run = bench.start("crash", LONG_LEASE, how=how, where=where, times=1)
    bench.assert_right(run, "crash", LONG_LEASE, timeout=15)
    assert notes(run, "lost") == [f"its work-horse died ({told})"]


def test_a_work_horse_that_is_only_stopped_is_not_taken_for_dead(workers: Workers, bench: Bench) -> None:
    config = replace(LONG_LEASE, backups=False)
    workers.start(2)
    bench.write(4, "crash")
    run = bench.start("crash", config, how="stop", times=1)
    stopped = bench.pid_of("crashed")
    run.wait_until(
        lambda facts: any(facts.now_ms - each.renewed_ms > 3_000 for each in facts.running), what="it has been silent"
    )
    assert not run.events("lost")
    os.kill(stopped, signal.SIGCONT)
    bench.assert_right(run, "crash", config)
    assert bench.marked("executed") == 1


# --- one that hangs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["map", "reduce"])
@pytest.mark.parametrize("limit", ["stall_seconds", "task_seconds"])
def test_an_attempt_that_hangs_is_replaced_and_its_work_horse_ends(
    where: str, limit: str, workers: Workers, bench: Bench
) -> None:
    """Its heart goes on beating, so no lease tells."""
    config = replace(LONG_LEASE, backups=False, **{"stall_seconds": 0, limit: 1})
    workers.start(2)
    bench.write(4, "crash")
    run = bench.start("crash", config, how="hang", where=where, times=1)
    hung = bench.pid_of("crashed")
    bench.assert_right(run, "crash", config)
    assert {"stall_seconds": "--stall", "task_seconds": "--task-timeout"}[limit] in notes(run, "failed")[0]
    wait_until(lambda: not is_alive(hung), timeout=9, what="the work-horse ends itself")
    assert [worker.poll() for worker in workers.processes] == [None, None]


def test_code_that_always_hangs_fails_the_run_and_is_shown_where_it_hangs(workers: Workers, bench: Bench) -> None:
    config = replace(LONG_LEASE, backups=False, stall_seconds=1, max_failed=2)
    workers.start(2)
    bench.write(3, "crash")
    run = bench.start("crash", config, how="hang", times=99)
    with pytest.raises(rqmr.RunFailed, match=r"stuck: no record has ended for 1 s \(--stall\)") as caught:
        run.result()
    failure = caught.value.failure
    assert "time.sleep(60)" in failure.traceback
    assert Path(failure.source).name == "02.txt"
    assert failure.record.endswith("crash'")


def test_slow_is_not_hung(workers: Workers, bench: Bench) -> None:
    """Each record takes half as long as may pass without one."""
    config = replace(CUT, stall_seconds=1)
    workers.start(2)
    bench.write(2)
    run = bench.start("slow", config, seconds=0.5)
    bench.assert_right(run, "slow", config)
    assert not run.events("failed")


def test_a_worker_whose_work_horse_holds_the_interpreter_is_free_when_the_run_is_over(
    workers: Workers, bench: Bench
) -> None:
    """It can hear nothing, so its worker has to end it."""
    workers.start(2)
    bench.write(4, "crash")
    run = bench.start("crash", how="grip", times=1)
    gripped = bench.pid_of("crashed")
    bench.assert_right(run, "crash")
    wait_until(lambda: not is_alive(gripped), timeout=5, what="its worker ends it")
    assert [worker.poll() for worker in workers.processes] == [None, None]


# --- one that is of no use ----------------------------------------------------------------------------------------


def test_a_worker_without_rqmr_is_told(workers: Workers, bench: Bench, tmp_path: Path) -> None:
    """It fails each ticket that it gets; the run waits for a better one."""
    broken = tmp_path / "broken" / "rqmr"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('this is not the rqmr that you are looking for')\n")
    workers.start(1, PYTHONPATH=str(broken.parent))
    bench.write(2)
    run = bench.start("slow")
    run.wait_for("refused", timeout=5)
    assert "rqmr" in notes(run, "refused")[0]
    assert run.events("refused")[0] == "worker-1"
    workers.start(1)
    bench.assert_right(run, "slow")


def test_a_worker_of_another_release_is_told(workers: Workers, bench: Bench, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text("import rqmr.model\nrqmr.model.PROTOCOL = 99\n")
    workers.start(1, PYTHONPATH=str(other))
    bench.write(2)
    run = bench.start("slow")
    run.wait_for("refused", timeout=5)
    assert "install the same rqmr on driver and workers" in notes(run, "refused")[0]
    workers.start(1)
    bench.assert_right(run, "slow")


# --- one that stands by -------------------------------------------------------------------------------------------


def test_when_nothing_is_to_do_one_work_horse_stands_by(workers: Workers, bench: Bench, redis: Any) -> None:
    """So that somebody sees it if the driver and the last task's worker die; it is there for what is lost, too."""
    workers.start(3)
    bench.write(3, "gate")
    run = bench.start("slow", LONG_LEASE, gate="gate")
    run.wait_until(lambda facts: facts.phases[0].committed == 2 and facts.has_standby, what="one stands by")
    busy = {each.worker for each in run.facts.running} if run.facts else set()
    (worker,) = (each for number, each in enumerate(workers.processes, 1) if f"worker-{number}" in busy)
    (horse,) = workers.horses_of(worker)
    os.kill(horse, signal.SIGKILL)
    bench.open_gate()
    bench.assert_right(run, "slow", LONG_LEASE)
    assert notes(run, "lost") == ["its work-horse died (SIGKILL)"]
