"""claim: a work-horse gets the next task, a number for its attempt, and a lease; asked twice, the same."""

from __future__ import annotations

import pytest

from rqmr.errors import AttemptEnded
from rqmr.model import Kind, TaskId
from rqmr.scripts import STANDBY_MS

#: A reader whose own task isn't committed.
NOBODY = TaskId(9, Kind.REDUCE, 0)


def test_a_claim_takes_the_task_at_the_front_of_the_line(run):
    """A claim takes one pending task, numbers the attempt and says whose it is."""
    # Given a run of three pending maps
    # When a worker claims
    claim = run.claim("w1")

    # Then it has the first one, nobody else can take that, and all can see who runs it
    assert str(claim.attempt) == "s0-m0000-a1"
    assert run.line() == ["s0-m0001", "s0-m0002"]
    assert run.attempt_is(claim) == "running"
    assert run.events() == [("claimed", "s0-m0000-a1")]
    [running] = run.state.facts().running
    assert (running.id, running.worker, running.host) == (claim.attempt, "w1", "somewhere")
    assert running.started_ms == running.renewed_ms == claim.started_ms


def test_deadline_and_lease_key_agree(run):
    """The lease is twice in Redis: a deadline to sort by, and a key that expires by itself."""
    claim = run.claim()

    assert run.redis.zscore(run.keys.leases, str(claim.attempt)) == claim.started_ms + run.spec.lease_ms
    assert 0 < run.redis.pttl(run.keys.lease(claim.attempt)) <= run.spec.lease_ms


def test_a_lease_key_expires_by_itself(make_run):
    """A worker that is never heard of again leaves no lease key behind, and the deadline for the tick to see."""
    run = make_run(lease_ms=30)
    claim = run.claim()

    run.wait_until(lambda: not run.redis.exists(run.keys.lease(claim.attempt)))

    assert run.redis.zscore(run.keys.leases, str(claim.attempt)) == claim.started_ms + 30


def test_the_task_that_the_ticket_names_comes_first(run):
    """A ticket brings its own task, if that is still pending."""
    assert str(run.claim(named="s0-m0001").attempt) == "s0-m0001-a1"


def test_a_named_task_that_is_taken_gives_way_to_the_front_of_the_line(run):
    """A ticket whose task another has taken is not in vain."""
    run.claim(named="s0-m0001")

    assert str(run.claim(named="s0-m0001").attempt) == "s0-m0000-a1"


def test_a_lost_task_goes_before_the_named_one(run):
    """What was lost is first in line, whatever the ticket names."""
    lost = run.claim(named="s0-m0002")
    run.lose(lost)

    assert str(run.claim(named="s0-m0001").attempt) == "s0-m0002-a2"


def test_a_reopened_map_goes_before_the_named_one(run):
    """Others wait for a map that was opened again."""
    winner = run.claim(named="s0-m0002")
    outcome = run.write(winner, 0)
    run.commit(winner, outcome)
    run.state.reopen(winner.attempt, outcome, NOBODY)

    assert str(run.claim(named="s0-m0001").attempt) == "s0-m0002-a2"


def test_a_lost_task_goes_before_the_named_one_though_the_first_in_line_is_not_for_this_worker(make_run):
    """A map that was opened again is pending, and the worker that was slow with it goes on with it, beaten."""
    # Given two tasks that others wait for, the first of them backed up
    run = make_run(maps=4)
    slow, other = run.claim("slow", named="s0-m0000"), run.claim("other", named="s0-m0001")
    run.lose(slow)
    winner = run.claim("third", named="s0-m0000")
    run.renew(slow)
    outcome = run.write(winner, 0)
    run.commit(winner, outcome)
    run.state.reopen(winner.attempt, outcome, NOBODY)
    run.state.back_up(slow.attempt, "slow")
    run.lose(other)
    assert run.line() == ["s0-m0000", "s0-m0001", "s0-m0002", "s0-m0003"]

    # Then the worker that is slow gets the second one
    assert str(run.claim("slow", named="s0-m0003").attempt) == "s0-m0001-a2"


