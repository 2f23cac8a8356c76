"""rqmr among a team's other RQ jobs: several queues, and what RQ's own tools show of it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import rq
from bench import Bench
from harness import Workers, wait_until

import rqmr


def test_workers_of_several_queues_do_a_run_and_serve_the_queue_before_it_in_the_middle_of_it(
    workers: Workers, redis: Any, bench: Bench
) -> None:
    """A worker takes a run's next ticket only when the queues before its own are empty."""
    (bench.directory / "quick.py").write_text("import rqmr.worker\nrqmr.worker._TURN_SECONDS = 0.1\n")
    workers.start(2, "-c", "quick", "default", PYTHONPATH=str(bench.directory))
    bench.write(10, lines=20)
    run = bench.start("slow", seconds=0.02)
    run.wait_until(lambda facts: len(facts.running) == 2, what="both workers are at work")
    others = [rq.Queue("default", connection=redis).enqueue("operator.add", 2, number) for number in range(5)]
    wait_until(lambda: all(other.is_finished for other in others), timeout=15, what="the others' jobs are done")
    assert redis.zcard(f"rqmr:{run.id}:pending"), "the run has tasks left"
    bench.assert_right(run, "slow")


def test_rq_shows_which_attempts_failed_at_what_and_the_traceback_of_the_job(
    workers: Workers, redis: Any, redis_url: str, bench: Bench
) -> None:
    workers.start(1)
    bench.write(3, "crash")
    run = bench.start("crash", how="error", times=99)
    with pytest.raises(rqmr.RunFailed):
        run.result()

    def failed() -> list[rq.job.Job]:
        names = redis.zrange("rq:failed:rqmr", 0, -1)
        return [each for each in rq.job.Job.fetch_many([name.decode() for name in names], connection=redis) if each]

    shown = wait_until(lambda: len(each := failed()) == 4 and each, timeout=10, what="RQ knows all four")
    for each in shown:
        assert each.description.startswith(f"rqmr {run.id}")
        told = each.latest_result().exc_string
        assert f"{run.id}-s0-m0002-a" in told
        assert f"  input   {bench.inputs / '02.txt'}, byte " in told
        assert "  record  '" in told
        assert told.rstrip().splitlines()[-1] == "ValueError: this is the job's own error"
        assert "shuffle.py" not in told, "none of the frames between RQ and the job"
    info = subprocess.run(
        [sys.executable, "-m", "rq.cli", "info", "--url", redis_url], capture_output=True, text=True, check=True
    ).stdout
    assert "worker-1" in info
    assert "rqmr" in info
