"""A work-horse's heartbeat: a thread that renews leases, tells how far an attempt is, and hears when to stop."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import redis
from msgspec import structs

from rqmr.connection import Client, clone
from rqmr.errors import DamagedError
from rqmr.loader import user_stack
from rqmr.model import AttemptId, Claim, Progress, Spec
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
        self.began = self._moved = time.monotonic()
        self._seen = Progress()

    def problem(self, progress: Progress) -> str:
        """Return why the attempt has to be replaced though it lives; "" if it hasn't."""
        now = time.monotonic()
        if progress != self._seen or self.place.waits:
            self._seen, self._moved = progress, now
        if self._spec.stall_ms and (now - self._moved) * 1000 > self._spec.stall_ms:
            return f"stuck: no record has ended for {self._spec.stall_ms / 1000:g} s (--stall)"
        if self._spec.task_ms and (now - self.began) * 1000 > self._spec.task_ms:
            return f"the attempt takes longer than {self._spec.task_ms / 1000:g} s (--task-timeout)"
        return ""


class Heartbeat:
    """Renews the leases of one work-horse's attempts, one after the other.

    It has a client of its own with short time-outs: one beat that is late is no harm, one that hangs is. A horse
    whose mapper doesn't come back after its attempt was told to stop, or is stuck, is ended, if it is a process of its
    own.

    It also hears that the worker is told to stop, through Redis, or that the horse itself is, by SIGTERM. Then the
    attempt is stopped at its next record, and `leaves` is set: the horse is to give its task back and to take no other.
    If there is no such record for five seconds, the task is given back from here.
    """

    def __init__(
        self, state: State, *, worker: str, own_process: bool, is_told_to_stop: Callable[[Client, str], bool]
    ) -> None:
        """Take what the beats tell; `is_told_to_stop` asks Redis whether a worker is."""
        self._client = clone(state.client, patient=False)
        self._state = State(self._client, state.run)
        self._state.adopt(state.spec)
        self._worker = worker
        self._own_process = own_process
        self._host = socket.gethostname()
        self._every = min(_BEAT_SECONDS, state.spec.lease_ms / 3000)
        self._watch: Watch | None = None
        self.leaves = False
        self._busy = self._charged = 0.0  # seconds
        self._is_told_to_stop = is_told_to_stop
        self._main_thread = threading.get_ident()  # the one that runs the attempts
        if own_process:
            self._hear_sigterm()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rqmr heartbeat", daemon=True)
        self._thread.start()

    @contextmanager
    def beating(self, claim: Claim, place: Place) -> Iterator[None]:
        """Renew an attempt's lease while the block runs; stop its place when its work isn't wanted."""
        self._watch = Watch(claim, place, self._state.spec)
        try:
            yield
        finally:
            self._busy, self._watch = self._busy_for(), None

    def close(self) -> None:
        """Stop beating."""
        self._closed.set()
        self._thread.join()
        with suppress(redis.RedisError, DamagedError):
            self._charge_run()
        self._client.close()

    def _hear_sigterm(self) -> None:
        """Leave on SIGTERM, as systemd sends it to all that a unit has started. Not what user code forks."""

        def leave(*_: object) -> None:
            self.leaves = True  # no lock may be taken here: the thread that is interrupted might have it
            if watch := self._watch:
                watch.place.stop()

        def hold() -> None:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

        def go_on() -> None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

        def go_on_as_a_child() -> None:
            if signal.getsignal(signal.SIGTERM) is leave:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            go_on()

        signal.signal(signal.SIGTERM, leave)
        # Held meanwhile: one that came before the child is its own would be lost.
        os.register_at_fork(before=hold, after_in_parent=go_on, after_in_child=go_on_as_a_child)

    def _run(self) -> None:
        while not self._closed.wait(self._every):
            watch, wanted = self._watch, True
            # The next beat may get through; if none does, the lease runs out, as it should.
            with suppress(redis.RedisError, DamagedError):
                wanted = watch is None or self._beat(watch)
                self.leaves = self.leaves or self._is_told_to_stop(self._client, self._worker)
                self._charge_run()
            if watch and (self.leaves or not wanted) and self._watch is watch:
                watch.place.stop()
                self._wait_for_the_end_of(watch)

    def _beat(self, watch: Watch) -> bool:
        """Renew the lease; return whether the attempt is still wanted."""
        progress = _progress(watch.place)
        if problem := watch.problem(progress):
            self._charge(watch, problem)
            return False
        return self._state.renew(watch.claim, worker=self._worker, host=self._host, progress=progress)

    def _busy_for(self) -> float:
        """Return how many seconds the horse has been at the run's tasks."""
        watch = self._watch
        return self._busy + (time.monotonic() - watch.began if watch else 0.0)

    def _charge_run(self) -> None:
        """Let the run pay for the time of its worker: other runs may want as much."""
        spec, since = self._state.spec, max(0.0, self._busy_for() - self._charged)
        if cost := spec.cost_of(since):
            self._charged += since
            self._state.scripts.charge(cost)

    def _charge(self, watch: Watch, problem: str) -> None:
        """Let the attempt fail: it is the code that doesn't come back, not the machine."""
        failure = watch.place.failure(TimeoutError(problem))
        task = watch.claim.attempt.task
        told = structs.replace(
            failure, message=problem, task=str(task), worker=self._worker, traceback=user_stack(self._main_thread)
        )
        self._state.fail(watch.claim.attempt, told)

    def _wait_for_the_end_of(self, watch: Watch) -> None:
        # No record begins in a place that is stopped, so a mapper that is still in one after this is stuck in it.
        deadline = time.monotonic() + _GRACE_SECONDS
        while self._watch is watch:
            if self._closed.wait(0.05):
                return
            if time.monotonic() > deadline:
                self._give_up(watch)
                return

    def _give_up(self, watch: Watch) -> None:
        """Let others have the task, if they may, though its code hasn't come back; end it where that is possible."""
        if self.leaves:
            with suppress(redis.RedisError):  # else the lease runs out
                give_back(self._state, watch.claim.attempt, self._worker)
        if self._own_process:
            os._exit(1)
        while self._watch is watch and not self._closed.wait(0.05):
            pass  # it beats no more


def give_back(state: State, attempt: AttemptId, worker: str) -> None:
    """Let go of an attempt's task, uncharged, since its worker is told to stop."""
    if state.release(attempt) == "RELEASED":
        state.tell("released", str(attempt), f"by {worker}, which is told to stop")


def _progress(place: Place) -> Progress:
    try:
        progress = place.progress()
    except Exception:  # it asks what the job's own reader made; that must not stop the heart
        progress = Progress()
    return structs.replace(progress, waits=place.waits)
