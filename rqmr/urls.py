"""Inputs that are URLs: found and read through fsspec, by the command that plans a run and by the workers themselves.

fsspec is imported when the first URL is met. Credentials and endpoints are its own business, from the environment of
each process; nothing of them is in a plan, a message or a log.
"""

from __future__ import annotations

import errno
import io
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct

from rqmr.errors import InputError, RefusedError, RqmrError, WorkerUnfit
from rqmr.model import Piece

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_MAGIC = re.compile(r"[*?[]")
#: Bytes of one request: enough that the way there and back doesn't matter, and what is held of a piece at a time.
_REQUEST_BYTES = 4 << 20
#: A line that begins in a piece may end behind it; so much is asked for then.
_REST_BYTES = 64 << 10
#: Bytes that tell how a file is compressed.
_START_BYTES = 16
#: What tells a version of a file from the next, by its store; the first that there is counts.
_VERSIONS = ("ETag", "etag", "generation", "md5Hash", "mtime", "Last-Modified", "LastModified", "modificationTime")
#: Parameters of a URL that let in whoever has them.
_SECRET = re.compile(r"([?&][^=&]*(?:sig|token|key|secret|credential|passw|policy|auth)[^=&]*=)[^&#]*", re.IGNORECASE)
_CHANGED = "it isn't any more what it was when the run was planned"
#: Seconds without a connection, and without a byte. Not for the whole: a mapper may take its time.
_CONNECT_SECONDS, _SILENT_SECONDS = 30, 60


#: Seconds before a request that failed is made again, and again.
_AGAIN_SECONDS = (0.1, 0.5)


class Found(Struct, frozen=True):
    """One file at a URL."""

    url: str
    name: str  # the URL as it can be shown
    size: int  # bytes; 0 if it can't be known
    version: str
    start: bytes  # how it begins
    has_ranges: bool  # whether a part of it can be read


def is_url(text: str | bytes) -> bool:
    """Whether an input's name or path is a URL."""
    return bool(_URL.match(text if isinstance(text, str) else os.fsdecode(text)))


def find(given: str) -> list[Found]:
    """Return the files that a URL stands for, at least one: itself, those below it, or those that match it, sorted.

    Raises:
        InputError: there are none, one can't be read, or it has credentials in it.
    """
    refuse_credentials(given)
    name = shown(given)
    try:
        with told(given):
            found = _find_web(given) if _is_web(given) else _find_listed(given)
    except OSError as error:
        raise InputError(f"{name} can't be read: {error.strerror}") from None
    except WorkerUnfit as error:
        raise InputError(f"{name} can't be read here: {error}") from None
    if not found:
        raise InputError(f"nothing matches {name}")
    return found


def shown(url: str) -> str:
    """Return a URL without what lets its readers in."""
    return _SECRET.sub(r"\1…", url)


def open_url(piece: Piece) -> io.BufferedReader:
    """Open a piece's file for reading what the piece needs of it.

    Raises:
        OSError: it can't be read, or isn't any more what it was (ESTALE); also while it is read.
        WorkerUnfit: this process lacks what it takes to read such a URL.
    """
    url = os.fsdecode(piece.path)
    with told(url, piece.name):
        files, path = file_system(url)

        def check() -> Mapping[str, Any]:
            info: Mapping[str, Any] = _again(lambda: files.info(path))
            if (info.get("size") or 0, _version(info)) != (piece.end, piece.version):
                raise OSError(errno.ESTALE, _CHANGED, piece.name)
            return info

        info = check()
        if not _is_web(url):
            file = files.open(path, "rb", cache_type="none")
        elif piece.stop is None:
            file = files.open(path, "rb", block_size=0)  # as a stream: it needs no ranges
        else:
            strong = piece.version if piece.version.startswith('"') else ""
            same = {"headers": {**files.kwargs["headers"], "If-Match": strong}} if strong else {}
            file = files.open(path, "rb", block_size=_REQUEST_BYTES, cache_type="none", size=info["size"], **same)
        return io.BufferedReader(_Requests(file, piece, url, check), _REQUEST_BYTES)


