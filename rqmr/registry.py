"""The runs of one server: which there are, and what is kept of those that are over."""

from __future__ import annotations

import contextlib

import msgspec
import redis

from rqmr.connection import Client, reading_keys
from rqmr.damage import as_words, unpacked
from rqmr.facts import End
from rqmr.keys import RUNS, RunKeys, is_run_id

#: How long the end of a run can be asked for, and the index outlives the last new run.
KEEP_MS = 7 * 24 * 3600 * 1000


def register(client: Client, run: str, now_ms: int) -> None:
    """Put a new run into the index; `client` may be a pipeline."""
    client.zadd(RUNS, {run: now_ms})
    client.pexpire(RUNS, KEEP_MS)


def runs(client: Client) -> list[tuple[str, int]]:
    """Return each run of which something is left with the ms when it was created, the oldest first.

    The others are struck off: their keys have come to the end of their time.
    """
    told = client.zrange(RUNS, 0, -1, withscores=True)
    listed = [(run.decode(), int(at)) for run, at in told if is_run_id(as_words(run)) and 0 <= at < 2**63]
    pipe = client.pipeline(transaction=False)
    for run, _ in listed:
        keys = RunKeys(run)
        pipe.exists(keys.run, keys.end)
    left = pipe.execute() if listed else []
    if gone := [run for (run, _), is_there in zip(listed, left, strict=True) if not is_there]:
        with contextlib.suppress(redis.exceptions.NoPermissionError):  # who may only look
            client.zrem(RUNS, *gone)
    return [each for each, is_there in zip(listed, left, strict=True) if is_there]


def read_end(client: Client, run: str) -> End | None:
    """Return how a run ended; None if it hasn't, or nobody knows any more.

    Raises:
        DamagedError: what is there isn't how a run ended.
    """
    what = f"how run {run} ended"
    with reading_keys(what):
        data = client.get(RunKeys(run).end)
    return None if data is None else unpacked(data, End, what)


def write_end(client: Client, end: End) -> None:
    """Write down how a run ended."""
    client.set(RunKeys(end.run).end, msgspec.msgpack.encode(end), px=KEEP_MS)


def forget(client: Client, run: str) -> None:
    """Remove what is kept of a run that is over."""
    client.unlink(RunKeys(run).end)
    client.zrem(RUNS, run)
