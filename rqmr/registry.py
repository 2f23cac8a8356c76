"""The runs of one server: which there are, and what is kept of those that are over."""

from __future__ import annotations

import msgspec

from rqmr.connection import Client
from rqmr.facts import End
from rqmr.keys import RUNS, RunKeys

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
    listed = [(run.decode(), int(at)) for run, at in client.zrange(RUNS, 0, -1, withscores=True)]
    pipe = client.pipeline(transaction=False)
    for run, _ in listed:
        keys = RunKeys(run)
        pipe.exists(keys.run, keys.end)
    left = pipe.execute() if listed else []
    if gone := [run for (run, _), is_there in zip(listed, left, strict=True) if not is_there]:
        client.zrem(RUNS, *gone)
    return [each for each, is_there in zip(listed, left, strict=True) if is_there]


def read_end(client: Client, run: str) -> End | None:
    """Return how a run ended; None if it hasn't, or nobody knows any more."""
    data = client.get(RunKeys(run).end)
    return None if data is None else msgspec.msgpack.decode(data, type=End)


def forget(client: Client, run: str) -> None:
    """Remove what is kept of a run that is over."""
    client.unlink(RunKeys(run).end)
    client.zrem(RUNS, run)
