"""pause: claims wait for memory, or go on."""

from __future__ import annotations

from rqmr.facts import Memory, Neighbour, Shortage
from rqmr.segments import segments_size

FULL = Memory(used=90 << 20, limit=100 << 20)
FREE = Memory(used=50 << 20, limit=100 << 20)


def pauses(run):
    return [(event.what, event.subject, event.note) for event in run.state.events()[1] if event.subject == "run"]


def test_a_pause_is_seen_with_what_it_began_with_and_ends(run):
    """Nothing is given out meanwhile, and the view can tell why."""
    assert run.state.pause(2, FULL) == "PAUSED"

    facts = run.state.facts()
    assert facts.is_full
    assert facts.shortage == Shortage(facts.shortage.noted_ms, 2, FULL.used)
    assert abs(facts.now_ms - facts.shortage.noted_ms) < 1000
    assert run.ask(token="a") == "STAND BY"

    assert run.state.go_on(FREE) == "GOES ON"
    assert run.state.facts().shortage is None
    assert run.claim()
    assert pauses(run) == [
        ("paused", "run", "waits for memory, 90.0 of 100.0 MiB used"),
        ("went on", "run", "50.0 of 100.0 MiB used"),
    ]


def test_a_pause_that_is_noted_again_is_told_once(run):
    """Asked twice, or because there is hope: patience begins anew."""
    run.state.pause(2, FULL)
    began_ms = run.state.facts().shortage.noted_ms

    def is_noted_later():
        assert run.state.pause(3, FREE) == "NOTED"
        return run.state.facts().shortage.noted_ms > began_ms

    run.wait_until(is_noted_later)
    assert run.state.facts().shortage.committed == 3
    assert run.state.facts().shortage.used == FREE.used
    assert len(pauses(run)) == 1
    assert run.state.go_on(FREE) == "GOES ON"
    assert run.state.go_on(FREE) == "ALREADY"
    assert len(pauses(run)) == 2


def test_a_run_that_has_ended_does_not_wait(run, ending):
    """No key comes back."""
    run.end(ending)
    before = run.dump()

    assert run.state.pause(0, FULL) == "ENDED"
    assert run.state.go_on(FREE) == "ENDED"

    assert run.dump() == before


def test_a_full_server_hears_of_it(run, maxmemory):
    """It frees memory in the end."""
    maxmemory(1)

    assert run.state.pause(0, FULL) == "PAUSED"
    assert run.state.go_on(FULL) == "GOES ON"


def test_a_server_that_forgot_its_scripts_is_told_them_again(run):
    """A restart or SCRIPT FLUSH costs one round trip."""
    run.redis.script_flush()

    assert run.state.pause(0, FULL) == "PAUSED"


# --- what is known while claims wait --------------------------------------------------------------------------------


def test_the_memory_of_the_server_is_a_fact(run, maxmemory):
    assert run.state.facts().memory.limit == 0
    maxmemory(64 << 20)

    memory = run.state.facts().memory

    assert memory.limit == 64 << 20
    assert 0 < memory.used < memory.limit
    assert memory.share == memory.used / memory.limit


def test_a_server_that_evicts_is_never_full(run, maxmemory, redis):
    """A cache is always at its limit, and refuses nothing."""
    maxmemory(64 << 20)
    redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        assert run.state.facts().memory.limit == 0
    finally:
        redis.config_set("maxmemory-policy", "noeviction")


def test_where_it_may_not_be_asked_there_is_no_limit(run, maxmemory, redis):
    """A server that others run gives its users little."""
    maxmemory(64 << 20)
    redis.acl_setuser("guest", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-info"])
    try:
        redis.execute_command("AUTH", "guest", "")
        assert run.state.facts().memory == Memory()
    finally:
        redis.execute_command("AUTH", "default", "")
        redis.acl_deluser("guest")


def test_other_runs_are_neighbours_until_they_end(make_run):
    """With who is younger, who waits too, who has attempts, and who is left alone."""
    older = make_run(run="older-222222")
    older.redis.zadd("rqmr:runs", {"older-222222": 1})
    run = make_run(run="this-one-333333")
    run.redis.zadd("rqmr:runs", {"this-one-333333": 2})
    younger = make_run(run="younger-444444")
    younger.redis.zadd("rqmr:runs", {"younger-444444": 3})
    assert run.state.facts().neighbours == (), "they cost a look each, so only a run that waits asks for them"

    run.state.pause(0, FULL)
    older.claim()
    younger.state.pause(0, FULL)
    assert run.state.facts().neighbours == (
        Neighbour(is_younger=False, is_full=False, is_at_work=True, is_attended=True),
        Neighbour(is_younger=True, is_full=True, is_at_work=False, is_attended=False),
    )
    younger.scripts.drive("somebody", lease_ms=1000)
    assert run.state.facts().neighbours[1].is_attended

    older.end("failed")
    younger.end("gone")
    assert run.state.facts().neighbours == ()


def test_the_size_of_the_segments_is_what_they_take(run):
    """Those of the phase that is asked for, whoever wrote them."""
    assert segments_size(run.state, 0) == 0
    for claim in (run.claim(), run.claim()):
        run.write(claim, 0, 1, content=bytes(100_000))

    assert 400_000 < segments_size(run.state, 0) < 500_000
