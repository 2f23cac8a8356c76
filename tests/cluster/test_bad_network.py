"""A network that is slow and breaks: the output is right, and it ends."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from harness import Workers
from proxies import bad_network


def test_with_fifty_milliseconds_and_cut_connections_the_output_is_right(
    redis_url: str, tmp_path: Path, books: list[Path], rqmr: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """RQ's workers end when a connection is cut while they are busy; they are started again, as systemd would."""
    socket = redis_url.removeprefix("unix://").partition("?")[0]
    names = [str(book) for book in books]
    with bad_network(socket, latency=0.05, cut_after=1.5, seed=11) as proxy:
        place = tmp_path / "bad"
        place.mkdir()
        workers = Workers(f"redis://127.0.0.1:{proxy.port}/0", place)
        try:
            workers.keep(2)
            options = ["wordcount", *names, "--split-size", "512KiB", "-r", "2"]
            ran = rqmr("run", *options, "--lease", "3", "--redis-url", workers.url, "-o", "counts", timeout=90)
        finally:
            workers.stop()
    assert ran.returncode == 0, ran.stderr
    assert proxy.cuts > 3
    assert rqmr("run", *options, "--inline", "-o", "expected").returncode == 0
    parts = [(tmp_path / "cwd" / name) for name in ("counts", "expected")]
    assert [path.read_bytes() for path in sorted(parts[0].iterdir())] == [
        path.read_bytes() for path in sorted(parts[1].iterdir())
    ]
