"""How a careful attempt tells its records, in Redis: so that it is known which of them a process died at."""

from __future__ import annotations

import msgspec
import redis

from rqmr.connection import one_way
from rqmr.errors import StoreError
from rqmr.model import AttemptId, RecordAt
from rqmr.scripts import source
from rqmr.state import State


class Teller:
    """Tells one attempt's records, each before it begins, without waiting for Redis: some 10 µs a record."""

    def __init__(self, state: State, attempt: AttemptId) -> None:
        self._connection = one_way(state.client)
        # Not by its hash: nobody hears that the server has forgotten it.
        self._command = ("EVAL", source("place"), 1, state.keys.lease(attempt))

    def tell(self, at: RecordAt | None) -> None:
        """Tell the record that is about to begin; None: none is.

        Raises:
            StoreError: Redis can't be reached.
        """
        told = msgspec.msgpack.encode(at) if at else b""
        try:
            try:
                self._connection.send_command(*self._command, told)
            except (redis.ConnectionError, redis.TimeoutError):  # it connects anew
                self._connection.send_command(*self._command, told)
        except redis.RedisError as error:
            raise StoreError(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()
