"""Runs in whose keys somebody else writes: what can be made again is, and what can't is an error that names it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from bench import Bench
from harness import Workers

import rqmr
from rqmr import keys
from rqmr.codec import seal
from rqmr.state import State

#: Bodies with the right checksum, which is against accidents: no msgpack, keys of two types, and one that unpacks to
#: far more than it should.
BODIES = [b"\xc1", msgspec.msgpack.encode([["a", 1], [1, 2]]), msgspec.msgpack.encode([["a"] * 10**6, [1] * 10**6])]


def test_segments_that_somebody_else_wrote_are_made_again(bench: Bench, workers: Workers, redis: Any) -> None:
    bench.write(4, "special")
    workers.start(2)
    run = bench.start("slow", gate="special")
    run.wait_until(lambda facts: facts.committed == 3, what="all maps but one are done")
    hostile = [seal(BODIES[0], (1,)), seal(BODIES[1], (1,)), seal(BODIES[2], (2**31,)), seal(b"", ()), b"short"]
    for reducer in range(2):
        shuffle = keys.RunKeys(run.id).shuffle(0, reducer)
        for number, field in enumerate(sorted(redis.hkeys(shuffle))):
            redis.hset(shuffle, field, hostile[(number + 3 * reducer) % len(hostile)])
    bench.open_gate()
    bench.assert_right(run, "slow")
    assert len(set(run.events("reopened"))) == 3
    assert not run.events("failed")


def test_a_split_that_somebody_else_wrote_fails_its_attempts_and_then_the_run(
    bench: Bench, workers: Workers, redis: Any
) -> None:
    bench.write(3)
    run = bench.start("slow", gate="nobody")
    redis.hset(keys.RunKeys(run.id).splits, 1, b"\x93\x01")
    workers.start(1)
    with pytest.raises(rqmr.RunFailed, match=f"split 1 of run {run.id} in Redis can't be what rqmr wrote"):
        run.result()
    assert {subject.rpartition("-a")[0] for subject in run.events("failed")} == {"s0-m0001"}
    State(redis, run.id).unlink()
