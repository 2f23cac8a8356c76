"""renew: an attempt is alive; lost is not dead, until another one has committed."""

from __future__ import annotations

from rqmr.model import Claim, Progress


def test_a_lease_begins_anew_with_how_far_the_attempt_is(run):
    """Renewing moves the deadline, and carries the progress."""
    claim = run.claim("w1")

    assert run.renew(claim, "w1", lease_ms=60_000, progress=Progress(7, 70, 0.25)) == "RENEWED"

    [running] = run.state.facts().running
    assert running.deadline_ms == running.renewed_ms + 60_000 > claim.started_ms + run.spec.lease_ms
    assert running.progress == Progress(7, 70, 0.25)
    assert (running.worker, running.started_ms) == ("w1", claim.started_ms)
    assert run.redis.pttl(run.keys.lease(claim.attempt)) > run.spec.lease_ms


def test_a_beat_tells_what_the_attempt_waits_for(run):
    """The scheduler has to know who can't go on."""
    claim = run.claim()
    for waits in ("memory", "input", ""):
        run.renew(claim, progress=Progress(waits=waits))
        assert [each.progress.waits for each in run.state.facts().running] == [waits]


def test_renewing_twice_changes_nothing_but_the_lease(run):
    """A beat that is repeated is one more beat."""
    claim = run.claim()
    leases = run.keys.leases, run.keys.lease(claim.attempt)
    assert run.renew(claim) == "RENEWED"
    before = run.dump(*leases)

    assert run.renew(claim) == "RENEWED"

    assert run.dump(*leases) == before
    assert run.is_leased(claim)


def test_a_lease_key_that_expired_comes_back_before_anyone_has_noticed(make_run):
    """Late, but still before the tick called it lost: nothing has happened."""
    run = make_run(lease_ms=20)
    claim = run.claim()
    run.wait_until(lambda: not run.redis.exists(run.keys.lease(claim.attempt)))

    assert run.renew(claim) == "RENEWED"

    assert run.is_leased(claim)
    assert run.attempt_is(claim) == "running"
    assert run.events() == [("claimed", "s0-m0000-a1")]


def test_a_lost_attempt_takes_its_task_back_from_the_line(run):
    """A mapper that held the interpreter for longer than its lease goes on, and nobody does its work twice."""
    claim = run.claim()
    run.lose(claim)
    assert run.line()[0] == "s0-m0000"

    assert run.renew(claim) == "RENEWED"

    assert run.line() == ["s0-m0001", "s0-m0002"]
    assert run.attempt_is(claim) == "revived"
    assert run.tries(claim, "running") == 1
    assert run.is_leased(claim)
    assert run.events()[-1] == ("revived", "s0-m0000-a1")


def test_reviving_twice_counts_one_running_attempt(run):
    """The reply to the beat that revived can be lost too."""
    claim = run.claim()
    run.lose(claim)
    leases = run.keys.leases, run.keys.lease(claim.attempt)
    run.renew(claim)
    before = run.dump(*leases)

    assert run.renew(claim) == "RENEWED"

    assert run.dump(*leases) == before


def test_when_its_task_was_taken_both_attempts_run(run):
    """The lost one may be nearly done, so it goes on; the first to commit wins."""
    # Given a task whose lost attempt was followed by another
    lost = run.claim("w1")
    run.lose(lost)
    second = run.claim("w2")
    assert second.attempt.task == lost.attempt.task

    # When the lost one is heard of again
    assert run.renew(lost) == "RENEWED"

    # Then both hold a lease, and the task is pending only when neither runs any more
    assert {each.id for each in run.state.facts().running} == {lost.attempt, second.attempt}
    run.fail(second)
    assert "s0-m0000" not in run.line()
    run.fail(lost)
    assert "s0-m0000" in run.line()


def test_after_another_attempts_commit_the_loser_is_told(run):
    """Stale: its work isn't wanted, and its lease doesn't begin anew."""
    loser = run.claim("w1")
    run.lose(loser)
    run.commit(run.claim("w2"))
    before = run.dump()

    assert run.renew(loser) == "STALE"

    assert run.dump() == before
    assert not run.is_leased(loser)


def test_after_its_own_commit_an_attempt_has_ended(run):
    """A beat that crosses its own commit brings no lease back."""
    claim = run.claim()
    run.commit(claim)
    before = run.dump()

    assert run.renew(claim) == "ENDED"

    assert run.dump() == before


def test_after_failing_or_releasing_an_attempt_has_ended(run):
    """A beat that crosses the attempt's last word brings no lease back."""
    failed, released = run.claim(), run.claim()
    run.fail(failed)
    run.state.release(released.attempt)
    before = run.dump()

    assert run.renew(failed) == "ENDED"
    assert run.renew(released) == "ENDED"

    assert run.dump() == before


def test_an_attempt_that_nobody_made_gets_no_lease(run, never_claimed):
    """Only a claim makes an attempt."""
    before = run.dump()

    assert run.renew(Claim(never_claimed, 0)) == "ENDED"

    assert run.dump() == before


def test_an_ended_run_renews_no_lease(run, ending):
    """The worker hears that it may stop, and no key comes back."""
    claim = run.claim()
    run.end(ending)
    before = run.dump()

    assert run.renew(claim) == "ENDED"

    assert run.dump() == before


def test_a_server_that_forgot_its_scripts_is_told_them_again(run):
    """A restart or SCRIPT FLUSH costs one round trip."""
    claim = run.claim()
    run.redis.script_flush()

    assert run.renew(claim) == "RENEWED"
