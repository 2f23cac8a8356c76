"""Segments in Redis: where a task writes its own, and where a reduce task reads the winners'."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis

from rqmr.errors import AttemptEnded, PhaseReopened, StoreError
from rqmr.keys import segment_field
from rqmr.model import AttemptId, Outcome, TaskId
from rqmr.state import State

#: Bytes that are sent in one go, and about what one reply may hold.
_WINDOW = 4 << 20
#: Segments whose first chunk is asked for in one go.
_HEADS = 64


class RedisSink:
    """Writes one attempt's segments. Call `flush` before the commit."""

    def __init__(self, state: State, attempt: AttemptId) -> None:
        self._state = state
        self._attempt = attempt
        phase = state.spec.phase_of(attempt.task)
        phases = state.spec.phases
        self._step = phases[phase + 1].step if phase + 1 < len(phases) else -1
        self._waiting: dict[str, dict[str, bytes]] = {}
        self._held = 0
        self._chunks: dict[int, int] = {}  # partition -> greatest number of a chunk

    def write(self, partition: int, chunk: int, data: bytes) -> None:
        """Store one chunk of the segment for a partition.

        Raises:
            AttemptEnded: the run has ended.
        """
        self._chunks[partition] = max(chunk, self._chunks.get(partition, 0))
        self._waiting.setdefault(self._state.keys.shuffle(self._step, partition), {})[self._field(chunk)] = data
        self._held += len(data)
        if self._held > _WINDOW:
            self.flush()

    def flush(self) -> None:
        """Send what is held."""
        waiting, self._waiting, self._held = self._waiting, {}, 0
        if not waiting:
            return
        with _not_charged():
            replies = self._state.scripts.write(waiting)
        if "ENDED" in replies:
            raise AttemptEnded(f"run {self._state.run} has ended")

    def discard(self) -> None:
        """Remove all chunks that were written; for an attempt whose output isn't wanted."""
        pipe = self._state.client.pipeline(transaction=False)
        for partition, last in self._chunks.items():
            fields = [self._field(number) for number in range(last + 1)]
            pipe.hdel(self._state.keys.shuffle(self._step, partition), *fields)
        pipe.execute()

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
        self._shuffle = state.keys.shuffle(task.step, task.index)
        phase = state.spec.phases[state.spec.phase_of(task) - 1]
        winners = state.winners(phase)
        if len(winners) < phase.tasks:
            raise PhaseReopened(f"phase {phase.name} has been opened again")
        self.winners: dict[int, tuple[AttemptId, Outcome]] = {
            each.index: winner for each, winner in winners.items() if winner[1].has_partition(task.index)
        }

    def heads(self) -> Iterator[tuple[int, bytes | None]]:
        """Yield each producer that has a segment, ascending, with its chunk 0 (None: missing)."""
        producers = sorted(self.winners)
        for start in range(0, len(producers), _HEADS):
            some = producers[start : start + _HEADS]
            with _not_charged():
                heads = self._state.client.hmget(self._shuffle, [self._field(producer, 0) for producer in some])
            yield from zip(some, heads, strict=True)

    def chunk(self, producer: int, number: int) -> bytes | None:
        """Return one more chunk of a producer's segment (None: missing)."""
        with _not_charged():
            data = self._state.client.hget(self._shuffle, self._field(producer, number))
        return None if data is None else bytes(data)

    def _field(self, producer: int, chunk: int) -> str:
        return segment_field(producer, self.winners[producer][0].number, chunk)


@contextmanager
def _not_charged() -> Iterator[None]:
    # Inside a task, where any other exception is taken for the job's own.
    try:
        yield
    except redis.RedisError as error:
        raise StoreError(f"{type(error).__name__}: {error}") from error
