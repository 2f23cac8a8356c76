"""One round of a run's decisions: read the facts, ask the scheduler, act. Idempotent: anyone may tick, at any time."""

from __future__ import annotations

from rqmr.dispatch import Dispatch
from rqmr.model import Facts
from rqmr.scheduler import Advance, BackUp, Enqueue, Expire, Instruction, LookFor, decide
from rqmr.state import State


def tick(state: State, dispatch: Dispatch) -> Facts | None:
    """Do what is to be done for a run now; return the facts that it was decided from, None if the run is gone."""
    facts = state.facts(workers=dispatch.workers())
    if facts is not None:
        for instruction in decide(facts):
            _act(instruction, state, dispatch)
    return facts


def _act(instruction: Instruction, state: State, dispatch: Dispatch) -> None:
    match instruction:
        case Expire(attempt):
            state.expire(attempt)
        case Advance(phase):
            state.advance(phase)
        case Enqueue(count):
            dispatch.enqueue(state.run, state.new_tickets(count))
        case LookFor(tickets):
            missing = set(dispatch.missing(tickets))
            state.forget_tickets(missing)
            state.keep_tickets(set(tickets) - missing)
        case BackUp(attempt, worker):
            state.back_up(attempt, worker)
