"""Segments in Redis: where a task writes its own, and where a reduce task reads the winners'."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import redis

from rqmr.connection import memory_of
from rqmr.errors import AttemptEnded, PhaseReopened, StoreError
from rqmr.keys import WRITER, segment_field
from rqmr.memory import room_for_segments
from rqmr.model import AttemptId, Outcome, TaskId
from rqmr.records import Place
from rqmr.state import State

#: Bytes that are sent in one go, and about what one reply may hold.
_WINDOW = 4 << 20
#: So little is sent without asking for the server's memory: that would take longer than a small task.
_TRIFLE = 64 << 10
#: Seconds between two looks for memory, and for one's turn to send a big chunk.
_POLL_SECONDS, _TURN_SECONDS = 0.1, 0.02
#: How long such a turn lasts if its end isn't told.
_ALONE_MS = 2_000
#: Connections of the server for each attempt that may write: its RQ worker has two, its work-horse three.
_CONNECTIONS = 3
#: Keys in one go.
_BATCH = 1000


class _Chunk(NamedTuple):
    shuffle: str
    field: str
    data: bytes


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
        self._held: list[_Chunk] = []
        self._size = 0  # bytes held
        self._chunks: dict[int, int] = {}  # partition -> greatest number of a chunk

    def write(self, partition: int, chunk: int, data: bytes) -> None:
        """Store one chunk of the segment for a partition; waits while the server has no memory for it.

        Raises:
            AttemptEnded: the run has ended, or the place was told to stop.
        """
        self._chunks[partition] = max(chunk, self._chunks.get(partition, 0))
        self._held.append(_Chunk(self._key(partition), self._field(chunk), data))
        self._size += len(data)
        if self._size > _WINDOW:
            self.flush()

    def flush(self) -> None:
        """Send what is held. Raises as `write`."""
        while self._held:
            try:
                is_sent = self._send_some()
            except _Full:
                is_sent = False
            self._place.waits = "" if is_sent else "memory"
            if not is_sent:
                self._rest(_POLL_SECONDS)

    def discard(self) -> None:
        """Remove all chunks that were written: this output isn't wanted."""
        pipe = self._state.client.pipeline(transaction=False)
        for partition, last in self._chunks.items():
            fields = [self._field(number) for number in range(last + 1)]
            pipe.hdel(self._key(partition), *fields)
        pipe.execute()
        self._held, self._size, self._chunks = [], 0, {}

    def _send_some(self) -> bool:
        """Send as much as there is memory for; whether there was any. Raises _Full if the server refuses it."""
        if self._size <= _TRIFLE and not self._place.waits:
            self._send(len(self._held))
            return True
        room, writers = self._room()
        if room is None:
            self._send(len(self._held))
            return True
        # All who look now see the same room, and what is being received counts as used. So half of it is for shares,
        # and half for one who sends a chunk that is more than a share.
        if fitting := self._fitting(room // 2 // writers):
            self._send(fitting)
            return True
        return self._fitting(room // 2) > 0 and self._send_alone()

    def _send_alone(self) -> bool:
        """Send one chunk when nobody else does so; whether there was memory for it."""
        client = self._state.client
        with _not_charged():
            while not client.set(WRITER, str(self._attempt), nx=True, px=_ALONE_MS):
                self._rest(_TURN_SECONDS)
        try:
            room, _ = self._room()
            if room is not None and not self._fitting(room // 2):
                return False
            self._send(1)
            return True
        finally:
            with _not_charged():
                client.delete(WRITER)

    def _room(self) -> tuple[int | None, int]:
        """Return how many bytes may be written (None: any number), and by how many at a time."""
        with _not_charged():
            memory = memory_of(self._state.client)
        return room_for_segments(memory), max(1, memory.clients // _CONNECTIONS)

    def _fitting(self, size: int) -> int:
        """Return how many of the chunks held are not more than these bytes."""
        for count, chunk in enumerate(self._held):
            size -= len(chunk.data)
            if size < 0:
                return count
        return len(self._held)

    def _send(self, count: int) -> None:
        """Write some of the chunks held, or write them again."""
        fields: dict[str, dict[str, bytes]] = {}
        for chunk in self._held[:count]:
            fields.setdefault(chunk.shuffle, {})[chunk.field] = chunk.data
        with _not_charged():
            replies = self._state.scripts.write(fields)
        if "ENDED" in replies:
            raise AttemptEnded(f"run {self._state.run} has ended")
        self._size -= sum(len(chunk.data) for chunk in self._held[:count])
        del self._held[:count]

    def _rest(self, seconds: float) -> None:
        if self._place.stopped:
            raise AttemptEnded(f"{self._attempt} was told to stop")
        time.sleep(seconds)

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
        self._shuffle = state.keys.shuffle(task.step, task.index)
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
        with _not_charged():
            return list(self._state.client.hmget(self._shuffle, [self._field(*each) for each in wanted]))

    def _field(self, producer: int, chunk: int) -> str:
        return segment_field(producer, self.winners[producer][0].number, chunk)


def segments_size(state: State, phase: int) -> int | None:
    """Return how many bytes the segments take that the tasks of a phase have written; None if it may not be asked."""
    size = 0
    names = [
        state.keys.shuffle(reads.step, reducer)
        for reads in state.spec.phases[phase + 1 : phase + 2]
        for reducer in range(reads.tasks)
    ]
    for start in range(0, len(names), _BATCH):
        pipe = state.client.pipeline(transaction=False)
        for name in names[start : start + _BATCH]:
            pipe.memory_usage(name, samples=0)  # of all fields: chunks differ in size
        try:
            size += sum(each or 0 for each in pipe.execute())
        except redis.ResponseError:
            return None
    return size


def drop_segments(state: State) -> None:
    """Remove all segments of a run that has failed, and who won with them, unless it is being resumed.

    If it is resumed later it begins anew.
    """
    kept = state.winners(state.spec.phases[-1]).values()
    state.scripts.drop(state.spec.phases, skipped=sum(len(outcome.skipped) for _, outcome in kept))


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
