"""Stores on the loopback that URLs are read from: an S3 server, and web servers with and without ranges."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from harness import wait_until
from s3fs import S3FileSystem

#: What lets in here; the server takes anything.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test-key",
    "AWS_SECRET_ACCESS_KEY": "test-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class S3:
    """A real S3 server, moto's, with one bucket."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.environment = {**CREDENTIALS, "AWS_ENDPOINT_URL": self.endpoint}
        self._made = 0
        self.bucket = ""

    def new_bucket(self) -> None:
        self._made += 1
        self.bucket = f"bucket{self._made}"
        self._put(self.bucket, b"")

    def put(self, key: str, content: bytes) -> str:
        """Store an object, and return its URL."""
        self._put(f"{self.bucket}/{key}", content)
        return self.url(key)

    def url(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"

    def _put(self, path: str, content: bytes) -> None:
        headers = {
            "Content-Type": "application/octet-stream",
            "Authorization": "AWS4-HMAC-SHA256 Credential=test-key/20260101/us-east-1/s3/aws4_request, "
            "SignedHeaders=host, Signature=none",
        }
        request = urllib.request.Request(f"{self.endpoint}/{path}", data=content, headers=headers, method="PUT")
        urllib.request.urlopen(request, timeout=10).close()


@contextlib.contextmanager
def s3_server(directory: Path) -> Iterator[S3]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with (directory / "moto.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        wait_until(lambda: _listens(port), timeout=30, what="the S3 server listens")
        S3FileSystem.clear_instance_cache()  # this process may know another server
        yield S3(port)
    finally:
        S3FileSystem.clear_instance_cache()
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


class Web:
    """A web server's files, what it can do, and what it was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.has_ranges = True
        self.tells_size = True
        self.heeds_versions = True  # If-Match, as few do
        self.squeezes = False  # it compresses what it sends to those who take that
        self.failures = 0  # requests for content that fail next
        self.breaks_after: int | None = None  # bytes of an answer
        self.password = ""
        self.asked: list[tuple[str, str]] = []  # method and range
        self.sent = 0  # bytes of content
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                web._answer(self)

            do_HEAD = do_GET  # noqa: N815

            def handle(self) -> None:
                with contextlib.suppress(ConnectionResetError):  # by a client that has read enough
                    super().handle()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def put(self, name: str, content: bytes) -> str:
        """Store a file, and return its URL."""
        self.files[name] = content
        return f"http://{self.address}/{name}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range", "")
        self.asked.append((request.command, asked))
        content = self.files.get(request.path.partition("?")[0].removeprefix("/"))
        tag = f'"{hashlib.md5(content or b"").hexdigest()}"'
        if self.password and f"token={self.password}" not in request.path:
            self._send(request, 403, b"")
        elif content is None:
            self._send(request, 404, b"")
        elif self.heeds_versions and request.headers.get("If-Match", tag) != tag:
            self._send(request, 412, b"")
        elif self.failures and request.command == "GET":
            self.failures -= 1
            self._send(request, 503, b"")
        elif self.squeezes and request.command == "GET" and "gzip" in request.headers.get("Accept-Encoding", ""):
            self._send(request, 200, gzip.compress(content), ETag=tag, Content_Encoding="gzip")
        elif self.has_ranges and asked:
            start, end = (int(each) for each in asked.removeprefix("bytes=").split("-"))
            total, end = len(content), min(end, len(content) - 1)
            self._send(request, 206, content[start : end + 1], ETag=tag, Content_Range=f"bytes {start}-{end}/{total}")
        else:
            self._send(request, 200, content, ETag=tag)

    def _send(self, request: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        if self.tells_size:
            request.send_header("Content-Length", str(len(body)))
        else:
            request.send_header("Connection", "close")
        request.end_headers()
        if request.command == "GET":
            body = body[: self.breaks_after]
            self.sent += len(body)
            with contextlib.suppress(OSError):
                request.wfile.write(body)
        if not self.tells_size or self.breaks_after is not None:
            request.close_connection = True
