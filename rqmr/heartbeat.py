"""A work-horse's heartbeat: a thread that renews leases, tells how far an attempt is, and hears when to stop."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from msgspec import structs

from rqmr.connection import clone
from rqmr.errors import DamagedError
from rqmr.loader import user_stack
from rqmr.model import Claim, Progress, Spec
from rqmr.records import Place
from rqmr.state import State

#: Seconds between two beats, or a third of the lease if that is less: the view moves, and a stop is heard soon.
_BEAT_SECONDS = 1.0
#: How long an attempt that was told to stop may take to reach its next record.
_GRACE_SECONDS = 5.0


class Watch:
    """One attempt under the heartbeat's eyes: how long it has taken, and how long it has been where it is."""

    def __init__(self, claim: Claim, place: Place, spec: Spec) -> None:
        self.claim = claim
        self.place = place
        self._spec = spec
        self._began = self._moved = time.monotonic()
        self._seen = Progress()

    def problem(self, progress: Progress) -> str:
        """Return why the attempt has to be replaced though it lives; "" if it hasn't."""
        now = time.monotonic()
        if progress != self._seen or self.place.waits:
            self._seen, self._moved = progress, now
        if self._spec.stall_ms and (now - self._moved) * 1000 > self._spec.stall_ms:
            return f"stuck: no record has ended for {self._spec.stall_ms / 1000:g} s (--stall)"
        if self._spec.task_ms and (now - self._began) * 1000 > self._spec.task_ms:
            return f"the attempt takes longer than {self._spec.task_ms / 1000:g} s (--task-timeout)"
        return ""


class Heartbeat:
    """Renews the leases of one work-horse's attempts, one after the other.

    It has a client of its own with short time-outs: one beat that is late is no harm, one that hangs is. A horse
    whose mapper doesn't come back after its attempt was told to stop, or is stuck, is ended, if it is a process of its
    own.
    """

    def __init__(self, state: State, *, worker: str, own_process: bool) -> None:
        self._client = clone(state.client, patient=False)
        self._state = State(self._client, state.run)
        self._state.adopt(state.spec)
        self._worker = worker
        self._own_process = own_process
        self._host = socket.gethostname()
        self._every = min(_BEAT_SECONDS, state.spec.lease_ms / 3000)
        self._watch: Watch | None = None
        self._main_thread = threading.get_ident()  # the one that runs the attempts
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rqmr heartbeat", daemon=True)
        self._thread.start()

    @contextmanager
    def beating(self, claim: Claim, place: Place) -> Iterator[None]:
        """Renew an attempt's lease while the block runs; set the place's `stopped` when its work isn't wanted."""
        self._watch = Watch(claim, place, self._state.spec)
        try:
            yield
        finally:
            self._watch = None

    def close(self) -> None:
        """Stop beating."""
        self._closed.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        while not self._closed.wait(self._every):
            watch = self._watch
            if watch is None:
                continue
            progress = _progress(watch.place)
            try:
                if problem := watch.problem(progress):
                    self._charge(watch, problem)
                    wanted = False
                else:
                    wanted = self._state.renew(watch.claim, worker=self._worker, host=self._host, progress=progress)
            except (redis.RedisError, DamagedError):
                continue  # the next beat may get through; if none does, the lease runs out, as it should
            if not wanted and self._watch is watch:
                watch.place.stopped = True
                self._wait_for_the_end_of(watch)

    def _charge(self, watch: Watch, problem: str) -> None:
        """Let the attempt fail: it is the code that doesn't come back, not the machine."""
        failure = watch.place.failure(TimeoutError(problem))
        task = watch.claim.attempt.task
        told = structs.replace(
            failure, message=problem, task=str(task), worker=self._worker, traceback=user_stack(self._main_thread)
        )
        self._state.fail(watch.claim.attempt, told)

    def _wait_for_the_end_of(self, watch: Watch) -> None:
        # Every record that begins sees `stopped`, so a mapper that is still in one after this is stuck in it.
        deadline = time.monotonic() + _GRACE_SECONDS
        while self._watch is watch:
            if self._closed.wait(0.05):
                return
            if time.monotonic() > deadline and self._own_process:
                os._exit(1)


def _progress(place: Place) -> Progress:
    try:
        progress = place.progress()
    except Exception:  # it asks what the job's own reader made; that must not stop the heart
        progress = Progress()
    return structs.replace(progress, waits=place.waits)
