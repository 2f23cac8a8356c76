"""issue: new tickets are numbered and registered, and each names a pending task."""

from __future__ import annotations

import pytest
import redis as redis_py


def test_tickets_are_numbered_and_name_the_front_of_the_line(run):
    """Each new ticket names one of the tasks that are next."""
    assert run.state.tickets.issue(2) == [("wordcount-7k2p9x-t1", "s0-m0000"), ("wordcount-7k2p9x-t2", "s0-m0001")]
    assert run.state.tickets.issue(1) == [("wordcount-7k2p9x-t3", "s0-m0000")]


def test_more_tickets_than_tasks_name_nothing(run):
    """They are for workers that join late."""
    assert [task for _, task in run.state.tickets.issue(5)] == ["s0-m0000", "s0-m0001", "s0-m0002", "", ""]


def test_tickets_are_registered_with_the_servers_time(run):
    """So that a tick can see which of them wait too long."""
    issued = [ticket for ticket, _ in run.state.tickets.issue(12)]

    facts = run.state.facts()
    assert set(facts.tickets) == set(issued) == set(run.state.tickets.waiting())
    assert all(facts.started_ms <= at <= facts.now_ms for at in facts.tickets.values())


def test_none_wanted_is_none_issued(run):
    """Nothing is registered for nothing."""
    before = run.dump(run.keys.run)

    assert run.state.tickets.issue(0) == []

    assert run.dump(run.keys.run) == before


def test_a_repeated_call_never_gives_a_number_twice(run):
    """The tickets of a lost reply stay registered, to be missed and struck off; no two RQ jobs share an id."""
    lost_reply = run.state.tickets.issue(2)
    answer = run.state.tickets.issue(2)

    assert not {ticket for ticket, _ in lost_reply} & {ticket for ticket, _ in answer}
    run.state.tickets.forget(ticket for ticket, _ in lost_reply)
    assert set(run.state.tickets.waiting()) == {ticket for ticket, _ in answer}


def test_forgetting_twice_or_nothing_is_no_error(run):
    """A ticket may have been taken meanwhile."""
    [(ticket, _)] = run.state.tickets.issue(1)

    run.state.tickets.forget([ticket])
    run.state.tickets.forget([ticket])
    run.state.tickets.forget([])

    assert run.state.tickets.waiting() == []


def test_an_ended_run_issues_no_tickets(run, ending):
    """No worker needs to come any more, and no key comes back."""
    run.end(ending)
    before = run.dump()

    assert run.state.tickets.issue(3) == []

    assert run.dump() == before


def test_a_full_server_issues_no_tickets(run):
    """At the memory limit no new work begins."""
    run.redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(redis_py.OutOfMemoryError):
            run.state.tickets.issue(1)
    finally:
        run.redis.config_set("maxmemory", 0)


def test_a_server_that_forgot_its_scripts_is_told_them_again(run):
    """A restart or SCRIPT FLUSH costs one round trip."""
    run.redis.script_flush()

    assert len(run.state.tickets.issue(1)) == 1
