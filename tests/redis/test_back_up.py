"""back_up: a straggler's task is pending too, for another worker; once a task."""

from __future__ import annotations

import pytest

from rqmr.model import Kind, TaskId


def test_a_stragglers_task_is_pending_for_another_worker(run):
    """The task stands in its usual place, and the straggler goes on."""
    straggler = run.claim("slow", named="s0-m0001")

    assert run.state.back_up(straggler.attempt, "slow") == "BACKED UP"

    assert run.line() == ["s0-m0000", "s0-m0001", "s0-m0002"]
    assert run.is_leased(straggler)
    assert run.attempt_is(straggler) == "running"
    assert run.state.facts().backups == {straggler.attempt.task}
    event = run.state.events()[1][-1]
    assert (event.what, event.subject, event.note) == ("backed up", "s0-m0001-a1", "slow on slow")


def test_backing_up_twice_is_backing_up_once(run):
    """Two ticks, or one that repeats its call, give one backup."""
    straggler = run.claim("slow")
    run.state.back_up(straggler.attempt, "slow")
    before = run.dump()

    assert run.state.back_up(straggler.attempt, "slow") == "ALREADY"

    assert run.dump() == before


def test_a_repeat_does_not_bring_the_backup_back_when_it_was_taken(run):
    """One backup a task: the task isn't pending a second time."""
    straggler = run.claim("slow", named="s0-m0000")
    run.state.back_up(straggler.attempt, "slow")
    run.claim("other", named="s0-m0000")

    assert run.state.back_up(straggler.attempt, "slow") == "ALREADY"

    assert "s0-m0000" not in run.line()


def test_a_slow_backup_gets_no_backup(run):
    """One backup a task, whichever of its attempts is slow."""
    straggler = run.claim("slow", named="s0-m0000")
    run.state.back_up(straggler.attempt, "slow")
    backup = run.claim("other", named="s0-m0000")

    assert run.state.back_up(backup.attempt, "other") == "ALREADY"

    assert "s0-m0000" not in run.line()


def test_an_attempt_that_does_not_run_any_more_gets_no_backup(run):
    """Committed, lost or failed: there is nothing to be faster than."""
    committed, lost, failed = (run.claim(named=f"s0-m000{index}") for index in range(3))
    run.commit(committed)
    run.lose(lost)
    run.fail(failed)
    before = run.dump()

    assert [run.state.back_up(each.attempt, "w1") for each in (committed, lost, failed)] == ["ALREADY"] * 3

    assert run.dump() == before


def test_a_loser_that_still_runs_gets_no_backup(run):
    """Its task is committed."""
    lost = run.claim("w1", named="s0-m0000")
    run.lose(lost)
    second = run.claim("w2", named="s0-m0000")
    run.commit(lost)
    assert run.is_leased(second)
    before = run.dump()

    assert run.state.back_up(second.attempt, "w2") == "ALREADY"

    assert run.dump() == before


def test_an_attempt_that_nobody_made_gets_no_backup(run, never_claimed):
    """Only a claim makes an attempt."""
    before = run.dump()

    assert run.state.back_up(never_claimed, "w1") == "ALREADY"

    assert run.dump() == before


def test_an_ended_run_backs_nothing_up(run, ending):
    """Nobody waits for it any more, and no key comes back."""
    straggler = run.claim("slow")
    run.end(ending)
    before = run.dump()

    assert run.state.back_up(straggler.attempt, "slow") == "ALREADY"

    assert run.dump() == before


def test_a_server_that_forgot_its_scripts_is_told_them_again(run):
    """A restart or SCRIPT FLUSH costs one round trip."""
    straggler = run.claim("slow")
    run.redis.script_flush()

    assert run.state.back_up(straggler.attempt, "slow") == "BACKED UP"


def test_a_backup_that_is_lost_can_be_replaced(run):
    """One backup at a time: the straggler would be alone for ever."""
    straggler = run.claim("slow", named="s0-m0000")
    run.state.back_up(straggler.attempt, "slow")
    backup = run.claim("other", named="s0-m0000")
    run.state.release(backup.attempt)

    assert run.state.back_up(straggler.attempt, "slow") == "BACKED UP"
    assert "s0-m0000" in run.line()


@pytest.mark.parametrize("how", ["lost", "failed", "released"])
def test_a_task_whose_straggler_is_gone_may_have_a_backup_again(run, how):
    """The attempt that follows can be slow, too, and nobody else has the task."""
    straggler = run.claim("slow", named="s0-m0000")
    run.state.back_up(straggler.attempt, "slow")
    {"lost": run.lose, "failed": run.fail, "released": lambda each: run.state.release(each.attempt)}[how](straggler)
    assert not run.state.facts().backups

    again = run.claim("slower", named="s0-m0000")

    assert run.state.back_up(again.attempt, "slower") == "BACKED UP"


def test_a_task_that_was_opened_again_may_have_a_backup_again(run):
    """The backup that it had has committed, and the straggler is told to stop."""
    straggler = run.claim("slow", named="s0-m0000")
    run.state.back_up(straggler.attempt, "slow")
    backup = run.claim("other", named="s0-m0000")
    outcome = run.write(backup, 0)
    run.commit(backup, outcome)
    run.state.release(straggler.attempt)
    run.state.reopen(backup.attempt, outcome, TaskId(0, Kind.REDUCE, 0))

    again = run.claim("slow", named="s0-m0000")
    assert str(again.attempt) == "s0-m0000-a3"

    assert run.state.back_up(again.attempt, "slow") == "BACKED UP"


def test_a_task_that_others_wait_for_stays_before_all_others(run):
    """An old look at the facts can make a straggler of an attempt whose task was opened again meanwhile."""
    slow = run.claim("slow", named="s0-m0002")
    run.lose(slow)
    winner = run.claim("other", named="s0-m0002")
    run.renew(slow)
    outcome = run.write(winner, 0)
    run.commit(winner, outcome)
    run.state.reopen(winner.attempt, outcome, TaskId(0, Kind.REDUCE, 0))
    assert run.line()[0] == "s0-m0002"

    assert run.state.back_up(slow.attempt, "slow") == "BACKED UP"

    assert run.line()[0] == "s0-m0002"
