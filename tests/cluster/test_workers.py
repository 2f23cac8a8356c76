"""Whole runs on stock `rq worker` processes: the output is the oracle's, byte for byte, and nothing is left behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import rq
from harness import JOBS, ROOT, Workers, wait_until
from msgspec import structs

import rqmr
from rqmr.config import Config
from rqmr.facts import Header
from rqmr.view import Silent

EXAMPLES = ROOT / "jobs"
#: Many small tasks, the same in the oracle as in the run.
CUT = Config(workers=0, reducers=3, split_bytes=64 << 10)

Rqmr = Callable[..., subprocess.CompletedProcess[str]]


class Named(Silent):
    """A view that remembers the run's id."""

    run = ""

    def begin(self, header: Header) -> None:
        self.run = header.run


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve files, a map task each when cut at 4 KiB."""
    directory = tmp_path_factory.mktemp("words")
    return write_words(directory, files=12, lines=25, seed=20261121)


def write_words(directory: Path, *, files: int, lines: int, seed: int) -> list[Path]:
    """Write files of words, the same for the same seed."""
    print(f"words of seed {seed}")
    chance = random.Random(seed)
    vocabulary = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyzäß", k=chance.randint(1, 9))) for _ in range(300)]
    for number in range(files):
        text = "".join(" ".join(chance.choices(vocabulary, k=8)) + "\n" for _ in range(lines))
        (directory / f"{number:02}.txt").write_text(text)
    return sorted(directory.iterdir())


def parts(directory: Path) -> dict[str, bytes]:
    """The content of all part files."""
    return {path.name: path.read_bytes() for path in directory.glob("part-*")}


def oracle(job: Path, inputs: Sequence[Path], config: Config, directory: Path, **params: Any) -> rqmr.Result:
    """What the job has to give."""
    return rqmr.run(str(job), inputs, config=config, output=directory / "oracle", params=params, inline=True)


def assert_equal(result: rqmr.Result, expected: rqmr.Result) -> None:
    """The same part files, byte for byte, and the same counters."""
    assert parts(result.output) == parts(expected.output)
    assert sorted(path.name for path in result.output.iterdir()) == sorted([*parts(expected.output), "_SUCCESS"])
    assert result.counters == expected.counters
    assert result.summary.records_read == expected.summary.records_read
    assert result.summary.records_written == expected.summary.records_written


def keys_left(redis: Any, run: str = "") -> list[str]:
    """The keys of a run, or of all runs, that are in Redis; code, the index, and how runs ended stay for their time."""
    found = {key.decode() for key in redis.scan_iter(f"rqmr:{run}*", count=1000)}
    return sorted(key for key in found if not key.startswith(("rqmr:code:", "rqmr:runs")) and not key.endswith(":end"))


def tickets_left(redis: Any) -> list[str]:
    """The ids of the RQ jobs that RQ still has, and of those in the queue."""
    found = [key.decode().removeprefix("rq:job:") for key in redis.scan_iter("rq:job:*", count=1000)]
    return sorted(found + [f"{name.decode()} (queued)" for name in redis.lrange("rq:queue:rqmr", 0, -1)])


def wait_for_idle_workers(redis: Any) -> None:
    wait_until(lambda: not redis.llen("rq:queue:rqmr"), timeout=5, what="no ticket is queued")
    wait_until(lambda: not redis.zcard("rq:wip:rqmr"), timeout=10, what="the workers have ended their turns")


def assert_nothing_left(redis: Any) -> None:
    """Nothing of any run, neither at once nor when the workers have ended their turns."""
    assert keys_left(redis) == []
    wait_for_idle_workers(redis)
    assert keys_left(redis) == [], "what a worker wrote after the end of the run"


@pytest.fixture
def two_workers(workers: Workers) -> Iterator[Workers]:
    """Two workers that don't agree on any hash."""
    workers.start(1, PYTHONHASHSEED="1")
    workers.start(1, PYTHONHASHSEED="2")
    yield workers
    assert [process.poll() for process in workers.processes] == [None] * len(workers.processes), "a worker died"


