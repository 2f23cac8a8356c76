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
from rqmr.arrivals import Arrivals
from rqmr.config import Config
from rqmr.connection import Client, clone
from rqmr.dispatch import Dispatch
from rqmr.errors import DamagedError, OutputError, RunCancelled, RunFailed, RunLeft
from rqmr.facts import End, Event, Facts, PhaseFacts, Summary
from rqmr.model import Failure, RunState, Spec
from rqmr.output import Output
from rqmr.plan import parts_of, skipped_of, summarize
from rqmr.scheduler import is_complete
from rqmr.shipper import Shipper
from rqmr.state import State
from rqmr.tick import tick

T = TypeVar("T")

#: How long a Redis that doesn't answer is waited for, if that may help, and how often it is asked.
_PATIENCE_SECONDS, _VISITORS_SECONDS = 60.0, 2.0
_POLL_SECONDS = 0.2
_AT_ONCE_SECONDS = 0.001
#: How long others have for collecting what this command can't.
_OTHERS_SECONDS = 10.0
#: How long one answer may take.
_REPLY_SECONDS = 3.0


class Observer(Protocol):
    """Who wants to see a run: called often, so it has to return at once."""

    def update(self, facts: Facts, events: Sequence[Event]) -> None:
        """Take what is true now, and what happened since the last call."""

    def away(self, seconds: float) -> None:
        """Hear, again and again, that Redis hasn't answered for so long; the next update means that it does."""


