"""Opens what pieces are of: decompressed, and up to where a file ended when the run was planned."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from rqmr.errors import RqmrError
from rqmr.model import Piece
from rqmr.urls import is_url, open_url

#: Bytes that are read and decoded at once: enough for C speed, little enough for the processor's cache.
BLOCK = 64 << 10
SHORTER = "the file has become shorter since the run was planned"
_ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
#: How a compressed file begins, and what reads it, imported when one is met: not every Python has them all.
_COMPRESSIONS = {
    "gzip": (rb"\x1f\x8b\x08", "gzip", "GzipFile"),
    "bz2": (rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", "bz2", "BZ2Decompressor"),
    "xz": (rb"\xfd7zXZ\0", "lzma", "LZMADecompressor"),
    "zst": (rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", _ZSTD, "ZstdDecompressor"),  # a frame, or one to skip
}


class UnreadableRecord(ValueError):
    """An input holds bytes that can't become a record: not text, not JSON, damaged compressed data."""

    def __init__(self, source: str, offset: int, reason: str) -> None:
        super().__init__(f"{source}, byte {offset}: {reason}")
        self.source = source
        self.offset = offset  # in the file's (decompressed) content
        self.reason = reason


def open_here(piece: Piece) -> io.BufferedReader:
    """Open a piece's file as this process sees it, or what is at its URL."""
    if is_url(piece.path):
        return open_url(piece)
    return Path(os.fsdecode(piece.path)).open("rb")


#: How a piece's file is opened. A worker that doesn't see it has another way.
opener: ContextVar[Callable[[Piece], io.BufferedReader]] = ContextVar("opener", default=open_here)


@contextmanager
def open_piece(piece: Piece) -> Iterator[io.BufferedReader]:
    """Open a piece's file; a compressed one is decompressed, and raises UnreadableRecord where it is damaged."""
    with opener.get()(piece) as file:
        if piece.stop is not None:  # a piece that was cut out is plain, whatever it begins with
            yield file
            return
        compression = compression_of(file.peek())
        planned = file
        if piece.end or (piece.end == 0 and _size_on_disk(file)):  # a file of /proc has no size, and yet content
            planned = io.BufferedReader(_Planned(file, piece.name, piece.end), BLOCK)
        yield io.BufferedReader(_Content(planned, piece.name, compression), BLOCK) if compression else planned


def _size_on_disk(file: io.BufferedReader) -> int:
    try:
        return os.fstat(file.fileno()).st_size
    except io.UnsupportedOperation:  # it isn't on this one
        return 0


class _Planned(io.RawIOBase):
    """A file up to where it ended when the run was planned."""

    def __init__(self, file: BinaryIO, source: str, size: int) -> None:
        self._file = file
        self._source = source
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), self._left))
        if self._left and not data:
            raise OSError(errno.ESTALE, SHORTER, self._source)
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)


class _Content(io.RawIOBase):
    """What a compressed file holds. Damage is never taken for the file's end."""

    def __init__(self, file: BinaryIO, source: str, compression: str) -> None:
        self._source = source
        self._chunks = filter(None, _decompressed(file, compression))
        self._rest = b""
        self._offset = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            self._rest = self._rest or next(self._chunks, b"")
        except RqmrError:
            raise  # it is shipped, and that has ended
        except Exception as error:  # each format has its own
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's fault, not the data's
            raise UnreadableRecord(self._source, self._offset, f"it can't be decompressed: {error}") from error
        data, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)


def _decompressed(file: BinaryIO, compression: str) -> Iterator[bytes]:
    """Yield the content of compressed streams that follow each other, perhaps with zeros between them."""
    _, module, name = _COMPRESSIONS[compression]
    new_stream = getattr(import_module(module), name)
    if compression == "gzip":
        yield from iter(partial(new_stream(fileobj=file).read1, BLOCK), b"")
        return
    # Not by BZ2File or LZMAFile: they take damage where the next stream should begin for the file's end.
    raw = file.read(BLOCK)
    while raw:
        stream = new_stream()
        while not stream.eof:
            if stream.needs_input and not raw:
                raise EOFError("it ends too early")
            yield stream.decompress(raw, BLOCK)
            raw = file.read(BLOCK) if stream.needs_input else b""
        raw = (stream.unused_data or file.read(BLOCK)).lstrip(b"\0")


def compression_of(start: bytes) -> str:
    """Return how a file that begins so is compressed: "gzip", "bz2", "xz", "zst" or ""."""
    return next((name for name, (magic, _, _) in _COMPRESSIONS.items() if re.match(magic, start)), "")
