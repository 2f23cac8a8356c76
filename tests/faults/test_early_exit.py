"""Who waits for a run waits for all of it, and a worker may leave when it likes."""

from __future__ import annotations

from typing import Any

from bench import Bench, Command, files
from harness import Workers, wait_until

#: Three of their keys are reduced late, and each is in another of three parts.
LINES = "tom saw sherlock\nnobody saw tomorrow\n"


def start(bench: Bench, seconds: float, last_line: str = "") -> Command:
    for number in range(6):
        (bench.inputs / f"{number}.txt").write_text(LINES * (number + 1))
    (bench.inputs / "7.txt").write_text(f"{LINES}{last_line}\n")
    return bench.command("late", "-r", 3, "--split-size", 1).start(marks=bench.marks, seconds=seconds)


def test_what_is_there_when_the_command_exits_is_final(workers: Workers, bench: Bench, redis: Any) -> None:
    workers.start(4)
    command = start(bench, 3)
    bench.wait_for_marks("reducing", 3)
    assert not [name for name in files(command.output) if name.startswith(("part", "_SUCCESS"))]
    parts = command.assert_right()
    wait_until(lambda: not redis.zcard("rq:wip:rqmr"), timeout=10, what="the workers have ended their turns")
    assert files(command.output) == parts


def test_workers_may_leave_early_as_long_as_one_comes_later(workers: Workers, bench: Bench) -> None:
    """One finds the queue empty before the last map is done, one has had enough in the middle of the reduces."""
    command = start(bench, 2, "gate")
    second = workers.begin("--max-jobs", "1")
    bench.wait_for_marks("waiting")
    first = workers.begin("--burst")
    assert first.wait(20) == 0
    bench.open_gate()
    assert second.wait(20) == 0
    assert not command.is_over
    assert 1 <= bench.marked("reducing") < 3
    workers.begin()
    command.assert_right()
    assert bench.marked("reducing") == 3