class Driver:
    """Follows one run to its end, drives it when nobody else does, and collects its output."""

    def __init__(
        self,
        client: Client,
        spec: Spec,
        output: Output,
        observer: Observer,
        *,
        is_creator: bool = True,
        is_visitor: bool = False,
        ship_memory: int = Config().ship_memory,
    ) -> None:
        """`is_creator`: this command has made the run, so a run that ends with its driver ends with this one.

        `is_visitor`: the server is another command's, and ends with that. `ship_memory`: bytes of input that may
        wait in Redis for workers that don't see it.
        """
        self._client = clone(client, patient=False, seconds=_REPLY_SECONDS)
        self._spec = spec
        self._is_creator = is_creator
        self._may_drive = True
        self._patience = _VISITORS_SECONDS if is_visitor else _PATIENCE_SECONDS
        self._output = output
        self._observer = observer
        self._state = State(self._client, spec.run)
        self._state.adopt(spec)
        self._dispatch = Dispatch(self._client, spec.queue)
        self._name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._began = self._touched = self._driven = time.monotonic()
        self._position = "0"  # in the stream of events
        self._last: PhaseFacts | None = None  # the last phase, if it's under way and this is the driver
        self._shipper: Shipper | None = None
        if spec.is_spread:
            self._shipper = Shipper(self._state, spec, memory=ship_memory, is_planner=is_creator)
        self._arrivals = Arrivals(self._state, output)
        self._passed_on: tuple[float, RunLeft] | None = None  # when, and why this command can't collect

    def run(self) -> Summary:
        """Follow the run to its end.

        A run that succeeded or was cancelled leaves nothing in Redis but how it ended; one that failed leaves what it
        takes to resume it, unless it ends with its driver. An exception from outside, such as a signal's, cancels a run
        that ends with this driver, and leaves any other to its workers.

        Raises:
            RunFailed: it failed, or Redis lost it, or holds what can't be its state.
            RunLeft: this command can't go on with it: Redis doesn't answer, or the output can't be written.
            RunCancelled: it was cancelled.
        """
        try:
            with self._shipper or contextlib.nullcontext():
                while (summary := self._patiently(self._round)) is None:
                    self._patiently(self._wait)
                return summary
        except (redis.RedisError, RunLeft) as error:
            failure = error.failure if isinstance(error, RunLeft) else self._unreachable(error)
            self._leave(failure)
            raise RunFailed(failure) if self._spec.ends_with_driver else RunLeft(failure) from error
        except DamagedError as error:
            failure = Failure(str(error), can_resume=False)
            self._end(RunState.FAILED, failure)
            raise RunFailed(failure) from error
        except (RunFailed, RunCancelled):
            raise  # that has been seen to
        except BaseException:
            self._leave()
            raise
        finally:
            self._client.close()

    def _wait(self) -> None:
        """Wait for the next round: at the end of a run no longer than for what its last tasks tell."""
        seconds = _pause(time.monotonic() - self._began)
        if self._last and self._last.committed == self._last.phase.tasks:
            seconds = _AT_ONCE_SECONDS  # this round has advanced the run, and the next one sees it
        elif self._last and not self._last.pending:
            with contextlib.suppress(redis.exceptions.NoPermissionError):  # this user may only ask
                self._state.await_event(self._position, seconds)
                return
        time.sleep(seconds)

    def hand_over(self) -> None:
        """Enqueue what the workers need to begin, and leave the run to them.

        Raises:
            RunLeft: Redis doesn't answer.
        """
        try:
            self._patiently(lambda: tick(self._state, self._dispatch))
        except redis.RedisError as error:
            raise RunLeft(self._unreachable(error)) from error
        finally:
            self._client.close()

    def _patiently(self, act: Callable[[], T]) -> T:
        """Do what can be done again, until Redis answers. Raises redis.RedisError if it doesn't for too long."""
        began = time.monotonic()
        while True:
            try:
                return act()
            except redis.AuthenticationError:
                raise
            except (redis.ConnectionError, redis.TimeoutError):
                seconds = time.monotonic() - began
                if seconds > self._patience:
                    raise
                self._observer.away(seconds)
                time.sleep(_POLL_SECONDS)

    def _leave(self, failure: Failure | None = None) -> None:
        """Go while the run goes on; end one that can't."""
        if self._spec.ends_with_driver:
            self._end(RunState.FAILED if failure else RunState.CANCELLED, failure)
            return
        with self._impatient() as client, contextlib.suppress(redis.RedisError):
            State(client, self._spec.run).resign(self._name)  # so that nobody has to wait for the lease's end

    def _round(self) -> Summary | None:
        """Look, drive if nobody else does, and collect if all is done; return the summary of a run that is over."""
        drives = self._drives()
        if self._shipper:
            self._shipper.drives = drives
        facts = tick(self._state, self._dispatch) if drives else self._look()
        if facts is None or facts.state != RunState.RUNNING:
            return self._ended(facts)
        self._position, events = self._state.events(self._position)
        self._observer.update(facts, events)
        self._driven = time.monotonic() if facts.driver else self._driven
        if self._is_only_watching and time.monotonic() - self._driven > self._spec.lease_ms / 500:
            raise RunFailed(self._ownerless)
        if self._passed_on and time.monotonic() - self._passed_on[0] > _OTHERS_SECONDS:
            raise self._passed_on[1]
        try:
            if drives:
                self._arrivals.take(events)
            if drives and is_complete(facts):
                return self._collect(facts)
        except RunLeft as error:  # the stage isn't here; who sees it may be following the run, too
            self._passed_on = time.monotonic(), error
            self._state.resign(self._name)
        except OutputError as error:
            return self._without_output(error)
        except OSError as error:
            problem = f"the output can't be written to {self._output.directory}: {error.strerror or error}"
            raise RunLeft(Failure(problem)) from error
        self._last = facts.phases[-1] if drives and facts.phase + 1 == len(facts.phases) else None
        if drives and time.monotonic() - self._touched > self._spec.keep_ms / 4000:
            self._state.touch()
            self._touched = time.monotonic()
        return None

    @property
    def _is_only_watching(self) -> bool:
        return self._spec.ends_with_driver and not self._is_creator

    def _drives(self) -> bool:
        """Take or keep the driver's lease; whether this is the driver now."""
        if self._is_only_watching or self._passed_on or not self._may_drive:
            return False
        try:
            return self._state.drive(self._name, lease_ms=self._spec.lease_ms) is not None
        except redis.exceptions.NoPermissionError:
            if self._is_creator:
                raise
            self._may_drive = False  # it is a user who may only look
            return False

    def _look(self) -> Facts | None:
        return self._state.facts(workers=self._dispatch.workers())

    def _ended(self, facts: Facts | None) -> Summary:
        """Return the summary of a run that has ended, whoever has seen to that; clear away what is left of it."""
        if facts is not None:
            self._end(facts.state, facts.failure, seen=True)
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

    def _collect(self, facts: Facts) -> Summary | None:
        """Collect the output; None if the run isn't complete any more, since this process has slept meanwhile."""
        phases = self._spec.phases
        winners = [self._state.winners(phase) for phase in phases]
        if any(len(found) < phase.tasks for found, phase in zip(winners, phases, strict=True)):
            return None
        if not self._arrivals.are_complete(winners[-1]):
            return None
        outcomes = [[outcome for _, outcome in found.values()] for found in winners]
        paths = self._output.collect(parts_of(outcomes[-1]), skipped_of(self._spec, outcomes))
        summary = summarize(self._spec, outcomes, paths, (facts.now_ms - facts.started_ms) / 1000)
        end = self._succeed(summary)
        if end and end.state == RunState.CANCELLED:
            self._output.take_back(paths)
            raise RunCancelled(f"run {self._spec.run} was cancelled")
        return end.summary if end and end.summary else summary

    def _without_output(self, error: OutputError) -> Summary:
        """End a run whose output is gone."""
        facts_now = self._state.facts()
        if facts_now is None or facts_now.state != RunState.RUNNING:
            return self._ended(facts_now)  # another driver has collected it, and somebody has taken it away
        failure = Failure(str(error))
        self._end(RunState.FAILED, failure)
        raise RunFailed(failure) from error

    def _succeed(self, summary: Summary) -> End | None:
        """Note that the run succeeded. Its output is whole, so that a Redis that stays away is no failure.

        But one that is only restarted would keep the run, segments and all, for whoever comes to collect it.
        """
        if self._spec.ends_with_driver:
            return self._end(RunState.SUCCEEDED, summary=summary)
        with contextlib.suppress(redis.RedisError):
            return self._patiently(lambda: end_run(self._client, self._spec, RunState.SUCCEEDED, summary=summary))
        return None

    def _unreachable(self, error: redis.RedisError) -> Failure:
        told = f"Redis doesn't answer any more: {error}"
        return Failure(f"{self._ownerless.message} ({told})" if self._is_only_watching else told)

    @property
    def _ownerless(self) -> Failure:
        return Failure(
            f"the command that run {self._spec.run} belongs to is gone, and its output with it", can_resume=False
        )

    def _end(
        self, state: RunState, failure: Failure | None = None, *, summary: Summary | None = None, seen: bool = False
    ) -> End | None:
        """End the run as `end_run` does, if that is this command's business, and if Redis answers at once."""
        if self._is_only_watching:
            return None
        # Whoever pressed Ctrl-C doesn't want to wait for a dead server; and the output, if there is one, is whole.
        with self._impatient() as client, contextlib.suppress(redis.RedisError):
            return end_run(client, self._spec, state, failure, summary=summary, seen=seen)
        return None

    def _impatient(self) -> contextlib.closing[Client]:
        return contextlib.closing(clone(self._client, patient=False))


