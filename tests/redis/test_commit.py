"""commit: one attempt's output becomes the task's output, exactly once, whoever asks and how often."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from msgspec import structs

from rqmr.connection import connect
from rqmr.errors import RecordError
from rqmr.model import Claim, Kind, Outcome, Phase, RunState, Skipped, TaskId


def test_the_first_attempt_to_commit_wins(run):
    """The winner is recorded with its outcome, its lease ends and its phase counts it."""
    claim = run.claim()
    outcome = run.write(claim, 0, 1, records=12, size=345, counters={"words": {"long": 3}}, key_type="str")

    assert run.commit(claim, outcome) == ["COMMITTED", 1]

    assert run.state.winners(run.spec.phases[0]) == {claim.attempt.task: (claim.attempt, outcome)}
    assert run.attempt_is(claim) == "committed"
    assert not run.is_leased(claim)
    assert run.tries(claim, "running") == 0
    assert run.events()[-1] == ("committed", "s0-m0000-a1")
    maps = run.state.facts().phases[0]
    assert (maps.committed, maps.pending, maps.running, maps.records, maps.size) == (1, 2, 0, 12, 345)


def test_the_same_commit_made_twice_is_one_commit(run):
    """The first reply can be lost with the connection: the same answer again, and nothing counts twice."""
    claim = run.claim()
    outcome = run.write(claim, 0, counters={"words": {"long": 3}}, key_type="str")
    first = run.commit(claim, outcome)
    before = run.dump()

    assert run.commit(claim, outcome) == first == ["COMMITTED", 1]

    assert run.dump() == before


def test_the_second_attempt_to_commit_is_stale(run):
    """The slow original loses to the backup that finished first, and changes nothing by trying."""
    # Given two attempts of one task, both running
    original = run.claim("w1", named="s0-m0000")
    run.state.back_up(original.attempt, "w1")
    backup = run.claim("w2", named="s0-m0000")
    original_outcome, backup_outcome = run.write(original, 0), run.write(backup, 0)

    # When the backup commits first
    assert run.commit(backup, backup_outcome) == ["COMMITTED", 1]
    before = run.dump()

    # Then the original is stale, as often as it asks
    assert run.commit(original, original_outcome) == ["STALE"]
    assert run.commit(original, original_outcome) == ["STALE"]
    assert run.dump() == before


def test_a_lost_attempt_may_still_commit(run):
    """Lost is not dead: its work is good, and its task leaves the line."""
    claim = run.claim()
    run.lose(claim)
    assert "s0-m0000" in run.line()

    assert run.commit(claim) == ["COMMITTED", 1]

    assert "s0-m0000" not in run.line()
    assert run.tries(claim, "running") == 0


def test_a_lost_attempt_may_win_against_the_one_that_followed_it(run):
    """The first to commit wins, whoever it is; the other still counts as running until it lets go."""
    lost = run.claim("w1")
    run.lose(lost)
    second = run.claim("w2")

    assert run.commit(lost) == ["COMMITTED", 1]
    assert run.commit(second) == ["STALE"]

    assert run.tries(second, "running") == 1
    assert run.state.release(second.attempt) == "STALE"
    assert run.tries(second, "running") == 0


def test_a_commit_takes_a_waiting_backup_out_of_the_line(run):
    """A task that has a winner is not pending."""
    claim = run.claim("w1")
    run.state.back_up(claim.attempt, "w1")

    run.commit(claim)

    assert run.line() == ["s0-m0001", "s0-m0002"]


def test_a_segment_that_is_missing_is_told_by_its_place(run):
    """What isn't there can't be committed: the reply tells which of the given shuffle hashes lacks it."""
    # Given an attempt whose second segment has vanished
    claim = run.claim()
    outcome = run.write(claim, 0, 1, key_type="str")
    run.redis.delete(run.keys.shuffle(0, 1))
    before = run.dump()

    # Then it can't commit, and nothing of it is recorded
    assert run.commit(claim, outcome) == ["MISSING", 2]
    assert run.dump() == before

    # When it is written again, then it can
    run.write(claim, 1)
    assert run.commit(claim, outcome) == ["COMMITTED", 1]


def test_another_attempts_segment_is_no_substitute(run):
    """Each attempt answers for its own segments."""
    lost = run.claim("w1")
    outcome = run.write(lost, 0)
    run.lose(lost)
    second = run.claim("w2")

    assert run.commit(second, outcome) == ["MISSING", 1]


def test_keys_of_another_type_are_refused(run):
    """All keys of a step have one type: the first commit records it, others are held to it."""
    first, same, other = run.claim(), run.claim(), run.claim()
    assert run.commit(first, run.write(first, 0, key_type="str")) == ["COMMITTED", 1]
    assert run.commit(same, run.write(same, 0, key_type="str")) == ["COMMITTED", 2]
    mixed = run.write(other, 0, key_type="int")
    before = run.dump()

    assert run.commit(other, mixed) == ["MIXED", "str"]

    assert run.dump() == before


def test_a_task_that_shuffled_nothing_has_no_key_type(run):
    """An empty split neither decides the type nor breaks it."""
    empty, first, last = run.claim(), run.claim(), run.claim()

    assert run.commit(empty)[0] == "COMMITTED"
    assert run.commit(first, run.write(first, 0, key_type="int"))[0] == "COMMITTED"
    assert run.commit(last)[0] == "COMMITTED"


def test_each_step_has_a_key_type_of_its_own(make_run):
    """What a step shuffles has nothing to do with the keys of the step before it."""
    run = make_run(phases=(Phase(0, Kind.MAP, 1), Phase(0, Kind.REDUCE, 1), Phase(1, Kind.REDUCE, 1)))
    first = run.claim()
    run.commit(first, run.write(first, 0, key_type="str"))
    run.state.advance(0)
    second = run.claim()
    assert second.attempt.task == TaskId(0, Kind.REDUCE, 0)

    assert run.commit(second, run.write(second, 0, key_type="int")) == ["COMMITTED", 1]


def test_an_attempt_that_failed_or_let_go_cannot_commit(run):
    """Its last word was another one."""
    failed, released = run.claim(), run.claim()
    run.fail(failed)
    run.state.release(released.attempt)
    before = run.dump()

    assert run.commit(failed) == ["ENDED"]
    assert run.commit(released) == ["ENDED"]

    assert run.dump() == before


def test_an_attempt_that_nobody_made_cannot_commit(run, never_claimed):
    """Only a claim makes an attempt."""
    before = run.dump()

    assert run.commit(Claim(never_claimed, 0)) == ["ENDED"]

    assert run.dump() == before


def test_an_ended_run_takes_no_commit(run, ending):
    """What is finished too late is not wanted, and brings no key back."""
    claim = run.claim()
    outcome = run.write(claim, 0)
    run.end(ending)
    before = run.dump()

    assert run.commit(claim, outcome) == ["ENDED"]

    assert run.dump() == before


def test_only_the_latest_hundred_durations_are_kept(make_run):
    """The median follows the run, and the list doesn't grow with it."""
    run = make_run(maps=101)
    while claim := run.claim():
        run.commit(claim)

    assert run.redis.llen(run.keys.durations(run.spec.phases[0])) == 100


