"""A run on a private server that keeps its data survives its command: `--durable DIR`."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import JOBS, wait_until
from terminals import OPTIONS, Desk, Terminal, files, told

from rqmr.durable import live_url
from rqmr.sessions import members

WORDS = ("some words", "more words and others", "the gate", "other words", "the last words")


@pytest.fixture(autouse=True)
def no_redis(desk: Desk) -> Iterator[None]:
    """Commands that know no Redis, with a TMPDIR whose path is short, as a socket's must be."""
    desk.write(*WORDS)
    with tempfile.TemporaryDirectory(prefix="o-", dir="/tmp") as directory:
        desk.environment |= {"RQMR_REDIS_URL": "", "TMPDIR": directory}
        yield
        for terminal in desk.terminals:
            terminal.kill()


@pytest.fixture
def data(desk: Desk) -> Path:
    return desk.cwd / "my data"


def begin(desk: Desk, job: str, *options: object, **params: object) -> Terminal:
    given = [text for name, value in params.items() for text in ("-p", f"{name}={value}")]
    return desk.open(
        "run", JOBS / f"{job}.py", desk.inputs, *OPTIONS, "-w", 1, "-o", "out", *options, "-p", f"marks={desk.marks}",
        *given,
    )  # fmt: skip


def at_the_gate(desk: Desk) -> tuple[Terminal, str]:
    """Begin a durable run, and wait until some is done and a map has come to the gate; return also its id."""
    command = begin(desk, "slow", "--durable", "my data", gate="gate")
    desk.wait_for_marks("waiting")
    (run,) = desk.ps("--durable", "my data")
    return command, run


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_whose_command_is_ended_is_finished_by_the_next_one(
    number: signal.Signals, desk: Desk, data: Path
) -> None:
    command, run = at_the_gate(desk)
    all_of_it = members({command.process.pid})
    command.signal(number).ends(-9, 130)
    if number == signal.SIGINT:
        assert f"left run {run}, which is kept in my data, and goes on with the next command" in command.stderr
        assert f"  rqmr attach {run} --durable 'my data'    shows it" in command.stderr
    else:
        wait_until(lambda: not members(all_of_it), timeout=15, what="the server has ended")
    assert desk.ps("--durable", "my data")[run]["state"] == "stalled"
    desk.open_gate()
    desk.do("attach", run, "--durable", data, "-w", 1, cwd=desk.elsewhere)
    desk.assert_output(run, "slow")
    assert desk.ps("--durable", "my data")[run]["state"] == "succeeded"
    desk.do("rm", run, "--durable", "my data")
    assert desk.ps("--durable", "my data") == {}
    assert sorted(files(desk.cwd)) == ["my data", "oracle", "out"] or sorted(files(desk.cwd)) == ["my data", "out"]


def test_a_failed_run_is_resumed_by_the_next_command(desk: Desk, data: Path) -> None:
    command = begin(desk, "crash", "--durable", "my data", how="error", at="gate", times=4)
    failed = command.ends(1).stderr
    (run,) = desk.ps("--durable", data)
    assert f"go on with what is done:  rqmr resume {run} --durable 'my data'\n" in failed
    desk.do("resume", run, "--durable", data, "-w", 1, cwd=desk.elsewhere)
    desk.assert_output(run, "crash")


def test_of_a_private_run_that_failed_nothing_can_be_resumed_and_that_is_said(desk: Desk) -> None:
    failed = begin(desk, "crash", how="error", at="gate", times=4).ends(1).stderr
    assert "nothing can be resumed, as all of this run ends with its command" in failed
    assert "--durable DIR" in failed
    assert files(desk.cwd) == {}


def test_other_commands_find_a_durable_run_while_its_command_lives(desk: Desk, data: Path) -> None:
    command, run = at_the_gate(desk)
    attached = desk.open("attach", run, "--durable", data, cwd=desk.elsewhere).says("map begins")
    told_now = desk.do("status", run, "--durable", data, cwd=desk.elsewhere).stdout
    assert f"{run}  running" in told_now
    assert run in desk.ps(), "it is among this user's private servers, too"
    desk.open_gate()
    assert told(attached.ends(0))[:-1] == told(command.ends(0))[:-1]
    desk.assert_output(run, "slow")


@pytest.mark.parametrize("lives", [True, False])
def test_a_durable_run_is_cancelled(lives: bool, desk: Desk, data: Path) -> None:
    command, run = at_the_gate(desk)
    if not lives:
        command.signal(signal.SIGINT).ends(130)
    desk.do("cancel", run, "--durable", data, cwd=desk.elsewhere)
    if lives:
        assert "was cancelled" in command.ends(1).stderr
    assert list(files(desk.cwd)) == ["my data"]
    assert desk.ps("--durable", data)[run]["state"] == "cancelled"
    assert live_url(data) is None


def test_a_directory_that_is_not_there_is_refused(desk: Desk) -> None:
    for arguments in (("ps",), ("attach", "words-234567")):
        refused = desk.do(*arguments, "--durable", "nowhere", status=2).stderr
        assert "there is no directory" in refused
    assert files(desk.cwd) == {}
