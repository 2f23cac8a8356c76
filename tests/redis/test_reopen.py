"""reopen: a committed task's segment is lost, so it runs again, and the phases behind it wait for it."""

from __future__ import annotations

import pytest

from rqmr.model import Kind, Outcome, Phase, RunState, Skipped, TaskId

#: A reader whose own task isn't committed.
NOBODY = TaskId(9, Kind.REDUCE, 0)

LOST = Outcome(10, 100, 0, {})  # what `commit_phase` commits


@pytest.fixture
def reduce_run(run):
    """The run of three maps and two reduce tasks, its maps committed; `won` says by whom."""
    run.won = {str(task): claim for task, claim in run.commit_phase().items()}
    return run


def test_a_reopened_map_runs_again_before_all_others(reduce_run):
    """The winner and its totals are gone, the map is first in line, and the phase is open again."""
    run = reduce_run
    winner = run.won["s0-m0001"]

    assert run.state.reopen(winner.attempt, LOST, NOBODY) == "REOPENED"

    assert winner.attempt.task not in run.state.winners(run.spec.phases[0])
    assert run.line() == ["s0-m0001", "s0-r0000", "s0-r0001"]
    assert run.attempt_is(winner) == "reopened"
    facts = run.state.facts()
    assert facts.phase == 0
    maps = facts.phases[0]
    assert (maps.committed, maps.pending, maps.lost, maps.records, maps.size) == (2, 1, 1, 20, 200)
    assert run.events()[-1] == ("reopened", "s0-m0001")


def test_the_reduce_tasks_wait_until_the_map_is_back(reduce_run):
    """They can't be claimed meanwhile; when the phase is passed again they can, and none is there twice."""
    # Given a reduce task that found a segment missing, reopened its map and let go
    run = reduce_run
    reducer = run.claim("w1")
    run.state.reopen(run.won["s0-m0001"].attempt, LOST, NOBODY)
    assert run.state.release(reducer.attempt) == "RELEASED"

    # When workers come, one gets the map and the next one nothing
    again = run.claim("w1")
    assert str(again.attempt) == "s0-m0001-a2"
    assert run.claim("w2") is None
    assert run.state.advance(0) == "NOT YET"

    # Then with the map back the phase is passed again, and each reduce task can be claimed once
    assert run.commit(again) == ["COMMITTED", 3]
    assert run.state.advance(0) == "ADVANCED"
    claims = [run.claim(), run.claim(), run.claim()]
    assert [str(claim.attempt) for claim in claims[:2]] == ["s0-r0000-a2", "s0-r0001-a1"]
    assert claims[2] is None


def test_what_the_map_counted_counts_once(reduce_run):
    """Totals after a map has run twice are those of a run where it ran once."""
    run = reduce_run
    maps = run.spec.phases[0]
    before = run.state.facts().phases[0]

    run.state.reopen(run.won["s0-m0001"].attempt, LOST, NOBODY)
    run.commit(run.claim())

    after = run.state.facts().phases[0]
    assert (after.committed, after.records, after.size) == (before.committed, before.records, before.size)
    assert len(run.state.winners(maps)) == 3


def test_a_reduce_task_that_has_its_segments_may_commit_meanwhile(reduce_run):
    """Reopening concerns who still needs the segment; a reduce task that has read all is not held up."""
    run = reduce_run
    reader = run.claim("w1")
    run.state.reopen(run.won["s0-m0001"].attempt, LOST, NOBODY)

    assert run.renew(reader) == "RENEWED"
    assert run.commit(reader) == ["COMMITTED", 1]

    run.commit(run.claim("w2"))
    assert run.state.advance(0) == "ADVANCED"
    assert str(run.claim().attempt) == "s0-r0001-a1"
    assert run.claim() is None


def test_reopening_twice_is_reopening_once(reduce_run):
    """Every reduce task finds the same segment missing, and the map runs again once."""
    run = reduce_run
    run.state.reopen(run.won["s0-m0001"].attempt, LOST, NOBODY)
    before = run.dump()

    assert run.state.reopen(run.won["s0-m0001"].attempt, LOST, NOBODY) == "ALREADY"

    assert run.dump() == before


def test_who_read_an_older_winner_reopens_nothing(reduce_run):
    """The attempt must be the winner now: what the older one lost has been made good."""
    run = reduce_run
    older = run.won["s0-m0001"]
    run.state.reopen(older.attempt, LOST, NOBODY)
    run.commit(run.claim())
    before = run.dump()

    assert run.state.reopen(older.attempt, LOST, NOBODY) == "ALREADY"

    assert run.dump() == before


