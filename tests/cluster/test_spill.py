"""A shuffle that is more than Redis holds: `--spill`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bench import Bench, Run
from harness import JOBS, RedisServer, Workers, wait_until
from stores import s3_server

import rqmr
from rqmr import scheduler, tick
from rqmr.config import Config
from rqmr.connection import connect
from rqmr.model import RunState
from rqmr.runs import cancel, remove, resume
from rqmr.spilled import stub_in
from rqmr.urls import file_system
from rqmr.view import Silent
from rqmr.where import Where

MIB = 1 << 20
#: Nine maps of 8 MiB for three reducers: 72 MiB that can't be compressed, on a server that holds 18.
CUT = Config(workers=0, reducers=3, split_bytes=4 << 10, lease_seconds=2)
FILES, LINES, PIECES, SIZE = 9, 16, 32, 16 << 10
LIMIT = 18 * MIB


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A small server of the test's own."""
    directory = tmp_path / "server"
    directory.mkdir()
    server = RedisServer(directory, ["--maxmemory", str(LIMIT)])
    server.start()
    client = connect(server.url)
    client.ping()
    client.close()
    yield server.url
    server.close()


@pytest.fixture
def bench(tmp_path: Path, redis_url: str) -> Iterator[Bench]:
    bench = Bench(tmp_path, redis_url)
    bench.write(FILES, lines=LINES)
    yield bench
    bench.open_gate()
    for run in bench.runs:
        run.end()


@pytest.fixture
def spill(tmp_path: Path) -> Path:
    return tmp_path / "spill"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver gives up after 3 s without hope."""
    monkeypatch.setattr(tick, "policy_of", lambda spec: scheduler.Policy(patience_ms=3_000))


def start(bench: Bench, spill: Path | str | None, memory: int = 64 * MIB, **params: Any) -> Run:
    config = msgspec.structs.replace(CUT, spill=None if spill is None else str(spill), memory=memory)
    return bench.start("pieces", config, pieces=PIECES, size=SIZE, **params)


def assert_right(bench: Bench, run: Run) -> None:
    """Its output is that of one process without Redis."""
    assert run.result(60).summary.map_tasks == FILES
    assert_files(bench, run)


def assert_files(bench: Bench, run: Run) -> None:
    expected = rqmr.run(
        str(JOBS / "pieces.py"), sorted(bench.inputs.iterdir()), config=CUT, inline=True,
        params={"pieces": PIECES, "size": SIZE}, output=bench.directory / f"oracle of {run.id}",
    )  # fmt: skip
    for path in expected.paths:
        assert (run.output / path.name).read_bytes() == path.read_bytes(), path.name


def spilled(spill: Path) -> list[Path]:
    return sorted(spill.glob(".rqmr-spill-*/*"))


def mapped(workers: Workers, bench: Bench, spill: Path) -> Run:
    """A run whose maps are done, and whose reduce tasks wait at the gate."""
    workers.start(2)
    run = start(bench, spill, gate=str(bench.marks / "open"))
    run.wait_until(lambda facts: facts.phase == 1 and facts.running, what="it reduces", timeout=40)
    return run


def refused_writes(redis: Any) -> int:
    return redis.info("errorstats").get("errorstat_OOM", {}).get("count", 0)


def test_a_shuffle_of_four_times_the_servers_memory_is_right(
    workers: Workers, bench: Bench, redis: Any, spill: Path
) -> None:
    """What Redis has no memory for is in files, and none is left in the end; claims never have to wait."""
    run = mapped(workers, bench, spill)
    total = sum(path.stat().st_size for path in spilled(spill))
    assert total > 2.5 * LIMIT
    assert redis.info("memory")["used_memory"] < 0.85 * LIMIT
    fields = [data for key in redis.scan_iter(f"rqmr:{run.id}:s0:shuffle:*") for data in redis.hvals(key)]
    stubs = [stub for data in fields if (stub := stub_in(data))]
    assert sum(stub.size for stub in stubs) == total
    assert sum(len(data) for data in fields if not stub_in(data)) + total > 4 * LIMIT * 0.95

    bench.open_gate()
    assert_right(bench, run)
    assert not spilled(spill)
    assert not list(spill.iterdir())
    assert not run.events("paused")
    assert not run.events("reopened")
    assert not refused_writes(redis)


def test_without_it_the_run_fails_early_with_the_sizes_and_can_be_resumed_with_it(
    workers: Workers, bench: Bench, redis: Any, spill: Path, impatient: None
) -> None:
    """Before half of the maps are done."""
    workers.start(2)
    run = start(bench, None)
    with pytest.raises(rqmr.RunFailed) as failed:
        run.result(60)
    told = failed.value.failure.message
    assert "of 18.0 MiB used) and waiting didn't help; this run's segments take 1" in told
    assert "MiB with" in told
    assert "let it spill to files (--spill DIR, also of rqmr resume)" in told
    assert run.facts
    assert run.facts.committed < FILES / 2
    assert not refused_writes(redis)

    resume(run.id, Where(bench.url), Silent(), spill=str(spill))
    assert_files(bench, run)
    assert not list(spill.iterdir())


def test_a_file_that_is_deleted_has_its_maps_run_again(workers: Workers, bench: Bench, spill: Path) -> None:
    """And so has one that is cut short, or overwritten."""
    run = mapped(workers, bench, spill)
    gone, short, other, *_ = spilled(spill)
    gone.unlink()
    short.write_bytes(short.read_bytes()[:1000])
    other.write_bytes(bytes(other.stat().st_size))
    bench.open_gate()
    assert_right(bench, run)
    assert run.events("reopened")
    assert not run.events("failed")
    assert not list(spill.iterdir())


@pytest.mark.parametrize("end", ["cancel", "rm"])
def test_a_run_that_is_cancelled_or_removed_leaves_no_files(
    workers: Workers, bench: Bench, redis: Any, spill: Path, end: str
) -> None:
    """A failed one keeps them for a resume."""
    run = mapped(workers, bench, spill)
    assert spilled(spill)
    if end == "cancel":
        cancel(run.id, Where(bench.url))
    else:
        redis.hset(f"rqmr:{run.id}", "state", RunState.FAILED.value)
        wait_until(lambda: run.is_over, timeout=10, what="it has failed")
        assert spilled(spill)
        remove(run.id, Where(bench.url))
    wait_until(lambda: run.is_over, timeout=10, what="the run is over")
    assert not list(spill.iterdir())


def test_an_attempt_that_fails_leaves_no_files(workers: Workers, bench: Bench, spill: Path) -> None:
    """What it has spilled goes with it; what committed ones have is kept for a resume."""
    workers.start(2)
    run = start(bench, spill, bad="03.txt", memory=1 << 20)
    with pytest.raises(rqmr.RunFailed, match="that was the last straw"):
        run.result(60)
    owners = {path.name.rpartition("-")[0] for path in spilled(spill)}
    assert owners & set(run.events("committed"))
    wait_until(
        lambda: {path.name.rpartition("-")[0] for path in spilled(spill)} <= set(run.events("committed")),
        timeout=10, what="those who were at other tasks have heard of it",
    )  # fmt: skip


def test_workers_that_do_not_see_the_directory_say_so(workers: Workers, bench: Bench, spill: Path) -> None:
    """They don't take what is in it for lost."""
    run = mapped(workers, bench, spill)
    [directory] = spill.iterdir()
    directory.rename(spill / "elsewhere")
    bench.open_gate()
    with pytest.raises(rqmr.RunFailed, match=f"it doesn't see the spill directory {spill}: --spill takes one that all"):
        run.result(60)
    assert not run.events("reopened")
    assert set(run.events("failed")) <= {"run"}, "no attempt: that is told of the run, by whoever has ended it"

    (spill / "elsewhere").rename(directory)
    resume(run.id, Where(bench.url), Silent())
    assert_files(bench, run)
    assert not list(spill.iterdir())


