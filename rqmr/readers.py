r"""Splits → records: what a job's `reader` can be.

A piece owns the lines that *begin* in it, and only the byte ``\n`` ends a line, so each line belongs to exactly one
piece and no character is cut. Lines are read and decoded by blocks, for speed; where a record came from is worked out
from the block's raw bytes, and only when someone asks.
"""

from __future__ import annotations

import codecs
import csv
import errno
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate, islice
from typing import Any

import msgspec
from msgspec import Struct

from rqmr.codec import shorten
from rqmr.errors import InputError
from rqmr.files import BLOCK, SHORTER, UnreadableRecord, open_piece
from rqmr.model import Piece, Settings


class Block(Struct, eq=False):
    """Some records in a row of one input, at least one, and where each of them begins."""

    source: str
    offset: int  # byte offset of `raw` in the file's (decompressed) content
    raw: bytes
    #: To iterate once. May parse in passing, raise UnreadableRecord for a record, and go on with the next one then.
    records: Iterable[Any] = ()
    lines: Sequence[int] = range(sys.maxsize)  # at which line of `raw` each record begins
    replaced: int = 0  # characters that stand for bytes which aren't text
    encoding: str = "utf-8"

    @property
    def size(self) -> int:
        """Bytes of the file's (decompressed) content."""
        return len(self.raw)

    def offset_of(self, index: int) -> int:
        """Return the byte offset at which a record begins."""
        return self.offset + sum(len(line) + 1 for line in self.raw.split(b"\n")[: self.lines[index]])

    def text_of(self, index: int) -> str:
        """Return the line that a record begins with."""
        return self._text(self.raw.split(b"\n")[self.lines[index]])

    def begins(self) -> list[tuple[int, str]]:
        """Return where each record begins and the line that it begins with, shortened."""
        raw = self.raw.split(b"\n")
        offsets = list(accumulate((len(line) + 1 for line in raw), initial=self.offset))
        return [(offsets[line], shorten(self._text(raw[line]))) for line in islice(self.lines, len(raw))]

    def _text(self, line: bytes) -> str:
        return line.decode(self.encoding, "replace").removesuffix("\r")


class TextLines:
    r"""The lines of a text, none of which has its ``\n``. They are cut when they are asked for."""

    def __init__(self, text: str) -> None:
        """`text`: the lines joined by newlines."""
        self.text = text

    def cut(self) -> list[str]:
        """Return them as a list of its own."""
        return self.text.split("\n")

    def __iter__(self) -> Iterator[str]:
        return iter(self.cut())

    def __len__(self) -> int:
        return self.text.count("\n") + 1


class Reader:
    """Turns a piece of an input into records. Subclasses define `blocks`."""

    #: Whether a file may be cut at any byte; each piece then owns the lines that begin in it.
    splittable: bool = True

    def blocks(self, piece: Piece, settings: Settings) -> Iterator[Block]:
        """Yield the piece's records in order; UnreadableRecord if some of its bytes can't become one."""
        raise NotImplementedError


class Lines(Reader):
    r"""Each line is a record, a str without its ``\n`` or ``\r\n``. Nothing else ends a line."""

    def blocks(self, piece: Piece, settings: Settings) -> Iterator[Block]:
        """Yield blocks of whole lines."""
        for block, lines, is_text in _blocks_of_lines(piece, settings):
            block.records = lines if is_text else map(_readable, lines)
            yield block


class JsonLines(Lines):
    """Each line is a record, the value of its JSON. Blank lines are left out."""

    def blocks(self, piece: Piece, settings: Settings) -> Iterator[Block]:
        """Yield blocks that parse each line in its turn."""
        for block, lines, is_text in _blocks_of_lines(piece, settings):
            if is_text:
                filled = {number: line for number, line in enumerate(lines) if line and not line.isspace()}
            else:
                filled = {number: line for number, line in enumerate(lines) if not _is_blank(line)}
            readable = filled.values() if is_text else map(_readable, filled.values())
            block.lines = list(filled)
            block.records = map(partial(self._parse, block), range(len(filled)), readable)
            if filled:
                yield block

    def _parse(self, block: Block, index: int, line: str) -> Any:
        try:
            return msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError) as error:
            raise UnreadableRecord(block.source, block.offset_of(index), f"it isn't JSON: {error}") from None


