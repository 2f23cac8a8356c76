"""place: a careful attempt tells which record it is about to begin, and nothing comes back when it has no lease."""

from __future__ import annotations

from contextlib import closing

import msgspec
import pytest
import redis as redis_py

from rqmr.errors import StoreError
from rqmr.model import RecordAt
from rqmr.teller import Teller

FIRST, NEXT = RecordAt(17, "a.txt", 1234, "'some line'"), RecordAt(18, "a.txt", 1246, "'the next one'")


@pytest.fixture
def claim(run):
    return run.claim()


@pytest.fixture
def tell(run, claim):
    """Tell a record of the claim's attempt; return when the server has heard it."""
    with closing(Teller(run.state, claim.attempt)) as teller:

        def told() -> int:
            return run.redis.info("commandstats").get("cmdstat_eval", {"calls": 0})["calls"]

        def tell_and_wait(at):
            before = told()
            teller.tell(at)
            run.wait_until(lambda: told() > before)

        yield tell_and_wait


def place(run, claim):
    told = run.redis.hget(run.keys.lease(claim.attempt), "place")
    return msgspec.msgpack.decode(told, type=RecordAt) if told else None


def test_the_record_is_in_the_lease_and_goes_with_it(run, claim, tell):
    """The last one that was told; none when the attempt says so."""
    lease = run.keys.lease(claim.attempt)
    before = run.redis.pttl(lease)

    tell(FIRST)
    tell(NEXT)
    assert place(run, claim) == NEXT
    assert 0 < run.redis.pttl(lease) <= before

    tell(None)
    assert place(run, claim) is None


def test_telling_twice_is_telling_once(run, tell):
    tell(FIRST)
    before = run.dump()

    tell(FIRST)

    assert run.dump() == before


def test_without_a_lease_nothing_is_told(run, claim, tell, ending):
    """It has expired, or the run has ended and its keys are gone: none comes back."""
    run.end(ending)
    run.redis.delete(run.keys.lease(claim.attempt))
    before = run.dump()

    tell(FIRST)

    assert run.dump() == before


def test_a_server_that_forgot_its_scripts_is_told_all_the_same(run, claim, tell):
    """Nobody would hear that it has, so the script travels with each record."""
    tell(FIRST)
    run.redis.script_flush()

    tell(NEXT)

    assert place(run, claim) == NEXT


def test_a_connection_that_breaks_is_made_again(run, claim, tell):
    tell(FIRST)
    run.redis.client_kill_filter(skipme=True)

    tell(NEXT)

    assert place(run, claim) == NEXT


def test_a_server_that_cannot_be_reached_is_the_machines_fault(run, claim, monkeypatch):
    with closing(Teller(run.state, claim.attempt)) as teller:

        def refuse(*_):
            raise redis_py.ConnectionError("it is gone")

        monkeypatch.setattr(teller._connection, "send_command", refuse)
        with pytest.raises(StoreError, match="it is gone"):
            teller.tell(FIRST)
