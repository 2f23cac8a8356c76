"""Ships inputs to workers that don't see them: a thread beside the driver that answers their asks.

Every command that follows a run ships what it sees. The one that drives does so at once; the others take what has
waited for a while, so that they don't all read the same.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict

import msgspec
import redis

from rqmr.asks import DATA, PROBLEM, RANGE_BYTES
from rqmr.connection import clone, memory_of
from rqmr.errors import RqmrError
from rqmr.inputs import is_as_marked, path_of
from rqmr.memory import room_for_segments
from rqmr.model import Ask, Spec
from rqmr.state import State

#: Seconds between two looks for asks, when there were none and when there were some.
_IDLE_SECONDS, _BUSY_SECONDS = 0.05, 0.002
#: How long a shipment waits to be taken.
_LASTS_MS = 60_000
#: How old an ask has to be before a command answers it that doesn't drive, until it knows that the driver doesn't.
_OTHERS_MS = 300


class Shipper:
    """Answers the asks of one run while the block runs."""

    def __init__(self, state: State, spec: Spec, *, memory: int, is_planner: bool) -> None:
        """`memory`: bytes that may wait in Redis to be taken; `is_planner`: this command has planned the run.

        If that can't read an input any more, nobody can.
        """
        self.drives = False  # whether this command is the run's driver now
        self._client = clone(state.client, patient=False, seconds=5)
        self._state = State(self._client, spec.run)
        self._state.adopt(spec)
        self._memory = memory
        self._is_planner = is_planner
        self._waiting: OrderedDict[str, int] = OrderedDict()  # shipments that weren't seen to be taken -> bytes
        self._seen: dict[bytes, bool] = {}
        self._left_to_us: set[bytes] = set()  # inputs that nobody else was quick to ship
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rqmr shipper", daemon=True)

    def __enter__(self) -> Shipper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()
        with contextlib.suppress(redis.RedisError):
            if self._waiting:
                self._client.unlink(*self._waiting)
        self._client.close()

    def _run(self) -> None:
        pause = _IDLE_SECONDS
        while not self._closed.wait(pause):
            try:
                pause = _BUSY_SECONDS if self._answer() else _IDLE_SECONDS
            except (redis.RedisError, RqmrError):
                pause = _IDLE_SECONDS  # the driver sees to it that a Redis which stays away is told

    def _answer(self) -> bool:
        """Answer some of the asks; whether there were any that this command can answer."""
        pipe = self._client.pipeline(transaction=False)
        pipe.time()
        pipe.zrange(self._state.keys.asks, 0, -1, withscores=True)  # the first ones may be for what isn't here
        (seconds, micros), asks = pipe.execute()
        now_ms = seconds * 1000 + micros // 1000
        # What segments leave: a stock worker exits when the server refuses to write.
        room = room_for_segments(memory_of(self._client)) if asks else None
        is_any = False
        for packed, at in asks:
            if (ask := _ask(packed)) is None:
                self._client.zrem(self._state.keys.asks, packed)
                continue
            is_overdue = now_ms - at > _OTHERS_MS
            is_due = self.drives or is_overdue or ask.path in self._left_to_us
            if room is not None and room < RANGE_BYTES:
                return is_any
            if is_due and (answer := self._answer_to(ask)) is not None:
                self._wait_for_room(len(answer))
                if self._closed.is_set():
                    return True
                if self._ship(ask, packed, answer) and is_overdue:
                    self._left_to_us.add(ask.path)
                is_any = True
                room = None if room is None else room - len(answer)
        return is_any

    def _answer_to(self, ask: Ask) -> bytes | None:
        """Return the range that is asked for, or why nobody has it; None if this command doesn't see it."""
        if not self._sees(ask.path):
            problem = b"it is gone, or isn't any more what it was when the run was planned"
            return PROBLEM + problem if self._is_planner else None
        try:
            with path_of(ask.path).open("rb", buffering=0) as file:
                file.seek(ask.start)
                data = file.read(ask.size)
        except OSError as error:
            self._seen.pop(ask.path, None)
            return PROBLEM + str(error.strerror or error).encode() if self._is_planner else None
        if len(data) < ask.size:
            return PROBLEM + b"the file has become shorter since the run was planned"
        return DATA + data

    def _sees(self, path: bytes) -> bool:
        if path not in self._seen:
            # Only what the run reads is shipped, whatever is asked for.
            mark = self._state.marks([path])[path]
            self._seen[path] = mark is not None and is_as_marked(path, mark)
        return self._seen[path]

    def _wait_for_room(self, size: int) -> None:
        while self._waiting and sum(self._waiting.values()) + size > self._memory and not self._closed.wait(0):
            names = list(self._waiting)
            pipe = self._client.pipeline(transaction=False)
            for name in names:
                pipe.exists(name)
            taken = [name for name, is_there in zip(names, pipe.execute(), strict=True) if not is_there]
            for name in taken:
                del self._waiting[name]
            if not taken:
                self._closed.wait(_IDLE_SECONDS)

    def _ship(self, ask: Ask, packed: bytes, answer: bytes) -> bool:
        """Answer an ask; whether nobody else had."""
        key = self._state.keys.shipment(ask.id)
        if self._state.scripts.ship(packed, key, answer, lasts_ms=_LASTS_MS) != "SHIPPED":
            return False
        self._waiting[key] = len(answer)
        return True


def _ask(packed: bytes) -> Ask | None:
    """Return the ask that is packed; None if no worker can have made it."""
    try:
        ask = msgspec.msgpack.decode(packed, type=Ask)
    except msgspec.MsgspecError:
        return None
    return ask if ask.start >= 0 and 0 < ask.size <= RANGE_BYTES else None
