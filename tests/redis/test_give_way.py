"""give_way: the ticket of a run that has had more of the workers lets one that has had less go first."""

from __future__ import annotations

import pytest

BEHIND = 80_000


@pytest.fixture
def other(make_run):
    return make_run(run="grep-3c5d7f")


def ask(run, *others, worker="w1"):
    return run.scripts.give_way([each.keys for each in others], worker, BEHIND)


def had(run):
    return int(run.redis.hget(run.keys.run, "had") or 0)


def test_of_two_runs_the_one_that_has_had_more_gives_way(run, other):
    run.scripts.charge(5_000)
    other.scripts.charge(4_000)
    assert ask(run, other) == "GIVE WAY"
    assert ask(other, run) == "GO ON"


def test_runs_that_have_had_as_much_go_in_the_order_of_the_queue(run, other):
    run.scripts.charge(4_000)
    other.scripts.charge(4_000)
    assert [ask(run, other), ask(other, run)] == ["GO ON", "GO ON"]


def test_of_three_runs_two_give_way(run, other, make_run):
    third = make_run(run="third-3c5d7f")
    for each, cost in ((run, 5_000), (other, 3_000), (third, 4_000)):
        each.scripts.charge(cost)
    assert [ask(run, other, third), ask(other, run, third), ask(third, other, run)] == ["GIVE WAY", "GO ON", "GIVE WAY"]


def test_a_new_run_goes_first_once_and_then_is_where_the_others_are(run, other):
    run.scripts.charge(50_000)
    assert ask(run, other) == "GIVE WAY"
    assert ask(other, run) == "GO ON"
    assert had(other) == 50_000
    assert ask(run, other) == "GO ON"


def test_two_new_runs_do_not_wait_for_each_other(run, other):
    assert [ask(run, other), ask(other, run)] == ["GO ON", "GO ON"]


def test_a_run_that_had_nothing_to_do_for_long_is_behind_by_some_seconds_only(run, other):
    """The others would wait for it until it has caught up."""
    other.scripts.charge(1_000)
    run.scripts.charge(900_000)
    assert ask(other, run) == "GO ON"
    assert had(other) == 900_000 - BEHIND


@pytest.mark.parametrize("how", ["claimed", "ended", "full", "unknown", "only a backup of this worker's"])
def test_nobody_gives_way_to_a_run_that_has_nothing_for_the_worker_to_do(run, other, how):
    """Its ticket comes, and is of no use; the other one would wait for it again."""
    run.scripts.charge(5_000)
    if how == "ended":
        other.end("cancelled")
    elif how == "full":
        other.redis.hset(other.keys.run, "full", "1 0 0")
    elif how == "unknown":
        other.end("gone")
    else:
        claims = [other.claim("w1") for _ in range(3)]
        if how != "claimed":
            other.state.back_up(claims[0].attempt, "w1")
            assert ask(run, other, worker="w2") == "GIVE WAY"
    assert ask(run, other) == "GO ON"


def test_a_run_alone_goes_on(run):
    run.scripts.charge(5_000)
    assert ask(run) == "GO ON"


def test_asking_again_changes_nothing(run, other):
    run.scripts.charge(500_000)
    other.scripts.charge(1)
    words = [ask(run, other), ask(other, run)]
    before = run.dump()
    assert [ask(run, other), ask(other, run)] == words
    assert run.dump() == before


def test_the_ticket_of_a_run_that_has_ended_is_told_so(run, other, ending):
    other.scripts.charge(5_000)
    run.end(ending)
    before = run.dump()
    assert ask(run, other) == "ENDED"
    assert run.dump() == before


def test_a_server_that_forgot_its_scripts_is_told_them_again(run, other):
    run.scripts.charge(5_000)
    other.scripts.charge(4_000)
    run.redis.script_flush()
    assert ask(run, other) == "GIVE WAY"
