"""Whoever can write to Redis can write anything: it is told as damaged, and nothing crashes, hangs or is believed.

RQMR_TEST_EXAMPLES=5000 looks longer. Hypothesis prints what reproduces a failure.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from rqmr import keys, registry, signing
from rqmr.codec import Chunk, ChunkCodec, seal
from rqmr.dispatch import Dispatch
from rqmr.driver import Driver, end_run
from rqmr.errors import DamagedError, JobError, RqmrError, RunFailed, SegmentLost, SignatureError
from rqmr.facts import End, Header
from rqmr.inputs import marks_of, source_of
from rqmr.job import Step
from rqmr.keys import RunKeys
from rqmr.live import LiveView
from rqmr.loader import Package, decode_package, hash_of
from rqmr.merge import SegmentReader
from rqmr.model import Ask, Claim, Kind, Outcome, Part, Progress, RunState, Spec, Split, TaskId, bitmap
from rqmr.output import Output
from rqmr.progress import LogView
from rqmr.runs import list_runs, remove, status_of
from rqmr.scheduler import decide, policy_of
from rqmr.sealed import open_spec, open_split, seal_spec, seal_split
from rqmr.segments import RedisSegments
from rqmr.shipper import Shipper
from rqmr.state import State
from rqmr.status import status_of_facts
from rqmr.view import Silent
from rqmr.where import Where
from rqmr.worker import _gives_way

EXAMPLES = int(os.environ.get("RQMR_TEST_EXAMPLES", "40"))
few = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
timeout = pytest.mark.timeout(0 if "RQMR_TEST_EXAMPLES" in os.environ else 60)

#: What Redis may hold: nothing in particular, numbers that are too much, and what looks like msgpack.
numbers = st.one_of(st.integers(), st.floats()).map(lambda number: str(number).encode())
packed = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(), st.binary()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=8,
).map(msgspec.msgpack.encode)
anything = st.one_of(
    st.binary(max_size=60), numbers, packed, st.sampled_from([b"\x1b[2Jred", b"s0-m0000-a1", b"../../etc/passwd", b""])
)


def altered(value: bytes) -> st.SearchStrategy[bytes]:
    """The value with a few other bytes, or an end that is missing: most decoders get further with it."""

    def change(at: list[tuple[int, int]], end: int) -> bytes:
        changed = bytearray(value)
        for position, byte in at:
            changed[position % len(changed)] = byte
        return bytes(changed[:end])

    places = st.lists(st.tuples(st.integers(0, len(value)), st.integers(0, 255)), max_size=3)
    return st.builds(change, places, st.integers(0, len(value)))


# --- decoders -----------------------------------------------------------------------------------------------------


@timeout
@few
@given(data=st.data())
def test_a_spec_or_split_is_read_as_one_or_told_as_damaged(data: st.DataObject, make_run: Any) -> None:
    spec = make_run().spec
    good = seal_spec(spec)
    stored = data.draw(st.one_of(anything, altered(good)))
    try:
        read = open_spec(spec.run, stored)
    except RqmrError as error:
        assert spec.run in str(error)
    else:
        assert isinstance(read, Spec)
        assert len(RunKeys(read.run).all(read.phases)) < 10_000_000
    split = Split(())
    stored = data.draw(st.one_of(anything, altered(seal_split(spec.run, 3, split))))
    try:
        assert isinstance(open_split(spec.run, 3, stored), Split)
    except DamagedError as error:
        assert f"split 3 of run {spec.run}" in str(error)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"run": "other-7k2p9x"}, "it is that of 'other-7k2p9x'"),
        ({"phases": [{"step": 0, "kind": "m", "tasks": 2**62}]}, "phases of 4611686018427387904 tasks"),
        ({"phases": []}, "0 phases"),
        ({"phases": [{"step": 0, "kind": "m", "tasks": -1}]}, "1 phases of -1 tasks"),
        ({"lease_ms": 0}, "a limit is less than 1"),
        ({"queue": ""}, "the queue has no name"),
    ],
)
def test_a_spec_that_would_keep_a_process_busy_for_ever_is_damaged(run: Any, changes: Any, told: str) -> None:
    whole = msgspec.msgpack.decode(seal_spec(run.spec))
    with pytest.raises(DamagedError, match=told):
        open_spec(run.spec.run, msgspec.msgpack.encode({**whole, **changes}))


@timeout
@few
@given(stored=anything)
def test_a_package_is_one_or_refused(stored: bytes) -> None:
    for name in (hash_of(stored), "0" * 32):
        with contextlib.suppress(JobError):
            assert isinstance(decode_package(stored, name), Package)


class OneSegment:
    """Segments of one producer, whose chunks are given."""

    def __init__(self, *chunks: bytes) -> None:
        self.stored = chunks

    def producers(self) -> Any:
        return [0]

    def chunks(self, wanted: Any) -> Any:
        return [self.stored[number] if number < len(self.stored) else None for _, number in wanted]


def read_segment(*chunks: bytes) -> list[Any]:
    step = Step(lambda key, value: None, lambda key, values: None)
    return [(key, list(items)) for key, items in SegmentReader(step, OneSegment(*chunks)).groups()]


def checked(chunk: bytes) -> bytes:
    """Any bytes with the checksum that makes them a chunk's: it is against accidents."""
    return zlib.crc32(chunk).to_bytes(4, "little") + chunk


