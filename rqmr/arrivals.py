"""Brings the parts that travel into the stage, where they are collected like all others."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from rqmr.errors import OutputError, RunLeft
from rqmr.facts import Event
from rqmr.model import AttemptId, Failure, Outcome, TaskId
from rqmr.output import Output
from rqmr.parcels import bring_in
from rqmr.state import NOBODY, State
from rqmr.urls import is_url


class Arrivals:
    """The parts of one run, for a command that may collect them."""

    def __init__(self, state: State, output: Output) -> None:
        self._state = state
        self._output = output
        self._has_seen_stage = output.stage.is_dir()

    def take(self, events: Sequence[Event]) -> None:
        """Bring in what has been committed, so that it doesn't fill the server; does nothing where the stage isn't.

        Raises:
            OutputError: the stage was removed.
            OSError: a part can't be written.
        """
        spec = self._state.spec
        if not spec.is_spread or is_url(spec.stage) or not self._has_seen_stage:
            return
        for event in events:
            task = _task_of(event)
            if event.what == "committed" and task and task in spec.phases[-1]:
                if not self._output.stage.is_dir():
                    raise OutputError(f"{self._output.stage} was removed while the run wrote to it")
                if winner := self._state.winner(task):
                    self._bring(*winner)

    def are_complete(self, winners: Mapping[TaskId, tuple[AttemptId, Outcome]]) -> bool:
        """Bring in what isn't there yet; whether all is. The task of a part that is lost runs again.

        Raises:
            RunLeft: the stage isn't on this host.
            OSError: a part can't be written.
        """
        if not self._state.spec.is_spread or is_url(self._state.spec.stage):
            return True  # if one isn't there, collecting tells
        absent = {
            attempt: outcome
            for task, (attempt, outcome) in winners.items()
            if outcome.part and not self._output.has(task.index, outcome.part)
        }
        # If some are here, it is this host, and the others were removed.
        if len(absent) == len(winners) and not self._output.stage.is_dir() and not self._has_seen_stage:
            run = self._state.run
            raise RunLeft(
                Failure(
                    f"run {run} is done, but what it has written so far, {self._output.stage}, isn't on this host: "
                    f"collect it where it is (if it was removed, nobody can: rqmr cancel {run})"
                )
            )
        gone = [attempt for attempt, outcome in absent.items() if not self._bring(attempt, outcome)]
        return not gone

    def _bring(self, attempt: AttemptId, outcome: Outcome) -> bool:
        if outcome.part is None or not outcome.part.chunks:
            return True  # if it isn't there, collecting tells
        if bring_in(self._state, attempt, outcome.part, self._output.stage):
            return True
        self._state.reopen(attempt, outcome, NOBODY)
        return False


def _task_of(event: Event) -> TaskId | None:
    with contextlib.suppress(ValueError):
        return AttemptId.parse(event.subject).task
    return None