def test_tasks_of_a_later_phase_are_never_given(run):
    """Reduce tasks that wait for a map stay in line, even when a ticket names one."""
    # Given a run whose reduce tasks were pending when one map was opened again
    won = run.commit_phase()
    map_task, winner = next(iter(won.items()))
    run.state.reopen(winner.attempt, run.state.winners(run.spec.phases[0])[map_task][1], NOBODY)
    assert run.line() == ["s0-m0000", "s0-r0000", "s0-r0001"]

    # When two workers come with tickets for a reduce task
    first, second = run.claim(named="s0-r0000"), run.claim(named="s0-r0001")

    # Then one gets the map and the other nothing
    assert str(first.attempt) == "s0-m0000-a2"
    assert second is None
    assert run.line() == ["s0-r0000", "s0-r0001"]


def test_the_same_claim_made_twice_is_one_claim(run):
    """redis-py repeats a command whose reply was lost; that must not take a second task."""
    first = run.claim(ticket="wordcount-7k2p9x-t1", token="horse", sequence=1)
    before = run.dump()

    again = run.claim(ticket="wordcount-7k2p9x-t1", token="horse", sequence=1)

    assert again == first
    assert run.dump() == before


def test_the_next_claim_of_a_horse_takes_another_task(run):
    """A work-horse goes on claiming, each time with a new sequence number."""
    claims = [run.claim(token="horse", sequence=sequence) for sequence in (1, 2, 3)]

    assert [str(claim.attempt) for claim in claims] == ["s0-m0000-a1", "s0-m0001-a1", "s0-m0002-a1"]


def test_a_ticket_that_was_enqueued_twice_is_two_horses(run):
    """Two work-horses with one ticket have tokens of their own, and never share an attempt."""
    [(ticket, task)] = run.state.tickets.issue(1)

    one = run.claim(ticket=ticket, named=task, token=f"{ticket}.aaaa")
    other = run.claim(ticket=ticket, named=task, token=f"{ticket}.bbbb")

    assert one.attempt != other.attempt
    assert one.attempt.task != other.attempt.task


def test_attempts_are_numbered_for_each_task_from_one(run):
    """The number is the task's own, and is never given twice, however its attempts ended."""
    ended = [run.lose, run.fail, lambda claim: run.state.release(claim.attempt)]
    numbers = []
    for end in ended:
        claim = run.claim(named="s0-m0001")
        numbers.append(claim.attempt.number)
        end(claim)

    assert numbers == [1, 2, 3]
    assert run.claim(named="s0-m0000").attempt.number == 1


def test_a_backup_never_goes_to_the_worker_that_is_slow(make_run):
    """The straggler's own worker gets nothing, rather than the task that it is slow with."""
    run = make_run(maps=1)
    straggler = run.claim("slow")
    run.state.back_up(straggler.attempt, "slow")

    assert run.claim("slow", named="s0-m0000") is None
    assert run.claim("slow") is None
    assert str(run.claim("other").attempt) == "s0-m0000-a2"


@pytest.mark.parametrize("how", ["lost", "failed", "released"])
def test_when_the_straggler_is_gone_its_worker_may_have_the_task(make_run, how):
    """With no attempt of it running, a task that was given a backup is a task like any other."""
    run = make_run(maps=1)
    straggler = run.claim("only")
    run.state.back_up(straggler.attempt, "only")
    {"lost": run.lose, "failed": run.fail, "released": lambda each: run.state.release(each.attempt)}[how](straggler)

    assert str(run.claim("only").attempt) == "s0-m0000-a2"


def test_a_worker_passes_its_own_straggler_by(make_run):
    """A backup that is not for this worker doesn't keep it from the tasks behind it."""
    run = make_run(maps=2)
    straggler = run.claim("slow")
    run.state.back_up(straggler.attempt, "slow")

    assert str(run.claim("slow").attempt) == "s0-m0001-a1"


def test_a_ticket_is_struck_off_when_its_horse_claims(run):
    """A ticket that has brought a worker is not outstanding any more."""
    [(first, _), (second, _)] = run.state.tickets.issue(2)

    run.claim(ticket=first)

    assert run.state.tickets.waiting() == [second]