def test_a_clock_that_went_back_gives_no_negative_duration(run):
    """The server's clock may be set between claim and commit."""
    claim = run.claim()

    run.commit(Claim(claim.attempt, claim.started_ms + 60_000))

    assert run.redis.lrange(run.keys.durations(run.spec.phases[0]), 0, -1) == [b"0"]


def test_each_of_fifty_tasks_has_one_winner_among_five_racing_attempts(make_run, redis_url):
    """Whatever the order, every task is won once, every total is the winners', and one call completes the phase."""
    # Given five attempts at each of 50 tasks, four of them lost, with all their segments written
    run = make_run(maps=50, reducers=1)
    attempts = []
    for turn in range(5):
        claims = [run.claim(f"w{turn}") for _ in range(50)]
        attempts += claims
        if turn < 4:
            for claim in claims:
                run.lose(claim)
    outcomes = {
        claim.attempt: run.write(
            claim,
            0,
            records=100 * claim.attempt.task.index + claim.attempt.number,
            size=claim.attempt.number,
            counters={"attempts": {str(claim.attempt): 1}},
            key_type="str",
        )
        for claim in attempts
    }
    assert len(outcomes) == 250

    # When they commit from eight threads, each twice and in any order
    calls = attempts * 2
    random.Random(7).shuffle(calls)
    start = threading.Barrier(8)

    def commit(some: list[Claim]) -> list[tuple[Claim, list]]:
        client = connect(redis_url)
        mine = run.through(client)
        start.wait()
        replies = [(claim, mine.commit(claim, outcomes[claim.attempt])) for claim in some]
        client.close()
        return replies

    with ThreadPoolExecutor(8) as pool:
        replies = [reply for part in pool.map(commit, (calls[n::8] for n in range(8))) for reply in part]

    # Then each task has one winner, which got the same answer both times, and everyone else was stale
    winners = run.state.winners(run.spec.phases[0])
    assert len(winners) == 50
    told = Counter((claim.attempt, reply[0]) for claim, reply in replies)
    won = {attempt for attempt, word in told if word == "COMMITTED"}
    assert won == {attempt for attempt, _ in winners.values()}
    assert set(told) == {(a, "COMMITTED") for a in won} | {(a, "STALE") for a in outcomes.keys() - won}
    assert set(told.values()) == {2}
    # and each number of winners was somebody's first answer, so that the last one saw the phase complete
    numbers = {reply[1] for _, reply in replies if reply[0] == "COMMITTED"}
    assert numbers == set(range(1, 51))
    # and totals and counters are those of the winners
    assert all(outcome == outcomes[attempt] for attempt, outcome in winners.values())
    facts = run.state.facts().phases[0]
    assert facts.records == sum(outcome.records for _, outcome in winners.values())
    assert facts.size == sum(outcome.size for _, outcome in winners.values())
    assert run.redis.llen(run.keys.durations(run.spec.phases[0])) == 50
    assert run.line() == []
    counted = Counter(name for _, outcome in winners.values() for name in outcome.counters["attempts"])
    assert counted == Counter(map(str, won))


