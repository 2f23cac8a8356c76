"""expire: a lease has run out, so its attempt is lost and its task is pending again, before all others."""

from __future__ import annotations

from rqmr.model import RunState


def test_an_attempt_whose_worker_died_is_lost(make_run):
    """A lease that nobody renews runs out, and anyone may say so."""
    # Given a worker that claims, and is never heard of again
    run = make_run(lease_ms=30)
    claim = run.claim(named="s0-m0002")

    # When its lease has run out
    run.wait_until(lambda: run.state.expire(claim.attempt) == "LOST")

    # Then the attempt is lost, charged to the machine, and its task is first in line
    assert run.attempt_is(claim) == "lost"
    assert not run.is_leased(claim)
    assert run.line() == ["s0-m0002", "s0-m0000", "s0-m0001"]
    assert (run.tries(claim, "lost"), run.tries(claim, "failed"), run.tries(claim, "running")) == (1, 0, 0)
    assert run.state.facts().phases[0].lost == 1
    assert run.events()[-1] == ("lost", "s0-m0002-a1")


def test_lost_tasks_stand_in_line_by_their_index(run):
    """Before all others, and among themselves in the usual order."""
    claims = [run.claim(named=name) for name in ("s0-m0002", "s0-m0001")]
    for claim in claims:
        run.lose(claim)

    assert run.line() == ["s0-m0001", "s0-m0002", "s0-m0000"]


def test_expiring_twice_is_expiring_once(run):
    """Two drivers, or one that asks again, lose the attempt once."""
    claim = run.claim()
    assert run.lose(claim) == "LOST"
    before = run.dump()

    assert run.state.expire(claim.attempt) == "ENDED"

    assert run.dump() == before


def test_an_attempt_that_renewed_meanwhile_is_alive(run):
    """The facts of a tick may be old: the script looks at the deadline itself."""
    claim = run.claim()
    before = run.dump()

    assert run.state.expire(claim.attempt) == "ALIVE"

    assert run.dump() == before


def test_an_attempt_that_is_lost_again_costs_nothing_more(make_run):
    """One that revives between two silences is one attempt, and is charged once."""
    run = make_run(max_lost=2)
    claim = run.claim()

    for _ in range(5):
        assert run.lose(claim) == "LOST"  # revives what is lost

    assert run.tries(claim, "lost") == 1
    assert run.state.facts().phases[0].lost == 1
    assert run.line() == ["s0-m0000", "s0-m0001", "s0-m0002"]
    assert run.tries(claim, "running") == 0


def test_a_task_that_is_lost_too_often_fails_the_run(make_run):
    """A task that ends every worker ends the run, and is named."""
    run = make_run(max_lost=3)

    words = [run.lose(run.claim(named="s0-m0001")) for _ in range(3)]

    assert words == ["LOST", "LOST", "RUN FAILED"]
    facts = run.state.facts()
    assert facts.state == RunState.FAILED
    assert facts.failure.task == "s0-m0001"
    assert "lost 3 times" in facts.failure.message


def test_failures_do_not_use_up_the_budget_of_lost_attempts(make_run):
    """The code's fault is not the machine's."""
    run = make_run(max_lost=2, max_failed=10)
    for _ in range(5):
        run.fail(run.claim(named="s0-m0000"))

    assert run.lose(run.claim(named="s0-m0000")) == "LOST"


def test_a_task_is_not_pending_while_another_attempt_of_it_runs(run):
    """Two attempts of a task run; only when both are lost it is taken anew."""
    first = run.claim("w1", named="s0-m0000")
    run.state.back_up(first.attempt, "w1")
    second = run.claim("w2", named="s0-m0000")

    assert run.lose(first) == "LOST"
    assert "s0-m0000" not in run.line()

    assert run.lose(second) == "LOST"
    assert run.line() == ["s0-m0000", "s0-m0001", "s0-m0002"]


def test_losing_a_loser_charges_nothing(run):
    """The task has its winner: a beaten attempt that falls silent is of no interest."""
    loser = run.claim("w1", named="s0-m0000")
    run.state.back_up(loser.attempt, "w1")
    run.renew(loser, lease_ms=1)
    run.commit(run.claim("w2", named="s0-m0000"))

    assert run.wait_until(lambda: run.state.expire(loser.attempt) != "ALIVE")

    assert run.attempt_is(loser) == "lost"
    assert not run.is_leased(loser)
    assert (run.tries(loser, "lost"), run.tries(loser, "running")) == (0, 0)
    assert "s0-m0000" not in run.line()
    assert run.state.facts().phases[0].lost == 0


