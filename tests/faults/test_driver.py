"""The driver may die: a run goes on without it, and whoever attaches collects its output."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from harness import Workers, wait_until
from terminals import Desk, told

from rqmr.model import RunState
from rqmr.sessions import processes

HOUR_MS = 3_600_000
WORDS = ("some words", "more words and others", "the gate", "other words", "the last words")


@pytest.mark.parametrize("moment", ["map", "barrier", "reduce"])
def test_a_run_whose_driver_is_killed_is_finished_by_its_workers_and_collected_by_whoever_attaches(
    moment: str, desk: Desk, workers: Workers
) -> None:
    """In the middle of the maps, while the last one is on its way to the barrier, or in the middle of the reduces."""
    workers.start(1 if moment == "map" else 2)
    desk.write(*WORDS)
    driver, run = desk.begin("slow", gate="gate", gate_in="reduce" if moment == "reduce" else "map")
    desk.wait_for_marks("waiting")
    if moment == "barrier":
        wait_until(lambda: desk.facts(run).phases[0].committed == 4, timeout=10, what="one map is left")
    driver.kill()
    splits = f"rqmr:{run}:splits"
    desk.client.pexpire(splits, HOUR_MS)  # as if it had begun yesterday
    assert desk.facts(run).phase == (1 if moment == "reduce" else 0)
    desk.open_gate()
    desk.wait_until_done(run)
    wait_until(lambda: desk.state_of(run) == "uncollected", timeout=5, what="it waits to be collected")
    wait_until(lambda: desk.client.pttl(splits) > 2 * HOUR_MS, timeout=10, what="it will live for another day")

    desk.do("attach", run, cwd=desk.elsewhere)

    desk.assert_right(run, "slow")
    assert not list(desk.elsewhere.iterdir())


@pytest.mark.parametrize(
    "moment",
    [
        "pathlib Path.replace 2",  # between two renames
        "pathlib Path.touch 1",  # before _SUCCESS
        "rqmr.state State.unlink 1",
    ],
)
def test_a_driver_that_is_killed_while_it_collects_is_replaced(moment: str, desk: Desk, workers: Workers) -> None:
    workers.start(1)
    desk.write(*WORDS)
    driver, run = desk.begin("slow", struck=f"{moment} SIGKILL")
    driver.ends(-signal.SIGKILL)
    has_ended = "unlink" in moment
    state = "succeeded" if has_ended else "uncollected"
    wait_until(lambda: desk.state_of(run) == state, timeout=5, what=f"it is {state}")

    attached = desk.do("attach", run, cwd=desk.elsewhere)

    desk.assert_right(run, "slow")
    assert told(desk.do("attach", run, cwd=desk.elsewhere)) == told(attached)


def test_the_driver_may_be_killed_together_with_the_worker_that_holds_the_last_map(
    desk: Desk, workers: Workers
) -> None:
    """The others are idle, expire its lease and go on."""
    workers.start(3)
    desk.write(*WORDS)
    driver, run = desk.begin("slow", gate="gate")
    desk.wait_for_marks("waiting")
    wait_until(lambda: desk.facts(run).phases[0].committed == 4, timeout=10, what="one map is left")
    (last,) = {attempt.worker for attempt in desk.facts(run).running}
    driver.kill()
    workers.kill(workers.processes[int(last.removeprefix("worker-")) - 1])
    desk.open_gate()
    desk.wait_until_done(run)
    desk.do("attach", run)
    desk.assert_right(run, "slow")


# --- from several terminals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver_lives", [True, False])
def test_all_who_are_attached_see_the_end_and_one_collects(driver_lives: bool, desk: Desk, workers: Workers) -> None:
    workers.start(1)
    desk.write(*WORDS)
    collecting = "rqmr.output Output.collect 1 marks"
    driver, run = desk.begin("slow", gate="gate", struck=collecting)
    desk.wait_for_marks("waiting")
    attached = [desk.open("attach", run, cwd=desk.elsewhere, STRUCK=collecting) for _ in range(3)]
    for terminal in attached:
        terminal.says("map begins")
    if not driver_lives:
        driver.kill()
    desk.open_gate()
    seen = [told(terminal.ends(0)) for terminal in (*attached, *([driver] if driver_lives else []))]
    assert len({line.replace(str(desk.cwd) + "/", "") for lines in seen for line in lines[-1:]}) == 1, seen
    assert all(lines[:-1] == seen[0][:-1] for lines in seen)
    assert desk.marked("struck") == 1
    desk.assert_right(run, "slow")


def test_many_who_attach_to_a_run_that_is_done_all_succeed(desk: Desk, workers: Workers) -> None:
    """Though the driver and the first who attached were killed while they collected."""
    workers.start(1)
    desk.write(*WORDS)
    driver, run = desk.begin("slow", struck="rqmr.output Output.collect 1 SIGKILL")
    driver.ends(-signal.SIGKILL)
    desk.open("attach", run, STRUCK="pathlib Path.replace 2 SIGKILL").ends(-signal.SIGKILL)
    attached = [desk.open("attach", run, cwd=desk.elsewhere) for _ in range(4)]
    assert len({tuple(told(terminal.ends(0))) for terminal in attached}) == 1
    desk.assert_right(run, "slow")


def test_ctrl_c_in_an_attach_leaves_the_run_alone(desk: Desk, workers: Workers) -> None:
    """Whether it only watches, or drives."""
    workers.start(1)
    desk.write(*WORDS)
    driver, run = desk.begin("slow", gate="gate")
    desk.wait_for_marks("waiting")
    watching = desk.open("attach", run).says("map begins")
    assert "which goes on" in watching.signal(signal.SIGINT).ends(130).stderr
    assert not driver.is_over
    driver.kill()
    driving = desk.open("attach", run)
    wait_until(lambda: f"-{driving.process.pid}-" in desk.facts(run).driver, timeout=10, what="it drives")
    driving.signal(signal.SIGINT).ends(130)
    assert not desk.facts(run).driver, "nobody has to wait for its lease to end"
    desk.open_gate()
    desk.do("attach", run)
    desk.assert_right(run, "slow")


# --- a driver that sleeps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "moment",
    [
        "rqmr.driver Driver._collect 1",
        "rqmr.output Output.collect 1",
        "pathlib Path.touch 1",
        "rqmr.state State.unlink 1",
    ],
)
def test_a_driver_that_sleeps_while_another_one_collects_takes_nothing_away(
    moment: str, desk: Desk, workers: Workers
) -> None:
    workers.start(1)
    desk.write(*WORDS)
    driver, run = desk.begin("slow", struck=f"{moment} SIGSTOP")
    desk.wait_for_marks("struck")
    attached = desk.do("attach", run)
    desk.assert_right(run, "slow")
    driver.signal(signal.SIGCONT).ends(0)
    assert told(driver) == told(attached)
    desk.assert_right(run, "slow")


def test_a_driver_that_wakes_up_when_its_output_is_another_runs_leaves_that_alone(desk: Desk, workers: Workers) -> None:
    workers.start(1)
    desk.write(*WORDS)
    driver, run = desk.begin("slow", struck="rqmr.output Output.collect 1 SIGSTOP")
    desk.wait_for_marks("struck")
    desk.do("attach", run)
    (desk.inputs / "0.txt").write_text("other words\n")
    other, other_run = desk.begin("slow", "--overwrite")
    other.ends(0)
    driver.signal(signal.SIGCONT).ends(0)
    desk.assert_right(other_run, "slow")


def test_a_driver_that_wakes_up_after_a_resume_does_not_fail_the_run_again(desk: Desk, workers: Workers) -> None:
    workers.start(1)
    desk.write(*WORDS)
    job = desk.directory / "job.py"
    job.write_text(JOB.format(body="raise ValueError('a bug')"))
    driver, run = desk.begin(job, struck="rqmr.driver end_run 1 SIGSTOP")
    desk.wait_for_marks("struck")
    job.write_text(JOB.format(body="self.wait()"))
    resumed = desk.open("resume", run)
    desk.wait_for_marks("waiting")
    driver.signal(signal.SIGCONT).ends(1)
    assert desk.facts(run).state == RunState.RUNNING
    desk.open_gate()
    resumed.ends(0)
    assert desk.end_of(run).state == RunState.SUCCEEDED


JOB = """
import pathlib, time
from rqmr import Job, Sum