@timeout
@few
@given(data=st.data())
def test_a_segment_is_read_or_lost(data: st.DataObject) -> None:
    """And so the map that wrote it runs again: nobody is charged, and nothing else is raised."""
    (body,) = ChunkCodec(grouped=True).bodies(["a", "b"], [[1], [2, 3]])
    (singles,) = ChunkCodec(grouped=True).single.bodies(["a", "b"], [1, 2])
    chunk = msgspec.msgpack.encode(Chunk((1,), packed=False, single=False, body=body))
    single = msgspec.msgpack.encode(Chunk((1,), packed=False, single=True, body=singles))
    stored = data.draw(
        st.one_of(
            anything,
            anything.map(checked),
            altered(chunk).map(checked),
            altered(single).map(checked),
            st.builds(
                seal, st.one_of(anything, altered(body)), st.lists(st.integers(-(2**63), 2**63), max_size=3).map(tuple)
            ),
        )
    )
    try:
        read_segment(stored)
    except SegmentLost as lost:
        assert lost.producers == [0]
    except TypeError as error:  # the types of keys in different chunks: the job's function would raise so, too
        assert "not supported between" in str(error) or "unhashable" in str(error)


@pytest.mark.parametrize("runs", [(2**63 - 1,), (2**64 - 1, 2), (2**40, 5), (1,) * 10_000, (), (0,), (-1, 2), (2**32,)])
def test_a_segment_that_says_it_has_more_chunks_than_any_is_lost_at_once(runs: tuple[int, ...]) -> None:
    """Nothing is made for each of them."""
    (body,) = ChunkCodec(grouped=True).bodies(["a"], [[1]])
    with pytest.raises(SegmentLost):
        read_segment(seal(body, runs))


def test_a_chunk_that_unpacks_to_more_than_any_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """And isn't unpacked any further. The limit is that of a value in Redis; here it is smaller, to be quick."""
    (body,) = ChunkCodec(grouped=True).bodies(["a"], [["x" * (4 << 20)]])
    assert len(read_segment(seal(body, (1,)))) == 1
    monkeypatch.setattr("rqmr.codec._BODY_LIMIT", 1 << 20)
    with pytest.raises(SegmentLost, match="unpacked it is too long"):
        read_segment(seal(body, (1,)))


