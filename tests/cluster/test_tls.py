"""TLS: with a certificate that a CA has signed a run works as ever, and nothing is said to a server without one."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bench import files
from harness import Workers, wait_until

from rqmr.connection import connect, one_way

Rqmr = Callable[..., subprocess.CompletedProcess[str]]


def make_certificates(directory: Path) -> None:
    """Make a CA, and a certificate of it for localhost."""
    if not shutil.which("openssl"):
        assert not os.environ.get("CI"), "there is no openssl to make a certificate with"
        pytest.skip("there is no openssl to make a certificate with")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=a CA")
    openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost")
    (directory / "names").write_text("subjectAltName=DNS:localhost\n")
    signed_by = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
    openssl("x509", "-req", "-in", "server.csr", *signed_by, "-extfile", "names", "-out", "server.pem")


class TlsServer:
    """Ends TLS in front of a server that has none (the bundled one is built without): every byte comes through here."""

    def __init__(self, directory: Path, path: str) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(directory / "server.pem", directory / "server.key")
        self._path = path
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port = self._listener.getsockname()[1]
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it is closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            client.settimeout(5)
            with self._context.wrap_socket(client, server_side=True) as secure, socket.socket(socket.AF_UNIX) as server:
                secure.settimeout(None)
                server.connect(self._path)
                self.connections += 1
                back = threading.Thread(target=_pump, args=(server, secure), daemon=True)
                back.start()
                _pump(secure, server)
                back.join()

    def close(self) -> None:
        self._listener.close()


def _pump(source: socket.socket, to: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            to.sendall(data)
    for each in (source, to):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificates")
    make_certificates(directory)
    return directory


@pytest.fixture
def tls(certificates: Path, redis_url: str) -> Iterator[TlsServer]:
    server = TlsServer(certificates, redis_url.removeprefix("unix://").partition("?")[0])
    yield server
    server.close()


@pytest.fixture
def words(tmp_path: Path) -> Path:
    directory = tmp_path / "words"
    directory.mkdir()
    for number in range(6):
        (directory / f"{number}.txt").write_text("a word and another\n" * 40)
    return directory


@pytest.fixture
def tls_workers(tls: TlsServer, certificates: Path, tmp_path: Path) -> Iterator[Workers]:
    directory = tmp_path / "workers"
    directory.mkdir()
    group = Workers(f"rediss://localhost:{tls.port}/0?ssl_ca_certs={certificates}/ca.pem", directory)
    yield group
    group.stop()


def test_a_run_over_tls_gives_what_the_oracle_gives(
    tls: TlsServer, tls_workers: Workers, rqmr: Rqmr, words: Path, tmp_path: Path, redis: Any
) -> None:
    tls_workers.start(2)
    arguments = ["run", "wordcount", words, "-r", 2, "--split-size", "200"]
    done = rqmr(*arguments, "--redis-url", tls_workers.url, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert rqmr(*arguments, "--inline", "-o", tmp_path / "oracle").returncode == 0
    assert files(tmp_path / "out") == files(tmp_path / "oracle")
    assert tls.connections > 4
    told = one_way(connect(tls_workers.url))  # as careful attempts have it
    told.send_command("SET", "told", "in passing", "PX", 60_000)
    wait_until(lambda: redis.get("told"), timeout=5, what="it has been told")
    told.disconnect()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("rediss://localhost:{port}/0", "certificate verify failed"),
        ("rediss://127.0.0.1:{port}/0?ssl_ca_certs={ca}", "certificate"),
        ("redis://localhost:{port}/0", "no Redis answers at redis://user:***@localhost"),
    ],
    ids=["an unknown CA", "a certificate of another name", "no TLS"],
)
def test_a_server_that_cannot_be_trusted_is_refused(
    url: str, told: str, tls: TlsServer, certificates: Path, rqmr: Rqmr, words: Path, tmp_path: Path
) -> None:
    shown = url.format(port=tls.port, ca=certificates / "ca.pem")
    secret = re.sub("://", "://user:hunter2@", shown)
    done = rqmr("run", "wordcount", words, "--redis-url", secret, "-o", tmp_path / "out", timeout=30)
    assert done.returncode == 2
    assert told in done.stderr
    assert "hunter2" not in done.stderr
    assert tls.connections == 0, "nobody got as far as to send a command"
    assert not (tmp_path / "out").exists()