class Words(Job):
    marks: str = ""
    reducer = Sum()

    def mapper(self, source, line):
        if "gate" in line and self.marks:
            {body}
        for word in line.split():
            yield word, 1

    def wait(self):
        marks = pathlib.Path(self.marks)
        (marks / "waiting.0").touch()
        while not (marks / "open").exists():
            time.sleep(0.01)
"""


def test_a_driver_and_a_horse_take_turns_and_do_no_harm(desk: Desk, workers: Workers) -> None:
    """The driver sleeps for longer than its lease again and again, so that horses drive meanwhile."""
    workers.start(2)
    desk.write(*(f"word {number} and the gate" for number in range(8)))
    driver, run = desk.begin("slow", seconds=0.2, reduce_seconds=0.05)
    me = f"-{driver.process.pid}-"

    def is_driven(by_me: bool) -> bool:
        facts = desk.look(run)
        return facts is None or facts.phase == 2 or (facts.driver != "" and (me in facts.driver) == by_me)

    wait_until(lambda: (facts := desk.look(run)) is None or facts.running, timeout=10, what="the workers know of it")
    turns = 0
    while not driver.is_over:
        wait_until(lambda: is_driven(by_me=True), timeout=15, what="it drives, or all is done")
        driver.signal(signal.SIGSTOP)
        wait_until(lambda: is_driven(by_me=False), timeout=15, what="another one drives, or all is done")
        driver.signal(signal.SIGCONT)
        turns += 1
    driver.ends(0)
    desk.assert_right(run, "slow")
    assert turns > 1


# --- what is in its way ---------------------------------------------------------------------------------------------


def test_a_driver_that_loses_its_local_workers_leaves_the_run_to_others(desk: Desk, workers: Workers) -> None:
    desk.write(*WORDS)
    driver, run = desk.begin("slow", "-w", 1, gate="gate")
    desk.wait_for_marks("waiting")
    (supervisor,) = (pid for pid, parent, _ in processes() if parent == driver.process.pid)
    os.kill(supervisor, signal.SIGKILL)
    left = driver.ends(1).stderr
    assert "the supervisor of the local workers ended" in left
    assert f"left run {run}, which goes on where workers listen" in left
    assert "failed" not in left
    workers.start(1)
    desk.open_gate()
    desk.do("attach", run)
    desk.assert_right(run, "slow")


def test_an_output_that_can_not_be_written_is_collected_when_it_can(desk: Desk, workers: Workers) -> None:
    workers.start(1)
    desk.write(*WORDS)
    driver, run = desk.begin("slow", gate="gate")
    desk.wait_for_marks("waiting")
    (desk.output / "part-00001").mkdir()
    desk.open_gate()
    left = driver.ends(1).stderr
    assert f"the output can't be written to {desk.output}: Is a directory" in left
    assert f"rqmr attach {run}" in left
    (desk.output / "part-00001").rmdir()
    desk.do("attach", run)
    desk.assert_right(run, "slow")


# --- Redis ----------------------------------------------------------------------------------------------------------


def test_a_run_that_redis_lost_is_told_as_that(desk: Desk, workers: Workers, redis: Any) -> None:
    workers.start(1)
    desk.write(*WORDS)
    driver, run = desk.begin("slow", gate="gate")
    desk.wait_for_marks("waiting")
    attached = desk.open("attach", run).says("map begins")
    redis.flushdb()
    for terminal in (driver, attached):
        assert "gone from Redis" in terminal.ends(1).stderr
    assert "nothing is known of a run" in desk.do("attach", run, status=2).stderr
    assert not desk.output.exists()
