"""ask and ship: what a worker doesn't see comes to it through Redis, range by range."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rqmr.asks import DATA, RANGE_BYTES, ShippedFile
from rqmr.errors import AttemptEnded
from rqmr.inputs import marks_of, source_of
from rqmr.model import Ask, Piece
from rqmr.records import Place
from rqmr.shipper import Shipper

SIZE = 5 * RANGE_BYTES // 2


def asked(number: int = 1, path: bytes = b"/in/a.txt", start: int = 0, size: int = 4) -> bytes:
    return msgspec.msgpack.encode(Ask(f"s0-m0000-a1.x.{number}", path, "a.txt", start, size, "w1", "h1"))


# --- the scripts ------------------------------------------------------------------------------------------------------


def test_an_ask_is_kept_once_and_keeps_its_place(run):
    """Who asks again since nobody answered doesn't go to the end of the line."""
    run.scripts.ask([asked(1)])
    before = run.dump()
    assert run.scripts.ask([asked(1)]) == "ASKED"
    assert run.dump() == before


def test_an_ask_is_answered_once(run):
    run.scripts.ask([asked(1)])
    key = run.keys.shipment("x")
    assert run.scripts.ship(asked(1), key, b"dtext", lasts_ms=9_000) == "SHIPPED"
    assert run.scripts.ship(asked(1), key, b"dtext", lasts_ms=9_000) == "ALREADY"
    assert run.redis.lrange(key, 0, -1) == [b"dtext"]
    assert 0 < run.redis.pttl(key) <= 9_000
    assert run.state.facts().shipped == 5


def test_an_ended_run_asks_and_ships_nothing(run, ending):
    run.scripts.ask([asked(1)])
    run.end(ending)
    before = run.dump()
    assert run.scripts.ask([asked(2)]) == "ENDED"
    assert run.scripts.ship(asked(1), run.keys.shipment("x"), b"dtext", lasts_ms=9_000) == "ENDED"
    assert run.dump() == before


def test_what_nobody_answers_is_among_the_facts(run):
    """So that people are told which input it is, and who wants it."""
    claim = run.claim()
    run.renew(claim, lease_ms=60_000)
    run.scripts.ask([asked(1)])
    assert run.state.facts().asks == ()
    (ask,) = run.wait_until(lambda: run.state.facts().asks)
    assert (ask.name, ask.worker, ask.host) == ("a.txt", "w1", "h1")


def test_nobody_waits_for_what_an_attempt_asked_for_that_has_ended(run):
    """A killed work-horse can't take its asks back; the run isn't called waiting for them."""
    claim = run.claim()
    run.scripts.ask([asked(1)])
    run.redis.zadd(run.keys.asks, {asked(1): 1}, xx=True)  # long ago
    assert run.state.facts().asks
    run.lose(claim)
    assert not run.state.facts().asks


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def far(make_run: Any, tmp_path: Path) -> Any:
    """A run, and a file of its input with a piece of it."""
    path = tmp_path / "far.bin"
    path.write_bytes(random.Random(7).randbytes(SIZE))
    run = make_run(is_spread=True)
    run.redis.hset(
        run.keys.inputs,
        mapping={name: msgspec.msgpack.encode(mark) for name, mark in marks_of([source_of(str(path))]).items()},
    )
    return run, path


@contextmanager
def shipping(run: Any, **options: Any) -> Iterator[Shipper]:
    options = {"memory": 64 << 20, "is_planner": True, **options}
    with Shipper(run.state, run.spec, **options) as shipper:
        shipper.drives = True
        yield shipper


def opened(run: Any, path: Path, start: int = 0, stop: int | None = None, place: Place | None = None) -> ShippedFile:
    size = path.stat().st_size
    piece = Piece("far.bin", bytes(path), start, stop, (stop or size) - start, size)
    return ShippedFile(run.state, run.claim().attempt, piece, place or Place(), worker="w1", host="h1")


@pytest.mark.parametrize("seed", range(4))
def test_a_shipped_file_reads_as_the_file_itself(far, seed):
    """Whatever is read of it in whatever order; the seed is in the test's name."""
    run, path = far
    chance = random.Random(seed)
    start, stop = sorted(chance.sample(range(SIZE), 2)) if seed else (0, None)
    with shipping(run), path.open("rb") as near, io.BufferedReader(opened(run, path, start, stop)) as read:
        for _ in range(30):
            match chance.randrange(4):
                case 0:
                    offset = chance.randrange(SIZE + 10)
                    assert read.seek(offset) == near.seek(offset)
                case 1:
                    assert read.readline() == near.readline()
                case 2:
                    assert read.peek(1)[:1] == near.peek(1)[:1]
                case 3:
                    size = chance.choice([1, 100, RANGE_BYTES, SIZE])
                    assert read.read(size) == near.read(size)
    assert not run.redis.exists(run.keys.asks)
    assert not list(run.redis.scan_iter(run.keys.shipment("*")))


