"""What needn't be done twice is done once."""

from __future__ import annotations

import os
import time

import msgspec
from bench import CUT, Bench
from harness import Workers


def test_maps_that_take_their_time_are_made_once(workers: Workers, bench: Bench) -> None:
    """They sleep for longer than their lease, some twice as long as others: neither lost nor stragglers."""
    seed = int(os.environ.get("RQMR_TEST_SEED", time.time_ns() % 10**6))
    print(f"RQMR_TEST_SEED={seed}")
    config = msgspec.structs.replace(CUT, reducers=1, lease_seconds=2)
    workers.start(4)
    bench.write(8)
    run = bench.start("naps", config, seed=seed)
    bench.assert_right(run, "naps", config)
    assert sorted(run.events("claimed")) == [*(f"s0-m{number:04}-a1" for number in range(8)), "s0-r0000-a1"]
    assert bench.marked("mapped") == 8
    assert not [event for event in run.seen if event.what in ("backed up", "lost", "released", "reopened")]
