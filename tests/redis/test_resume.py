"""resume: a failed run goes on with what it has, and none of its old attempts can harm it."""

from __future__ import annotations

import msgspec
import pytest
from msgspec import structs

from rqmr.errors import AttemptEnded
from rqmr.model import Failure, Outcome, RunState, Skipped


def resume(run, *, fresh: bool = False, code: str = "mended") -> bool:
    return run.state.resume(structs.replace(run.spec, code=code), b"the mended code", fresh=fresh)


def test_what_is_committed_is_kept_and_all_else_is_pending_again(make_run):
    run = make_run(maps=3, max_failed=1)
    done, doomed, working = (run.claim(named=f"s0-m000{number}") for number in range(3))
    run.commit(done, run.write(done, 0, 1))
    assert run.fail(doomed) == "RUN FAILED"

    assert resume(run)

    facts = run.state.facts()
    assert (facts.state, facts.phase, facts.failure) == (RunState.RUNNING, 0, None)
    assert run.line() == ["s0-m0001", "s0-m0002"]
    assert facts.phases[0].committed == 1
    assert (run.attempt_is(done), run.attempt_is(working)) == ("committed", "released")
    assert run.redis.get("rqmr:code:mended") == b"the mended code"
    assert msgspec.msgpack.decode(run.redis.hget(run.keys.run, "spec"))["code"] == "mended"


def test_no_attempt_of_before_comes_back(make_run):
    """A horse that slept through the failure and the mending wakes up, and has no say."""
    run = make_run(maps=2, max_failed=1)
    sleeper, doomed = run.claim(), run.claim()
    outcome = run.write(sleeper, 0, 1)
    run.fail(doomed)
    resume(run)
    before = run.dump()

    assert run.renew(sleeper) == "ENDED"
    assert run.commit(sleeper, outcome) == ["ENDED"]
    assert run.fail(sleeper) == "ENDED"
    assert run.state.release(sleeper.attempt) == "ENDED"
    assert run.state.expire(sleeper.attempt) == "ENDED"

    assert run.dump() == before
    assert run.claim(named="s0-m0000").attempt.number == 2, "numbers go on"


def test_budgets_are_as_on_the_first_day(make_run):
    run = make_run(maps=1, max_failed=2, max_lost=2)
    run.fail(run.claim())
    run.lose(run.claim())
    assert run.fail(run.claim()) == "RUN FAILED"

    resume(run)

    assert run.fail(run.claim()) == "FAILED"
    run.lose(claim := run.claim())
    assert run.tries(claim, "lost") == 1


def test_a_run_that_failed_in_its_second_phase_goes_on_there(make_run):
    run = make_run(maps=2, reducers=2, max_failed=1)
    run.commit_phase()
    run.commit(run.claim())
    assert run.fail(run.claim()) == "RUN FAILED"

    resume(run)

    facts = run.state.facts()
    assert facts.phase == 1
    assert run.line() == ["s0-r0001"]
    assert [each.committed for each in facts.phases] == [2, 1]


def test_a_run_that_failed_before_a_reopened_map_was_back_begins_with_it(make_run):
    run = make_run(maps=2, reducers=1, max_lost=1)
    run.commit_phase()
    reader = run.claim()
    winner, outcome = run.state.winners(run.spec.phases[0])[next(iter(run.state.winners(run.spec.phases[0])))]
    assert run.state.reopen(winner, outcome, reader.attempt.task) == "RUN FAILED"

    resume(run)

    assert run.state.facts().phase == 0
    assert run.line() == [str(winner.task), "s0-r0000"]


def test_fresh_keeps_nothing(make_run):
    run = make_run(maps=2, reducers=2, max_failed=1)
    claims = [run.claim(), run.claim()]
    for claim in claims:
        run.commit(claim, run.write(claim, 0, 1, key_type="str"))
    run.state.advance(0)
    run.commit(run.claim())
    run.fail(run.claim())

    assert resume(run, fresh=True)

    facts = run.state.facts()
    assert facts.phase == 0
    assert [(each.committed, each.records) for each in facts.phases] == [(0, 0), (0, 0)]
    assert run.line() == ["s0-m0000", "s0-m0001"]
    assert not run.redis.exists(run.keys.shuffle(0, 0), run.keys.shuffle(0, 1))
    run.commit_phase()
    assert run.line() == ["s0-r0000", "s0-r0001"]


