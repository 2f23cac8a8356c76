"""write: chunks of segments go to their reducers' hashes, unless the run has ended."""

from __future__ import annotations

import pytest
import redis as redis_py


def test_chunks_go_to_the_hash_of_their_reducer(run):
    """What is written is there, byte for byte, and lives no longer than the run is kept."""
    zero, one = run.keys.shuffle(0, 0), run.keys.shuffle(0, 1)
    every_byte = bytes(range(256)) * 10

    assert run.scripts.write({zero: {"0.1.0": b"head", "0.1.1": every_byte}, one: {"0.1.0": b""}}) == {"WRITTEN"}

    assert run.redis.hgetall(zero) == {b"0.1.0": b"head", b"0.1.1": every_byte}
    assert run.redis.hgetall(one) == {b"0.1.0": b""}
    for shuffle in (zero, one):
        assert 0 < run.redis.pttl(shuffle) <= run.spec.keep_ms


def test_many_chunks_of_any_size_go_to_many_reducers(run):
    """Small ones go together, and what is together too much for one call goes in several."""
    sizes = [0, 1, 100_000, 200_000, 60_000, 300_000, 7, 0, 50_000]
    chunks = {
        run.keys.shuffle(0, reducer): {f"0.1.{chunk}": bytes([chunk]) * size for chunk, size in enumerate(sizes)}
        for reducer in range(20)
    }

    assert run.scripts.write(chunks) == {"WRITTEN"}

    for shuffle, written in chunks.items():
        assert run.redis.hgetall(shuffle) == {field.encode(): data for field, data in written.items()}


def test_writing_twice_is_writing_once(run):
    """redis-py repeats what got no answer; each chunk has a field of its own."""
    chunks = {run.keys.shuffle(0, 0): {"0.1.0": b"head", "0.1.1": b"more"}}
    run.scripts.write(chunks)
    before = run.dump()

    assert run.scripts.write(chunks) == {"WRITTEN"}

    assert run.dump() == before


def test_an_ended_run_takes_no_segment(run, ending):
    """A worker that writes on after the run was removed brings no key back."""
    run.end(ending)
    before = run.dump()

    assert run.scripts.write({run.keys.shuffle(0, reducer): {"0.1.0": b"head"} for reducer in (0, 1)}) == {"ENDED"}

    assert run.dump() == before


def test_a_full_server_takes_no_segment(run):
    """At the memory limit rqmr writes no data, so that RQ keeps what is left."""
    run.redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(redis_py.OutOfMemoryError):
            run.scripts.write({run.keys.shuffle(0, 0): {"0.1.0": b"head"}})
    finally:
        run.redis.config_set("maxmemory", 0)
    assert not run.redis.exists(run.keys.shuffle(0, 0))


def test_a_server_that_forgot_its_scripts_is_told_them_again(run):
    """A restart or SCRIPT FLUSH costs one round trip."""
    run.redis.script_flush()

    assert run.scripts.write({run.keys.shuffle(0, 0): {"0.1.0": b"head"}}) == {"WRITTEN"}
