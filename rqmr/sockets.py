"""The sockets of this user's private servers: where they are, whose they are, and what answers there."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import stat
import tempfile
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

SOCKET = "r.sock"
#: The system's own limit for a socket's path is 107 on Linux and 103 on macOS.
_PATH_BYTES = 100
#: What `choose_directory` names a directory.
_PREFIX, _RANDOM_BYTES = "rqmr-", 8
_PATTERN = _PREFIX + "[0-9a-f]" * 2 * _RANDOM_BYTES
_FALLBACK = "/tmp"


def choose_directory() -> Path:
    """Return a path that nothing has, short enough for a socket below it."""
    name = _PREFIX + secrets.token_hex(_RANDOM_BYTES)
    base = tempfile.gettempdir()
    return Path(_FALLBACK if len(os.fsencode(f"{base}/{name}/{SOCKET}")) > _PATH_BYTES else base, name)


def url_of(path: Path) -> str:
    """The URL of a server that listens on the socket *path*."""
    return f"unix://{quote(str(path))}?db=0"


def socket_of(url: str) -> Path:
    """The socket that a URL of `url_of` names."""
    return Path(unquote(urlsplit(url).path))


def ping(path: Path) -> str:
    """The first word of a server's answer to PING: PONG, LOADING, … or "" if there is none within a second."""
    with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
        connection.settimeout(1)
        connection.connect(str(path))
        connection.sendall(b"PING\r\n")
        return connection.recv(128).decode(errors="replace").lstrip("+-").partition(" ")[0].strip()
    return ""


def is_own(path: Path) -> bool:
    """Whether *path* is a socket that only this user can have made: what answers there is trusted with code."""
    try:
        directory, found = path.parent.lstat(), path.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(directory.st_mode)
        and stat.S_IMODE(directory.st_mode) == 0o700
        and stat.S_ISSOCK(found.st_mode)
        and directory.st_uid == found.st_uid == os.geteuid()
    )


def private_servers() -> list[str]:
    """The URLs of the private servers of this user that serve now, the oldest first; also durable ones."""
    bases = {Path(base).resolve(): Path(base) for base in (_FALLBACK, tempfile.gettempdir())}
    found = []
    for path in (directory / SOCKET for base in bases.values() for directory in base.glob(_PATTERN)):
        if is_own(path) and ping(path) == "PONG":
            with contextlib.suppress(FileNotFoundError):  # it ends just now
                found.append((path.stat().st_ctime_ns, url_of(path)))
    return [url for _, url in sorted(found)]
