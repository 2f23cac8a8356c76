"""Who sees a run: what a view is told, and how the local workers' doings reach it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from rqmr.driver import Observer
from rqmr.errors import RunLeft
from rqmr.facts import Event, Facts, Header
from rqmr.local import Local
from rqmr.model import Failure
from rqmr.output import Output


class View(Observer, Protocol):
    """Who wants to see a run, with what is about it."""

    def begin(self, header: Header) -> None:
        """Take the run that is about to begin."""

    def printed(self, worker: str, line: str) -> None:
        """Take a line that a local worker printed."""

    def note(self, text: str) -> None:
        """Take a line of news."""

    def end(self) -> None:
        """Leave the terminal as it should be, whatever happened; twice does no harm."""


class Silent:
    """Sees nothing."""

    def begin(self, header: Header) -> None:
        """Do nothing."""

    def update(self, facts: Facts, events: Sequence[Event]) -> None:
        """Do nothing."""

    def away(self, seconds: float) -> None:
        """Do nothing."""

    def printed(self, worker: str, line: str) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""


class Watched:
    """Shows a run together with what its local workers print and how they fare."""

    def __init__(self, view: View, local: Local | None, output: Output) -> None:
        self._view = view
        self._local = local
        self._output = output
        self.tail: deque[str] = deque(maxlen=10)

    def update(self, facts: Facts, events: Sequence[Event]) -> None:
        """Show what is true, and what the workers have said meanwhile.

        Raises:
            RunLeft: the private server or the local workers are gone.
        """
        self._hear()
        self._view.update(facts, events)

    def away(self, seconds: float) -> None:
        """Show that Redis doesn't answer. Raises as `update`."""
        self._hear()
        self._view.away(seconds)

    def _hear(self) -> None:
        if self._local is not None:
            for worker, line in self._local.new_lines():
                self._print(worker, line)
            for event in self._local.events():
                self._tell(event)

    def drain(self) -> None:
        """Show what was printed last."""
        if self._local is not None:
            for worker, line in self._local.drain():
                self._print(worker, line)

    def _tell(self, event: dict[str, Any]) -> None:
        match event:
            case {"worker_died": name, "status": status}:
                self._view.note(f"worker {name} died ({status}) and is started again")
            case {"server_died": status, "log": log}:
                raise RunLeft(Failure(f"the private server ended with status {status}; its last words: {log}"))
            case {"supervisor_died": status}:
                raise RunLeft(Failure(f"the supervisor of the local workers ended with status {status}"))
            case {"error": text}:
                raise RunLeft(Failure(f"the local workers can't run: {text}"))

    def _print(self, worker: str, line: str) -> None:
        self.tail.append(f"{worker} | {line}")
        self._output.log(f"{worker} | {line}")
        self._view.printed(worker, line)