@pytest.mark.parametrize(
    "columns",
    [
        [["a", 1], [[1], [2]]],
        [[{"a": 1}], [[1]]],
        [[["a", {}]], [[1]]],
        [[msgspec.msgpack.Ext(1, b"")], [[1]]],
        [["a"], [1]],
        [["a"], []],
    ],
    ids=["two types", "a dict", "a dict in a tuple", "an extension", "no list of values", "no values"],
)
def test_keys_that_no_job_yields_make_their_segment_lost(columns: Any) -> None:
    with pytest.raises(SegmentLost):
        read_segment(seal(msgspec.msgpack.encode(columns), (1,)))


# --- a run's state ------------------------------------------------------------------------------------------------

#: How a key of each kind gets a hostile member, or a hostile value under a name that is there.
_WRITERS: dict[str, Callable[[Any, str, bytes, bytes], Any]] = {
    "string": lambda redis, key, name, value: redis.set(key, value, px=60_000),
    "hash": lambda redis, key, name, value: redis.hset(key, name, value),
    "zset": lambda redis, key, name, value: redis.zadd(key, {name: 7}),
    "list": lambda redis, key, name, value: redis.lpush(key, value),
    "set": lambda redis, key, name, value: redis.sadd(key, value),
    "stream": lambda redis, key, name, value: redis.xadd(
        key, {name or b"what": value}, id=b"*" if value[:1] < b"a" else b"18446744073709551615-18446744073709551615"
    ),
}


def busy_run(make_run: Any) -> tuple[Any, Claim]:
    """A run with something in each of its keys."""
    run = make_run()
    winner, claim, lost = run.claim("w1"), run.claim("w2"), run.claim("w3")
    assert run.commit(winner, run.write(winner, 0, 1))[0] == "COMMITTED"
    run.lose(lost)
    run.state.tickets.issue(2)
    ask = Ask("a.1", b"/in/0.txt", "0.txt", 0, 100, "w1", "somewhere")
    run.scripts.ask([msgspec.msgpack.encode(ask)])
    run.state.drive("somebody", lease_ms=10_000)
    registry.write_end(run.redis, End(run.spec.run, "wordcount", RunState.FAILED, "/out", 1, 2))
    for key, name in ((run.keys.backups, "s0-m0001"), (run.keys.parts, "0.1.0")):
        run.redis.hset(key, name, "w2")
        run.redis.pexpire(key, 60_000)
    return run, claim


def queue_tickets(run: Any) -> None:
    """What RQ keeps of a run's tickets."""
    ticket = f"{run.spec.run}-t1"
    run.redis.rpush("rq:queue:rqmr", ticket)
    run.redis.sadd("rq:workers:rqmr", "rq:worker:w1")
    run.redis.hset(f"rq:job:{ticket}", mapping={"status": "failed", "worker_name": "w1"})
    told = base64.b64encode(zlib.compress(b"Traceback\nImportError"))
    run.redis.xadd(f"rq:results:{ticket}", {"type": "2", "exc_string": told})


def look(run: Any) -> None:
    """Do all that a driver, a view and ps do to see how a run is."""
    state = State(run.redis, run.spec.run)
    facts = state.facts(workers=1)
    if facts is not None:
        decide(facts, policy_of(run.spec))
        status = status_of_facts(facts, run.spec, None, "a server")
        msgspec.json.encode(status)
        console = Console(file=io.StringIO(), force_terminal=True, width=100, height=30)
        for view in (LogView(io.StringIO()), LiveView(console)):
            view.begin(Header(run.spec.run, "wordcount", "a server", "rqmr", "a plan", 5))
            view.update(facts, state.events()[1])
            view.end()
    for phase in run.spec.phases:
        state.winners(phase)
    state.events()


