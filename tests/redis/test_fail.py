"""fail: the job's code raised. Charged to the task once for each attempt; one too many and the run has failed."""

from __future__ import annotations

import pytest

from rqmr.model import Claim, Failure, RunState


def test_a_failed_attempt_gives_its_task_back(run):
    """The failure is charged to the task, which is pending again in its usual place."""
    claim = run.claim(named="s0-m0001")

    assert run.fail(claim, "ValueError: boom") == "FAILED"

    assert run.line() == ["s0-m0000", "s0-m0001", "s0-m0002"]
    assert run.attempt_is(claim) == "failed"
    assert not run.is_leased(claim)
    assert (run.tries(claim, "failed"), run.tries(claim, "lost"), run.tries(claim, "running")) == (1, 0, 0)
    assert run.state.facts().phases[0].failed == 1
    event = run.state.events()[1][-1]
    assert (event.what, event.subject, event.note) == ("failed", "s0-m0001-a1", "ValueError: boom")


def test_the_same_failure_told_twice_is_charged_once(run):
    """The second call finds that the attempt has ended, and changes nothing."""
    claim = run.claim()
    assert run.fail(claim) == "FAILED"
    before = run.dump()

    assert run.fail(claim) == "ENDED"

    assert run.dump() == before


def test_the_fourth_failure_of_a_task_fails_the_run(run):
    """With the budget used up the run has failed, and the last failure tells why."""
    words = [run.fail(run.claim(named="s0-m0000"), f"ValueError: number {number}") for number in (1, 2, 3, 4)]

    assert words == ["FAILED", "FAILED", "FAILED", "RUN FAILED"]
    facts = run.state.facts()
    assert facts.state == RunState.FAILED
    assert facts.failure == Failure("ValueError: number 4", task="s0-m0000")
    assert "s0-m0000" not in run.line()


def test_the_failure_that_ended_the_run_told_twice_stays_the_same(make_run):
    """The reply that the run has failed can be lost too."""
    run = make_run(max_failed=1)
    claim = run.claim()
    assert run.fail(claim) == "RUN FAILED"
    before = run.dump()

    assert run.fail(claim, "something else") == "ENDED"

    assert run.dump() == before


def test_a_final_failure_fails_the_run_at_once(run):
    """When trying again can't help, nothing is tried again."""
    claim = run.claim()

    assert run.fail(claim, "MixedKeysError: …", final=True) == "RUN FAILED"

    assert run.state.facts().failure.final


def test_each_task_has_a_budget_of_its_own(run):
    """Three failures here and three there are not six of one task."""
    for task in ("s0-m0000", "s0-m0001", "s0-m0002"):
        for _ in range(3):
            assert run.fail(run.claim(named=task)) == "FAILED"

    assert run.state.facts().state == RunState.RUNNING


def test_lost_attempts_do_not_use_up_the_tries_of_the_code(make_run):
    """The machine's fault and the code's have separate budgets."""
    run = make_run(max_failed=4, max_lost=4)
    for _ in range(3):
        assert run.lose(run.claim(named="s0-m0000")) == "LOST"
        assert run.fail(run.claim(named="s0-m0000")) == "FAILED"

    facts = run.state.facts()
    assert facts.state == RunState.RUNNING
    assert (facts.phases[0].failed, facts.phases[0].lost) == (3, 3)


def test_a_task_is_not_pending_while_another_attempt_of_it_runs(run):
    """The backup of a straggler that failed goes on alone."""
    straggler = run.claim("w1", named="s0-m0000")
    run.state.back_up(straggler.attempt, "w1")
    backup = run.claim("w2", named="s0-m0000")

    assert run.fail(straggler) == "FAILED"
    assert "s0-m0000" not in run.line()

    assert run.fail(backup) == "FAILED"
    assert run.line().count("s0-m0000") == 1


def test_a_lost_attempt_that_fails_is_no_longer_counted_as_running(run):
    """It stopped counting when it was lost: the attempt that followed it is the one that runs."""
    lost = run.claim("w1")
    run.lose(lost)
    second = run.claim("w2")

    assert run.fail(lost) == "FAILED"

    assert run.tries(second, "running") == 1
    assert "s0-m0000" not in run.line()


def test_a_revived_attempt_that_fails_gives_its_task_back(run):
    """Revived is running."""
    claim = run.claim()
    run.lose(claim)
    run.renew(claim)

    assert run.fail(claim) == "FAILED"

    assert run.tries(claim, "running") == 0
    assert "s0-m0000" in run.line()


def test_a_failure_after_another_attempt_won_is_charged_to_nobody(run):
    """Stale: the task has its output, so the failure of a loser is of no interest."""
    loser = run.claim("w1", named="s0-m0000")
    run.state.back_up(loser.attempt, "w1")
    run.commit(run.claim("w2", named="s0-m0000"))

    assert run.fail(loser) == "STALE"

    assert run.attempt_is(loser) == "stale"
    assert not run.is_leased(loser)
    assert (run.tries(loser, "failed"), run.tries(loser, "running")) == (0, 0)
    assert "s0-m0000" not in run.line()
    before = run.dump()
    assert run.fail(loser) == "ENDED"
    assert run.dump() == before


@pytest.mark.parametrize("last_word", ["committed", "released"])
def test_an_attempt_that_has_ended_cannot_fail(run, last_word):
    """A failure after the attempt's last word is no failure."""
    claim = run.claim()
    run.commit(claim) if last_word == "committed" else run.state.release(claim.attempt)
    before = run.dump()

    assert run.fail(claim) == "ENDED"

    assert run.dump() == before


def test_an_attempt_that_nobody_made_cannot_fail(run, never_claimed):
    """Only a claim makes an attempt."""
    before = run.dump()

    assert run.fail(Claim(never_claimed, 0)) == "ENDED"

    assert run.dump() == before


def test_an_ended_run_is_charged_nothing(run, ending):
    """What fails too late changes neither the state nor the failure, and brings no key back."""
    claim = run.claim()
    run.end(ending)
    before = run.dump()

    assert run.fail(claim, final=True) == "ENDED"

    assert run.dump() == before


def test_a_server_that_forgot_its_scripts_is_told_them_again(run):
    """A restart or SCRIPT FLUSH costs one round trip."""
    claim = run.claim()
    run.redis.script_flush()

    assert run.fail(claim) == "FAILED"


def test_a_lost_task_stays_first_in_line_when_its_attempt_tells_its_end(run):
    """Others have waited for it long enough."""
    claim = run.claim(named="s0-m0001")
    run.lose(claim)

    run.fail(claim)

    assert run.line() == ["s0-m0001", "s0-m0000", "s0-m0002"]