def end_run(
    client: Client,
    spec: Spec,
    state: RunState,
    failure: Failure | None = None,
    *,
    summary: Summary | None = None,
    seen: bool = False,
) -> End | None:
    """Give a run its last state, unless it has another one already; return how it ended, None if nobody knows.

    That is written down, and what nobody needs any more is removed: its tickets, and its keys unless they are for a
    resume. Can be repeated. `seen`: it was seen in that state, and is given none.
    """
    of_run = State(client, spec.run)
    of_run.adopt(spec)
    try:
        facts = of_run.facts()
        if facts is not None:  # else somebody else has done it
            end = End(spec.run, spec.job, state, spec.output, facts.started_ms, facts.now_ms, summary, failure)
            last = of_run.finish(state, failure, end, seen=seen)
            if last == RunState.RUNNING:  # it failed, and is resumed just now
                return None
            _clear_away(of_run, last, facts)
        return registry.read_end(client, spec.run)
    except DamagedError as error:
        return _end_damaged(of_run, state, failure or Failure(str(error), can_resume=False))


def _end_damaged(of_run: State, state: RunState, failure: Failure) -> End:
    """End a run whose state can't be read, and remove all of it: nobody could go on with it."""
    spec, now_ms = of_run.spec, of_run.now_ms()
    end = End(spec.run, spec.job, state, spec.output, now_ms, now_ms, None, failure)
    with contextlib.suppress(DamagedError):
        of_run.finish(state, failure, end)
    registry.write_end(of_run.client, end)
    of_run.unlink()
    return end


def _clear_away(of_run: State, last: RunState | None, facts: Facts) -> None:
    dispatch = Dispatch(of_run.client, of_run.spec.queue)
    dispatch.drop(of_run.tickets.waiting())
    for lost in facts.lost:  # its work-horse may be stuck in it, beyond hearing that the run is over
        dispatch.stop(lost.ticket)
    if last == RunState.FAILED and not of_run.spec.ends_with_driver:
        of_run.tickets.forget(of_run.tickets.waiting())
        of_run.depose()
        of_run.touch()
    else:
        of_run.unlink()


def _pause(age: float) -> float:
    """Seconds between two rounds: short runs are answered at once, long ones cost next to nothing."""
    return min(0.2, max(0.01, age / 50))
