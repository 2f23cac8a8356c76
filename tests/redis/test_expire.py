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


# --- records that end their process -------------------------------------------------------------------------------


def test_two_deaths_at_one_record_are_the_codes_fault(make_run):
    """Without --skip-bad they use up the attempts that may fail, not those that may be lost, and the record is told."""
    run = make_run(max_failed=3)
    words = []
    for at in (None, 17, 17, 17):
        words.append(run.die(run.claim(), at=at, how="SIGSEGV"))
        budgets = run.redis.hmget(run.keys.tries, "s0-m0000:lost", "s0-m0000:failed")
        if len(words) == 3:
            assert budgets == [b"1", b"2"], "the first death at a record is the machine's until there is a second"

    assert words == ["LOST", "LOST", "LOST", "RUN FAILED"]
    facts = run.state.facts()
    assert facts.state == RunState.FAILED
    failure = facts.failure
    assert failure.message.startswith("a process died at this record 3 times (SIGSEGV)")
    assert (failure.task, failure.source, failure.offset, failure.record) == ("s0-m0000", "a.txt", 170, "'record 17'")
    assert [event.note for event in run.state.events()[1] if event.what == "lost"] == [
        "its work-horse died (SIGSEGV)", *["its work-horse died (SIGSEGV) at record 17"] * 3,
    ]  # fmt: skip


def test_deaths_at_different_records_are_the_machines_fault(make_run):
    """A machine that kills its processes is no fault of any record."""
    run = make_run(max_failed=1, max_lost=10)
    words = [run.die(run.claim(), at=at) for at in (1, 2, 3, None, 4)]

    assert words == ["LOST"] * 5
    assert run.redis.hmget(run.keys.tries, "s0-m0000:lost", "s0-m0000:failed") == [b"5", None]


def test_deaths_at_one_index_of_two_tasks_are_deaths_at_two_records(make_run):
    run = make_run(max_failed=2)

    assert [run.die(claim, at=5) for claim in [run.claim(), run.claim()]] == ["LOST", "LOST"]


def test_with_skip_bad_a_record_is_left_out_after_two_deaths(make_run):
    """And nothing is charged for it: there may be more such records than attempts that may be lost."""
    run = make_run(skip_bad=5, max_lost=3, max_failed=1)
    for at in (None, 17, 17, 4, 4, 30, 30):
        assert run.die(run.claim(), at=at, how="exit status 3" if at == 4 else "SIGSEGV") == "LOST"

    claim = run.claim()
    assert claim.careful
    assert claim.bad == {17: "SIGSEGV", 4: "exit status 3", 30: "SIGSEGV"}
    assert run.redis.hmget(run.keys.tries, "s0-m0000:lost", "s0-m0000:failed") == [b"1", None]


def test_a_record_that_is_left_out_and_still_kills_fails_the_run(make_run):
    """Its reader crashes, so that leaving it out doesn't help."""
    run = make_run(skip_bad=5, max_failed=2)

    words = [run.die(run.claim(), at=17) for _ in range(4)]

    assert words == ["LOST", "LOST", "LOST", "RUN FAILED"]
    assert run.state.facts().failure.record == "'record 17'"


def test_a_death_is_counted_once(make_run):
    run = make_run(skip_bad=5)
    first, second = run.claim(), None
    since = int(run.redis.hget(run.keys.lease(first.attempt), "renewed"))
    run.die(first, at=17)
    before = run.dump()
    assert run.state.expire(first.attempt, dead_since=since, how="SIGKILL") == "ENDED"
    assert run.dump() == before

    second = run.claim()
    assert not second.bad
    run.die(second, at=17)
    assert run.claim().bad == {17: "SIGKILL"}


def test_an_end_that_is_no_death_blames_no_record(make_run):
    """The horse lost Redis and came to its end, or its lease ran out: careful is who follows a death only."""
    run = make_run(max_failed=1)
    for _ in range(3):
        assert run.die(run.claim(), at=17, how="") == "LOST"
    assert run.lose(run.claim()) == "LOST"

    assert not run.claim().careful


def test_the_death_of_a_beaten_attempt_blames_no_record(make_run):
    run = make_run(skip_bad=1)
    loser = run.claim("w1", named="s0-m0000")
    run.state.back_up(loser.attempt, "w1")
    run.commit(run.claim("w2", named="s0-m0000"))

    assert run.die(loser, at=3) == "LOST"

    assert not run.redis.hexists(run.keys.tries, "s0-m0000:died")
