"""Who waits for a run waits for all of it, and a worker may leave when it likes."""

from __future__ import annotations

from typing import Any

from bench import Bench, Command, files
from harness import Workers, wait_until

#: Three of their keys are reduced late, and each is in another of three parts.
LINES = "tom saw sherlock\nnobody saw tomorrow\n"


def start(bench: Bench, texts: list[str], **params: object) -> Command:
    """Start a command that has a map task for each text."""
    for number, text in enumerate(texts):
        (bench.inputs / f"{number}.txt").write_text(text)
    return bench.command("late", "-r", 3, "--split-size", "4KiB").start(marks=bench.marks, **params)


def test_what_is_there_when_the_command_exits_is_final(workers: Workers, bench: Bench, redis: Any) -> None:
    workers.start(4)
    command = start(bench, [LINES] * 7, seconds=3)
    bench.wait_for_marks("reducing", 3)
    assert not [name for name in files(command.output) if name.startswith(("part", "_SUCCESS"))]
    parts = command.assert_right()
    wait_until(lambda: not redis.zcard("rq:wip:rqmr"), timeout=10, what="the workers have ended their turns")
    assert files(command.output) == parts


def test_workers_may_leave_early_as_long_as_one_comes_later(workers: Workers, bench: Bench, redis: Any) -> None:
    """One finds the queue empty while the last map is held, one is told to leave in the middle of the reduces."""
    command = start(bench, ["gate", LINES], seconds=2, map_seconds=0.7)  # so that who waits for long is no straggler
    wait_until(lambda: redis.llen("rq:queue:rqmr"), timeout=10, what="a ticket waits")
    held = workers.begin("--burst")
    bench.wait_for_marks("waiting")
    helper = workers.begin("--burst")
    assert helper.wait(20) == 0
    bench.open_gate()
    bench.wait_for_marks("reducing")
    held.terminate()
    assert held.wait(20) == 0
    assert not command.is_over
    assert bench.marked("reducing") < 3
    workers.begin()
    command.assert_right()
    assert bench.marked("reducing") == 3
