"""release: an attempt lets go of its task through no fault of its own, so nothing is charged."""

from __future__ import annotations

import pytest


def test_a_released_task_is_pending_again_and_uncharged(run):
    """The task is back in its usual place, as if nobody had tried."""
    claim = run.claim(named="s0-m0001")

    assert run.state.release(claim.attempt) == "RELEASED"

    assert run.line() == ["s0-m0000", "s0-m0001", "s0-m0002"]
    assert run.attempt_is(claim) == "released"
    assert not run.is_leased(claim)
    assert [run.tries(claim, what) for what in ("failed", "lost", "running")] == [0, 0, 0]
    facts = run.state.facts().phases[0]
    assert (facts.failed, facts.lost) == (0, 0)


def test_releasing_twice_is_releasing_once(run):
    """The second call finds that the attempt has ended, and changes nothing."""
    claim = run.claim()
    run.state.release(claim.attempt)
    before = run.dump()

    assert run.state.release(claim.attempt) == "ENDED"

    assert run.dump() == before


def test_a_repeated_release_does_not_take_the_task_from_its_next_attempt(run):
    """The repeat may come when another one runs already."""
    first = run.claim()
    run.state.release(first.attempt)
    second = run.claim()
    assert second.attempt.task == first.attempt.task
    before = run.dump()

    assert run.state.release(first.attempt) == "ENDED"

    assert run.dump() == before


def test_a_loser_lets_go_and_its_task_stays_committed(run):
    """Stale: another attempt won, so the task is not pending."""
    loser = run.claim("w1", named="s0-m0000")
    run.state.back_up(loser.attempt, "w1")
    winner = run.claim("w2", named="s0-m0000")
    run.commit(winner)

    assert run.state.release(loser.attempt) == "STALE"

    assert run.attempt_is(loser) == "stale"
    assert not run.is_leased(loser)
    assert run.tries(loser, "running") == 0
    assert "s0-m0000" not in run.line()


def test_a_task_is_not_pending_while_another_attempt_of_it_runs(run):
    """Of two attempts that run, the one that lets go leaves the task to the other."""
    first = run.claim("w1", named="s0-m0000")
    run.state.back_up(first.attempt, "w1")
    second = run.claim("w2", named="s0-m0000")

    assert run.state.release(first.attempt) == "STALE"
    assert "s0-m0000" not in run.line()

    assert run.state.release(second.attempt) == "RELEASED"
    assert "s0-m0000" in run.line()


def test_a_lost_attempt_that_lets_go_is_no_longer_counted_as_running(run):
    """It stopped counting when it was lost."""
    lost = run.claim("w1")
    run.lose(lost)
    second = run.claim("w2")

    assert run.state.release(lost.attempt) == "STALE"

    assert run.tries(second, "running") == 1
    assert "s0-m0000" not in run.line()


@pytest.mark.parametrize("last_word", ["committed", "failed"])
def test_an_attempt_that_has_ended_has_nothing_to_release(run, last_word):
    """A winner that lets go is still the winner."""
    claim = run.claim()
    run.commit(claim) if last_word == "committed" else run.fail(claim)
    before = run.dump()

    assert run.state.release(claim.attempt) == "ENDED"

    assert run.dump() == before


def test_an_attempt_that_nobody_made_has_nothing_to_release(run, never_claimed):
    """Only a claim makes an attempt."""
    before = run.dump()

    assert run.state.release(never_claimed) == "ENDED"

    assert run.dump() == before


def test_an_ended_run_takes_no_task_back(run, ending):
    """Who lets go too late changes nothing, and brings no key back."""
    claim = run.claim()
    run.end(ending)
    before = run.dump()

    assert run.state.release(claim.attempt) == "ENDED"

    assert run.dump() == before


def test_a_server_that_forgot_its_scripts_is_told_them_again(run):
    """A restart or SCRIPT FLUSH costs one round trip."""
    claim = run.claim()
    run.redis.script_flush()

    assert run.state.release(claim.attempt) == "RELEASED"


def test_a_lost_task_stays_first_in_line_when_its_attempt_tells_its_end(run):
    """Others have waited for it long enough."""
    claim = run.claim(named="s0-m0001")
    run.lose(claim)

    run.state.release(claim.attempt)

    assert run.line() == ["s0-m0001", "s0-m0000", "s0-m0002"]
