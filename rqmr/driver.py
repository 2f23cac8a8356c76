"""The driver: a loop over tick until every task is committed, then the collecting of the output. Decides nothing.

Any number of drivers may follow one run. The one that holds the driver's lease ticks and collects, the others watch;
when it is gone another takes over, since every act can be repeated.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import redis

from rqmr import registry
from rqmr.connection import Client, clone
from rqmr.dispatch import Dispatch
from rqmr.errors import RunCancelled, RunFailed, Unreachable
from rqmr.model import End, Event, Facts, Failure, RunState, Spec, Summary
from rqmr.output import Output
from rqmr.plan import parts_of, skipped_of, summarize
from rqmr.scheduler import is_complete
from rqmr.state import State
from rqmr.tick import tick

T = TypeVar("T")

#: How long a Redis that doesn't answer is waited for, and how often it is asked.
_PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 0.2
#: How long one answer may take.
_REPLY_SECONDS = 5.0


class Observer(Protocol):
    """Who wants to see a run: called often, so it has to return at once."""

    def update(self, facts: Facts, events: Sequence[Event]) -> None:
        """Take what is true now, and what happened since the last call."""

    def away(self, seconds: float) -> None:
        """Hear, again and again, that Redis hasn't answered for so long; the next update means that it does."""


class Driver:
    """Follows one run to its end, drives it when nobody else does, and collects its output."""

    def __init__(
        self, client: Client, spec: Spec, output: Output, observer: Observer, *, is_creator: bool = True
    ) -> None:
        """`is_creator`: this command has made the run, so a run that ends with its driver ends with this one."""
        self._client = clone(client, patient=False, seconds=_REPLY_SECONDS)
        self._spec = spec
        self._is_creator = is_creator
        self._output = output
        self._observer = observer
        self._state = State(self._client, spec.run)
        self._state.adopt(spec)
        self._dispatch = Dispatch(self._client, spec.queue)
        self._name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._began = self._touched = time.monotonic()
        self._position = "0"  # in the stream of events

    def run(self) -> Summary:
        """Follow the run to its end.

        A run that succeeded or was cancelled leaves nothing in Redis but how it ended; one that failed leaves what it
        takes to resume it, unless it ends with its driver. An exception from outside, such as a signal's, cancels a run
        that ends with this driver, and leaves any other to its workers.

        Raises:
            RunFailed: it failed, or Redis lost it.
            Unreachable: Redis doesn't answer.
            RunCancelled: it was cancelled.
        """
        try:
            while (summary := self._patiently(self._round)) is None:
                time.sleep(_pause(time.monotonic() - self._began))
            return summary
        except RunFailed as error:
            self._end(RunState.FAILED, error.failure)
            raise
        except RunCancelled:
            self._end(RunState.CANCELLED)
            raise
        except redis.RedisError as error:
            failure = self._unreachable(error)
            if self._spec.ends_with_driver:
                self._end(RunState.FAILED, failure)
            raise Unreachable(failure) from error
        except BaseException:
            self._leave()
            raise
        finally:
            self._client.close()

    def hand_over(self) -> None:
        """Enqueue what the workers need to begin, and leave the run to them.

        Raises:
            Unreachable: Redis doesn't answer.
        """
        try:
            self._patiently(lambda: tick(self._state, self._dispatch))
        except redis.RedisError as error:
            raise Unreachable(self._unreachable(error)) from error
        finally:
            self._client.close()

    def _patiently(self, act: Callable[[], T]) -> T:
        """Do what can be done again, until Redis answers. Raises redis.RedisError if it doesn't for a minute."""
        began = time.monotonic()
        while True:
            try:
                return act()
            except redis.AuthenticationError:
                raise
            except (redis.ConnectionError, redis.TimeoutError):
                seconds = time.monotonic() - began
                if seconds > _PATIENCE_SECONDS:
                    raise
                self._observer.away(seconds)
                time.sleep(_POLL_SECONDS)

    def _leave(self) -> None:
        """Go while the run goes on; cancel one that can't."""
        if self._spec.ends_with_driver:
            self._end(RunState.CANCELLED)
            return
        with self._impatient() as client, contextlib.suppress(redis.RedisError):
            State(client, self._spec.run).resign(self._name)  # so that nobody has to wait for the lease's end

    def _round(self) -> Summary | None:
        """Look, drive if nobody else does, and collect if all is done; return the summary of a run that is over."""
        drives = self._drives()
        facts = tick(self._state, self._dispatch) if drives else self._look()
        if facts is None or facts.state != RunState.RUNNING:
            return self._ended(facts)
        self._position, events = self._state.events(self._position)
        self._observer.update(facts, events)
        if not facts.driver and self._is_only_watching:
            raise RunFailed(
                Failure(
                    f"the command that run {self._spec.run} belongs to is gone, and its output with it",
                    can_resume=False,
                )
            )
        if drives and is_complete(facts):
            return self._collect(facts)
        if drives and time.monotonic() - self._touched > self._spec.keep_ms / 4000:
            self._state.touch()
            self._touched = time.monotonic()
        return None

    @property
    def _is_only_watching(self) -> bool:
        return self._spec.ends_with_driver and not self._is_creator

    def _drives(self) -> bool:
        """Take or keep the driver's lease; whether this is the driver now."""
        if self._is_only_watching:
            return False
        return self._state.drive(self._name, lease_ms=self._spec.lease_ms) is not None

    def _look(self) -> Facts | None:
        return self._state.facts(workers=self._dispatch.workers())

    def _ended(self, facts: Facts | None) -> Summary:
        """Return the summary of a run that another driver has collected."""
        end = registry.read_end(self._client, self._spec.run)
        if end and end.summary:
            return end.summary
        if (facts and facts.state == RunState.CANCELLED) or (end and end.state == RunState.CANCELLED):
            raise RunCancelled(f"run {self._spec.run} was cancelled")
        if facts is None and end is None:
            raise RunFailed(
                Failure(
                    f"run {self._spec.run} is gone from Redis: was it flushed or restarted without its data, or does "
                    f"it evict keys?",
                    can_resume=False,
                )
            )
        failure = (facts and facts.failure) or (end and end.failure)
        raise RunFailed(failure or Failure(f"run {self._spec.run} failed"))

    def _collect(self, facts: Facts) -> Summary:
        outcomes = [[outcome for _, outcome in self._state.winners(phase).values()] for phase in self._spec.phases]
        paths = self._output.collect(parts_of(outcomes[-1]), skipped_of(self._spec, outcomes))
        summary = summarize(self._spec, outcomes, paths, (facts.now_ms - facts.started_ms) / 1000)
        self._end(RunState.SUCCEEDED, summary=summary)
        return summary

    def _unreachable(self, error: redis.RedisError) -> Failure:
        todo = "run the job again when it does"
        if not self._spec.ends_with_driver:
            todo = f"the run goes on without this command when it does: rqmr attach {self._spec.run}"
        return Failure(f"Redis doesn't answer any more: {error}; {todo}")

    def _end(self, state: RunState, failure: Failure | None = None, summary: Summary | None = None) -> None:
        """Write down how the run ended, and remove what nobody needs any more."""
        if self._is_only_watching:
            return
        # Whoever pressed Ctrl-C doesn't want to wait for a dead server; and the output, if there is one, is whole.
        with self._impatient() as client, contextlib.suppress(redis.RedisError):
            end_run(client, self._spec, state, failure, summary)

    def _impatient(self) -> contextlib.closing[Client]:
        return contextlib.closing(clone(self._client, patient=False))