@pytest.mark.parametrize("job", ["wordcount", "inverted_index", "top_words"])
def test_the_books_give_what_the_oracle_gives_though_no_two_workers_hash_alike(
    job: str, two_workers: Workers, redis: Any, books: list[Path], tmp_path: Path
) -> None:
    expected = oracle(EXAMPLES / f"{job}.py", books, CUT, tmp_path)
    result = rqmr.run(
        str(EXAMPLES / f"{job}.py"), books, config=CUT, output=tmp_path / "out", redis_url=two_workers.url
    )
    assert_equal(result, expected)
    assert sum(map(len, parts(result.output).values())) > 1000 or job == "top_words"
    assert_nothing_left(redis)


@pytest.mark.parametrize(
    ("job", "form"),
    [("hashes", "tsv"), ("floats", "jsonl"), ("two_steps", "tsv"), ("map_only", "jsonl"), ("map_only", "tsv")],
)
def test_jobs_of_every_shape_give_what_the_oracle_gives(
    job: str, form: str, two_workers: Workers, redis: Any, words: list[Path], tmp_path: Path
) -> None:
    config = Config(workers=0, reducers=4, split_bytes=4 << 10, format=form)
    params = {"seconds": 0.001} if job == "hashes" else {}  # so that one worker can't do all before the other begins
    expected = oracle(JOBS / f"{job}.py", words, config, tmp_path, **params)
    result = rqmr.run(
        str(JOBS / f"{job}.py"), words, params=params, config=config, output=tmp_path / "out", redis_url=two_workers.url
    )
    expected.counters.pop("hash of rqmr", None)
    seeds = result.counters.pop("hash of rqmr", {})
    assert_equal(result, expected)
    assert job != "hashes" or len(seeds) == 2, "both workers took part"
    assert sum(map(len, parts(result.output).values())) > 100
    assert_nothing_left(redis)


@pytest.mark.parametrize(
    ("job", "params"),
    [("slow", {}), ("indexer", {"ascending": True}), (EXAMPLES / "wordcount", {})],
    ids=["values", "sorted values", "sums"],
)
def test_tasks_that_may_hold_little_give_what_the_oracle_gives(
    job: str, params: Any, two_workers: Workers, redis: Any, words: list[Path], tmp_path: Path
) -> None:
    """They spill where they map and merge in passes where they reduce; and all is as if they might hold much."""
    path = (JOBS / job).with_suffix(".py")
    config = Config(workers=0, reducers=2, split_bytes=4 << 10, memory=20_000)
    expected = oracle(path, words, structs.replace(config, memory=64 << 20), tmp_path, **params)
    assert_equal(oracle(path, words, config, tmp_path / "little", **params), expected)
    out = tmp_path / "out"
    result = rqmr.run(str(path), words, params=params, config=config, output=out, redis_url=two_workers.url)
    assert_equal(result, expected)
    assert_nothing_left(redis)


