"""tell: an event of a run, and none of a run that is gone."""

from __future__ import annotations


def test_what_is_told_is_an_event_that_goes_with_the_run(run):
    run.state.tell("refused", "worker-1", "it can't import rqmr")
    assert run.events() == [("refused", "worker-1")]
    assert run.redis.pttl(run.keys.events) > 0


def test_what_is_told_of_a_run_that_is_gone_brings_nothing_back(run):
    run.end("gone")
    before = run.dump()
    run.state.tell("refused", "worker-1", "it can't import rqmr")
    assert run.dump() == before
