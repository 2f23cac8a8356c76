"""RQMR_SECRET: a worker that has one runs what was signed with it, and refuses all else before it imports anything."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bench import Bench
from harness import JOBS, Workers
from msgspec import structs

import rqmr
from rqmr import keys
from rqmr.loader import pack_file
from rqmr.model import Split
from rqmr.sealed import open_spec, open_split
from rqmr.signing import VARIABLE
from rqmr.state import State

SECRET = "correct horse battery staple"


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    """In the environment of the driver, which is this process, and of the workers that it starts."""
    monkeypatch.setenv(VARIABLE, SECRET)
    return SECRET


@pytest.fixture
def imports(tmp_path: Path) -> Path:
    """Where a worker that imports the job leaves a mark."""
    directory = tmp_path / "imports"
    directory.mkdir()
    return directory


def refusal(run: Any) -> str:
    """What the view is told of the first worker that refuses."""
    run.wait_for("refused")
    return next(f"{event.subject} {event.note}" for event in run.seen if event.what == "refused")


def test_a_signed_run_gives_what_the_oracle_gives_also_on_workers_without_the_secret(
    secret: str, bench: Bench, workers: Workers
) -> None:
    bench.write(4)
    workers.start(1)
    workers.start(1, RQMR_SECRET="")
    bench.assert_right(bench.start("slow", seconds=0.01), "slow")


def test_a_run_that_nobody_signed_is_refused_and_the_view_says_by_whom_and_what_to_do(
    bench: Bench, workers: Workers, imports: Path
) -> None:
    bench.write(1)
    workers.start(1, RQMR_SECRET=SECRET, RQMR_TEST_IMPORTS=str(imports))
    run = bench.start("imported")
    told = refusal(run)
    assert told.startswith("worker-1 ")
    assert f"worker worker-1 on {socket.gethostname()} refuses it: the spec of run {run.id} isn't signed" in told
    assert VARIABLE in told
    assert SECRET not in told
    assert not list(imports.iterdir()), "it has imported the job's code"


def test_a_spec_that_was_altered_is_refused(
    secret: str, bench: Bench, workers: Workers, redis: Any, imports: Path
) -> None:
    bench.write(1)
    run = bench.start("imported")
    key = keys.RunKeys(run.id).run
    stored = redis.hget(key, "spec")
    spec = structs.replace(open_spec(run.id, stored), stage="/elsewhere/.rqmr-x")
    redis.hset(key, "spec", stored[:33] + msgspec.msgpack.encode(spec))
    workers.start(1, RQMR_TEST_IMPORTS=str(imports))
    assert f"the spec of run {run.id} was altered, or signed with another secret" in refusal(run)
    assert not list(imports.iterdir()), "it has imported the job's code"


def test_a_split_that_was_altered_fails_the_run_and_nothing_is_read(
    secret: str, bench: Bench, workers: Workers, redis: Any, tmp_path: Path
) -> None:
    bench.write(2)
    (tmp_path / "private.txt").write_text("confidential\n")
    run = bench.start("imported")
    key = keys.RunKeys(run.id).splits
    stored = redis.hget(key, 1)
    (piece,) = open_split(run.id, 1, stored).pieces
    other = Split((structs.replace(piece, path=bytes(tmp_path / "private.txt")),))
    redis.hset(key, 1, stored[:33] + msgspec.msgpack.encode(other))
    workers.start(1)
    with pytest.raises(rqmr.RunFailed, match=f"the split of run {run.id} was altered, or signed with another secret"):
        run.result()
    State(redis, run.id).unlink()


def test_splits_may_not_change_places(secret: str, bench: Bench, workers: Workers, redis: Any) -> None:
    bench.write(2)
    run = bench.start("imported")
    key = keys.RunKeys(run.id).splits
    redis.hset(key, 1, redis.hget(key, 0))
    workers.start(1)
    with pytest.raises(rqmr.RunFailed, match="was altered"):
        run.result()
    State(redis, run.id).unlink()


@pytest.mark.parametrize("secrecy", [SECRET, ""], ids=["signed", "without a secret"])
def test_code_that_was_altered_is_never_imported(
    secrecy: str, monkeypatch: pytest.MonkeyPatch, bench: Bench, workers: Workers, redis: Any, tmp_path: Path
) -> None:
    """Its content hash is looked at, with and without a secret."""
    monkeypatch.setenv(VARIABLE, secrecy)
    bench.write(1)
    run = bench.start("imported")
    content_hash = pack_file(JOBS / "imported.py").content_hash
    source = (JOBS / "imported.py").read_text() + f"\n\nPath({str(tmp_path / 'evil')!r}).touch()\n"
    (tmp_path / "imported.py").write_text(source)
    redis.set(keys.code(content_hash), pack_file(tmp_path / "imported.py").encode(), keepttl=True)
    workers.start(1)
    with pytest.raises(rqmr.RunFailed, match=f"the code in Redis was altered.*remove the key rqmr:code:{content_hash}"):
        run.result()
    assert not (tmp_path / "evil").exists()
    redis.delete(keys.code(content_hash))
    State(redis, run.id).unlink()


def test_a_resumed_run_is_signed_anew(secret: str, workers: Workers, rqmr: Any, tmp_path: Path) -> None:
    (tmp_path / "words").write_text("a word\nan error\n")
    workers.start(1)
    out = tmp_path / "out"
    failed = rqmr("run", JOBS / "bad.py", tmp_path / "words", "--redis-url", workers.url, "-o", out)
    assert failed.returncode == 1
    run = re.search(r"rqmr resume (\S+)", failed.stderr)
    assert run
    done = rqmr("resume", run[1], "--skip-bad", 1, "--redis-url", workers.url)
    assert done.returncode == 0, done.stderr
    assert (out / "_SUCCESS").exists()


def test_commands_that_have_a_secret_believe_no_run_without_it(bench: Bench, rqmr: Any) -> None:
    """The code that they would run, and the directories that they would remove, are in its spec."""
    bench.write(1)
    run = bench.start("imported")
    for command in ("attach", "cancel"):
        done = rqmr(command, run.id, "--redis-url", bench.url, env={**os.environ, VARIABLE: SECRET})
        assert done.returncode == 2
        assert f"the spec of run {run.id} isn't signed" in done.stderr
    done = rqmr("ps", "--redis-url", bench.url, env={**os.environ, VARIABLE: SECRET})
    assert run.id in done.stdout
    assert "unknown" in done.stdout
