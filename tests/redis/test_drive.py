"""drive: one at a time holds the driver's lease; each new holder begins a new epoch."""

from __future__ import annotations

import threading
from zlib import crc32

import pytest

import rqmr.driver
from rqmr.driver import Driver
from rqmr.model import Outcome, Part
from rqmr.output import Output
from rqmr.view import Silent


def test_the_first_to_ask_drives_and_others_hear_who(run):
    """The lease has one holder, and it expires."""
    assert run.scripts.drive("one", lease_ms=5_000) == ["DRIVING", 1]

    assert run.scripts.drive("other", lease_ms=5_000) == ["HELD", "one"]
    assert run.state.drive("other", lease_ms=5_000) is None
    assert 0 < run.redis.pttl(run.keys.driver) <= 5_000


def test_the_holder_renews_in_the_same_epoch(run):
    """Renewing, and repeating a call whose reply was lost, are one thing."""
    run.scripts.drive("one", lease_ms=1_000)
    before = run.dump()

    assert run.scripts.drive("one", lease_ms=5_000) == ["DRIVING", 1]

    assert run.dump() == before
    assert run.redis.pttl(run.keys.driver) > 1_000


def test_when_the_driver_is_silent_another_begins_a_new_epoch(run):
    """A lease that ran out is anyone's, and the old holder has to wait for it in turn."""
    run.scripts.drive("one", lease_ms=5)

    run.wait_until(lambda: run.scripts.drive("other", lease_ms=5_000) == ["DRIVING", 2])

    assert run.scripts.drive("one", lease_ms=5_000) == ["HELD", "other"]


def test_a_driver_that_was_silent_itself_begins_a_new_epoch(run):
    """It can't know what happened meanwhile."""
    run.scripts.drive("one", lease_ms=5)
    run.wait_until(lambda: not run.redis.exists(run.keys.driver))

    assert run.state.drive("one", lease_ms=5_000) == 2


def test_a_run_that_is_gone_has_no_driver(run):
    """No key comes back."""
    run.end("gone")
    before = run.dump()

    assert run.scripts.drive("one", lease_ms=5_000) == ["ENDED"]

    assert run.dump() == before


def test_a_server_that_forgot_its_scripts_is_told_them_again(run):
    """A restart or SCRIPT FLUSH costs one round trip."""
    run.redis.script_flush()

    assert run.scripts.drive("one", lease_ms=5_000) == ["DRIVING", 1]


def test_who_drives_can_give_the_lease_back(run):
    """The next one needn't wait until it runs out."""
    assert run.state.drive("a", lease_ms=60_000) == 1
    run.state.resign("b")
    assert run.state.drive("b", lease_ms=60_000) is None
    run.state.resign("a")
    assert run.state.drive("b", lease_ms=60_000) == 2
    assert run.state.facts().driver == "b"


@pytest.mark.parametrize("may_wait", [True, False])
def test_the_end_of_a_run_is_seen_when_its_last_task_is_committed(make_run, redis, tmp_path, monkeypatch, may_wait):
    """Not only when the driver looks again; but it looks, too, as a user who may not wait for events."""
    monkeypatch.setattr(rqmr.driver, "_pause", lambda age: 2.0 if may_wait else 0.01)
    run = make_run(maps=2, reducers=0, stage=str(tmp_path / "out" / ".rqmr-wordcount-7k2p9x"))
    output = Output(run.spec.output, run.spec.run)
    output.prepare(overwrite=False)
    claims = [run.claim(), run.claim()]
    redis.execute_command("ACL", "SETUSER", "default", "+xread" if may_wait else "-xread")
    waited = []

    def commit() -> None:
        for number, claim in enumerate(claims):
            if may_wait:
                waited.append(run.wait_until(lambda: redis.info("clients")["blocked_clients"] == 1))
            name = f"part{number}"
            (output.stage / name).write_text("k\tv\n")
            run.commit(claim, Outcome(1, 1, 1, {}, part=Part(name, 4, crc32(b"k\tv\n"), 0)))

    thread = threading.Thread(target=commit)
    thread.start()
    try:
        summary = Driver(redis, run.spec, output, Silent()).run()
    finally:
        thread.join()
        redis.execute_command("ACL", "SETUSER", "default", "+xread")

    assert summary.parts == ("part-00000", "part-00001")
    assert waited == ([True, True] if may_wait else [])
