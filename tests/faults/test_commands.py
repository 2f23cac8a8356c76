"""The commands around a run: detach, ps, status, attach, cancel, rm, from whatever terminal, with whatever is typed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec
import pytest
from harness import JOBS, Workers, wait_until
from terminals import OPTIONS, Desk, Terminal, files, told

from rqmr.api import submit
from rqmr.config import Config
from rqmr.errors import RefusedError
from rqmr.request import Request
from rqmr.runs import attach, cancel, list_runs, remove, resume, status_of
from rqmr.view import Silent
from rqmr.where import Where

WORDS = ("some words", "more words and others", "the gate", "other words", "the last words")


# --- detach ---------------------------------------------------------------------------------------------------------


def test_detach_prints_the_id_alone_and_returns_while_the_run_waits_for_a_worker(desk: Desk, workers: Workers) -> None:
    desk.write(*WORDS)
    begun = desk.run("slow", "--detach", marks=desk.marks, gate="gate").ends(0)
    run = begun.stdout.rstrip("\n")
    assert run in desk.run_ids()
    assert "no worker listens on queue 'rqmr' yet: the run waits for one" in begun.stderr
    workers.start(1)
    desk.wait_for_marks("waiting")
    assert desk.state_of(run) == "running"
    desk.open_gate()
    desk.wait_until_done(run)
    desk.do("attach", run, "--quiet", cwd=desk.elsewhere)
    desk.assert_right(run, "slow")


def test_detach_in_json(desk: Desk) -> None:
    desk.write(*WORDS)
    begun = desk.run("slow", "--detach", "--json", "--quiet").ends(0)
    assert json.loads(begun.stdout) == {"state": "running", "run": desk.run_ids()[0]}
    assert begun.stderr == ""


def test_what_nobody_could_go_on_with_is_not_detached(desk: Desk, redis_url: str) -> None:
    desk.write(*WORDS)
    told = "--detach leaves the run to workers that go on without this command: name a Redis"
    refused = desk.do("run", "wordcount", desk.inputs, "-o", "out", "--detach", status=2, RQMR_REDIS_URL="")
    assert told in refused.stderr
    request = Request(job="wordcount", inputs=[desk.inputs], params={}, config=Config(), output=str(desk.output))
    named = {"where": Where(redis_url)}
    for given in (
        named | {"temporary": True}, named | {"inline": True}, named | {"config": Config(workers=2)},
        {"where": Where(durable=desk.cwd / "data")},
    ):  # fmt: skip
        with pytest.raises(RefusedError, match=told):
            submit(dataclasses.replace(request, **given), Silent())
    assert files(desk.cwd) == {}
    assert desk.run_ids() == []


# --- signals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_detaches_and_others_go_on(number: signal.Signals, desk: Desk, workers: Workers) -> None:
    """Also from local workers: they leave, and what they had is another's."""
    desk.write(*WORDS)
    local = ["-w", 1] if number == signal.SIGTERM else []
    if not local:
        workers.start(1)
    command, run = desk.begin("slow", *local, gate="gate")
    desk.wait_for_marks("waiting")
    told = command.signal(number).ends(128 + number).stderr
    assert f"ended by {number.name}; left run {run}, which goes on where workers listen\n" in told
    assert f"  rqmr attach {run}    shows it, and collects its output\n  rqmr cancel {run}    ends it" in told
    if local:
        workers.start(1)
        wait_until(lambda: not desk.client.exists(f"rqmr:{run}:driver"), timeout=5, what="nobody drives")
    desk.open_gate()
    desk.do("attach", run, cwd=desk.elsewhere)
    desk.assert_right(run, "slow")


def test_what_to_type_names_the_redis_that_was_named_but_for_its_password(
    desk: Desk, workers: Workers, redis_url: str, redis: Any
) -> None:
    workers.start(1)
    desk.write(*WORDS)
    redis.acl_setuser("someone", enabled=True, passwords=["+sesame"], keys=["*"], channels=["*"], categories=["+@all"])
    url = redis_url.replace("unix://", "unix://someone:sesame@")
    command, run = desk.begin("slow", "--redis-url", url, gate="gate")
    desk.wait_for_marks("waiting")
    said = [command.signal(signal.SIGINT).ends(130)]
    told = f"rqmr attach {run} --redis-url 'unix://someone:***@{redis_url.removeprefix('unix://')}'"
    assert told in said[0].stderr
    commands = (("ps", "--json"), ("status", run), ("cancel", run))
    said += [desk.do(*arguments, "--redis-url", url) for arguments in commands]
    said += [desk.do("attach", run, "--redis-url", given, status=status) for given, status in (
        (url, 1), (url.replace("sesame", "sesame-street"), 2),
    )]  # fmt: skip
    assert not [each for each in said if "sesame" in each.stderr + each.stdout]


