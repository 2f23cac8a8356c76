"""Several runs on the same workers: each gets its share of their time, and none has to wait for ever."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from bench import CUT, Bench, Run
from harness import Workers, wait_until

from rqmr.errors import RefusedError

#: One line a task.
FINE = msgspec.structs.replace(CUT, split_bytes=2, reducers=1, backups=False)


@pytest.fixture
def quick_workers(workers: Workers, bench: Bench) -> Workers:
    """One worker whose work-horses' turns are short, so that many fit into a test."""
    (bench.directory / "quick.py").write_text("import rqmr.worker\nrqmr.worker._TURN_SECONDS = 0.1\n")
    workers.start(1, "-c", "quick", PYTHONPATH=str(bench.directory))
    return workers


def committed(runs: dict[str, Run], redis: Any) -> dict[str, int]:
    """How many map tasks each run has committed, all looked at in the same moment."""
    pipe = redis.pipeline()
    for run in runs.values():
        pipe.hlen(f"rqmr:{run.id}:s0-m:winners")
    return dict(zip(runs, pipe.execute(), strict=True))


def begin(bench: Bench, priorities: dict[str, str], seconds: dict[str, float]) -> dict[str, Run]:
    bench.inputs.joinpath("lines.txt").write_text("a\n" * 1000)
    return {
        name: bench.start("slow", msgspec.structs.replace(FINE, priority=priority), seconds=seconds[name])
        for name, priority in priorities.items()
    }


def test_runs_share_the_workers_by_time_however_long_their_tasks_are(
    quick_workers: Workers, bench: Bench, redis: Any
) -> None:
    """By the order of their tickets, the one with the long tasks would get four times as much."""
    seconds = {"short": 0.02, "long": 0.4}
    runs = begin(bench, dict.fromkeys(seconds, "normal"), seconds)
    done = wait_until(
        lambda: (now := committed(runs, redis))["long"] >= 3 and now, timeout=20, what="there is something to share"
    )
    share = {name: done[name] * seconds[name] for name in done}
    print(share)
    assert 0.5 < share["long"] / share["short"] < 2


def test_a_priority_is_a_share_of_the_workers_and_a_low_run_goes_on_beside_a_high_one(
    quick_workers: Workers, bench: Bench, redis: Any
) -> None:
    names = ("high", "normal", "low")
    runs = begin(bench, {name: name for name in names}, dict.fromkeys(names, 0.02))
    first_turn = 6  # tasks
    done = wait_until(
        lambda: (now := committed(runs, redis))["low"] > first_turn and now, timeout=30, what="the low one goes on"
    )
    print(done)
    assert done["high"] > 2 * done["normal"]
    assert done["normal"] > 1.3 * done["low"]


def test_a_run_that_comes_late_begins_at_once_and_leaves_the_others_their_share(
    quick_workers: Workers, bench: Bench, redis: Any
) -> None:
    runs = begin(bench, {"early": "normal"}, {"early": 0.02})
    wait_until(lambda: committed(runs, redis)["early"] >= 20, timeout=20, what="it is well on its way")
    runs |= begin(bench, {"late": "normal"}, {"late": 0.02})
    before = committed(runs, redis)["early"]
    now = wait_until(
        lambda: (now := committed(runs, redis))["late"] >= 15 and now, timeout=20, what="so is the late one"
    )
    print(before, now)
    assert 5 <= now["early"] - before <= 45, "it neither waits until the late one has had as much, nor is first"


def test_a_priority_that_is_none_is_refused() -> None:
    with pytest.raises(RefusedError, match="priority is 'urgent'; it must be high, normal or low"):
        msgspec.structs.replace(FINE, priority="urgent")