class _Requests(io.RawIOBase):
    """A file of fsspec's; each read is one request, for no more than its piece needs.

    The last one of a piece is given out when the file was seen to be still what it was: what was read before it and
    after it would else be of two files, since few web servers heed If-Match.
    """

    def __init__(self, file: Any, piece: Piece, url: str, check: Callable[[], object]) -> None:
        self._file = file
        self._piece = piece
        self._url = url
        self._check = check
        self._is_pinned = url.startswith(("s3://", "s3a://"))  # each request has its ETag
        self._is_stream = _is_web(url) and piece.stop is None
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        piece, at, size = self._piece, self._position, len(buffer)
        if piece.stop is not None:
            size = min(size, piece.stop - at if at < piece.stop else _REST_BYTES)
        if piece.end:
            size = min(size, piece.end - at)
        if size <= 0:
            return 0
        with told(self._url, piece.name):
            data = self._file.read(size) if self._is_stream else _again(lambda: self._part(at, size))
            last = piece.end if piece.stop is None else piece.stop
            if not self._is_pinned and (not data or (last and at + len(data) >= last)):
                self._check()
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _part(self, at: int, size: int) -> bytes:
        if self._file.tell() != at:
            self._file.seek(at)
        return bytes(self._file.read(size))

    def close(self) -> None:
        if not self.closed:
            with told(self._url, self._piece.name):
                self._file.close()
        super().close()


# --- finding ------------------------------------------------------------------------------------------------------


def _find_web(url: str) -> list[Found]:
    """Find a file of a web server, which lists nothing and may not be able to give parts of it."""
    files, path = file_system(url)
    info = files.info(path)
    size = info.get("size") or 0
    start, has_ranges = b"", size > 1 and info.get("partial", True)
    options = {"block_size": _REQUEST_BYTES, "cache_type": "none", "size": size} if has_ranges else {"block_size": 0}
    with files.open(path, "rb", **options) as file:
        while len(start) < _START_BYTES and (data := file.read(_START_BYTES - len(start))):
            start += data
        if has_ranges:
            file.seek(1)
            try:
                file.read(1)
            except ValueError:  # the server gives the whole, and so not what isn't at its beginning
                has_ranges = False
    return [Found(url, shown(url), size, _version(info), start, has_ranges)]


def _find_listed(url: str) -> list[Found]:
    files, path = file_system(url)
    before = url[: len(url) - len(path)] if url.endswith(path) else url[: url.index("://") + 3]
    listed = _listed(files, path)
    paths = [each for each, info in listed.items() if info.get("size")]
    starts = files.cat_ranges(paths, [0] * len(paths), [min(_START_BYTES, listed[each]["size"]) for each in paths])
    begins = dict(zip(paths, starts, strict=True))
    return [
        Found(
            url=f"{before}{each}",
            name=shown(f"{before}{each}"),
            size=info.get("size") or 0,
            version=_version(info),
            start=bytes(begins.get(each, b"")),
            has_ranges=True,
        )
        for each, info in sorted(listed.items())
    ]


def _listed(files: Any, path: str) -> dict[str, Mapping[str, Any]]:
    """Return the files that a path is, is above of or, if it isn't there, matches; each with what is known of it."""
    try:
        info = files.info(path)
        matches = {path: info}
    except FileNotFoundError:
        matches = files.glob(path, detail=True) if _MAGIC.search(path) else {}
    found: dict[str, Mapping[str, Any]] = {}
    for match, info in matches.items():
        if info["type"] != "directory":
            found[match] = info
            continue
        for below, each in files.find(match, detail=True).items():
            names = below.removeprefix(match).strip("/").split("/")
            if each["type"] == "file" and not below.endswith("/") and all(name[:1] not in "._" for name in names):
                found[below] = each
    return found


