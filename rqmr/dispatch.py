"""RQ as transport: puts a run's tickets into a queue, looks for them, takes them out again.

A ticket is the RQ job that brings a worker to a run. RQ is never asked what is true of it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterable, Sequence

from rq import Queue, Worker
from rq.command import send_stop_job_command
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job as RQJob
from rq.worker_registration import get_keys

from rqmr.connection import Client

#: Seconds that RQ keeps a failed ticket with its traceback, for rq info and dashboards.
_FAILURE_TTL = 24 * 3600
#: Seconds that a ticket may wait in the queue.
_TTL = 24 * 3600
_BATCH = 500
_NEXT = 200  # RQ jobs that are looked at for whose they are
_OVER = (None, b"finished", b"failed", b"stopped", b"canceled")


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

    def over(self, tickets: Iterable[str]) -> dict[str, str]:
        """Return those of the tickets whose work-horse has ended, as far as RQ knows.

        Each with how its process died: "SIGSEGV", "exit status 3"; "" if it came to its end, or was told to.
        """
        names = list(tickets)
        pipe = self._client.pipeline(transaction=False)
        for name in names:
            pipe.hget(RQJob.key_for(name), "status")
        # RQ removes a ticket that ended well.
        over = [name for name, status in zip(names, pipe.execute(), strict=True) if status in _OVER]
        deaths = {rq_job.id: _death(_told(rq_job)) for rq_job in self._failed(over)}
        return {name: deaths.get(name, "") for name in over}

    def refusals(self, tickets: Iterable[str]) -> list[tuple[str, str]]:
        """Return, for each of the tickets that a worker failed to run, the worker and the end of its traceback."""
        told = [(rq_job.worker_name or "a worker", _told(rq_job)) for rq_job in self._failed(tickets)]
        return [(worker, error.splitlines()[-1]) for worker, error in told if error.startswith("Traceback")]

    def _failed(self, tickets: Iterable[str]) -> list[RQJob]:
        found = RQJob.fetch_many(list(tickets), connection=self._client)
        return [rq_job for rq_job in found if rq_job and rq_job.is_failed]

    def runs(self) -> set[str]:
        """Return whose tickets are the next in the queue, as far as one can tell by their names."""
        names = (
            name.decode(errors="replace").rpartition("-t") for name in self._client.lrange(self._queue.key, 0, _NEXT)
        )
        return {run for run, _, number in names if run and number.isdigit()}

    def stop(self, ticket: str) -> None:
        """Have the worker that runs a ticket kill its work-horse, if it still does."""
        with contextlib.suppress(InvalidJobOperation, NoSuchJobError):
            send_stop_job_command(self._client, ticket)

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

    def is_wanted(self) -> bool:
        """Whether RQ jobs, of whomever, wait in the queue."""
        return bool(self._client.llen(self._queue.key))


def is_told_to_stop(client: Client, worker: str) -> bool:
    """Whether an RQ worker has heard a signal that tells it to stop after its RQ job."""
    return bool(client.hexists(f"{Worker.redis_worker_namespace_prefix}{worker}", "shutdown_requested_date"))


def _death(told: str) -> str:
    """Return how a process died that RQ tells of: the status is what wait(2) gives."""
    match = re.match(r"Work-horse terminated unexpectedly; waitpid returned (\d+)", told)
    if not match:
        return ""
    code = os.waitstatus_to_exitcode(int(match[1]))
    if code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _told(rq_job: RQJob) -> str:
    result = rq_job.latest_result()
    return (result.exc_string or "").strip() if result else ""