def test_a_run_to_stdout_is_cancelled_by_a_signal(desk: Desk, workers: Workers) -> None:
    workers.start(1)
    desk.write(*WORDS)
    desk.environment["TMPDIR"] = str(desk.elsewhere)
    command, run = desk.begin("slow", gate="gate", output="-")
    desk.wait_for_marks("waiting")
    assert "the run was cancelled" in command.signal(signal.SIGTERM).ends(143).stderr
    assert command.stdout == ""
    assert files(desk.cwd) == files(desk.elsewhere) == {}
    assert desk.keys_of(run) == [":end"]
    assert desk.state_of(run) == "cancelled"
    assert "was cancelled" in desk.do("attach", run, status=1).stderr


@pytest.mark.parametrize("moment", ["rqmr.state State.adopt 1", "rqmr.api follow 1"])
def test_a_signal_around_the_birth_of_a_run_leaves_all_of_it_or_nothing(
    moment: str, desk: Desk, workers: Workers
) -> None:
    """It is in Redis, but its creator doesn't know yet; or nobody follows it yet."""
    desk.write(*WORDS)
    command = desk.run("slow", struck=f"{moment} SIGINT").ends(130)
    if "adopt" in moment:
        assert "the run was cancelled, and no incomplete output is left" in command.stderr
        assert desk.run_ids() == [key for key in desk.client.keys("rqmr:*") if b":code:" not in key] == []
        assert files(desk.cwd) == {}
    else:
        (run,) = desk.run_ids()
        assert f"left run {run}, which goes on where workers listen" in command.stderr
        workers.start(1)
        desk.do("attach", run)
        desk.assert_right(run, "slow")


def test_ctrl_c_in_other_commands_says_nothing_of_a_run_that_was_cancelled(desk: Desk) -> None:
    command = desk.open("ps", STRUCK="rqmr.registry runs 1 SIGINT")
    assert command.ends(130).stderr.strip() == "rqmr: ended by SIGINT"


# --- cancel ---------------------------------------------------------------------------------------------------------


def test_cancel_ends_attempts_driver_and_all_that_was_made(desk: Desk, workers: Workers) -> None:
    """Also a horse that sleeps in one record."""
    workers.start(2)
    desk.write("sleep", *WORDS)
    driver, run = desk.begin("slow", straggle="sleep", straggle_seconds=60, gate="gate")
    desk.wait_for_marks("straggled")
    desk.wait_for_marks("waiting")
    attached = desk.open("attach", run).says("map begins")
    began = time.monotonic()
    assert f"{run} cancelled" in desk.do("cancel", run, cwd=desk.elsewhere).stderr
    for terminal in (driver, attached):
        assert f"run {run} was cancelled" in terminal.ends(1).stderr
    assert desk.keys_of(run) == [":end"]
    assert not desk.output.exists()
    wait_until(lambda: not any(map(workers.horses_of, workers.processes)), timeout=10, what="no work-horse is left")
    assert time.monotonic() - began < 9
    assert desk.keys_of(run) == [":end"]
    assert not desk.client.llen("rq:queue:rqmr")
    assert [worker.poll() for worker in workers.processes] == [None, None]
    for command in ("cancel", "resume"):
        assert "was cancelled already" in desk.do(command, run, status=2).stderr
    desk.do("rm", run)
    assert desk.keys_of(run) == desk.run_ids() == []


@pytest.mark.parametrize("moment", ["pathlib Path.replace 2", "pathlib Path.touch 1"])
def test_cancel_removes_what_a_driver_had_collected_when_it_died(moment: str, desk: Desk, workers: Workers) -> None:
    workers.start(1)
    desk.write(*WORDS)
    driver, run = desk.begin("slow", struck=f"{moment} SIGKILL")
    driver.ends(-signal.SIGKILL)
    assert files(desk.output)
    desk.do("cancel", run)
    assert not desk.output.exists()
    assert desk.keys_of(run) == [":end"]


def test_a_driver_that_is_cancelled_at_the_last_moment_takes_its_output_back(desk: Desk, workers: Workers) -> None:
    workers.start(1)
    desk.write(*WORDS)
    driver, run = desk.begin("slow", struck="rqmr.driver end_run 1 SIGSTOP")
    desk.wait_for_marks("struck")
    desk.do("cancel", run)
    assert f"run {run} was cancelled" in driver.signal(signal.SIGCONT).ends(1).stderr
    assert not files(desk.output)
    assert desk.state_of(run) == "cancelled"