def test_with_nothing_pending_a_claim_only_strikes_its_ticket_off(make_run):
    """A claim that gets nothing leaves no trace but that its ticket was taken."""
    run = make_run(maps=1)
    run.claim()
    assert run.ask(token="who stands by") == "STAND BY"
    before = run.dump()
    [(ticket, _)] = run.state.tickets.issue(1)

    assert run.claim(ticket=ticket) is None

    assert run.dump(run.keys.run) == {key: value for key, value in before.items() if key != run.keys.run}


def test_with_nothing_pending_one_horse_stands_by(make_run):
    """It is there when something comes; the others leave."""
    run = make_run(maps=1)
    claim = run.claim()

    assert run.ask(token="a", sequence=1) == "STAND BY"
    assert run.ask(token="b", sequence=1) == "NOTHING"
    assert run.ask(token="a", sequence=2) == "STAND BY"
    assert 0 < run.redis.pttl(run.keys.standby) <= STANDBY_MS
    run.fail(claim)
    assert run.claim(token="a", sequence=3).attempt.task == claim.attempt.task
    assert not run.redis.exists(run.keys.standby)


def test_the_place_of_a_horse_that_stands_by_can_be_given_up(make_run):
    run = make_run(maps=1)
    run.claim()
    assert run.ask(token="a") == "STAND BY"
    run.state.stand_down()
    assert run.ask(token="b") == "STAND BY"


def test_while_memory_is_short_no_task_is_given(run):
    """There is no room for another attempt's segments."""
    run.redis.hset(run.keys.run, "full", 1)
    assert run.ask(token="a") == "STAND BY"
    assert run.ask(token="b") == "NOTHING"
    run.redis.hdel(run.keys.run, "full")
    assert run.claim(token="b", sequence=2)


def test_a_run_that_has_ended_gives_no_task(run, ending):
    """Whoever comes too late is told so, and brings no key back."""
    [(ticket, task)] = run.state.tickets.issue(1)
    run.end(ending)
    before = run.dump()

    with pytest.raises(AttemptEnded):
        run.claim(ticket=ticket, named=task)

    assert run.dump() == before


def test_a_full_server_gives_no_task(run, maxmemory):
    """At the memory limit no new work begins; what runs may still commit. Horses stay: RQ couldn't take them back."""
    claim = run.claim()
    outcome = run.write(claim, 0)
    maxmemory(1)

    assert [run.ask(token="a"), run.ask(token="b")] == ["STAND BY", "STAND BY"]

    assert run.commit(claim, outcome) == ["COMMITTED", 1]
    maxmemory(0)
    assert run.claim()


def test_a_server_that_forgot_its_scripts_is_told_them_again(run):
    """A restart or SCRIPT FLUSH costs one round trip."""
    run.redis.script_flush()

    assert str(run.claim().attempt) == "s0-m0000-a1"


def test_a_claim_that_comes_late_takes_no_task(run):
    """Its connection hung; its horse has asked again through another, has got the answer and gone on."""
    run.claim(token="horse", sequence=1)
    second = run.claim(token="horse", sequence=2)
    before = run.dump()

    assert run.ask(token="horse", sequence=1) == "NOTHING"

    assert run.dump() == before
    assert run.claim(token="horse", sequence=2) == second


def test_who_follows_a_death_is_careful(run):
    """It tells its records, so that it is known where it dies; asked twice, it hears the same."""
    first = run.claim(named="s0-m0001")
    assert not first.careful
    run.die(first)

    careful = run.claim(named="s0-m0001", token="horse", sequence=1)

    assert careful.careful
    assert run.claim(token="horse", sequence=1) == careful
    assert not run.claim(named="s0-m0000").careful, "another task is none the worse for it"


def test_records_that_processes_died_at_are_told_with_the_claim(make_run):
    run = make_run(skip_bad=2)
    for _ in range(2):
        run.die(run.claim(named="s0-m0001"), at=7, how="SIGSEGV")

    claim = run.claim(named="s0-m0001", token="horse", sequence=1)

    assert claim.bad == {7: "SIGSEGV"}
    assert run.claim(token="horse", sequence=1) == claim
