"""The driver: a loop over tick until every task is committed, then the collecting of the output. Decides nothing."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Sequence
from typing import Protocol

import redis

from rqmr.connection import Client, clone
from rqmr.dispatch import Dispatch
from rqmr.errors import RunCancelled, RunFailed
from rqmr.model import Event, Facts, Failure, RunState, Summary
from rqmr.output import Output
from rqmr.plan import Plan, parts_of, summarize
from rqmr.scheduler import is_complete
from rqmr.state import State
from rqmr.tick import tick


class Observer(Protocol):
    """Who wants to see a run: called often, so it has to return at once."""

    def update(self, facts: Facts, events: Sequence[Event]) -> None:
        """Take what is true now, and what happened since the last call."""


class Driver:
    """Drives one run from its creation to its collected output."""

    def __init__(self, client: Client, plan: Plan, output: Output, observer: Observer) -> None:
        self._client = client
        self._plan = plan
        self._output = output
        self._observer = observer
        self._state = State(client, plan.spec.run)
        self._dispatch = Dispatch(client, plan.spec.queue)
        self._name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._position = "0"

    def run(self) -> Summary:
        """Run it. Whatever happens, nothing of the run is left in Redis.

        Raises:
            RunFailed: it failed, or Redis lost it.
            RunCancelled: somebody else cancelled it.
        """
        began = time.monotonic()
        try:
            self._state.create(self._plan.spec, self._plan.splits, self._plan.program.package.encode())
            self._wait(began)
            return self._collect(began)
        except redis.RedisError as error:
            raise RunFailed(
                Failure(f"Redis doesn't answer any more: {error}; run the job again when it does")
            ) from error
        finally:
            self._clean_up()

    def _wait(self, began: float) -> None:
        touch_every = self._plan.spec.keep_ms / 4000
        touched = time.monotonic()
        while True:
            drives = self._state.drive(self._name, lease_ms=self._plan.spec.lease_ms) is not None
            facts = tick(self._state, self._dispatch) if drives else self._state.facts()
            self._check(facts)
            assert facts is not None
            self._position, events = self._state.events(self._position)
            self._observer.update(facts, events)
            if is_complete(facts):
                return
            if time.monotonic() - touched > touch_every:
                self._state.touch()
                touched = time.monotonic()
            time.sleep(_pause(time.monotonic() - began))

    def _check(self, facts: Facts | None) -> None:
        run = self._plan.spec.run
        if facts is None:
            raise RunFailed(Failure(f"run {run} is gone from Redis: was it flushed, or does it evict keys?"))
        if facts.state == RunState.FAILED:
            raise RunFailed(facts.failure or Failure(f"run {run} failed"))
        if facts.state == RunState.CANCELLED:
            raise RunCancelled(f"run {run} was cancelled")

    def _collect(self, began: float) -> Summary:
        outcomes = [[outcome for _, outcome in self._state.winners(phase).values()] for phase in self._plan.spec.phases]
        paths = self._output.collect(parts_of(outcomes[-1]))
        with contextlib.suppress(redis.RedisError):  # the output is whole, whatever Redis says now
            self._state.finish(RunState.SUCCEEDED)
        return summarize(self._plan.spec, outcomes, paths, time.monotonic() - began)

    def _clean_up(self) -> None:
        """End the run if it hasn't, take its tickets out of the queue, and remove its keys."""
        client = clone(self._client, patient=False)  # whoever pressed Ctrl-C doesn't want to wait for a dead server
        state = State(client, self._plan.spec.run)
        state.adopt(self._plan.spec)
        with contextlib.suppress(redis.RedisError):  # every key has a TTL
            state.finish(RunState.CANCELLED)
            Dispatch(client, self._plan.spec.queue).drop(state.tickets())
            state.unlink()
        client.close()


def _pause(age: float) -> float:
    """Seconds between two rounds: short runs are answered at once, long ones cost next to nothing."""
    return 0.01 if age < 2 else 0.05 if age < 10 else 0.2