# --- ps, status, rm -------------------------------------------------------------------------------------------------


def test_ps_and_status_tell_of_runs_in_every_state(desk: Desk, workers: Workers) -> None:
    """In 80 columns, and the same in JSON."""
    workers.start(1)
    desk.write(*WORDS)
    assert desk.do("ps").stderr == "no runs\n"
    done, succeeded = desk.begin("slow", output="first")
    done.ends(0)
    _, running = desk.begin("slow", "--detach", "--priority", "low", output="second", gate="gate")
    desk.wait_for_marks("waiting")
    _, waiting = desk.begin("slow", "--detach", "--queue", "nobody", output="third")

    listed = desk.do("ps").stdout.splitlines()
    assert [line.split()[:2] for line in listed] == [
        ["RUN", "STATE"], [succeeded, "succeeded"], [running, "running"], [waiting, "waiting"],
    ]  # fmt: skip
    assert max(map(len, listed)) <= 80
    assert [line.split()[-1] for line in listed[1:]] == ["first", "second", "third"]
    assert "map 2/5, reduce 0/2" in listed[2]

    told = desk.do("status", running).stdout
    assert not [line for line in told.splitlines() if len(line) > 80 and not line.startswith("server")]
    assert "output    second\n" in told
    assert ", low priority\n" in told
    assert "2/5 committed, 1 running" in told
    assert "s0-m0002-a1" in told
    assert "5 records read, 9 written in 2 parts\n" in desk.do("status", succeeded).stdout
    assert f"it waits for a worker; if some listen, try:  rqmr attach {waiting}" in (desk.do("status", waiting).stdout)

    in_json = json.loads(desk.do("status", running, "--json").stdout)
    assert in_json == desk.ps()[running] | {"now_ms": in_json["now_ms"], "attempts": in_json["attempts"]}
    assert [(each["id"], each["worker"]) for each in in_json["attempts"]] == [("s0-m0002-a1", "worker-1")]
    assert in_json["phases"][0]["committed"] == 2
    assert in_json["output"] == str(desk.cwd / "second")

    assert f"end it first: rqmr cancel {running}" in desk.do("rm", running, status=2).stderr
    desk.do("rm", succeeded)
    assert sorted(files(desk.cwd / "first")) == ["_SUCCESS", "part-00000", "part-00001"]
    assert desk.run_ids() == [running, waiting]


def test_a_failed_run_is_told_as_such_until_it_is_removed_with_all_that_it_has(desk: Desk, workers: Workers) -> None:
    """Its time stands still, whoever looks, and its output directory is taken."""
    workers.start(1)
    desk.write(*WORDS)
    failing, run = desk.begin("crash", at="gate", how="error", times=9)
    failing.ends(1)
    before = desk.ps()[run]
    again = desk.do("attach", run, status=1)
    assert "ValueError: this is the job's own error" in again.stderr
    assert f"rqmr resume {run}" in again.stderr
    assert desk.ps()[run] == before
    told = desk.do("status", run).stdout
    assert "4 failed" in told
    assert f"to go on when the cause is mended:  rqmr resume {run}" in told
    assert "ValueError: this is the job's own error" in told

    assert len(desk.keys_of(run)) > 5
    assert [path.name for path in desk.output.iterdir()] == [f".rqmr-{run}"]
    assert f"has what run {run} has made so far" in desk.run("slow").ends(2).stderr
    desk.do("rm", run)
    assert desk.keys_of(run) == desk.run_ids() == []
    assert not desk.output.exists()


# --- what is typed --------------------------------------------------------------------------------------------------


def test_what_is_no_run_is_refused_in_one_line(desk: Desk, redis_url: str) -> None:
    """Also what would be the name of another key."""
    desk.write(*WORDS)
    driver, run = desk.begin("slow", "--detach")
    driver.ends(0)
    before = desk.keys_of(run)
    where = Where(redis_url)
    odd = ["*", "", "../x", "x" * 5000, "runs", "code", "x y", f"{run}:pending", f"{run}*", f" {run}", f"{run}\n"]
    for typed in odd:
        for act in (status_of, cancel, remove):
            with pytest.raises(RefusedError, match="is no run's id") as refused:
                act(typed, where)
            assert len(str(refused.value)) < 200
    for typed in (os.fsdecode(b"\xff"), "runs"):
        assert desk.do("attach", typed, status=2).stderr.count("\n") == 1
    assert desk.keys_of(run) == before


