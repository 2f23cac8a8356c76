"""Reads an input that this worker doesn't see: asks for ranges of it, which a command that sees it ships through Redis.

An ask is idempotent, and is made again after a while, since who was about to answer it may be gone. What was shipped
waits in a list that expires, and is taken out of it by who asked; so a reader holds two ranges at a time at most.
"""

from __future__ import annotations

import errno
import io
import os
import secrets
import time
from collections import deque
from typing import Any

import msgspec
import redis

from rqmr.connection import Client, clone
from rqmr.errors import AttemptEnded, StoreError
from rqmr.model import Ask, AttemptId, Piece
from rqmr.records import Place
from rqmr.state import State

#: Bytes of one shipment: enough that the way there and back doesn't matter, little enough that many fit into memory.
RANGE_BYTES = 1 << 20
#: A line that begins in a piece may end behind it; so much is asked for then.
_REST_BYTES = 16 << 10
#: Ranges that are asked for before the first of them is needed.
_AHEAD = 2
#: Seconds after which it is asked again, and for how long Redis is asked at a time.
_AGAIN_SECONDS, _WAIT_SECONDS = 2.0, 0.5
#: What a shipment begins with: data follow, or why there are none.
DATA, PROBLEM = b"d", b"p"


class ShippedFile(io.RawIOBase):
    """A piece's file, as `open(path, "rb", buffering=0)` would give it, but for what lies behind its planned end."""

    def __init__(self, state: State, attempt: AttemptId, piece: Piece, place: Place, *, worker: str, host: str) -> None:
        """`place`: where the attempt is; it hears of waiting, and ends it when it is told to stop.

        Reading raises:
            AttemptEnded: the run has ended, or the place was told to stop.
            OSError: whoever planned the run can't read the input any more.
            StoreError: Redis failed.
        """
        self._state = state
        self._client: Client = clone(state.client, patient=True)
        self._piece = piece
        self._place = place
        self._who = (worker, host)
        self._name = f"{attempt}.{secrets.token_hex(3)}"
        self._end = piece.end if piece.end is not None else piece.size
        self._position = self._counter = 0
        self._data = b""  # at `_start`
        self._start = 0
        self._asked: deque[tuple[Ask, bytes]] = deque()

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position; nothing is asked for yet."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read what is there of the range that the position is in, and wait for it if it isn't."""
        at = self._position - self._start
        if not 0 <= at < len(self._data):
            self._fetch()
            at = 0
        data = self._data[at : at + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        """Take back what was asked for."""
        if not self.closed and self._asked:
            try:
                self._client.zrem(self._state.keys.asks, *(packed for _, packed in self._asked))
                self._client.unlink(*(self._state.keys.shipment(ask.id) for ask, _ in self._asked))
            except redis.RedisError:
                pass  # it expires
            self._asked.clear()
        self._client.close()
        super().close()

    def _fetch(self) -> None:
        """Get the range that begins at the position; empty at the file's end."""
        if self._asked and self._asked[0][0].start != self._position:
            self._asked.clear()  # a seek: what was asked for expires
        self._start, self._data = self._position, b""
        if self._position >= self._end:
            return
        self._ask_ahead()
        ask, packed = self._asked[0]
        self._data = self._wait_for(ask, packed)
        self._asked.popleft()
        self._ask_ahead()

    def _ask_ahead(self) -> None:
        asks = []
        while len(self._asked) < _AHEAD:
            last = self._asked[-1][0] if self._asked else None
            start = last.start + last.size if last else self._start + len(self._data)
            if start >= self._end or (last and self._piece.stop is not None and start >= self._piece.stop):
                break
            ask = self._new_ask(start)
            self._asked.append((ask, msgspec.msgpack.encode(ask)))
            asks.append(self._asked[-1][1])
        self._send(asks)

    def _new_ask(self, start: int) -> Ask:
        stop = self._piece.stop
        size = RANGE_BYTES if stop is None else _REST_BYTES if start >= stop else min(RANGE_BYTES, stop - start)
        self._counter += 1
        name = f"{self._name}.{self._counter}"
        return Ask(name, self._piece.path, self._piece.name, start, min(size, self._end - start), *self._who)

    def _send(self, asks: list[bytes]) -> None:
        try:
            if asks and self._state.scripts.ask(asks) == "ENDED":
                raise AttemptEnded(f"run {self._state.run} has ended")
        except redis.RedisError as error:
            raise StoreError(f"{type(error).__name__}: {error}") from error

    def _wait_for(self, ask: Ask, packed: bytes) -> bytes:
        asked = time.monotonic()
        try:
            while True:
                if self._place.stopped:
                    raise AttemptEnded
                told = self._client.blpop([self._state.keys.shipment(ask.id)], timeout=_WAIT_SECONDS)
                if told is not None:
                    return self._unpacked(ask, told[1])
                self._place.waits = "input"
                if time.monotonic() - asked > _AGAIN_SECONDS:
                    self._send([packed])
                    asked = time.monotonic()
        except redis.RedisError as error:
            raise StoreError(f"{type(error).__name__}: {error}") from error
        finally:
            self._place.waits = ""

    def _unpacked(self, ask: Ask, answer: bytes) -> bytes:
        if answer[:1] == PROBLEM:
            raise OSError(errno.ESTALE, answer[1:].decode(errors="replace"), self._piece.name)
        if answer[:1] != DATA or len(answer) != 1 + ask.size:
            raise StoreError(f"the shipment of {self._piece.name}, byte {ask.start}, is damaged")
        return answer[1:]