@timeout
@few
@given(data=st.data())
def test_whatever_is_in_a_runs_keys_is_seen_or_told_as_damaged(
    data: st.DataObject, make_run: Any, redis: Any, redis_url: str
) -> None:
    redis.flushdb()
    run, claim = busy_run(make_run)
    key = data.draw(st.sampled_from(sorted(each.decode() for each in redis.scan_iter(f"rqmr:{run.spec.run}*"))))
    kind = redis.type(key).decode()
    names = redis.hkeys(key) if kind == "hash" else []
    name = data.draw(st.one_of(anything, st.sampled_from(names))) if names else data.draw(anything)
    _WRITERS[kind](redis, key, name, data.draw(anything))

    for act in (
        lambda: look(run),
        lambda: run.claim(),
        lambda: run.state.renew(claim, worker="w", host="h", progress=Progress()),
        lambda: run.state.expire(claim.attempt),
        lambda: run.state.splits([0]),
        lambda: registry.read_end(redis, run.spec.run),
        lambda: list_runs(Where(redis_url)),
        lambda: status_of(run.spec.run, Where(redis_url)),
        lambda: run.state.inputs(),
    ):
        with contextlib.suppress(RqmrError):
            act()


@timeout
@few
@given(data=st.data())
def test_whatever_is_in_rqs_keys_is_read_as_data(data: st.DataObject, make_run: Any, redis: Any) -> None:
    redis.flushdb()
    run = make_run()
    queue_tickets(run)
    key = data.draw(st.sampled_from(sorted(each.decode() for each in redis.scan_iter("rq:*"))))
    names = {b"hash": [b"status", b"worker_name"], b"stream": [b"exc_string"]}.get(redis.type(key), [b"x"])
    _WRITERS[redis.type(key).decode()](redis, key, data.draw(st.sampled_from(names)), data.draw(anything))
    dispatch, ticket = Dispatch(redis, "rqmr"), f"{run.spec.run}-t1"

    assert dispatch.workers() >= 1
    assert set(dispatch.over([ticket])) <= {ticket}
    dispatch.refusals([ticket])
    dispatch.stop(ticket)
    assert dispatch.missing([ticket]) == []
    assert run.spec.run in dispatch.runs()
    dispatch.drop([ticket])
    redis.flushdb()


@pytest.mark.parametrize("kind", ["string", "hash", "zset", "list"])
def test_a_key_of_another_type_is_told_as_damaged_and_the_run_can_be_ended(
    kind: str, make_run: Any, redis: Any, redis_url: str, tmp_path: Path
) -> None:
    run, _ = busy_run(make_run)
    where = Where(redis_url)
    for each in sorted(redis.scan_iter(f"rqmr:{run.spec.run}*")):
        redis.flushdb()
        run, _ = busy_run(make_run)
        if each.endswith((b":code", b":end")) or redis.type(each).decode() == kind:
            continue
        redis.delete(each)
        _WRITERS[kind](redis, each.decode(), b"7", b"7")
        try:
            look(run)
        except DamagedError as error:
            assert run.spec.run in str(error)
        assert [status.run for status in list_runs(where)] == [run.spec.run]
        end_run(redis, run.spec, RunState.CANCELLED)
        assert registry.read_end(redis, run.spec.run).state == RunState.CANCELLED
        left = {key.decode() for key in redis.scan_iter(f"rqmr:{run.spec.run}*")}
        # The leases expire by themselves where what lists them was taken away.
        assert {key for key in left if not key.startswith(run.keys.lease_prefix)} <= {run.keys.end}, each


def test_a_driver_fails_a_run_whose_state_is_damaged_and_says_what_it_is(
    make_run: Any, redis: Any, tmp_path: Path
) -> None:
    run = make_run(stage=str(tmp_path / "out" / ".rqmr-wordcount-7k2p9x"))
    redis.zadd(run.keys.leases, {"nonsense": 5})
    output = Output(run.spec.output, run.spec.run)
    output.prepare(overwrite=False)
    with pytest.raises(
        RunFailed, match=r"the state of run wordcount-7k2p9x in Redis can't be what rqmr wrote: .*is no task id"
    ):
        Driver(redis, run.spec, output, Silent()).run()
    end = registry.read_end(redis, run.spec.run)
    assert end.state == RunState.FAILED
    assert not list(redis.scan_iter("rqmr:wordcount-7k2p9x:[^e]*"))