def test_an_attempt_that_has_ended_cannot_be_lost(run):
    """Whoever committed, failed or let go holds no lease."""
    committed, failed, released = run.claim(), run.claim(), run.claim()
    run.commit(committed)
    run.fail(failed)
    run.state.release(released.attempt)
    before = run.dump()

    assert [run.state.expire(claim.attempt) for claim in (committed, failed, released)] == ["ENDED"] * 3

    assert run.dump() == before


def test_an_attempt_that_nobody_made_cannot_be_lost(run, never_claimed):
    """Only a claim makes an attempt."""
    before = run.dump()

    assert run.state.expire(never_claimed) == "ENDED"

    assert run.dump() == before


def test_an_ended_run_loses_nothing(run, ending):
    """Leases of a run that has ended run out unnoticed, and no key comes back."""
    claim = run.claim()
    run.renew(claim, lease_ms=1)
    run.wait_until(lambda: not run.redis.exists(run.keys.lease(claim.attempt)))
    run.end(ending)
    before = run.dump()

    assert run.state.expire(claim.attempt) == "ENDED"

    assert run.dump() == before


def test_a_server_that_forgot_its_scripts_is_told_them_again(run):
    """A restart or SCRIPT FLUSH costs one round trip."""
    claim = run.claim()
    run.redis.script_flush()

    assert run.state.expire(claim.attempt) == "ALIVE"


def renewed_ms(run, claim) -> int:
    return int(run.redis.hget(run.keys.lease(claim.attempt), "renewed"))


def test_an_attempt_whose_work_horse_died_is_lost_at_once(run):
    """RQ sees the end of a horse; nobody has to wait for the lease."""
    claim = run.claim()

    assert run.state.expire(claim.attempt, dead_since=renewed_ms(run, claim)) == "LOST"

    assert run.attempt_is(claim) == "lost"
    assert not run.is_leased(claim)
    assert run.line()[0] == str(claim.attempt.task)
    assert run.tries(claim, "lost") == 1
    assert not run.state.facts().lost, "no horse is left that could be stuck"


def test_an_attempt_that_was_heard_of_since_is_not_dead(run):
    """RQ told of another horse: a ticket that was enqueued twice is two."""
    claim = run.claim()
    known = renewed_ms(run, claim)
    run.wait_until(lambda: run.renew(claim) == "RENEWED" and renewed_ms(run, claim) > known)
    before = run.dump()

    assert run.state.expire(claim.attempt, dead_since=known) == "ALIVE"

    assert run.dump() == before


def test_a_lost_attempt_is_remembered_until_it_tells_its_end(run):
    """Its horse may be stuck in it; who holds it, and since when it is lost, stays known."""
    claim = run.claim("w7", ticket="x-t5")
    run.lose(claim)

    (lost,) = run.state.facts().lost
    assert (lost.id, lost.ticket, lost.is_beaten) == (claim.attempt, f"{run.spec.run}-t5", False)
    assert abs(run.state.facts().now_ms - lost.lost_ms) < 5_000

    backup = run.claim("w8", named=str(claim.attempt.task))
    run.commit(backup)
    assert [each.is_beaten for each in run.state.facts().lost] == [True]
    run.state.release(claim.attempt)
    assert not run.state.facts().lost


def test_a_lost_attempt_can_be_let_go(run):
    claim = run.claim()
    run.lose(claim)
    run.state.let_go(claim.attempt)
    assert not run.state.facts().lost


def test_a_dead_horses_attempt_is_lost_though_its_lease_is_gone(run):
    """The server slept for longer than the lease; nothing was heard since, which is all that counts."""
    claim = run.claim()
    known = renewed_ms(run, claim)
    run.redis.delete(run.keys.lease(claim.attempt))

    assert run.state.expire(claim.attempt, dead_since=known) == "LOST"

    assert not run.state.facts().lost, "no horse is left that could be stuck"