def test_the_command_on_a_named_redis_gives_what_the_oracle_gives(
    two_workers: Workers, redis: Any, rqmr: Rqmr, books: list[Path], tmp_path: Path
) -> None:
    arguments = ["run", "wordcount", *books, "-r", "3", "--split-size", "64KiB"]
    inline = rqmr(*arguments, "--inline", "-o", tmp_path / "oracle")
    assert inline.returncode == 0, inline.stderr
    done = rqmr(*arguments, "--redis-url", two_workers.url, "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "succeeded"
    assert parts(tmp_path / "out") == parts(tmp_path / "oracle")
    assert (tmp_path / "out" / "_SUCCESS").exists()
    assert_nothing_left(redis)


def test_local_workers_of_a_named_redis_do_the_work_and_sign_off(
    redis_url: str, redis: Any, rqmr: Rqmr, words: list[Path], tmp_path: Path
) -> None:
    arguments = ["run", JOBS / "slow.py", *words, "-r", "2", "--split-size", "4KiB"]
    assert rqmr(*arguments, "--inline", "-o", tmp_path / "oracle").returncode == 0
    done = rqmr(*arguments, "--redis-url", redis_url, "-w", "2", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert parts(tmp_path / "out") == parts(tmp_path / "oracle")
    assert not redis.smembers("rq:workers")
    assert keys_left(redis) == []
    assert not redis.llen("rq:queue:rqmr")


def test_simple_workers_that_run_jobs_in_their_own_process_are_workers_too(
    workers: Workers, redis: Any, words: list[Path], tmp_path: Path
) -> None:
    workers.start(2, "-w", "rq.worker.SimpleWorker")
    out = tmp_path / "out"
    config = Config(workers=0, reducers=2, split_bytes=4 << 10)
    for job in ("slow", "hashes", "slow"):  # one job's code leaves the process when another's comes
        expected = oracle(JOBS / f"{job}.py", words, config, tmp_path)
        result = rqmr.run(
            str(JOBS / f"{job}.py"), words, config=config, output=out, redis_url=workers.url, overwrite=True
        )
        for each in (expected, result):
            each.counters.pop("hash of rqmr", None)
        assert_equal(result, expected)
        assert_nothing_left(redis)
        for path in (tmp_path / "oracle").iterdir():
            path.unlink()
    assert [process.poll() for process in workers.processes] == [None, None]


def test_a_worker_pool_is_workers_too(redis_url: str, redis: Any, words: list[Path], tmp_path: Path) -> None:
    config = Config(workers=0, reducers=2, split_bytes=4 << 10)
    expected = oracle(JOBS / "slow.py", words, config, tmp_path)
    with subprocess.Popen(
        [sys.executable, "-m", "rq.cli", "worker-pool", "rqmr", "-n", "2", "--url", redis_url],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    ) as pool:  # fmt: skip
        try:
            wait_until(lambda: redis.scard("rq:workers:rqmr") == 2, timeout=20, what="both workers of the pool listen")
            result = rqmr.run(str(JOBS / "slow.py"), words, config=config, output=tmp_path / "out", redis_url=redis_url)
            assert_equal(result, expected)
            assert_nothing_left(redis)
        finally:
            os.killpg(pool.pid, signal.SIGKILL)


def test_workers_that_start_after_the_run_was_submitted_do_it(
    workers: Workers, redis: Any, words: list[Path], tmp_path: Path
) -> None:
    config = Config(workers=0, reducers=2, split_bytes=4 << 10)
    expected = oracle(JOBS / "slow.py", words, config, tmp_path)
    with ThreadPoolExecutor() as threads:
        run = threads.submit(
            rqmr.run, str(JOBS / "slow.py"), words, config=config, output=tmp_path / "out", redis_url=workers.url
        )
        wait_until(lambda: redis.llen("rq:queue:rqmr"), timeout=10, what="tickets wait")
        workers.start(2)
        assert_equal(run.result(timeout=30), expected)
    assert_nothing_left(redis)


def test_two_runs_at_once_on_the_same_workers_do_not_meet(
    two_workers: Workers, redis: Any, words: list[Path], tmp_path: Path
) -> None:
    config = Config(workers=0, reducers=2, split_bytes=4 << 10)
    expected = oracle(JOBS / "slow.py", words, config, tmp_path)
    with ThreadPoolExecutor() as threads:
        runs = [
            threads.submit(
                rqmr.run,
                str(JOBS / "slow.py"),
                words,
                params={"seconds": 0.002},
                config=config,
                output=tmp_path / f"out{number}",
                redis_url=two_workers.url,
            )
            for number in range(3)
        ]
        for run in runs:
            assert_equal(run.result(timeout=60), expected)
    assert_nothing_left(redis)


def test_an_rq_job_of_somebody_else_gets_its_turn_in_the_middle_of_a_long_run(
    workers: Workers, redis: Any, tmp_path: Path
) -> None:
    """Each worker returns to RQ after some seconds, though the run has tasks for a minute."""
    workers.start(2)
    directory = tmp_path / "words"
    directory.mkdir()
    inputs = write_words(directory, files=40, lines=33, seed=1)
    config = Config(workers=0, reducers=1, split_bytes=4 << 10)
    named = Named()
    with ThreadPoolExecutor() as threads:
        run = threads.submit(
            rqmr.run,
            str(JOBS / "slow.py"),
            inputs,
            params={"seconds": 0.03},  # 40 tasks of a second, two at a time
            config=config,
            output=tmp_path / "out",
            redis_url=workers.url,
            view=named,
        )
        wait_until(lambda: redis.zcard(f"rqmr:{named.run}:leases") == 2, timeout=10, what="both workers are at work")
        began = time.monotonic()
        other = rq.Queue("rqmr", connection=redis).enqueue("operator.add", 2, 3)
        try:
            wait_until(lambda: other.is_finished, timeout=20, what="the other RQ job was executed")
            waited = time.monotonic() - began
            print(f"it waited for {waited:.1f} s")
            assert redis.zcard(f"rqmr:{named.run}:pending") > 10, "the run has many tasks left"
        finally:
            redis.hset(f"rqmr:{named.run}", "state", "cancelled")
        with pytest.raises(rqmr.RqmrError, match="cancelled"):
            run.result(timeout=20)
    assert waited < 8, "a turn of three seconds, a task of one that was begun in it, and what a busy machine takes"
    assert_nothing_left(redis)


def test_a_run_that_fails_leaves_nothing_but_the_traceback_that_rq_shows_for_a_day(
    two_workers: Workers, redis: Any, words: list[Path], tmp_path: Path
) -> None:
    """If it can't be resumed, as its output would have gone with the call."""
    (tmp_path / "marks").mkdir()
    (tmp_path / "crash.txt").write_text("a word\nand crash here\n")
    params = {"marks": str(tmp_path / "marks"), "times": 1000, "how": "error"}
    config = Config(workers=0, reducers=2, split_bytes=4 << 10)
    named = Named()
    with pytest.raises(rqmr.RunFailed, match="the job's own error") as caught:
        rqmr.run(
            str(JOBS / "crash.py"), [*words, tmp_path / "crash.txt"], params=params, config=config,
            redis_url=two_workers.url, view=named,
        )  # fmt: skip
    failure = caught.value.failure
    assert (Path(failure.source).name, failure.offset, failure.record) == ("crash.txt", 7, "'and crash here'")
    assert "raise ValueError" in failure.traceback
    assert "rqmr/" not in failure.traceback.replace(str(JOBS), "")
    assert_nothing_left(redis)
    told = [rq.job.Job.fetch(ticket, connection=redis).latest_result() for ticket in tickets_left(redis)]
    assert 0 < len(told) <= 4, "one for each attempt that failed"
    assert ["the job's own error" in result.exc_string for result in told] == [True] * len(told)
    kept = [key for key in redis.scan_iter("rq:*") if named.run.encode() in key]
    assert [key for key in kept if redis.ttl(key) == -1] == [], "all that RQ keeps goes in the end"


def test_no_ticket_of_a_run_that_succeeds_is_left_with_rq_or_fails_there(
    two_workers: Workers, redis: Any, words: list[Path], tmp_path: Path
) -> None:
    config = Config(workers=0, reducers=2, split_bytes=4 << 10)
    for number in range(6):
        rqmr.run(
            str(JOBS / "slow.py"), words, config=config, output=tmp_path / f"out{number}", redis_url=two_workers.url
        )
        wait_for_idle_workers(redis)
    wait_until(lambda: not tickets_left(redis), timeout=1, what=f"none of {tickets_left(redis)} is left")
    assert not redis.zrange("rq:failed:rqmr", 0, -1), "rq info shows them"
    assert "Traceback" not in (tmp_path / "workers" / "worker-1.log").read_text(), "operators read this"
