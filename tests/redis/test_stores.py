"""Segments on several servers: each is written, read and removed where it belongs, and only while the run runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rqmr.connection import connect
from rqmr.errors import AttemptEnded, StoreError, WorkerUnfit
from rqmr.facts import Memory
from rqmr.keys import segment_field
from rqmr.model import Kind, Outcome, TaskId, bitmap
from rqmr.segments import RedisSegments, RedisSink, segments_size
from rqmr.spilled import stub_in


@pytest.fixture
def other_url(redis_url: str) -> str:
    """Another database of the server, which is as good as another server."""
    return redis_url.replace("db=0", "db=1")


@pytest.fixture
def other(other_url: str) -> Iterator[Any]:
    client = connect(other_url)
    client.flushdb()
    yield client
    client.flushdb()
    client.close()


@pytest.fixture
def run(make_run: Callable[..., Any], other: Any, other_url: str) -> Any:
    """A run of three maps and two reducers, the second of which has its segments on the other server."""
    return make_run(shuffle=(other_url,))


def test_each_reducer_has_its_server(run: Any, redis: Any, other: Any) -> None:
    claim = run.claim()
    outcome = run.write(claim, 0, 1)
    assert run.state.commit(claim, outcome) is False
    for _ in range(2):
        run.commit(run.claim())

    field = segment_field(0, 1, 0).encode()
    assert redis.hkeys(run.keys.shuffle(0, 0)) == other.hkeys(run.keys.shuffle(0, 1)) == [field]
    assert not redis.exists(run.keys.shuffle(0, 1))
    assert not other.exists(run.keys.shuffle(0, 0))
    assert other.pttl(run.keys.shuffle(0, 1)) > 0
    second = RedisSegments(run.state, TaskId(0, Kind.REDUCE, 1))
    assert second.chunks([(0, 0), (0, 1)]) == [b"s0-m0000-a1 for 1", None]


def test_discard_removes_from_each_of_them(run: Any, redis: Any, other: Any) -> None:
    sink = RedisSink(run.state, run.claim().attempt)
    for partition in (0, 1):
        sink.write(partition, 0, b"unwanted")
    sink.flush()
    sink.discard()
    assert not redis.exists(run.keys.shuffle(0, 0))
    assert not other.exists(run.keys.shuffle(0, 1))


@pytest.mark.parametrize("has_mark", [True, False])
@pytest.mark.parametrize("ending", ["cancelled", "gone"])
def test_nothing_comes_back_when_the_run_has_ended(run: Any, other: Any, ending: str, has_mark: bool) -> None:
    """Neither segments nor the mark, whatever the other server knows of the run."""
    sink = RedisSink(run.state, run.claim().attempt)
    if ending == "cancelled":
        run.end("cancelled")
    run.state.unlink()
    assert not list(other.scan_iter("*"))
    if has_mark:  # of one who restored it at that moment
        other.hset(run.keys.run, mapping={"state": "over"})

    sink.write(1, 0, b"too late")
    with pytest.raises(AttemptEnded):
        sink.flush()

    assert not other.exists(run.keys.shuffle(0, 1))
    assert other.exists(run.keys.run) == has_mark


def test_a_server_that_has_forgotten_the_run_is_told_again(run: Any, other: Any) -> None:
    """It was started again without its data."""
    other.flushdb()
    claim = run.claim()
    outcome = run.write(claim, 1)
    assert run.state.commit(claim, outcome) is False
    assert 0 < other.pttl(run.keys.run) <= run.spec.keep_ms
    assert other.hgetall(run.keys.run) == {b"state": b"running", b"keep_ms": b"%d" % run.spec.keep_ms}


def test_a_segment_that_is_gone_is_no_commit(run: Any, redis: Any, other: Any) -> None:
    """The attempt looks itself, just before: the script sees its own server only."""
    claim = run.claim()
    outcome = run.write(claim, 0, 1)
    other.flushdb()
    with pytest.raises(StoreError, match="a segment that was written is gone from a shuffle server"):
        run.state.commit(claim, outcome)
    assert not redis.exists(run.keys.winners(claim.attempt.task))


def test_one_that_is_asked_for_again_is_a_commit_though_its_segments_went(run: Any) -> None:
    """What was committed stays so; a reader that misses them reopens it."""
    claim = run.claim()
    outcome = run.write(claim, 0)
    assert run.state.commit(claim, outcome) is False
    assert run.state.commit(claim, outcome) is False


def test_all_keys_live_as_long_as_the_run(run: Any, other: Any) -> None:
    claim = run.claim()
    run.write(claim, 1)
    names = [run.keys.run, run.keys.shuffle(0, 1)]
    for name in names:
        other.pexpire(name, 1000)
    run.state.touch()
    assert all(other.pttl(name) > 10_000 for name in names)
    run.state.unlink()
    assert not list(other.scan_iter("*"))


def test_the_fullest_server_is_seen_and_its_segments_are_counted(run: Any, redis: Any, other: Any) -> None:
    """Whichever it is; they share one limit here."""
    run.write(run.claim(), 1, content=bytes(100_000))
    redis.config_set("maxmemory", 100 << 20)
    try:
        seen = run.state.stores.fullest(Memory())
        assert seen.server.endswith("db=1")
        assert seen.limit == 100 << 20
        assert run.state.stores.fullest(Memory(99, 100)) == Memory(99, 100)
    finally:
        redis.config_set("maxmemory", 0)
    assert 100_000 < segments_size(run.state, 0, seen.server) < 110_000
    assert segments_size(run.state, 0) == 0


def test_a_server_that_is_away_is_this_workers_matter(make_run: Callable[..., Any], run: Any, monkeypatch: Any) -> None:
    """Another worker may reach it, so the run is refused, and nobody is charged."""
    run.state.stores.check()
    monkeypatch.setattr("rqmr.connection._RETRIES", 0)
    gone = run.through(run.redis)
    gone.state._spec = gone.spec.__class__(**{**_fields(gone.spec), "shuffle": ("unix:///nowhere.sock",)})
    with pytest.raises(WorkerUnfit, match=r"it can't use the shuffle server unix:///nowhere\.sock: "):
        gone.state.stores.check()
    assert gone.state.stores.fullest(Memory(1, 2)) == Memory(1, 2)
    gone.state.stores.touch()
    gone.state.stores.unlink()


def _fields(spec: Any) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in spec.__struct_fields__}


def test_small_chunks_are_not_spilled(make_run: Callable[..., Any], redis: Any, tmp_path: Any, maxmemory: Any) -> None:
    """A stub would take as much; of the others all that doesn't fit is one file."""
    run = make_run(reducers=3, spill=str(tmp_path))
    redis.setrange("ballast", 8 << 20, b"x")
    maxmemory(redis.info("memory")["used_memory"] + (4 << 20))
    claim = run.claim()
    sink = RedisSink(run.state, claim.attempt)
    for partition, data in enumerate((b"little", bytes(5000), bytes(6000))):
        sink.write(partition, 0, data)
    sink.flush()
    stored = [redis.hget(run.keys.shuffle(0, partition), segment_field(0, 1, 0)) for partition in range(3)]
    assert stored[0] == b"little"
    assert [stub_in(each).size for each in stored[1:]] == [5000, 6000]
    [file] = tmp_path.glob(".rqmr-spill-*/*")
    assert file.name.startswith("s0-m0000-a1-")
    assert file.stat().st_size == 11_000

    sink.discard()
    assert not file.exists()
    run.state.unlink()
    assert not list(tmp_path.iterdir())