def test_a_damaged_run_can_be_removed(make_run: Any, redis: Any, redis_url: str) -> None:
    run = make_run()
    redis.hset(run.keys.run, "phase", "many")
    remove(run.spec.run, Where(redis_url))
    assert not list(redis.scan_iter("rqmr:wordcount-7k2p9x*"))


def test_another_runs_damage_is_no_concern_of_a_run(make_run: Any, redis: Any) -> None:
    """Neither when it asks who else waits for memory, nor when it asks who else has work for this worker."""
    run, _ = busy_run(make_run)
    other = RunKeys("other-7k2p9x")
    for member in (other.run, other.pending, other.backups):
        registry.register(redis, "other-7k2p9x", 5)
        redis.set(member, b"no hash", px=60_000)
    redis.hset(run.keys.run, "full", "1 2 3")
    assert run.state.facts().neighbours == ()
    redis.rpush("rq:queue:rqmr", "other-7k2p9x-t1", "wordcount-7k2p9x:end-t1", b"\xff-t2")
    dispatch = Dispatch(redis, "rqmr")
    assert dispatch.runs() == {"other-7k2p9x"}
    with pytest.raises(DamagedError):
        run.scripts.give_way([other], "w1", 5)
    assert not _gives_way(run.state, "wordcount-7k2p9x-t1", "w1")


def test_names_that_are_no_runs_are_not_listed(redis: Any, redis_url: str) -> None:
    names = [b"\xff\xfe", b"wordcount-7k2p9x:end", b"../x-7k2p9x", b"\x1b[2J-7k2p9x", b""]
    redis.zadd(keys.RUNS, dict.fromkeys(names, 5) | {b"inf-7k2p9x": float("inf")})
    redis.pexpire(keys.RUNS, 60_000)
    assert list_runs(Where(redis_url)) == []


def test_how_a_run_ended_is_told_as_unknown_if_it_cannot_be_read(redis: Any, redis_url: str) -> None:
    registry.register(redis, "wordcount-7k2p9x", 5)
    redis.set(RunKeys("wordcount-7k2p9x").end, b"\x93\x01", px=60_000)
    assert [status.state for status in list_runs(Where(redis_url))] == ["unknown"]
    with pytest.raises(DamagedError, match="how run wordcount-7k2p9x ended"):
        status_of("wordcount-7k2p9x", Where(redis_url))


@pytest.mark.parametrize("name", ["../private", "/etc/passwd", "", ".", "..", "a/b", "a\0b", "-rf\n", ".hidden"])
@pytest.mark.parametrize("chunks", [0, 1])
def test_a_part_that_is_not_in_the_stage_is_neither_collected_nor_brought_in(
    name: str, chunks: int, make_run: Any, redis: Any, tmp_path: Path
) -> None:
    """Collecting moves and writes files: what Redis says is their name may not lead elsewhere."""
    out = tmp_path / "out"
    run = make_run(maps=1, reducers=0, stage=str(out / ".rqmr-wordcount-7k2p9x"))
    output = Output(out, run.spec.run)
    output.prepare(overwrite=False)
    (out / "private").write_text("mine")
    run.commit(run.claim(), Outcome(1, 1, 1, {}, part=Part(name, 4, 0, chunks)))
    with pytest.raises(RunFailed, match="is no part"):
        Driver(redis, run.spec, output, Silent()).run()
    assert (out / "private").read_text() == "mine"
    assert not (out / "part-00000").exists()
    redis.flushdb()


