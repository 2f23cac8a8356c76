"""finish: a run gets its last state; the first to say so is right."""

from __future__ import annotations

import pytest

from rqmr import registry
from rqmr.facts import End
from rqmr.model import Failure, RunState

LAST = [RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED]


@pytest.mark.parametrize("state", LAST)
def test_a_run_ends_once(run, state):
    """Whatever is said later, the first last state stays, and all are told it."""
    assert run.state.finish(state) == state
    before = run.dump()

    assert [run.state.finish(other) for other in LAST] == [state] * 3

    assert run.dump() == before
    assert run.state.facts().state == state
    assert run.events() == [(state, "run")]


def test_the_failure_is_kept_with_the_run(run):
    """Why it failed is told by the one who failed it, and not overwritten."""
    why = Failure("the driver could not write the output", source="a.txt", offset=3)
    run.state.finish(RunState.FAILED, why)

    run.state.finish(RunState.FAILED, Failure("something else"))

    assert run.state.facts().failure == why


def test_a_run_that_failed_of_a_task_is_not_cancelled_afterwards(run):
    """The failure was first."""
    run.fail(run.claim(), final=True)
    before = run.dump()

    assert run.state.finish(RunState.CANCELLED) == RunState.FAILED

    assert run.dump() == before


def test_a_run_that_is_gone_has_no_state(run):
    """No key comes back."""
    run.end("gone")
    before = run.dump()

    assert run.state.finish(RunState.SUCCEEDED, Failure("too late")) is None

    assert run.dump() == before


def test_a_server_that_forgot_its_scripts_is_told_them_again(run):
    """A restart or SCRIPT FLUSH costs one round trip."""
    run.redis.script_flush()

    assert run.state.finish(RunState.SUCCEEDED) == RunState.SUCCEEDED


def end_of(run, state, seconds=1):
    return End(run.spec.run, "wordcount", state, "/out", 0, seconds * 1000)


def test_how_a_run_ended_is_written_down_once(run):
    """Whoever collects after another one, or again, doesn't change what was told."""
    first = end_of(run, RunState.SUCCEEDED)
    run.state.finish(RunState.SUCCEEDED, end=first)

    run.state.finish(RunState.SUCCEEDED, end=end_of(run, RunState.SUCCEEDED, seconds=9))

    assert registry.read_end(run.redis, run.spec.run) == first


def test_who_has_seen_a_run_end_does_not_end_the_life_that_followed(run):
    """It failed, was seen so, and was resumed: it runs."""
    run.fail(run.claim(), final=True)
    assert run.state.resume(run.spec, b"package", fresh=False)
    before = run.dump()

    assert run.state.finish(RunState.FAILED, end=end_of(run, RunState.FAILED), seen=True) == RunState.RUNNING

    assert run.dump() == before
