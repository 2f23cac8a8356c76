"""The scripts' way through a whole run on fakeredis, in a blink and without a server.

fakeredis doesn't know the `#!lua` line, which only says what may run when the server is full, so it is left out.
"""

from __future__ import annotations

import fakeredis
import pytest

from rqmr import scripts
from rqmr.keys import RunKeys
from rqmr.model import Claim, Kind, Outcome, Phase
from rqmr.scripts import Scripts

PHASES = (Phase(0, Kind.MAP, 2), Phase(0, Kind.REDUCE, 1))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Scripts:
    whole = scripts.source
    monkeypatch.setattr(scripts, "source", lambda name: whole(name).partition("\n")[2])
    client, keys = fakeredis.FakeRedis(), RunKeys("quick")
    client.hset(keys.run, mapping={"state": "running", "phase": 0, "opened": 0, "keep_ms": 60_000})
    client.zadd(keys.pending, {"s0-m0000": 0, "s0-m0001": 1})
    return Scripts(client, keys)


def claim(run: Scripts, sequence: int) -> Claim:
    claimed = run.claim(
        token="horse", sequence=sequence, ticket="quick-t1", named="", worker="w1", host="here", lease_ms=15_000
    )
    assert isinstance(claimed, Claim)
    return claimed


def commit(run: Scripts, claimed: Claim) -> list[object]:
    return run.commit(claimed, Outcome(1, 10, 0, {}), b"outcome", [], 0, 0, b"")


def test_a_phase_is_passed_when_its_last_task_is_committed(run: Scripts) -> None:
    assert commit(run, claim(run, 1)) == ["COMMITTED", 1]
    assert run.advance(0, *PHASES) == "NOT YET"
    assert commit(run, claim(run, 2)) == ["COMMITTED", 2]
    assert run.advance(0, *PHASES) == "ADVANCED"
    assert str(claim(run, 3).attempt) == "s0-r0000-a1"


def test_a_repeated_claim_is_the_same_attempt(run: Scripts) -> None:
    assert claim(run, 1) == claim(run, 1) != claim(run, 2)
