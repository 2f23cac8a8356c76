"""Segments in Redis: where a task writes its own, and where a reduce task reads the winners'."""

from __future__ import annotations

from collections.abc import Sequence

from rqmr.errors import PhaseReopened
from rqmr.keys import segment_field
from rqmr.lanes import Chunk, Lane
from rqmr.model import AttemptId, Outcome, TaskId
from rqmr.records import Place
from rqmr.state import State

#: Bytes that are sent in one go, and about what one reply may hold.
_WINDOW = 4 << 20


class RedisSink:
    """Writes one attempt's segments or, in the last phase, its part. Call `flush` before the commit."""

    def __init__(self, state: State, attempt: AttemptId, place: Place | None = None) -> None:
        """`place`: where the attempt is; it hears of waiting, and ends it when it is told to stop."""
        self._state = state
        self._attempt = attempt
        self._place = place or Place()
        phase = state.spec.phase_of(attempt.task)
        phases = state.spec.phases
        self._step = phases[phase + 1].step if phase + 1 < len(phases) else None
        self._lanes: dict[int, Lane] = {}  # by the server's number
        self._size = 0  # bytes since the last flush

    def write(self, partition: int, chunk: int, data: bytes) -> None:
        """Store one chunk of the segment for a partition; waits while its server has no memory for it.

        Raises:
            AttemptEnded: the run has ended, or the place was told to stop.
            WorkerUnfit: this process can't use that server, or doesn't see what chunks are spilled to.
        """
        self._lane(partition).hold(Chunk(self._key(partition), self._field(chunk), data))
        self._size += len(data)
        if self._size > _WINDOW:
            self.flush()

    def flush(self) -> None:
        """Send what is held. Raises as `write`."""
        for lane in self._lanes.values():
            lane.flush()
        self._size = 0

    def discard(self) -> None:
        """Remove all chunks that were written: this output isn't wanted."""
        for lane in self._lanes.values():
            lane.discard()
        self._size = 0

    def sweep(self) -> None:
        """Remove what earlier attempts of the task have left, as this one has won.

        Else a task that runs again, since a server lost its segments, would have them twice on the others.
        """
        if self._attempt.number > 1:
            for lane in self._lanes.values():
                lane.sweep()

    def _lane(self, partition: int) -> Lane:
        stores = self._state.stores
        partition = 0 if self._step is None else partition  # parts are on the run's own Redis
        number = stores.number_of(partition)
        if number not in self._lanes:
            self._lanes[number] = Lane(
                stores, stores.of(partition), self._attempt, self._place, spills=self._step is not None
            )
        return self._lanes[number]

    def _key(self, partition: int) -> str:
        keys = self._state.keys
        return keys.parts if self._step is None else keys.shuffle(self._step, partition)

    def _field(self, chunk: int) -> str:
        return segment_field(self._attempt.task.index, self._attempt.number, chunk)


class RedisSegments:
    """Reads the segments that the winners of a phase have for one reducer."""

    def __init__(self, state: State, task: TaskId) -> None:
        """`task`: the reduce task that reads.

        Raises:
            PhaseReopened: a task whose segment may be needed has to run again first.
        """
        self._state = state
        self._task = task
        phase = state.spec.phases[state.spec.phase_of(task) - 1]
        winners = state.winners(phase)
        if len(winners) < phase.tasks:
            raise PhaseReopened(f"phase {phase.name} has been opened again")
        self.winners: dict[int, tuple[AttemptId, Outcome]] = {
            each.index: winner for each, winner in winners.items() if winner[1].has_partition(task.index)
        }

    def producers(self) -> list[int]:
        """Return who has a segment, ascending."""
        return sorted(self.winners)

    def chunks(self, wanted: Sequence[tuple[int, int]]) -> list[bytes | None]:
        """Return chunks: for each (producer, number) its bytes, or None if it is missing."""
        fields = [self._field(*each) for each in wanted]
        return self._state.stores.fetch(self._task.step, self._task.index, fields)

    def _field(self, producer: int, chunk: int) -> str:
        return segment_field(producer, self.winners[producer][0].number, chunk)


def segments_size(state: State, phase: int, server: str = "") -> int | None:
    """Return how many bytes the segments that the tasks of a phase have written take on a server, as `Stores.sizes`."""
    if phase + 1 == len(state.spec.phases):
        return 0
    reads = state.spec.phases[phase + 1]
    return state.stores.sizes(reads.step, reads.tasks, server)


def drop_segments(state: State) -> None:
    """Remove all segments of a run that has failed, and who won with them, unless it is being resumed.

    If it is resumed later it begins anew.
    """
    kept = state.winners(state.spec.phases[-1]).values()
    word = state.scripts.drop(state.spec.phases, skipped=sum(len(outcome.skipped) for _, outcome in kept))
    if word == "DROPPED":
        state.stores.drop()
