"""One server's part of a sink: its chunks are sent as the server has memory, or spilled where it has none."""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from typing import NamedTuple

from rqmr.errors import AttemptEnded, StoreError, WorkerUnfit
from rqmr.keys import WRITER, segment_field
from rqmr.memory import room_for_segments
from rqmr.model import AttemptId
from rqmr.records import Place
from rqmr.spilled import Stub
from rqmr.stores import Full, Store, Stores

#: So little is sent without asking for the server's memory: that would take longer than a small task.
_TRIFLE = 64 << 10
#: Chunks below this stay in Redis: a stub would take nearly as much.
_WORTH_SPILLING = 1 << 10
#: Seconds between two looks for memory, and for one's turn to send a big chunk.
_POLL_SECONDS, _TURN_SECONDS = 0.1, 0.02
#: How long such a turn lasts if its end isn't told.
_ALONE_MS = 2_000
#: Connections of the server for each attempt that may write: its RQ worker has two, its work-horse three.
_CONNECTIONS = 3


class Chunk(NamedTuple):
    """A chunk on its way to a field of a hash, or the stub that stands for it."""

    shuffle: str
    field: str
    data: bytes


class Lane:
    """Sends one attempt's chunks to one server."""

    def __init__(self, stores: Stores, store: Store, attempt: AttemptId, place: Place, *, spills: bool) -> None:
        """`spills`: whether chunks may be spilled, if the run has where to."""
        self._stores = stores
        self._store = store
        self._attempt = attempt
        self._place = place
        self._spill = stores.spill if spills else None
        self._held: list[Chunk] = []
        self._size = 0  # bytes held
        self._spilled: list[str] = []  # files
        self._fields: dict[str, list[str]] = {}  # shuffle hash -> those that were sent, or are about to be

    def hold(self, chunk: Chunk) -> None:
        """Take a chunk; it is sent by the next `flush`."""
        self._held.append(chunk)
        self._size += len(chunk.data)
        self._fields.setdefault(chunk.shuffle, []).append(chunk.field)

    def flush(self) -> None:
        """Send what is held.

        Raises:
            AttemptEnded: the run has ended, or the place was told to stop.
            StoreError, WorkerUnfit: as `Store.serving`.
        """
        while self._held:
            try:
                is_sent = self._send_some()
            except Full:
                is_sent = self._may_spill and self._spill_held()
            self._place.waits = "" if is_sent else "memory"
            if not is_sent:
                self._rest(_POLL_SECONDS)

    def discard(self) -> None:
        """Remove all that was sent and spilled; on a server that doesn't answer nobody will read it."""
        if not self._store.is_away:
            with suppress(WorkerUnfit), self._store.serving():
                pipe = self._store.client.pipeline(transaction=False)
                for shuffle, fields in self._fields.items():
                    pipe.hdel(shuffle, *fields)
                pipe.execute()
        if self._spill:
            self._spill.remove(self._spilled)
        self._held, self._size, self._fields, self._spilled = [], 0, {}, []

    def sweep(self) -> None:
        """Remove what earlier attempts of the task have left, as this one has won; what can't be goes with the run.

        They cut their output alike, so their fields differ from this one's by the attempt's number alone.
        """
        task, earlier = self._attempt.task, range(1, self._attempt.number)
        with suppress(StoreError, WorkerUnfit), self._store.serving():
            pipe = self._store.client.pipeline(transaction=False)
            for shuffle, fields in self._fields.items():
                chunks = [int(field.rpartition(".")[2]) for field in fields]
                for number in earlier:
                    pipe.hdel(shuffle, *(segment_field(task.index, number, chunk) for chunk in chunks))
            pipe.execute()
        if self._spill:
            self._spill.remove_all_of([f"{AttemptId(task, number)}-" for number in earlier])

    def _send_some(self) -> bool:
        """Send as much as there is memory for, or spill; whether either was done. Raises Full if it is refused."""
        may_spill = self._may_spill
        if self._size <= _TRIFLE and not self._place.waits and not may_spill:
            self._send(len(self._held))
            return True
        room, writers = self._room(spills=may_spill)
        if room is None:
            self._send(len(self._held))
            return True
        # All who look now see the same room, and what is being received counts as used. So half of it is for shares,
        # and half for one who sends a chunk that is more than a share.
        fitting = self._fitting(room // 2 // writers)
        if may_spill and fitting < len(self._held):
            return self._spill_held()  # all of it, as one file
        if fitting:
            self._send(fitting)
            return True
        return self._fitting(room // 2) > 0 and self._send_alone()

    def _send_alone(self) -> bool:
        """Send one chunk when nobody else does so; whether there was memory for it."""
        client = self._store.client
        with self._store.serving():
            while not client.set(WRITER, str(self._attempt), nx=True, px=_ALONE_MS):
                self._rest(_TURN_SECONDS)
        try:
            room, _ = self._room(spills=False)
            if room is not None and not self._fitting(room // 2):
                return False
            self._send(1)
            return True
        finally:
            with self._store.serving():
                client.delete(WRITER)

    def _room(self, *, spills: bool) -> tuple[int | None, int]:
        """Return how many bytes may be written (None: any number), and by how many at a time."""
        with self._store.serving():
            memory = self._store.memory()
        return room_for_segments(memory, spills=spills), max(1, memory.clients // _CONNECTIONS)

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
        self._stores.write(self._store, fields)
        self._size -= sum(len(chunk.data) for chunk in self._held[:count])
        del self._held[:count]

    @property
    def _may_spill(self) -> bool:
        return self._spill is not None and any(len(chunk.data) >= _WORTH_SPILLING for chunk in self._held)

    def _spill_held(self) -> bool:
        """Write the chunks held to a file, and hold a stub for each; those that are smaller stay as they are."""
        assert self._spill
        big = [chunk.data for chunk in self._held if len(chunk.data) >= _WORTH_SPILLING]
        # A server that lost its last second gives the same number to another attempt.
        name = f"{self._attempt}-{secrets.token_hex(4)}"
        with self._stores.seeing_spill():
            self._spill.write(name, b"".join(big))
        self._spilled.append(name)
        held, start = [], 0
        for chunk in self._held:
            if len(chunk.data) >= _WORTH_SPILLING:
                stub = Stub(name, start, len(chunk.data)).encode()
                start += len(chunk.data)
                chunk = chunk._replace(data=stub)
            held.append(chunk)
        self._held, self._size = held, sum(len(chunk.data) for chunk in held)
        return True

    def _rest(self, seconds: float) -> None:
        if self._place.stopped:
            raise AttemptEnded(f"{self._attempt} was told to stop")
        time.sleep(seconds)