def test_what_a_write_is_refused_for_is_spilled(make_run: Callable[..., Any], tmp_path: Any, maxmemory: Any) -> None:
    """Where the server's memory may not be asked for."""
    run = make_run(spill=str(tmp_path))
    claim = run.claim()
    sink = RedisSink(run.state, claim.attempt)
    sink.write(0, 0, bytes(5000))
    lane = sink._lanes[0]
    lane._room = lambda *, spills: (None, 1)  # as an ACL without INFO makes it
    maxmemory(1)
    sent = lane._send
    lane._send = lambda count: (maxmemory(0), sent(count)) if lane._spilled else sent(count)
    sink.flush()
    assert len(list(tmp_path.glob(".rqmr-spill-*/s0-m0000-a1-*"))) == 1
    assert run.state.commit(claim, Outcome(1, 1, 0, {}, bitmap({0}))) is False


@pytest.mark.parametrize("spills", [False, True])
def test_a_task_that_ran_again_has_its_segments_once(
    make_run: Callable[..., Any], redis: Any, other: Any, other_url: str, tmp_path: Any, maxmemory: Any, spills: bool
) -> None:
    """On all servers, whichever of its attempts had died, or had won before; and those of other tasks stay."""
    run = make_run(shuffle=(other_url,), spill=str(tmp_path) if spills else "")
    if spills:
        maxmemory(redis.info("memory")["used_memory"] + 100_000)
    died, neighbour = run.claim(named="s0-m0000"), run.claim(named="s0-m0001")
    write(run, died)
    write(run, neighbour)
    assert run.die(died) == "LOST"
    before = fields(run, redis, other)
    winner = run.claim(named="s0-m0000")
    sink, outcome = write(run, winner)
    run.state.commit(winner, outcome)
    sink.sweep()
    after = fields(run, redis, other)
    assert {each.replace(b"0.1.", b"0.2.", 1) if each.startswith(b"0.1.") else each for each in before} == after
    assert len(after) == 8
    owners = sorted(path.name.rpartition("-")[0] for path in tmp_path.glob(".rqmr-spill-*/*"))
    assert owners == (["s0-m0000-a2"] * 2 + ["s0-m0001-a1"] * 2 if spills else [])


def write(run: Any, claim: Any) -> tuple[RedisSink, Outcome]:
    sink = RedisSink(run.state, claim.attempt)
    for partition in (0, 1):
        for chunk in (1, 0):
            sink.write(partition, chunk, bytes(2000))
    sink.flush()
    return sink, Outcome(1, 1, 0, {}, bitmap({0, 1}))


def fields(run: Any, redis: Any, other: Any) -> set[bytes]:
    """Those of both reducers, each marked with its reducer."""
    found = [(redis, 0), (other, 1)]
    return {
        name + b" for %d" % number for client, number in found for name in client.hkeys(run.keys.shuffle(0, number))
    }
