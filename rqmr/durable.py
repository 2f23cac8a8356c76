"""The directory that a durable private server keeps its data in: who has it, and where that server is."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rqmr.errors import RedisError
from rqmr.sessions import processes
from rqmr.sockets import is_own, ping, socket_of

#: The file that is locked. It tells who has the directory, and that the directory is rqmr's.
LOCK = "rqmr.lock"
#: A command that was killed leaves its server this long to end.
HANDOVER_SECONDS = 20.0


class Holder(NamedTuple):
    """Who has a directory, or had it last."""

    pid: int
    url: str  # of its server


def live_url(directory: Path) -> str | None:
    """The URL of the server that has *directory* now, though it may still load what is there; None if there is none."""
    with contextlib.suppress(OSError):
        holder = read_holder((directory / LOCK).read_bytes())
        if holder and is_own(socket := socket_of(holder.url)) and ping(socket) in ("PONG", "LOADING"):
            return holder.url
    return None


@contextlib.contextmanager
def hold(directory: Path, url: str) -> Iterator[int]:
    """Have *directory* for a server at *url*, for as long as anyone has the descriptor that this yields.

    It is made if it isn't there; this process lets go of it at the end of the block.

    Raises:
        RedisError: another command has it, it can't be written, it isn't this user's alone, or it holds other things.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        check(directory)
        # NOFOLLOW: what the lock is must be in the directory itself.
        lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise RedisError(f"{directory} is a file; to keep a server's data there it must be a directory") from None
    except OSError as error:
        raise RedisError(f"{directory} can't keep a server's data: {error.strerror}; name another directory") from None
    try:
        wait_for(lock, directory)
        move_in(lock, directory, url)
        yield lock
    finally:
        os.close(lock)


def check(directory: Path) -> None:
    """See that *directory* is this user's alone, and empty or rqmr's. Raises RedisError or OSError."""
    status = directory.stat()
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise RedisError(
            f"others can write in {directory}, and a server's data may be run as code; "
            f"name a directory of your own, or: chmod go-w {directory}"
        )
    names = {path.name for path in directory.iterdir()}  # one look: another command may be making the lock
    if names and LOCK not in names:
        raise RedisError(f"{directory} isn't empty and isn't rqmr's; name another directory, or a new one in it")


def wait_for(lock: int, directory: Path) -> None:
    """Lock the file, at once or when the server of a command that was killed has ended. Raises RedisError."""
    deadline = time.monotonic() + HANDOVER_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = read_holder(os.pread(lock, 4096, 0))
        except OSError as error:
            raise RedisError(f"{directory} can't be locked: {error.strerror}; name one on another disk") from None
        lives = holder is not None and holder.pid in {pid for pid, _, _ in processes()}
        if lives or time.monotonic() > deadline:
            url = live_url(directory)
            raise RedisError(
                f"{directory} is in use by another rqmr command"
                + (f" (pid {holder.pid})" if holder else "")
                + (f"; its server can be shared: --redis-url '{url}'" if url else "; wait until it has ended")
            )
        time.sleep(0.05)


def move_in(lock: int, directory: Path, url: str) -> None:
    """Tell whose the locked directory is now, and remove what the one before could not. Raises RedisError."""
    try:
        for path in directory.glob("temp-rewriteaof-*.aof"):  # of a server that was killed while it wrote it
            path.unlink(missing_ok=True)
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps(Holder(os.getpid(), url)._asdict()).encode(), 0)
    except OSError as error:
        raise RedisError(f"{directory} can't be written: {error.strerror}; make room, or name another") from None


def read_holder(text: bytes) -> Holder | None:
    """What a lock's file says; None while it is being written."""
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):
        return None