def test_winners_that_cannot_have_won_are_not_read(make_run: Any, redis: Any) -> None:
    """Another task's attempt, and a task that the phase doesn't have: there would be more outcomes than tasks."""
    outcome = msgspec.msgpack.encode(Outcome(1, 1, 0, {}, bitmap({0})))
    for task, entry in (("s0-m0000", "s0-m0001-a1"), ("s0-m0009", "s0-m0009-a1"), ("s5-r0000", "s5-r0000-a1")):
        run = make_run()
        redis.hset(run.keys.winners(run.spec.phases[0]), task, entry.encode() + b"\n" + outcome)
        with pytest.raises(DamagedError, match="a winner of phase s0-m"):
            run.state.winners(run.spec.phases[0])
        with pytest.raises(DamagedError):
            RedisSegments(run.state, TaskId(0, Kind.REDUCE, 0))
        redis.flushdb()


def test_an_end_with_escape_sequences_moves_no_cursor(rqmr: Any, redis: Any, redis_url: str) -> None:
    end = End("wordcount-7k2p9x", "\x1b[2Jjob", RunState.SUCCEEDED, "/out\x1b]0;title\x07", 1, 2)
    registry.register(redis, end.run, 1)
    registry.write_end(redis, end)
    for command in (("ps",), ("status", end.run)):
        done = rqmr(*command, "--redis-url", redis_url)
        assert done.returncode == 0
        assert end.run in done.stdout
        assert "\x1b" not in done.stdout + done.stderr


# --- what is shipped ----------------------------------------------------------------------------------------------


@pytest.fixture
def shipped(make_run: Any, tmp_path: Path) -> tuple[Any, Path]:
    """A run whose input is a file here, so that it can be shipped."""
    path = tmp_path / "input.txt"
    path.write_text("a line\n" * 10)
    run = make_run()
    State(run.redis, run.spec.run).unlink()
    run.state.create(run.spec, [Split(())] * 3, b"the code", marks_of([source_of(str(path), "input.txt")]))
    return run, path


def ask_for(path: Path, name: str, *, start: int = 0, size: int = 20) -> bytes:
    return msgspec.msgpack.encode(Ask(name, bytes(path), "input.txt", start, size, "w1", "elsewhere"))


def test_asks_that_no_worker_makes_are_taken_away_and_the_next_ones_answered(shipped: tuple[Any, Path]) -> None:
    """More than are read in one go: they would be in the way for ever."""
    run, path = shipped
    hostile = [b"\x93nonsense%d" % number for number in range(20)]
    hostile += [ask_for(path, "w.1", size=2**62), ask_for(path, "w.2", start=-5), ask_for(path, "w.3", size=0)]
    run.redis.zadd(run.keys.asks, dict.fromkeys(hostile, 1))
    run.scripts.ask([ask_for(path, "w.4")])
    with Shipper(run.state, run.spec, memory=1 << 20, is_planner=True) as shipper:
        shipper.drives = True
        assert (
            run.wait_until(lambda: run.redis.lrange(run.keys.shipment("w.4"), 0, -1))[0][1:]
            == b"a line\n" * 2 + b"a line"
        )
        assert not run.redis.zcard(run.keys.asks)


def test_with_a_secret_only_the_inputs_that_were_planned_are_shipped(
    make_run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever can write to Redis, and knows what a file of the driver's begins with, could have it sent else."""
    monkeypatch.setenv(signing.VARIABLE, "correct horse battery staple")
    private = tmp_path / "private.txt"
    private.write_text("mine")
    run = make_run()
    (mark,) = marks_of([source_of(str(private), "x")]).values()
    run.redis.hset(run.keys.inputs, bytes(private), msgspec.msgpack.encode(mark))
    with pytest.raises(SignatureError, match="the input of run wordcount-7k2p9x isn't signed"):
        run.state.marks([bytes(private)])
    with pytest.raises(SignatureError):
        run.state.inputs()
    known = run.redis.hget(run.keys.inputs, b"/in/0.txt")
    run.redis.hset(run.keys.inputs, bytes(private), known)
    with pytest.raises(SignatureError, match="was altered"):
        run.state.marks([bytes(private)])
    assert run.state.marks([b"/in/0.txt"])[b"/in/0.txt"]