def _version(info: Mapping[str, Any]) -> str:
    return next((str(info[name]) for name in _VERSIONS if info.get(name)), "")


# --- fsspec -------------------------------------------------------------------------------------------------------


def refuse_credentials(url: str, refusal: type[RefusedError] = InputError) -> None:
    """Return if a URL has no credentials in it; else raise, without them."""
    parts = urlsplit(url)
    if parts.password is not None or (
        parts.username is not None and parts.scheme in ("s3", "s3a", "gs", "http", "https")
    ):
        where = parts.hostname or ""
        raise refusal(
            f"{parts.scheme}://…@{where}: credentials don't belong into a URL, which others see; put them into the "
            f"environment of this command and of the workers (AWS_ACCESS_KEY_ID, a profile, ~/.netrc …)"
        )
    if "::" in parts.scheme or parts.scheme in ("file", "local"):
        raise refusal(f"{shown(url)}: name a file of this machine by its path, without {parts.scheme}://")


def _is_web(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and its path in it; WorkerUnfit if this process lacks what it takes."""
    options: dict[str, Any] = {"use_listings_cache": False}  # what was there before isn't what is there
    try:
        core = import_module("fsspec.core")
        if _is_web(url):
            timeout = import_module("aiohttp").ClientTimeout(
                total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS
            )
            options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
            # A part is one of the file, and not of what a server may make of it on the way.
            options["headers"] = {"Accept-Encoding": "identity"}
        files, path = core.url_to_fs(url, **options)
    except ImportError as error:
        name = error.name or getattr(error.__cause__, "name", "")  # fsspec's own words for it name no module
        lacks = f"has no {name}" if name else f"lacks something ({error})"
        scheme = urlsplit(url).scheme
        advice = "pip install 'rq-mapreduce[cloud]'" if scheme in _OF_THE_EXTRA else "install what fsspec needs for it"
        raise WorkerUnfit(f"it {lacks}, which {scheme}:// needs: {advice}") from None
    return files, path


def _again(request: Callable[[], Any]) -> Any:
    """Return what a request gives, made again where what comes in its way may pass."""
    for seconds in _AGAIN_SECONDS:
        try:
            return request()
        except Exception as error:
            if _in_words(error, "")[0] != errno.EIO:
                raise
            time.sleep(seconds)
    return request()


#: What the extra brings for each of them, besides fsspec.
_OF_THE_EXTRA = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}


def modules_for(url: str) -> set[str]:
    """Return the modules that it takes to read and write a URL, as far as that is known."""
    return {"fsspec", _OF_THE_EXTRA.get(urlsplit(url).scheme, "fsspec")}


@contextmanager
def told(url: str, name: str = "") -> Iterator[None]:
    """Turn whatever a file system raises into an OSError whose words can be shown."""
    try:
        yield
    except RqmrError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ESTALE:
            raise
        number, words = _in_words(error, url)
        raise OSError(number, words, name or shown(url)) from None


def _in_words(error: Exception, url: str) -> tuple[int, str]:
    cause = error.__cause__
    status = getattr(error, "status", None) or getattr(cause, "status", None)  # of a web server
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and status != 404:
        error = cause  # fsspec says so, too, of a web server that doesn't answer
    if status == 412 or type(error).__name__ == "FileExpired" or getattr(error, "errno", None) == errno.ESTALE:
        return errno.ESTALE, _CHANGED
    if isinstance(error, PermissionError) or status in (401, 403):
        return errno.EACCES, "access is denied; credentials are taken from the environment"
    if isinstance(error, FileNotFoundError):
        return errno.ENOENT, "there is nothing"
    told = " ".join((str(error).replace(url, shown(url)) if url else str(error)).split())
    return errno.EIO, f"{type(error).__name__}: {_SECRET.sub(_HIDDEN, told)}".removesuffix(": ")[:500]


_HIDDEN = r"\1…"
