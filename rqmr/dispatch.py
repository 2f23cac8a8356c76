"""RQ as transport: puts a run's tickets into a queue, looks for them, takes them out again.

A ticket is the RQ job that brings a worker to a run. RQ is never asked what is true of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rq import Queue
from rq.job import Job as RQJob
from rq.worker_registration import get_keys

from rqmr.connection import Client

#: Seconds that RQ keeps a failed ticket with its traceback, for rq info and dashboards.
_FAILURE_TTL = 24 * 3600
#: Seconds that a ticket may wait in the queue.
_TTL = 24 * 3600
_BATCH = 500


class Dispatch:
    """One queue."""

    def __init__(self, client: Client, queue: str) -> None:
        self._client = client
        self._queue = Queue(queue, connection=client)

    def enqueue(self, run: str, tickets: Sequence[tuple[str, str]]) -> None:
        """Put tickets, each with the task it names, into the queue."""
        for start in range(0, len(tickets), _BATCH):
            self._queue.enqueue_many(
                [
                    Queue.prepare_data(
                        # By name, and with plain strings: any stock worker can unpickle it.
                        "rqmr.worker.run_ticket",
                        (run, ticket, task),
                        job_id=ticket,
                        description=f"rqmr {run} {task}".rstrip(),
                        timeout=-1,  # an attempt lives as long as its lease
                        ttl=_TTL,
                        result_ttl=0,
                        failure_ttl=_FAILURE_TTL,
                    )
                    for ticket, task in tickets[start : start + _BATCH]
                ]
            )

    def workers(self) -> int:
        """Return how many workers listen on the queue, as far as RQ knows."""
        return len(get_keys(queue=self._queue))

    def missing(self, tickets: Iterable[str]) -> list[str]:
        """Return those of the tickets that are not in the queue: taken, or lost by RQ."""
        names = list(tickets)
        pipe = self._client.pipeline(transaction=False)
        for name in names:
            pipe.lpos(self._queue.key, name)
        return [name for name, position in zip(names, pipe.execute(), strict=True) if position is None]

    def drop(self, tickets: Iterable[str]) -> None:
        """Take tickets out of the queue.

        Only those that are still in it: RQ writes the hash of one that a worker has popped again, in part, if it is
        gone, and then fails it. Such a ticket claims nothing, and leaves nothing when it ends.
        """
        names = list(tickets)
        pipe = self._client.pipeline(transaction=False)
        for name in names:
            pipe.lrem(self._queue.key, 0, name)
        removed = [RQJob.key_for(name) for name, count in zip(names, pipe.execute(), strict=True) if count]
        if removed:
            self._client.unlink(*removed)
