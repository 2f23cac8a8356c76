"""An attempt's heartbeat: a thread that renews its lease, tells how far it is, and hears when to stop."""

from __future__ import annotations

import os
import socket
import threading
import time
from types import TracebackType

import redis

from rqmr.connection import clone
from rqmr.model import Claim
from rqmr.state import State
from rqmr.tasks import Place

#: How long an attempt that was told to stop may take to reach its next record.
_GRACE_SECONDS = 5.0


class Heartbeat:
    """Renews one attempt's lease every third of it while its block runs, and sets the place's `stopped`.

    It has a client of its own with short time-outs: one beat that is late is no harm, one that hangs is. A work-horse
    whose mapper doesn't come back after it was told to stop is ended, if it is a process of its own.
    """

    def __init__(self, state: State, claim: Claim, place: Place, *, worker: str, own_process: bool) -> None:
        self._client = clone(state.client, patient=False)
        self._state = State(self._client, state.run)
        self._state.adopt(state.spec)
        self._claim = claim
        self._place = place
        self._worker = worker
        self._own_process = own_process
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"heartbeat {claim.attempt}", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        every = self._state.spec.lease_ms / 3000
        while not self._done.wait(every):
            try:
                wanted = self._state.renew(
                    self._claim, worker=self._worker, host=socket.gethostname(), progress=self._place.progress()
                )
            except redis.RedisError:
                continue  # the next beat may get through; if none does, the lease runs out, as it should
            if not wanted:
                self._stop()
                return

    def _stop(self) -> None:
        self._place.stopped = True
        if not self._own_process:
            return
        # Every record that begins sees `stopped`, so a mapper that is still in one after this is stuck in it.
        deadline = time.monotonic() + _GRACE_SECONDS
        while time.monotonic() < deadline:
            if self._done.wait(0.2):
                return
        os._exit(1)
