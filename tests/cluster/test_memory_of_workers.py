"""What a reduce task holds doesn't depend on how large its partition is."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import JOBS, Workers

import rqmr
from rqmr.config import Config

#: Bytes of values, all in one partition; far more than the bound below.
SIZE = 200 << 20


@pytest.mark.parametrize(
    ("job", "piece", "keys", "memory"),
    [
        ("Huge", 1000, 1, 64 << 20),
        ("HugeSorted", 1000, 2, 64 << 20),
        ("Huge", 1000, 20_000, 4 << 20),
    ],
    ids=["one key", "two keys, sorted", "many keys, in passes"],
)
def test_a_large_partition_is_reduced_in_little_memory(
    workers: Workers, job: str, piece: int, keys: int, memory: int, tmp_path: Path
) -> None:
    """A work-horse's peak, with Python and all that is imported, is far below the partition."""
    workers.start(2)
    lines = tmp_path / "lines"
    lines.write_text("".join(f"{number}\n" for number in range(SIZE >> 20)))
    config = Config(workers=0, reducers=1, split_bytes=lines.stat().st_size // 40, memory=memory, lease_seconds=60)
    result = rqmr.run(
        f"{JOBS / 'huge.py'}:{job}", [lines], params={"piece": piece, "keys": keys}, config=config,
        output=tmp_path / "out", redis_url=workers.url,
    )  # fmt: skip
    peak = result.counters.pop("MiB at most")
    assert max(peak.values()) <= 150, peak
    assert sum(count for _, (count, _) in result) == (SIZE >> 20) * ((1 << 20) // piece)
