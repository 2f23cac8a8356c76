"""RQ as transport: puts a run's tickets into a queue, looks for them, takes them out again.

A ticket is the RQ job that brings a worker to a run. RQ is never asked what is true of it.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import signal
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rq import Queue, Worker
from rq.command import send_command
from rq.job import Job as RQJob
from rq.results import Result
from rq.worker_registration import WORKERS_BY_QUEUE_KEY

from rqmr.connection import Client
from rqmr.damage import as_words
from rqmr.errors import SignatureError, WorkerUnfit
from rqmr.keys import is_run_id

#: Seconds that RQ keeps a failed ticket with its traceback, for rq info and dashboards.
_FAILURE_TTL = 24 * 3600
#: Seconds that a ticket may wait in the queue.
_TTL = 24 * 3600
_BATCH = 500
_NEXT = 200  # RQ jobs that are looked at for whose they are
_OVER = (None, b"finished", b"failed", b"stopped", b"canceled")
#: Characters of a traceback that are read, of which RQ keeps any number, packed.
_LONGEST_TRACEBACK, _LONGEST_LINE = 1 << 20, 1000
#: How RQ spells the error of a worker that refuses a run; it names the worker itself.
_OURS = re.compile(rf"^{re.escape(WorkerUnfit.__module__)}\.({WorkerUnfit.__name__}|{SignatureError.__name__}): ")


class _Failed(NamedTuple):
    """A ticket that RQ calls failed."""

    ticket: str
    worker: str
    told: str  # a traceback, or how its process died


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
        return len(self.listening())

    def listening(self) -> set[str]:
        """Return the names of the workers that listen on the queue, as far as RQ knows."""
        names = self._client.smembers(WORKERS_BY_QUEUE_KEY % self._queue.name)
        return {as_words(name).removeprefix("rq:worker:") for name in names}

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
        deaths = {each.ticket: _death(each.told) for each in self._failed(over)}
        return {name: deaths.get(name, "") for name in over}

    def refusals(self, tickets: Iterable[str]) -> list[tuple[str, str]]:
        """Return, for each of the tickets that a worker failed to run, the worker and the end of its traceback."""
        return [
            (each.worker or "a worker", _OURS.sub("", each.told.splitlines()[-1])[:_LONGEST_LINE])
            for each in self._failed(tickets)
            if each.told.startswith("Traceback")
        ]

    def _failed(self, tickets: Iterable[str]) -> list[_Failed]:
        """Return those of the tickets that have failed, as far as RQ knows.

        Not by RQ's own means, which unpickle what is there: whoever can write to Redis could run code here, too.
        """
        names = list(tickets)
        pipe = self._client.pipeline(transaction=False)
        for name in names:
            pipe.hmget(RQJob.key_for(name), "status", "worker_name")
            pipe.xrevrange(Result.get_key(name), count=1)  # type: ignore[no-untyped-call]
        replies = iter(pipe.execute())
        return [
            _Failed(name, as_words(worker or b""), _exception(results))
            for name, (status, worker), results in zip(names, replies, replies, strict=True)
            if status == b"failed"
        ]

    def runs(self) -> set[str]:
        """Return whose tickets are the next in the queue, as far as one can tell by their names."""
        names = (
            name.decode(errors="replace").rpartition("-t") for name in self._client.lrange(self._queue.key, 0, _NEXT)
        )
        return {run for run, _, number in names if is_run_id(run) and number.isdigit()}

    def stop(self, ticket: str) -> None:
        """Have the worker that runs a ticket kill its work-horse, if it still does."""
        if worker := self._client.hget(RQJob.key_for(ticket), "worker_name"):
            send_command(self._client, as_words(worker), "stop-job", job_id=ticket)

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

    def is_wanted_by_others(self, run: str) -> bool:
        """Whether RQ jobs wait in the queue, of whomever, that aren't tickets of a run."""
        own = f"{run}-t".encode()
        return any(not name.startswith(own) for name in self._client.lrange(self._queue.key, 0, _NEXT - 1))

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


def _exception(results: Sequence[tuple[bytes, Mapping[bytes, bytes]]]) -> str:
    """Return the traceback in the last result that RQ has of a ticket, "" if there is none."""
    for _, fields in results:
        with contextlib.suppress(ValueError, zlib.error):
            packed = base64.b64decode(fields.get(b"exc_string", b""))
            return as_words(zlib.decompressobj().decompress(packed, _LONGEST_TRACEBACK)).strip()
    return ""