def test_a_run_of_another_database_is_not_found(desk: Desk, redis_url: str) -> None:
    desk.write(*WORDS)
    driver, run = desk.begin("slow", "--detach")
    driver.ends(0)
    where = Where(redis_url.replace("db=0", "db=1"))
    assert list_runs(where) == []
    for act in (status_of, cancel, remove, partial(attach, view=Silent()), partial(resume, view=Silent())):
        with pytest.raises(RefusedError, match=f"nothing is known of a run {run} on that Redis"):
            act(run, where)
    assert [each.run for each in list_runs(Where(redis_url))] == [run]


def test_a_redis_that_is_not_there_is_named(desk: Desk) -> None:
    for arguments in (("ps",), ("attach", "words-234567")):
        refused = desk.do(*arguments, status=2, RQMR_REDIS_URL="redis://:sesame@localhost:1/0").stderr
        assert "no Redis answers at redis://:***@localhost:1/0" in refused


def test_a_run_of_another_release_is_listed_and_not_touched(desk: Desk, redis: Any) -> None:
    desk.write(*WORDS)
    driver, run = desk.begin("slow", "--detach")
    driver.ends(0)
    spec = msgspec.msgpack.decode(redis.hget(f"rqmr:{run}", "spec"))
    redis.hset(f"rqmr:{run}", "spec", msgspec.msgpack.encode(spec | {"protocol": 99}))
    assert desk.ps()[run]["state"] == "unknown"
    assert "speaks protocol 99" in desk.do("cancel", run, status=1).stderr


# --- private runs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def private() -> Iterator[dict[str, str]]:
    """The environment of commands that know no Redis, with a TMPDIR whose path is short, as a socket's must be."""
    with tempfile.TemporaryDirectory(prefix="p-", dir="/tmp") as directory:
        yield {"RQMR_REDIS_URL": "", "TMPDIR": directory}


def begin_private(desk: Desk, private: dict[str, str]) -> tuple[Terminal, str]:
    """Begin a run on a private server, and wait until it has come to the gate; return also its id."""
    given = ("-p", f"marks={desk.marks}", "-p", "gate=gate")
    owner = desk.open("run", JOBS / "slow.py", desk.inputs, *OPTIONS, "-w", 1, "-o", "out", *given, **private)
    desk.wait_for_marks("waiting")
    (run,) = (run for run, told in desk.ps(**private).items() if told["output"] == str(desk.output))
    return owner, run


def test_whoever_attaches_to_a_private_run_watches_it_to_its_end(desk: Desk, private: dict[str, str]) -> None:
    desk.write(*WORDS)
    owner, run = begin_private(desk, private)
    leaving, *attached = [desk.open("attach", run, cwd=desk.elsewhere, **private) for _ in range(3)]
    for terminal in (leaving, *attached):
        terminal.says("private server of a command that runs now").says("map begins")
    assert "as the command that it belongs to does" in leaving.signal(signal.SIGINT).ends(130).stderr
    assert "still running" in desk.do("resume", run, status=2, **private).stderr
    attached[0].signal(signal.SIGSTOP)  # the slowest to hear
    desk.open_gate()
    wait_until((desk.output / "_SUCCESS").exists, timeout=20, what="the output is there")
    attached[0].signal(signal.SIGCONT)
    seen = [told(terminal.ends(0)) for terminal in (owner, *attached)]
    assert seen[1] == seen[2]
    assert seen[0][:-1] == seen[1][:-1]
    assert sorted(files(desk.output)) == ["_SUCCESS", "part-00000", "part-00001"]
    assert "in this user's private servers" in desk.do("attach", run, status=2, **private).stderr


@pytest.mark.parametrize("how", ["cancel", "SIGKILL"])
def test_a_private_run_that_is_ended_is_ended_for_all(how: str, desk: Desk, private: dict[str, str]) -> None:
    desk.write(*WORDS)
    owner, run = begin_private(desk, private)
    attached = desk.open("attach", run, **private).says("map begins")
    if how == "cancel":
        desk.do("cancel", run, **private)
        owner.ends(1)
    else:
        owner.signal(signal.SIGKILL).ends(-9)
    told = attached.ends(1).stderr
    assert ("the command that run" if how == "SIGKILL" else "was cancelled") in told
    wait_until(lambda: not files(desk.cwd), timeout=6, what="nothing is left")
