"""Parts that travel: a worker that doesn't see the stage writes its part into Redis, and who collects brings it in."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from zlib import crc32

from rqmr.keys import segment_field
from rqmr.model import AttemptId, Part
from rqmr.remote import path_at
from rqmr.segments import RedisSink
from rqmr.state import State

_BATCH = 16  # chunks, each of them what a part writer holds


class TravellingFile:
    """A part in Redis, chunk by chunk; with a full server it waits as segments do."""

    def __init__(self, sink: RedisSink) -> None:
        self._sink = sink
        self._chunks = 0

    def write(self, data: bytes) -> None:
        """Add a chunk. Raises as `RedisSink.write`."""
        self._sink.write(0, self._chunks, data)
        self._chunks += 1

    def close(self) -> int:
        """Finish it; return the number of its chunks, at least one."""
        if not self._chunks:
            self.write(b"")
        return self._chunks

    def discard(self) -> None:
        """Remove it."""
        self._sink.discard()
        self._chunks = 0


def bring_in(state: State, attempt: AttemptId, part: Part, stage: Path) -> bool:
    """Put a part that travels into the stage, and drop its chunks; whether it was whole. Can be repeated.

    Raises:
        OSError: it can't be written.
    """
    if not part.chunks:
        return True
    path = stage / part.file
    fields = [segment_field(attempt.task.index, attempt.number, chunk) for chunk in range(part.chunks)]
    if not path.is_file():
        arriving = path.with_name(f"{path.name}.{secrets.token_hex(3)}.new")  # another driver may bring it, too
        crc = size = 0
        with arriving.open("wb") as file:
            for start in range(0, len(fields), _BATCH):
                for data in state.client.hmget(state.keys.parts, fields[start : start + _BATCH]):
                    file.write(data or b"")
                    crc, size = crc32(data or b"", crc), size + len(data or b"")
            file.flush()
            os.fsync(file.fileno())
        if (size, crc) != (part.size, part.crc):
            arriving.unlink(missing_ok=True)
            return path.is_file()  # another driver was faster
        arriving.replace(path)
    for start in range(0, len(fields), _BATCH):
        state.client.hdel(state.keys.parts, *fields[start : start + _BATCH])
    return True


def is_there(state: State, attempt: AttemptId, part: Part) -> bool:
    """Whether a winner's part is in the stage, or travels still."""
    if (path_at(state.spec.stage) / part.file).is_file():
        return True
    last = segment_field(attempt.task.index, attempt.number, max(0, part.chunks - 1))
    return part.chunks > 0 and bool(state.client.hexists(state.keys.parts, last))
