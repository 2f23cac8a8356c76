"""One round of a run's decisions: read the facts, ask the scheduler, act. Idempotent: anyone may tick, at any time."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import redis
from msgspec import structs

from rqmr.dispatch import Dispatch
from rqmr.facts import Event, Facts, RunningAttempt
from rqmr.failures import nobody_is_fit
from rqmr.memory import shortage_failure
from rqmr.model import RunState
from rqmr.scheduler import (
    Advance,
    AskAfter,
    BackUp,
    Enqueue,
    Expire,
    GiveUp,
    GoOn,
    Instruction,
    LookFor,
    Pause,
    Stop,
    decide,
    policy_of,
)
from rqmr.segments import drop_segments, segments_size
from rqmr.state import State


def tick(state: State, dispatch: Dispatch) -> Facts | None:
    """Do what is to be done for a run now; return the facts that it was decided from, None if the run is gone."""
    facts = state.facts(workers=dispatch.workers())
    if facts is not None:
        if facts.writes_segments:
            facts = structs.replace(facts, memory=state.stores.fullest(facts.memory))
        for instruction in decide(facts, policy_of(state.spec)):
            with contextlib.suppress(redis.OutOfMemoryError):  # the server is full: the next tick may get through
                _act(instruction, facts, state, dispatch)
    return facts


def _act(instruction: Instruction, facts: Facts, state: State, dispatch: Dispatch) -> None:
    match instruction:
        case Expire(attempt):
            state.expire(attempt)
        case AskAfter(attempts):
            _ask_after(attempts, state, dispatch)
        case Stop(attempt, ticket):
            dispatch.stop(ticket)
            state.let_go(attempt)
        case Advance(phase):
            state.advance(phase)
        case Enqueue(count):
            dispatch.enqueue(state.run, state.tickets.issue(count))
        case LookFor(tickets):
            _look_for(tickets, state, dispatch)
        case BackUp(attempt, worker):
            state.back_up(attempt, worker)
        case Pause(committed, memory):
            state.pause(committed, memory)
        case GoOn(memory):
            state.go_on(memory)
        case GiveUp():
            _give_up(facts, state)


def _give_up(facts: Facts, state: State) -> None:
    """Fail the run for want of memory; what it holds is kept for a resume, unless other runs need the room."""
    segments = segments_size(state, facts.phase, facts.memory.server)
    failure = shortage_failure(facts, segments, spills=bool(state.spec.spill))
    state.finish(RunState.FAILED, failure)
    now = state.facts()
    if facts.neighbours and now and now.failure == failure:  # else it has ended otherwise
        drop_segments(state)


def _ask_after(attempts: Sequence[RunningAttempt], state: State, dispatch: Dispatch) -> None:
    """Expire the attempts whose work-horse is gone, as RQ has seen: its worker waits for it."""
    over = dispatch.over({attempt.ticket for attempt in attempts})
    for attempt in attempts:
        if attempt.ticket in over:
            state.expire(attempt.id, dead_since=attempt.renewed_ms, how=over[attempt.ticket])


def _look_for(tickets: Sequence[str], state: State, dispatch: Dispatch) -> None:
    """Forget the tickets that aren't queued any more, and tell of those that a worker couldn't run."""
    missing = set(dispatch.missing(tickets))
    refusals = dispatch.refusals(missing)
    for worker, problem in refusals:
        state.tell("refused", worker, problem)
    state.tickets.forget(missing)
    state.tickets.keep(set(tickets) - missing)
    if refusals:
        fail_if_nobody_is_fit(state, dispatch)


def fail_if_nobody_is_fit(state: State, dispatch: Dispatch) -> None:
    """Fail the run if all workers that listen have refused it, and for so long that others could have come."""
    facts = state.facts()
    if facts is None or facts.state != RunState.RUNNING or facts.running:
        return
    events, listening = _all_events(state), dispatch.listening()
    if failure := nobody_is_fit(events, listening, now_ms=facts.now_ms, patience_ms=state.spec.lease_ms):
        state.finish(RunState.FAILED, failure)


def _all_events(state: State) -> list[Event]:
    since, events = state.events()
    found = list(events)
    while events:
        since, events = state.events(since)
        found += events
    return found