@pytest.mark.parametrize("maps", [1, 2])
def test_the_last_commit_of_a_phase_is_told_that_it_is_complete(make_run, maps):
    """State.commit says whether its phase is complete with it, and says so again when asked again."""
    run = make_run(maps=maps)
    claims = [run.claim() for _ in range(maps)]
    outcomes = [run.write(claim, 0) for claim in claims]

    told = [run.state.commit(claim, outcome) for claim, outcome in zip(claims, outcomes, strict=True)]

    assert told == [False] * (maps - 1) + [True]
    assert run.state.commit(claims[-1], outcomes[-1])


def test_a_server_that_forgot_its_scripts_is_told_them_again(run):
    """A restart or SCRIPT FLUSH costs one round trip."""
    claim = run.claim()
    run.redis.script_flush()

    assert run.commit(claim) == ["COMMITTED", 1]


def test_a_commit_whose_reply_was_lost_hears_it_after_the_runs_end(make_run):
    """Told that its work isn't wanted, the winner would remove its segments, which a resumed run needs."""
    run = make_run(max_failed=1)
    claim, doomed = run.claim(), run.claim()
    outcome = run.write(claim, 0)
    told = run.commit(claim, outcome)
    run.fail(doomed)
    before = run.dump()

    assert run.commit(claim, outcome) == told

    assert run.dump() == before


# --- records that were left out -----------------------------------------------------------------------------------


def skips(*indexes: int) -> Outcome:
    return Outcome(10, 100, 0, {}, skipped=tuple(Skipped(i, "a.txt", 10 * i, f"'{i}'", "it is bad") for i in indexes))


def test_what_the_winners_have_skipped_is_summed(make_run):
    """Once for each winner, however often it asks; what a loser has skipped doesn't count."""
    run = make_run(skip_bad=5)
    loser = run.claim(named="s0-m0000")
    run.lose(loser)
    claims = [run.claim(named="s0-m0000"), run.claim()]
    for claim in claims * 2:
        assert run.commit(claim, skips(1, 2))[0] == "COMMITTED"
    assert run.commit(loser, skips(3, 4)) == ["STALE"]

    assert run.redis.hget(run.keys.run, "skipped") == b"4"


def test_one_skipped_record_too_many_fails_the_run(make_run):
    """The attempt that has it doesn't win, and the last record that it skipped is told."""
    run = make_run(skip_bad=3)
    first, second = run.claim(), run.claim()
    run.state.commit(first, skips(1, 2))

    with pytest.raises(RecordError, match="more than 3 records are bad"):
        run.state.commit(second, skips(5, 6))

    facts = run.state.facts()
    assert facts.state == RunState.FAILED
    failure = facts.failure
    assert failure.message == "more than 3 records are bad (--skip-bad 3); the last: it is bad"
    assert (failure.task, failure.source, failure.offset, failure.record) == ("s0-m0001", "a.txt", 60, "'6'")
    assert str(second.attempt.task) not in {str(task) for task in run.state.winners(run.spec.phases[0])}


def test_who_skips_too_many_records_has_no_say_in_the_type_of_the_keys(make_run):
    """It hasn't won; when the run is resumed with mended code, its keys may be others."""
    run = make_run(skip_bad=1)
    claim = run.claim()
    outcome = structs.replace(run.write(claim, 0, key_type="str"), skipped=skips(1, 2).skipped)
    assert run.commit(claim, outcome) == ["RUN FAILED"]

    run.state.resume(run.spec, b"the code", fresh=False)

    claim = run.claim()
    assert run.commit(claim, run.write(claim, 0, key_type="int")) == ["COMMITTED", 1]