def test_segments_are_spilled_to_a_store(
    workers: Workers, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is lost there, too, is made again, and the bucket is empty in the end."""
    with s3_server(tmp_path) as s3:
        s3.new_bucket()
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        workers.start(2)
        run = start(bench, s3.url("spill"), gate=str(bench.marks / "open"))
        run.wait_until(lambda facts: facts.phase == 1 and facts.running, what="it reduces", timeout=60)
        store, _ = file_system(s3.url("spill"))
        mark, *objects = sorted(store.find(f"{s3.bucket}/spill", withdirs=False))
        assert mark.endswith("/_stage")
        assert len(objects) >= FILES
        assert all(f"/.rqmr-spill-{run.id}/s0-m" in each for each in objects)
        store.rm_file(objects[0])
        bench.open_gate()
        assert_right(bench, run)
        assert run.events("reopened")
        assert not store.find(s3.bucket)


def test_a_private_run_whose_command_is_killed_leaves_no_directory(tmp_path: Path, spill: Path) -> None:
    """Nor does one that is ended by a signal."""
    (tmp_path / "in.txt").write_text("a b\n" * 100)
    command = [sys.executable, "-m", "rqmr", "run", JOBS / "slow.py", tmp_path / "in.txt", "-p", "seconds=0.2"]
    for number, end in enumerate((signal.SIGKILL, signal.SIGTERM)):
        process = subprocess.Popen(
            [*map(str, command), "-w", "1", "--spill", str(spill), "-o", str(tmp_path / f"out{number}")],
            stderr=subprocess.DEVNULL, env={name: value for name, value in os.environ.items() if "REDIS" not in name},
        )  # fmt: skip
        wait_until(lambda: list(spill.glob(".rqmr-spill-*")), timeout=20, what="there is a directory")
        process.send_signal(end)
        process.wait(20)
        wait_until(lambda: not list(spill.glob(".rqmr-spill-*")), timeout=20, what="it is gone")


def test_a_directory_that_can_not_be_made_is_told_at_once(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(rqmr.errors.RefusedError, match=r"--spill: .* can't be written to: Not a directory"):
        rqmr.run("wordcount", bench.inputs, config=Config(spill=str(tmp_path / "file" / "x")), redis_url=bench.url)