def test_a_piece_has_little_more_shipped_than_itself(far):
    run, path = far
    start, stop = 1000, 1000 + RANGE_BYTES // 4
    with shipping(run), io.BufferedReader(opened(run, path, start, stop)) as read:
        read.seek(start)
        assert read.read(stop - start) == path.read_bytes()[start:stop]
    assert run.state.facts().shipped < stop - start + (20 << 10)


def test_no_more_than_the_ship_memory_waits_in_redis(far):
    """Though many ask and nobody takes."""
    run, path = far
    run.scripts.ask([asked(number, bytes(path), 0, RANGE_BYTES) for number in range(10)])
    with shipping(run, memory=3 * RANGE_BYTES):
        run.wait_until(lambda: run.redis.zcard(run.keys.asks) == 8)
        names = sorted(run.redis.scan_iter(run.keys.shipment("*")))
        assert len(names) == 2, "three have a sign each before the data"
        assert run.redis.lpop(names[0])
        run.wait_until(lambda: run.redis.zcard(run.keys.asks) == 7)
    assert not list(run.redis.scan_iter(run.keys.shipment("*"))), "what nobody took goes with who shipped it"


def test_a_full_server_is_shipped_nothing(far, maxmemory):
    """Asking is allowed, answering waits: RQ's workers exit when a server refuses to write."""
    run, path = far
    used = run.redis.info("memory")["used_memory"]
    maxmemory(used + RANGE_BYTES)
    with shipping(run), opened(run, path) as read, _in_thread(lambda: read.read(4)) as outcome:
        run.wait_until(lambda: run.redis.zcard(run.keys.asks))
        maxmemory(used // 2)
        assert run.scripts.ask([asked(9, bytes(path))]) == "ASKED"
        maxmemory(used + (256 << 20))
        assert outcome() == path.read_bytes()[:4]


def test_what_can_be_shipped_is_though_many_asks_for_what_can_not_came_first(far):
    """Two commands may see a half of the inputs each; neither waits for the other."""
    run, path = far
    run.scripts.ask([asked(number, b"/elsewhere") for number in range(100)])
    with shipping(run, is_planner=False), opened(run, path) as read:
        assert read.read(4) == path.read_bytes()[:4]


def test_only_inputs_of_the_run_are_shipped(far, tmp_path):
    """Whatever somebody who can write to Redis asks for."""
    run, path = far
    secret = tmp_path / "secret"
    secret.write_text("secret")
    run.scripts.ask([asked(1, bytes(secret), 0, 6), asked(2, bytes(path), 0, 4)])
    with shipping(run, is_planner=False):
        run.wait_until(lambda: run.redis.zcard(run.keys.asks) == 1)
    assert msgspec.msgpack.decode(run.redis.zrange(run.keys.asks, 0, -1)[0], type=Ask).path == bytes(secret)


def test_an_input_that_has_changed_is_an_error_where_the_run_was_planned(far):
    run, path = far
    path.write_bytes(b"other")
    with shipping(run), opened(run, path) as read, pytest.raises(OSError, match="isn't any more"):
        read.read(4)


def test_an_attempt_that_waits_for_input_says_so_and_hears_when_to_stop(far):
    run, path = far
    place = Place()
    with opened(run, path, place=place) as read, _in_thread(lambda: read.read(4)) as outcome:
        run.wait_until(lambda: place.waits == "input")
        place.stop()
        with pytest.raises(AttemptEnded):
            outcome()
    assert place.waits == ""


def test_an_answer_that_was_lost_is_asked_for_again(far, monkeypatch):
    """Whoever was about to answer has died with it."""
    monkeypatch.setattr("rqmr.asks._AGAIN_SECONDS", 0.1)
    run, path = far
    with opened(run, path) as read, _in_thread(lambda: read.read(4)) as outcome:
        run.wait_until(lambda: run.redis.zcard(run.keys.asks))
        run.redis.delete(run.keys.asks)
        run.wait_until(lambda: run.redis.zcard(run.keys.asks))
        with shipping(run):
            assert outcome() == path.read_bytes()[:4]


def test_what_answers_another_ask_is_no_data(far):
    """A range of another size would move all records behind it."""
    run, path = far
    with opened(run, path) as read, _in_thread(lambda: read.read(4)) as outcome:
        packed = run.wait_until(lambda: run.redis.zrange(run.keys.asks, 0, -1))[0]
        ask = msgspec.msgpack.decode(packed, type=Ask)
        run.scripts.ship(packed, run.keys.shipment(ask.id), DATA + b"short", lasts_ms=9_000)
        with pytest.raises(Exception, match="is damaged"):
            outcome()


@contextmanager
def _in_thread(act: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(act)
        yield lambda: future.result(timeout=20)
