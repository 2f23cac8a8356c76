"""Segments in Redis: where a task writes its own, and where a reduce task reads the winners'."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import redis

from rqmr.connection import memory_of
from rqmr.errors import AttemptEnded, PhaseReopened, StoreError
from rqmr.keys import segment_field
from rqmr.memory import room_for_segments
from rqmr.model import AttemptId, Outcome, TaskId
from rqmr.state import State
from rqmr.tasks import Place

#: Bytes that are sent in one go, and about what one reply may hold.
_WINDOW = 4 << 20
#: So little is sent without asking for the server's memory: that would take longer than a small task.
_TRIFLE = 64 << 10
#: Seconds between two looks for memory.
_POLL_SECONDS = 0.1
#: Segments whose first chunk is asked for in one go.
_HEADS = 64
#: Keys in one go.
_BATCH = 1000


class _Chunk(NamedTuple):
    shuffle: str
    field: str
    data: bytes


class RedisSink:
    """Writes one attempt's segments. Call `flush` before the commit."""

    def __init__(self, state: State, attempt: AttemptId, place: Place | None = None) -> None:
        """`place`: where the attempt is; it hears of waiting, and ends it when it is told to stop."""
        self._state = state
        self._attempt = attempt
        self._place = place or Place()
        phase = state.spec.phase_of(attempt.task)
        phases = state.spec.phases
        self._step = phases[phase + 1].step if phase + 1 < len(phases) else -1
        self._held: list[_Chunk] = []
        self._size = 0  # bytes held
        self._chunks: dict[int, int] = {}  # partition -> greatest number of a chunk

    def write(self, partition: int, chunk: int, data: bytes) -> None:
        """Store one chunk of the segment for a partition; waits while the server has no memory for it.

        Raises:
            AttemptEnded: the run has ended, or the place was told to stop.
        """
        self._chunks[partition] = max(chunk, self._chunks.get(partition, 0))
        self._held.append(_Chunk(self._state.keys.shuffle(self._step, partition), self._field(chunk), data))
        self._size += len(data)
        if self._size > _WINDOW:
            self.flush()

    def flush(self) -> None:
        """Send what is held. Raises as `write`."""
        while self._held:
            fitting = self._fitting()
            if fitting and self._send(self._held[:fitting]):
                self._size -= sum(len(chunk.data) for chunk in self._held[:fitting])
                del self._held[:fitting]
                self._place.waits = False
            else:
                self._wait()

    def discard(self) -> None:
        """Remove all chunks that were written; for an attempt whose output isn't wanted."""
        pipe = self._state.client.pipeline(transaction=False)
        for partition, last in self._chunks.items():
            fields = [self._field(number) for number in range(last + 1)]
            pipe.hdel(self._state.keys.shuffle(self._step, partition), *fields)
        pipe.execute()

    def _fitting(self) -> int:
        """Return how many of the chunks held there is memory for: as much is left to every other connection."""
        if self._size <= _TRIFLE and not self._place.waits:
            return len(self._held)
        with _not_charged():
            memory = memory_of(self._state.client)
        room = room_for_segments(memory)
        if room is None:
            return len(self._held)
        count = size = 0
        for count, chunk in enumerate(self._held):
            size += len(chunk.data)
            if size > room or (count and size > room // memory.clients):
                return count
        return count + 1

    def _send(self, chunks: list[_Chunk]) -> bool:
        """Write chunks, or write them again; whether the server took all of them."""
        fields: dict[str, dict[str, bytes]] = {}
        for chunk in chunks:
            fields.setdefault(chunk.shuffle, {})[chunk.field] = chunk.data
        try:
            with _not_charged():
                replies = self._state.scripts.write(fields)
        except _Full:
            return False
        if "ENDED" in replies:
            raise AttemptEnded(f"run {self._state.run} has ended")
        return True

    def _wait(self) -> None:
        self._place.waits = True
        if self._place.stopped:
            raise AttemptEnded(f"{self._attempt} was told to stop")
        time.sleep(_POLL_SECONDS)

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


def segments_size(state: State, phase: int) -> int | None:
    """Return how many bytes the segments take that the tasks of a phase have written; None if it may not be asked."""
    size = 0
    for names in _shuffles(state, phase + 1, phase + 2):
        pipe = state.client.pipeline(transaction=False)
        for name in names:
            pipe.memory_usage(name, samples=0)  # of all fields: chunks differ in size
        try:
            size += sum(each or 0 for each in pipe.execute())
        except redis.ResponseError:
            return None
    return size


def drop_segments(state: State) -> None:
    """Remove all segments of a run that has ended, so nobody writes any more, and who won with them.

    If it is resumed it begins anew.
    """
    for phase in state.spec.phases[:-1]:
        state.client.unlink(state.keys.winners(phase), state.keys.totals(phase), state.keys.durations(phase))
    for names in _shuffles(state, 1, None):
        state.client.unlink(*names)


def _shuffles(state: State, first: int, last: int | None) -> Iterator[list[str]]:
    """Yield the shuffle hashes that some of the phases read, in batches."""
    phases = state.spec.phases[first:last]
    names = [state.keys.shuffle(phase.step, reducer) for phase in phases for reducer in range(phase.tasks)]
    yield from (names[start : start + _BATCH] for start in range(0, len(names), _BATCH))


class _Full(StoreError):
    """The server refuses to write."""


@contextmanager
def _not_charged() -> Iterator[None]:
    # Inside a task, where any other exception is taken for the job's own.
    try:
        yield
    except redis.OutOfMemoryError as error:
        raise _Full(f"{type(error).__name__}: {error}") from error
    except redis.RedisError as error:
        raise StoreError(f"{type(error).__name__}: {error}") from error
