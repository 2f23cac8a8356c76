"""Reads who has won a run's tasks, with what its attempt had to say."""

from __future__ import annotations

import re

import msgspec

from rqmr.connection import Client, reading_keys
from rqmr.damage import whole
from rqmr.keys import RunKeys
from rqmr.model import AttemptId, Outcome, Part, Phase, TaskId

#: Of one part: more than any server holds.
_MOST_CHUNKS = 1 << 20

Winner = tuple[AttemptId, Outcome]

_decode = msgspec.msgpack.Decoder(Outcome).decode


class Winners:
    """The winners of one run.

    A work-horse asks for those of a phase at each reduce task, and there may be many thousands: only entries that it
    hasn't seen are decoded.
    """

    def __init__(self, client: Client, run: str, keys: RunKeys) -> None:
        self._client = client
        self._run = run
        self._keys = keys
        self._phase: Phase | None = None
        self._known: dict[bytes, tuple[bytes, TaskId, Winner]] = {}  # of that phase: task -> entry, and what it says

    def of_phase(self, phase: Phase) -> dict[TaskId, Winner]:
        """Return the winner of each committed task of a phase, in the order of the tasks.

        Raises:
            DamagedError: an entry can't be what rqmr wrote.
        """
        with reading_keys(f"a winner of phase {phase.name} of run {self._run}"):
            entries = self._client.hgetall(self._keys.winners(phase))
            before = self._known if phase == self._phase else {}
            known = {}
            for name, entry in entries.items():
                seen = before.get(name)
                known[name] = seen if seen and seen[0] == entry else (entry, *_read(phase, name.decode(), entry))
        self._phase, self._known = phase, known
        return {task: winner for _, task, winner in sorted(known.values(), key=lambda each: each[1].index)}

    def of_task(self, task: TaskId, phase: Phase) -> Winner | None:
        """Return the winner of a phase's task, if it has one. Raises as `of_phase`."""
        with reading_keys(f"the winner of {task} of run {self._run}"):
            entry = self._client.hget(self._keys.winners(task), str(task))
            return _read(phase, str(task), entry)[1] if entry else None


def _read(phase: Phase, name: str, entry: bytes) -> tuple[TaskId, Winner]:
    """Return the task of that name with its winner; ValueError if the entry can't be its."""
    task = TaskId.parse(name)
    head, _, packed = entry.partition(b"\n")
    attempt = AttemptId(task, int(head.rpartition(b"-a")[2]))
    if str(attempt).encode() != head or attempt.number < 1 or task not in phase or task.index >= phase.tasks:
        raise ValueError(f"{head!r} has won {task}")
    outcome = _decode(packed)
    if outcome.part and not _can_be(outcome.part):
        raise ValueError(f"{outcome.part!r} is no part")
    for amount in (outcome.records, outcome.size, outcome.written, outcome.values, outcome.largest_key[1]):
        whole(amount)
    return task, (attempt, outcome)


def _can_be(part: Part) -> bool:
    """Whether a part may be brought in and collected: its file is written and moved, and may not lie elsewhere."""
    is_name = re.fullmatch(r"\w[\w.-]*", part.file, re.ASCII) is not None
    return is_name and part.size >= 0 and 0 <= part.chunks <= _MOST_CHUNKS