class Whole(Reader):
    """Each file is one record, its whole text; an empty file too."""

    splittable = False

    def blocks(self, piece: Piece, settings: Settings) -> Iterator[Block]:
        """Yield one block of one record."""
        with open_piece(piece) as file:
            raw = file.read()
        try:
            text, block = _decoded(piece.name, 0, raw, settings)
        except UnreadableRecord as error:
            yield Block(piece.name, 0, raw, map(_readable, (error,)), encoding=settings.encoding)
        else:
            block.records = [text]
            yield block


class Csv(Reader):
    """Each row is a record: a dict by the names in the first row or, with `header=False`, a list; all values are str.

    Quoted fields may hold newlines, so files aren't split. Blank lines are left out. A row that isn't CSV, or hasn't
    as many fields as the header, is unreadable: a guess would put values into wrong columns.
    """

    splittable = False

    def __init__(self, *, header: bool = True, delimiter: str = ",") -> None:
        csv.reader((), delimiter=delimiter)  # TypeError, now rather than on a worker, if it isn't one character
        self._has_header = header
        self._delimiter = delimiter

    def blocks(self, piece: Piece, settings: Settings) -> Iterator[Block]:
        """Yield a block for each row."""
        rows = self._rows(piece, settings)
        names: list[str] = []
        if self._has_header:
            for row, block in rows:
                names = row if row is not None else next(iter(block.records))  # which raises why it can't be read
                break
        for row, block in rows:
            if row is not None and names and len(row) != len(names):
                block = _bad_row(block, f"{len(row)} fields under {len(names)} names")
            elif row is not None:
                block.records = [dict(zip(names, row, strict=True)) if names else row]
            yield block

    def _rows(self, piece: Piece, settings: Settings) -> Iterator[tuple[list[str] | None, Block]]:
        """Yield each row and its block, still without its record; None and the block of one that can't be read."""
        offset = 0
        taken: list[bytes] = []  # the lines of the row that is being parsed
        problems: list[str] = []

        def decoded(line: bytes) -> str:
            taken.append(line)
            try:
                return _decoded(piece.name, offset, line, settings)[0]
            except UnreadableRecord as error:
                problems.append(error.reason)
                return line.decode(settings.encoding, "replace")

        with open_piece(piece) as file:
            rows = csv.reader(map(decoded, file), delimiter=self._delimiter, strict=True)
            while True:
                row: list[str] | None = None
                try:
                    row = next(rows)
                except StopIteration:
                    return
                except csv.Error as error:  # after which it goes on with the next line
                    problems.append(f"it isn't CSV: {error}")
                raw = b"".join(taken)
                if problems:
                    row, block = None, _bad_row(Block(piece.name, offset, raw, encoding=settings.encoding), problems[0])
                else:
                    block = _decoded(piece.name, offset, raw, settings)[1]
                offset += len(raw)
                taken.clear()
                problems.clear()
                if row != []:
                    yield row, block


def check_encoding(settings: Settings) -> None:
    """Return if the settings can decode text that is cut at newlines; InputError tells why they can't."""
    if settings.decode_errors not in ("replace", "strict"):
        raise InputError(f"decode errors are {settings.decode_errors!r}; they must be replace or strict")
    try:
        newlines = b"~\n\\\n".decode(settings.encoding, "replace").count("\n")  # ~ and \ join lines in some encodings
    except (LookupError, ValueError) as error:
        raise InputError(f"unknown encoding {settings.encoding!r}; write utf-8, latin-1, cp1252 or the like") from error
    if newlines != 2:
        raise InputError(f"{settings.encoding} can't be cut into lines; try iconv -f {settings.encoding} -t utf-8")