def test_a_task_that_is_not_committed_cannot_be_reopened(run, never_claimed):
    """There is nothing to open."""
    running = run.claim()
    before = run.dump()

    assert run.state.reopen(running.attempt, LOST, NOBODY) == "ALREADY"
    assert run.state.reopen(never_claimed, LOST, NOBODY) == "ALREADY"

    assert run.dump() == before


def test_two_maps_reopened_are_both_waited_for(reduce_run):
    """The phase is passed again when each of them is back."""
    run = reduce_run
    for name in ("s0-m0002", "s0-m0000"):
        assert run.state.reopen(run.won[name].attempt, LOST, NOBODY) == "REOPENED"

    first, second = run.claim(), run.claim()
    assert [str(claim.attempt) for claim in (first, second)] == ["s0-m0000-a2", "s0-m0002-a2"]
    run.commit(first)
    assert run.state.advance(0) == "NOT YET"
    run.commit(second)
    assert run.state.advance(0) == "ADVANCED"


def test_a_run_goes_back_as_far_as_it_must_and_never_forward(make_run):
    """Reopening a task of a later phase while an earlier one is open leaves the earlier one the current."""
    # Given a run in its third phase
    run = make_run(phases=(Phase(0, Kind.MAP, 1), Phase(0, Kind.REDUCE, 1), Phase(1, Kind.REDUCE, 1)))
    [first], [second] = run.commit_phase().values(), run.commit_phase().values()

    # When the first phase is opened again, and then the second
    assert run.state.reopen(first.attempt, LOST, NOBODY) == "REOPENED"
    assert run.state.reopen(second.attempt, LOST, NOBODY) == "REOPENED"

    # Then they run again in their order, and the third follows once
    assert run.state.facts().phase == 0
    order = []
    for number in (0, 1, 2):
        claim = run.claim()
        assert run.claim() is None
        order.append(str(claim.attempt))
        run.commit(claim)
        assert run.state.advance(number) == "ADVANCED"
    assert order == ["s0-m0000-a2", "s0-r0000-a2", "s1-r0000-a1"]


def test_a_store_that_keeps_losing_segments_ends_the_run(make_run):
    """Charged to the budget of lost attempts; one too many and the run has failed, and says of what."""
    run = make_run(maps=1, max_lost=3)
    words = []
    for _ in range(3):
        claim = run.claim()
        run.commit(claim)
        words.append(run.state.reopen(claim.attempt, LOST, NOBODY))

    assert words == ["REOPENED", "REOPENED", "RUN FAILED"]
    facts = run.state.facts()
    assert facts.state == RunState.FAILED
    assert facts.failure.task == "s0-m0000"
    assert "segments of task s0-m0000 were lost 3 times" in facts.failure.message


def test_an_ended_run_reopens_nothing(run, ending):
    """What is missed too late is not needed, and no key comes back."""
    won = run.commit_phase()
    run.end(ending)
    before = run.dump()

    assert run.state.reopen(next(iter(won.values())).attempt, LOST, NOBODY) == "ALREADY"

    assert run.dump() == before


def test_a_server_that_forgot_its_scripts_is_told_them_again(reduce_run):
    """A restart or SCRIPT FLUSH costs one round trip."""
    run = reduce_run
    run.redis.script_flush()

    assert run.state.reopen(run.won["s0-m0000"].attempt, LOST, NOBODY) == "REOPENED"


def test_a_reader_that_nobody_waits_for_reopens_nothing(reduce_run):
    """It lost against a backup: its task has a winner, so the segment that it misses isn't needed any more."""
    run = reduce_run
    reader = run.claim("slow", named="s0-r0000")
    run.commit(reader)
    before = run.dump()

    assert run.state.reopen(run.won["s0-m0001"].attempt, LOST, reader.attempt.task) == "ALREADY"

    assert run.dump() == before


def test_what_a_reopened_map_has_skipped_is_taken_back(make_run):
    """It runs again, and skips it again."""
    run = make_run(maps=1, skip_bad=1)
    skips = Outcome(10, 100, 0, {}, skipped=(Skipped(3, "a.txt", 30, "'3'", "it is bad"),))
    for _ in range(3):
        claim = run.claim()
        assert run.commit(claim, skips)[0] == "COMMITTED"
        run.state.reopen(claim.attempt, skips, NOBODY)

    assert run.redis.hget(run.keys.run, "skipped") == b"0"
