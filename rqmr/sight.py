"""What a worker sees of a run's inputs and of its stage: found out by looking, not by comparing the names of hosts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from rqmr.errors import DamagedError, SignatureError
from rqmr.inputs import is_as_marked
from rqmr.model import Kind, Split, TaskId
from rqmr.state import State
from rqmr.urls import is_url

#: Tasks from the front of the line, and as many from behind, among which one is looked for whose input is here.
_CHOICE = 32


class Sight:
    """What this work-horse sees of one run."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._seen: dict[bytes, bool] = {}
        self._near_tasks: dict[str, bool] = {}
        self._is_blind = False  # whether there was an input that it doesn't see

    def sees(self, split: Split) -> bool:
        """Whether all files of a split are here, as they were when the run was planned."""
        if not self._state.spec.is_spread:
            return True
        paths = dict.fromkeys(piece.path for piece in split.pieces)
        if unknown := [path for path in paths if path not in self._seen]:
            marks = self._state.marks(unknown)
            # One without a mark is read by the workers themselves.
            self._seen |= {path: mark is None or is_as_marked(path, mark) for path, mark in marks.items()}
        is_seen = all(self._seen[path] for path in paths)
        self._is_blind = self._is_blind or not is_seen
        return is_seen

    def sees_file(self, path: bytes) -> bool:
        """Whether a file of a split that was looked at is here."""
        return self._seen.get(path, True)

    def sees_stage(self) -> bool:
        """Whether the stage is here. Its name has the run's, so that another directory can't be taken for it."""
        spec = self._state.spec
        return not spec.is_spread or is_url(spec.stage) or Path(spec.stage).is_dir()

    def prefer(self, named: str) -> str:
        """Return the task to ask for: the one that was named or, if its input isn't here, a pending one whose is.

        Any of them, so that the work-horses of one host don't all ask for the same; from the front of the line and from
        anywhere in it, since the tasks of one file stand side by side.
        """
        if not self._state.spec.is_spread:
            return named
        if named and not self._is_blind:
            self._near([named])
        if not self._is_blind:
            return named
        length = self._state.client.zcard(self._state.keys.pending)
        behind = range(min(_CHOICE, length), length)
        ranks = [*range(_CHOICE), *random.sample(behind, min(_CHOICE, len(behind)))]
        near = self._near(self._state.pending(ranks))
        return random.choice(near) if near else named

    def _near(self, tasks: Sequence[str]) -> list[str]:
        """Return those of the tasks whose inputs are here; none if that can't be known."""
        try:
            maps = {task: TaskId.parse(task).index for task in tasks if TaskId.parse(task).kind == Kind.MAP}
            unknown = [task for task in maps if task not in self._near_tasks]
            splits = self._state.splits([maps[task] for task in unknown])
            self._near_tasks |= {task: self.sees(splits[maps[task]]) for task in unknown}
        except (ValueError, DamagedError, SignatureError):
            return []
        return [task for task in tasks if self._near_tasks.get(task, True)]
