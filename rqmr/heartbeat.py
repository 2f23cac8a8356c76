"""A work-horse's heartbeat: a thread that renews leases, tells how far an attempt is, and hears when to stop."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from rqmr.connection import clone
from rqmr.model import Claim, Progress
from rqmr.state import State
from rqmr.tasks import Place

#: Seconds between two beats, or a third of the lease if that is less: the view moves, and a stop is heard soon.
_BEAT_SECONDS = 1.0
#: How long an attempt that was told to stop may take to reach its next record.
_GRACE_SECONDS = 5.0


class Heartbeat:
    """Renews the leases of one work-horse's attempts, one after the other.

    It has a client of its own with short time-outs: one beat that is late is no harm, one that hangs is. A horse
    whose mapper doesn't come back after its attempt was told to stop is ended, if it is a process of its own.
    """

    def __init__(self, state: State, *, worker: str, own_process: bool) -> None:
        self._client = clone(state.client, patient=False)
        self._state = State(self._client, state.run)
        self._state.adopt(state.spec)
        self._worker = worker
        self._own_process = own_process
        self._host = socket.gethostname()
        self._every = min(_BEAT_SECONDS, state.spec.lease_ms / 3000)
        self._attempt: tuple[Claim, Place] | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rqmr heartbeat", daemon=True)
        self._thread.start()

    @contextmanager
    def beating(self, claim: Claim, place: Place) -> Iterator[None]:
        """Renew an attempt's lease while the block runs; set the place's `stopped` when its work isn't wanted."""
        self._attempt = claim, place
        try:
            yield
        finally:
            self._attempt = None

    def close(self) -> None:
        """Stop beating."""
        self._closed.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        while not self._closed.wait(self._every):
            attempt = self._attempt
            if attempt is None:
                continue
            claim, place = attempt
            try:
                wanted = self._state.renew(claim, worker=self._worker, host=self._host, progress=_progress(place))
            except redis.RedisError:
                continue  # the next beat may get through; if none does, the lease runs out, as it should
            if not wanted and self._attempt is attempt:
                place.stopped = True
                self._wait_for_the_end_of(attempt)

    def _wait_for_the_end_of(self, attempt: tuple[Claim, Place]) -> None:
        # Every record that begins sees `stopped`, so a mapper that is still in one after this is stuck in it.
        deadline = time.monotonic() + _GRACE_SECONDS
        while self._attempt is attempt:
            if self._closed.wait(0.05):
                return
            if time.monotonic() > deadline and self._own_process:
                os._exit(1)


def _progress(place: Place) -> Progress:
    try:
        return place.progress()
    except Exception:  # it asks what the job's own reader made; that must not stop the heart
        return Progress()
