"""drop: a failed run's segments go, and who won with them, so that other runs have room."""

from __future__ import annotations

import pytest
from msgspec import structs

from rqmr.model import Outcome, RunState, Skipped
from rqmr.segments import drop_segments


def test_a_run_whose_segments_were_dropped_begins_anew(run):
    """A failed run gives way to others; who resumes it runs all of its tasks again."""
    for claim in (run.claim(), run.claim()):
        run.commit(claim, run.write(claim, 0, 1))
    run.end("failed")

    drop_segments(run.state)

    assert not list(run.redis.scan_iter(f"{run.keys.run}:s0*"))
    assert run.state.resume(run.spec, b"the code", fresh=False)
    assert run.line() == ["s0-m0000", "s0-m0001", "s0-m0002"]
    assert run.claim().attempt.number == 2


def test_dropping_twice_is_dropping_once(run):
    run.commit(claim := run.claim(), run.write(claim, 0, 1))
    run.end("failed")
    assert run.scripts.drop(run.spec.phases, skipped=0) == "DROPPED"
    before = run.dump()

    assert run.scripts.drop(run.spec.phases, skipped=0) == "DROPPED"

    assert run.dump() == before


@pytest.mark.parametrize("how", ["running", "succeeded", "cancelled", "gone"])
def test_only_what_a_failed_run_holds_is_dropped(run, how):
    run.commit(claim := run.claim(), run.write(claim, 0, 1))
    if how != "running":
        run.end(how)
    before = run.dump()

    assert run.scripts.drop(run.spec.phases, skipped=0) == how

    assert run.dump() == before


def test_a_run_that_was_resumed_meanwhile_keeps_its_segments(run):
    """Else its committed tasks would be nobody's: not committed, not pending, not running."""
    claim = run.claim()
    outcome = run.write(claim, 0, 1)
    run.commit(claim, outcome)
    run.state.finish(RunState.FAILED)
    run.state.resume(run.spec, b"the code", fresh=False)
    before = run.dump()

    drop_segments(run.state)

    assert run.dump() == before


def test_a_server_that_forgot_its_scripts_is_told_them_again(run):
    """A restart or SCRIPT FLUSH costs one round trip."""
    run.end("failed")
    run.redis.script_flush()

    assert run.scripts.drop(run.spec.phases, skipped=0) == "DROPPED"


def test_who_begins_anew_may_skip_as_many_records_as_at_first_and_shuffle_other_keys(make_run):
    """What goes counts for nothing; what the last phase has skipped still does."""
    run = make_run(maps=1, reducers=2, skip_bad=3)
    bad = Skipped(0, "a.txt", 0, "'bad'", "it is bad")
    run.commit(claim := run.claim(), structs.replace(run.write(claim, 0, key_type="str"), skipped=(bad, bad)))
    run.state.advance(0)
    run.commit(run.claim(), Outcome(1, 1, 0, {}, skipped=(bad,)))
    run.end("failed")

    drop_segments(run.state)

    run.state.resume(run.spec, b"the code", fresh=False)
    claim = run.claim()
    assert run.commit(claim, structs.replace(run.write(claim, 0, key_type="int"), skipped=(bad, bad)))[0] == "COMMITTED"
    assert run.redis.hget(run.keys.run, "skipped") == b"3"