def end_run(
    client: Client, spec: Spec, state: RunState, failure: Failure | None = None, summary: Summary | None = None
) -> None:
    """Write down how a run ended, take its tickets out of the queue and remove its keys. Can be repeated.

    One that failed keeps its keys for a resume, unless it ends with its driver.
    """
    of_run = State(client, spec.run)
    of_run.adopt(spec)
    facts = of_run.facts()
    if facts is None:
        return  # somebody else has done it
    end = End(spec.run, spec.job, state, str(spec.output), facts.started_ms, facts.now_ms, summary, failure)
    is_told = _tell(client, end)
    of_run.finish(state, failure)
    dispatch = Dispatch(client, spec.queue)
    dispatch.drop(of_run.tickets())
    for lost in facts.lost:  # its work-horse may be stuck in it, beyond hearing that the run is over
        dispatch.stop(lost.ticket)
    if state == RunState.FAILED and not spec.ends_with_driver:
        of_run.forget_tickets(of_run.tickets())
        of_run.depose()
        of_run.touch()
    else:
        of_run.unlink()
        if not is_told:
            _tell(client, end)


def _tell(client: Client, end: End) -> bool:
    """Keep how a run ended; whether there was memory for it."""
    try:
        registry.write_end(client, end)
    except redis.OutOfMemoryError:
        return False
    return True


def _pause(age: float) -> float:
    """Seconds between two rounds: short runs are answered at once, long ones cost next to nothing."""
    return 0.01 if age < 2 else 0.05 if age < 10 else 0.2
