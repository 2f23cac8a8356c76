"""Work is shared: by all workers, by one that comes later, and by several runs."""

from __future__ import annotations

import msgspec
import pytest
from bench import CUT, Bench, Run
from harness import Workers

import rqmr

#: More reduce tasks than the ten keys will fill.
TEN = msgspec.structs.replace(CUT, reducers=10)


def write_letters(bench: Bench) -> None:
    """Write eight files, a map task each, of ten keys."""
    for number in range(8):
        (bench.inputs / f"{number}.txt").write_text(" ".join("abcdefghij"[: number + 3]))


def assert_two_met(bench: Bench, run: Run) -> None:
    """Two workers, by their names in RQ, were in a call at one time, and never more."""
    met = bench.assert_right(run, "meetings", TEN, besides="meetings").counters["meetings"]
    assert sorted(met) == [*(f"{number} at a time" for number in (1, 2) if f"{number} at a time" in met),
                           "worker-1 met the others", "worker-2 met the others"]  # fmt: skip
    assert met["2 at a time"] >= 1, "the one that came last has found the other"
    assert not run.events("backed up")


@pytest.mark.parametrize("where", ["map", "reduce"])
def test_two_workers_work_at_the_same_time(where: str, workers: Workers, bench: Bench) -> None:
    workers.start(2)
    write_letters(bench)
    assert_two_met(bench, bench.start("meetings", TEN, where=where, workers=2))


@pytest.mark.parametrize("where", ["map", "reduce"])
def test_a_worker_that_joins_in_the_middle_of_a_run_gets_work(where: str, workers: Workers, bench: Bench) -> None:
    workers.start(1)
    write_letters(bench)
    run = bench.start("meetings", TEN, where=where, workers=2)
    bench.wait_for_marks("came")
    workers.begin()
    assert_two_met(bench, run)


def test_a_run_is_not_touched_by_others_that_fail_or_succeed_meanwhile(workers: Workers, bench: Bench) -> None:
    """Three jobs on the same two workers; one run is held until the others are over."""
    no_backups = msgspec.structs.replace(CUT, backups=False)  # else the other worker would be held, too
    workers.start(2)
    bench.write(4, "gate crash")
    held = bench.start("slow", no_backups, gate="gate")
    bench.wait_for_marks("waiting")
    other = bench.start("two_steps")
    failing = bench.start("crash", how="error", times=99)
    bench.assert_right(other, "two_steps")
    with pytest.raises(rqmr.RunFailed, match="the job's own error"):
        failing.result()
    assert not held.is_over
    bench.open_gate()
    bench.assert_right(held, "slow")
    assert not held.events("failed")
    assert not held.events("lost")
