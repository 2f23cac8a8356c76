"""Who waits for a run waits for all of it, and a worker may leave when it likes."""

from __future__ import annotations

from typing import Any

from bench import Bench, Command, files
from harness import Workers, wait_until

#: Three of their keys are reduced late, and each is in another of three parts.
LINES = "tom saw sherlock\nnobody saw tomorrow\n"


def start(bench: Bench, texts: list[str], *options: object, **params: object) -> Command:
    """Start a command that has a map task for each text."""
    for number, text in enumerate(texts):
        (bench.inputs / f"{number}.txt").write_text(text)
    return bench.command("late", "-r", 3, "--split-size", "4KiB", *options).start(marks=bench.marks, **params)


def test_what_is_there_when_the_command_exits_is_final(workers: Workers, bench: Bench, redis: Any) -> None:
    workers.start(4)
    command = start(bench, [LINES] * 7, seconds=3)
    bench.wait_for_marks("reducing", 3)
    assert not [name for name in files(command.output) if name.startswith(("part", "_SUCCESS"))]
    parts = command.assert_right()
    wait_until(lambda: not redis.zcard("rq:wip:rqmr"), timeout=10, what="the workers have ended their turns")
    assert files(command.output) == parts


def test_workers_may_leave_early_as_long_as_one_comes_later(workers: Workers, bench: Bench, redis: Any) -> None:
    """While the last map is held or in the middle of the reduces, as the queue is empty or as they are told to."""
    command = start(bench, ["gate", LINES], "--no-backup", seconds=2)
    wait_until(lambda: redis.llen("rq:queue:rqmr"), timeout=10, what="a ticket waits")
    held = workers.begin("--burst")
    bench.wait_for_marks("waiting")
    helpers = [workers.begin("--burst") for _ in range(2)]  # one may stand by for as long as the run runs
    wait_until(lambda: [each.poll() for each in helpers].count(0), timeout=20, what="one finds the queue empty")
    for helper in helpers:
        helper.terminate()
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
