"""A bad network: a TCP proxy before Redis that delays what passes, and cuts connections at random."""

from __future__ import annotations

import contextlib
import queue
import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

_PIECE = 1 << 16


class Proxy:
    """Between clients, at `port` of the loopback interface, and the Redis at a socket."""

    def __init__(self, path: str, *, latency: float = 0.0, cut_after: float = 0.0, seed: int = 0) -> None:
        """`latency`: seconds there and back; `cut_after`: seconds that a connection lasts on average, 0 for ever."""
        self.cuts = self.connections = 0
        self._path = path
        self._delay = latency / 2
        self._cut_after = cut_after
        self._chance = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._timers: list[threading.Timer] = []
        self._start(self._listen)

    def close(self) -> None:
        """Cut all that is left."""
        for end in (self._listener, *self._ends):
            _shut(end)
        for timer in self._timers:
            timer.cancel()
        for thread in self._threads:
            thread.join()
        for end in (self._listener, *self._ends):
            end.close()

    def _start(self, act: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=act, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):  # it is closed
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                self._ends += [client, server]
                server.connect(self._path)
                self.connections += 1
                self._start(self._pass_on, client, server)
                self._start(self._pass_on, server, client)
                if self._cut_after:
                    lasts = self._chance.expovariate(1 / self._cut_after)
                    timer = threading.Timer(lasts, self._cut, (client, server))
                    self._timers.append(timer)
                    timer.start()

    def _cut(self, *ends: socket.socket) -> None:
        self.cuts += 1
        for end in ends:
            _shut(end)

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        """Pass on what comes, each piece as late as the others."""
        pieces: queue.Queue[tuple[float, bytes]] = queue.Queue()
        self._start(self._deliver, pieces, target)
        with contextlib.suppress(OSError):
            while data := source.recv(_PIECE):
                pieces.put((time.monotonic() + self._delay, data))
        pieces.put((0, b""))

    def _deliver(self, pieces: queue.Queue[tuple[float, bytes]], target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while (piece := pieces.get())[1]:
                time.sleep(max(0, piece[0] - time.monotonic()))
                target.sendall(piece[1])
        _shut(target)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def bad_network(path: str, **options: Any) -> Iterator[Proxy]:
    """Listen while the block runs."""
    proxy = Proxy(path, **options)
    try:
        yield proxy
    finally:
        proxy.close()