def test_asking_twice_is_asking_once(make_run):
    run = make_run(maps=2, max_failed=1)
    run.fail(run.claim())
    assert resume(run)
    before = run.dump()

    assert resume(run)

    assert run.dump() == before


@pytest.mark.parametrize("how", ["running", "succeeded", "cancelled", "gone"])
def test_only_a_failed_run_is_resumed(run, how):
    if how == "gone":
        run.end("gone")
    elif how != "running":
        run.end(how)
    before = run.dump("rqmr:code:mended")

    assert not resume(run)

    assert run.dump("rqmr:code:mended") == before


def test_a_resumed_run_can_be_finished(make_run):
    run = make_run(maps=2, reducers=1, max_failed=1)
    run.fail(run.claim())
    resume(run)
    run.commit_phase()
    run.commit_phase()
    assert run.state.finish(RunState.SUCCEEDED) == "succeeded"
    assert run.state.finish(RunState.FAILED, Failure("too late")) == "succeeded"


def test_a_run_that_failed_before_a_barrier_was_passed_goes_on_there(make_run):
    """All that was begun is committed, and that isn't all there is."""
    run = make_run(maps=2, reducers=2)
    while claim := run.claim():
        run.commit(claim)
    run.state.finish(RunState.FAILED)

    resume(run)

    assert run.state.facts().phase == 0
    assert run.state.advance(0) == "ADVANCED"
    assert run.line() == ["s0-r0000", "s0-r0001"]


def test_a_run_that_failed_when_all_was_committed_is_complete(make_run):
    """What is left is the collecting."""
    run = make_run(maps=1, reducers=1)
    run.commit_phase()
    run.commit_phase()
    run.state.finish(RunState.FAILED)

    resume(run)

    assert run.state.facts().phase == 2
    assert run.line() == []


def test_a_run_that_has_not_failed_loses_no_segment(make_run):
    """Two people resume a run, or one does twice: who comes second finds it running, and takes nothing away."""
    run = make_run(maps=1, max_failed=1)
    run.fail(run.claim())
    assert resume(run, fresh=True, code="mended")
    claim = run.claim()
    outcome = run.write(claim, 0, 1)

    assert not resume(run, fresh=True, code="mended otherwise")
    assert resume(run, fresh=True, code="mended")

    assert run.commit(claim, outcome)[0] == "COMMITTED"


@pytest.mark.parametrize(("fresh", "left"), [(False, b"1"), (True, None)])
def test_what_the_winners_that_are_kept_have_skipped_still_counts(make_run, fresh, left):
    run = make_run(maps=2, max_failed=1, skip_bad=5)
    skips = Outcome(10, 100, 0, {}, skipped=(Skipped(3, "a.txt", 30, "'3'", "it is bad"),))
    run.commit(run.claim(), skips)
    run.fail(run.claim())

    resume(run, fresh=fresh)

    assert run.redis.hget(run.keys.run, "skipped") == left


def test_records_that_processes_died_at_are_tried_by_the_mended_job(make_run):
    run = make_run(maps=1, max_failed=1, skip_bad=5)
    for _ in range(2):
        run.die(run.claim(), at=3)
    run.fail(run.claim())

    resume(run)

    claim = run.claim()
    assert (claim.careful, claim.bad) == (False, {})


def test_a_horse_of_before_the_resume_claims_nothing_more(make_run):
    """It has the old code; its worker's next horse reads the new one."""
    run = make_run(maps=2, max_failed=1)
    before = run.through(run.redis)
    run.fail(before.claim())
    resume(run)

    with pytest.raises(AttemptEnded):
        before.ask()

    assert run.claim()