def _decoded(source: str, offset: int, raw: bytes, settings: Settings) -> tuple[str, Block]:
    """Return the text of some whole lines, and their block, still without its records."""
    signed = codecs.lookup(settings.encoding).name == "utf-8-sig"  # only the file's start may bear the signature
    encoding = "utf-8" if signed else settings.encoding
    try:
        text, replaced = raw.decode(encoding), 0
    except UnicodeDecodeError as error:
        if settings.decode_errors == "strict":
            line = raw.rfind(b"\n", 0, error.start) + 1
            raise UnreadableRecord(source, offset + line, f"it isn't {encoding}: {error.reason}") from None
        # By lines: gb18030's decoder replaces a newline together with the bytes before it, if few bytes follow.
        text = "\n".join(line.decode(encoding, "replace") for line in raw.split(b"\n"))
        genuine = "\ufffd".encode(encoding, "ignore")
        replaced = text.count("\ufffd") - (raw.count(genuine) if genuine else 0)
    block = Block(source, offset, raw, replaced=replaced, encoding=encoding)
    return text.removeprefix("\ufeff") if signed and offset == 0 else text, block


def _blocks_of_lines(piece: Piece, settings: Settings) -> Iterator[tuple[Block, Iterable[Any], bool]]:
    """Yield blocks, still without records, with their lines, and whether all are text; one that isn't is its error."""
    for offset, raw in _whole_lines(piece):
        try:
            text, block = _decoded(piece.name, offset, raw, settings)
        except UnreadableRecord:
            block = Block(piece.name, offset, raw, encoding=settings.encoding)
            yield block, _line_by_line(block, settings), False
        else:
            if text:
                if "\r" in text:  # far faster to look for than what would be replaced
                    text = text.replace("\r\n", "\n")
                yield block, TextLines(text.removesuffix("\n")), True


def _line_by_line(block: Block, settings: Settings) -> list[str | UnreadableRecord]:
    lines: list[str | UnreadableRecord] = []
    offset = block.offset
    for line in block.raw.removesuffix(b"\n").split(b"\n"):
        ended = line + b"\n" if offset + len(line) < block.offset + block.size else line
        try:
            text = _decoded(block.source, offset, ended, settings)[0]
            lines.append(text.replace("\r\n", "\n").removesuffix("\n"))
        except UnreadableRecord as error:
            lines.append(error)
        offset += len(ended)
    return lines


def _readable(line: str | UnreadableRecord) -> str:
    if isinstance(line, UnreadableRecord):
        raise line
    return line


def _is_blank(line: str | UnreadableRecord) -> bool:
    return isinstance(line, str) and (not line or line.isspace())


def _bad_row(block: Block, reason: str) -> Block:
    error = UnreadableRecord(block.source, block.offset, reason)
    if b"\n" in block.raw.rstrip(b"\r\n"):
        raise error  # one stray quote can join any number of rows, so where the next one begins can't be told
    block.records = map(_readable, (error,))
    return block


def _whole_lines(piece: Piece) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that the piece owns, as (byte offset, some whole lines)."""
    offset, stop = 0, sys.maxsize if piece.stop is None else piece.stop
    with open_piece(piece) as file:
        if piece.start:  # skip the rest of a line that began before, if only its newline
            offset = file.seek(piece.start - 1) + len(file.readline(stop - piece.start + 1))
        while offset < stop and (raw := file.read(min(BLOCK, stop - offset))):
            if not raw.endswith(b"\n"):
                raw += file.readline(-1 if piece.end is None else piece.end - offset - len(raw))
            yield offset, raw
            offset += len(raw)
    if piece.stop is not None and offset < piece.stop:
        raise OSError(errno.ESTALE, SHORTER, piece.name)
