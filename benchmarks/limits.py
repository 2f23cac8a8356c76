"""The targets that are rates, spans of time and memory."""

from __future__ import annotations

import random
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from cluster import Cluster, started
from measure import Usage, Watch, run
from results import MIB, Result, told_size
from rq import Queue
from targets import JOBS, RQMR, Bench, records_size

import rqmr
from rqmr import registry
from rqmr.config import Config
from rqmr.facts import Event, Facts
from rqmr.view import Silent

#: A stock worker forks for each of its RQ jobs: this many are enough to know its rate.
PLAIN_JOBS = 200
REDUCERS = 50
_WORDS = 100  # of a line
#: The shuffle of a few kilobytes is there for milliseconds only, and may come and go between two looks.
_TRIES = 10


# --- tasks --------------------------------------------------------------------------------------------------------


def tasks(bench: Bench) -> list[Result]:
    """How many map tasks that do nothing two stock workers do in a second, all told."""
    found = Result("tasks", f"{bench.tasks:,} no-op map tasks", "tasks/s", at_most=False, limit=1000)
    plain, inner = [], []
    jobs = min(bench.tasks, PLAIN_JOBS)
    for number in range(bench.rounds):
        with started(2) as cluster:
            used, seconds = _no_ops(bench, cluster, bench.tasks)
            found.seconds.setdefault("rqmr", []).append(used.seconds)
            found.values.append(bench.tasks / used.seconds)
            inner.append(bench.tasks / seconds)
            plain.append(jobs / _plain_seconds(cluster, jobs))
        bench.say(f"tasks {number + 1}: {found.values[-1]:.0f} tasks/s, plain RQ {plain[-1]:.0f}")
    found.notes.append(
        f"from the run's creation to its end {statistics.median(inner):.0f} tasks/s; plain RQ, the same two workers, "
        f"{jobs} RQ jobs: {statistics.median(plain):.0f} a second."
    )
    return [found]


def task_rates(bench: Bench, counts: Sequence[int]) -> dict[int, float]:
    """Return the tasks that two stock workers do in a second, by how many there are: the median of the rounds."""
    found = {}
    for count in counts:
        rates = []
        for _ in range(bench.rounds):
            with started(2) as cluster:
                rates.append(count / _no_ops(bench, cluster, count)[0].seconds)
        found[count] = statistics.median(rates)
        bench.say(f"{count} tasks: {found[count]:.0f} tasks/s")
    return found


def _no_ops(bench: Bench, cluster: Cluster, count: int) -> tuple[Usage, float]:
    path = bench.work / f"{count}.txt"
    path.write_text("".join(f"{number:07}\n" for number in range(count)))
    return _follow(bench, cluster, "do_nothing", path, "--split-size", "8B", "-r", 1)


def _follow(bench: Bench, cluster: Cluster, job: str, path: Path, *options: object) -> tuple[Usage, float]:
    """Run a job on the workers of a cluster; return also the seconds from its creation to its end."""
    output = bench.work / "out"
    shutil.rmtree(output, ignore_errors=True)
    command = [RQMR, "run", JOBS / f"{job}.py", path, "-o", output, "--quiet", "--redis-url", cluster.url, *options]
    used = run(command)
    end = registry.read_end(cluster.client, registry.runs(cluster.client)[-1][0])
    assert end is not None
    return used, (end.ended_ms - end.began_ms) / 1000


def _plain_seconds(cluster: Cluster, count: int) -> float:
    """How long the workers take for RQ jobs that do nothing."""
    queue = Queue("rqmr", connection=cluster.client)
    began = time.monotonic()
    queue.enqueue_many([Queue.prepare_data("time.sleep", (0,), result_ttl=0) for _ in range(count)])
    while queue.count or queue.started_job_registry.get_job_count(cleanup=False):
        time.sleep(0.005)
    return time.monotonic() - began


def wide(bench: Bench) -> list[Result]:
    """What a task costs in a run with many, against one with a tenth; and what that costs the driver."""
    few, many = bench.tasks // 2, bench.tasks * 5
    cost = Result("wide", f"{many:,} × {REDUCERS} against {few:,} × {REDUCERS}: a task's cost", "×", True, 1.3)
    cpu = Result("wide", f"the driver's CPU, {many:,} × {REDUCERS}", "% of a core", True, 10)
    memory = Result("wide", f"the driver's memory, {many:,} × {REDUCERS}", "MiB", True, 150)
    for number in range(bench.rounds):
        each: dict[int, float] = {}
        for maps in (few, many):
            path = _lines_of_words(bench, maps)
            with started(2) as cluster:
                used, seconds = _follow(
                    bench, cluster, "count_words", path, "--split-size", f"{6 * _WORDS}B", "-r", REDUCERS
                )
            each[maps] = seconds / (maps + REDUCERS)
            cost.seconds.setdefault(f"{maps:,}", []).append(seconds)
            bench.say(f"wide {number + 1}: {maps} maps in {seconds:.1f} s, {1000 * each[maps]:.2f} ms a task")
        cost.values.append(each[many] / each[few])
        cpu.values.append(100 * used.own_cpu / used.seconds)
        memory.values.append(used.own_peak / MIB)
    return [cost, cpu, memory]


def _lines_of_words(bench: Bench, count: int) -> Path:
    """A file of lines of the same length, so that each can be a split."""
    path = bench.work / f"words-{count}.txt"
    if not path.exists():
        chance = random.Random(count)
        words = [f"{number:05}" for number in range(5000)]
        path.write_text("".join(" ".join(chance.choices(words, k=_WORDS)) + "\n" for _ in range(count)))
    return path


# --- one worker more ----------------------------------------------------------------------------------------------


class Span(Silent):
    """The time between a run's first claim and its last commit."""

    def __init__(self) -> None:
        self._first = self._last = 0

    @property
    def seconds(self) -> float:
        """What it was."""
        return (self._last - self._first) / 1000

    def update(self, facts: Facts, events: Sequence[Event]) -> None:
        """Take what has happened since."""
        for event in events:
            if event.what == "claimed":
                self._first = self._first or event.at_ms
            elif event.what == "committed":
                self._last = event.at_ms


def scaling(bench: Bench) -> list[Result]:
    """How many times as fast two workers are as one."""
    found = Result("scaling", "two workers against one, word count, books", "×", at_most=False, limit=1.85)
    found.size = bench.size
    files = bench.files("books")
    for number in range(bench.rounds):
        seconds = {workers: _span(bench, files, workers) for workers in (1, 2)}
        for workers, taken in seconds.items():
            found.seconds.setdefault(f"{workers} worker{'s' * (workers > 1)}", []).append(taken)
        found.values.append(seconds[1] / seconds[2])
        bench.say(f"scaling {number + 1}: {seconds[1]:.2f} s and {seconds[2]:.2f} s: {found.values[-1]:.2f} ×")
    found.notes.append(f"{told_size(bench.size)} in 32 map tasks, from the first claim to the last commit.")
    return [found]


def _span(bench: Bench, files: Sequence[Path], workers: int) -> float:
    span = Span()
    config = Config(workers=workers, split_bytes=max(MIB, bench.size // 32), reducers=2)
    output = bench.work / "out"
    shutil.rmtree(output, ignore_errors=True)
    rqmr.run(str(JOBS / "count_words.py"), files, config=config, output=output, view=span)
    return span.seconds


def tiny(bench: Bench) -> list[Result]:
    """How long a whole command takes that has next to nothing to do."""
    found = Result("tiny", "a tiny job, whole command", "s", at_most=True, limit=0.6)
    files = bench.files("books", MIB // 4)
    for number in range(bench.rounds):
        found.values.append(bench.rqmr("count_words", files)[0].seconds)
        found.seconds.setdefault("pool", []).append(bench.pool("words", files)[0].seconds)
        bench.say(f"tiny {number + 1}: {found.values[-1]:.2f} s")
    return [found]


# --- memory -------------------------------------------------------------------------------------------------------


def memory(bench: Bench) -> list[Result]:
    """The most that any process of the workers takes."""
    found = Result("memory", "peak memory of one worker, any job", "MiB", at_most=True, limit=200, size=bench.size)
    jobs = {
        "count_words": bench.files("source"), "count_words_by_reducer": bench.files("source"),
        "index_words": bench.files("source"), "sort_records": bench.files("records", records_size(bench)),
    }  # fmt: skip
    peaks = {job: _worker_peak(bench, job, files) / MIB for job, files in jobs.items()}
    found.values.append(max(peaks.values()))
    told = ", ".join(f"{job} {peak:.0f} MiB" for job, peak in peaks.items())
    found.notes.append(f"{told_size(bench.size)} of source, a tenth of it in records: {told}.")
    return [found]


def one_key(bench: Bench) -> list[Result]:
    """The most that a worker takes for one key, and for one partition, of eight times the size of the others."""
    size = 8 * bench.size
    key = Result("one-key", f"all values under one key, {told_size(size)}", "MiB", True, 400, size=size)
    key.values.append(_worker_peak(bench, "one_key", bench.files("books", size), "-r", 1) / MIB)
    whole = Result("one-key", f"all records in one partition, {told_size(size)}", "MiB", True, 400, size=size)
    whole.values.append(_worker_peak(bench, "sort_records", bench.files("records", size), "-r", 1) / MIB)
    return [key, whole]


def _worker_peak(bench: Bench, job: str, files: Sequence[Path], *options: object) -> int:
    with Watch() as watch:
        bench.rqmr(job, files, *options)
    peak = max(each.peak for each in watch.seen if not (each.is_server or each.is_command))
    bench.say(f"{job}: {peak / MIB:.0f} MiB at most in one process of the workers")
    return peak


_SHUFFLED = """
local stored = 0
for _, key in ipairs(redis.call('KEYS', 'rqmr:*:shuffle:*')) do
  for _, field in ipairs(redis.call('HKEYS', key)) do
    stored = stored + redis.call('HSTRLEN', key, field)
  end
end
return stored
"""


def redis_memory(bench: Bench) -> list[Result]:
    """What the server takes for the shuffle, against what is shuffled; and what is left when the run is over."""
    files = bench.files("source")
    during = Result("redis-memory", "Redis memory against the compressed shuffle", "×", True, 1.3, size=bench.size)
    after = Result("redis-memory", "Redis memory left when the run is collected", "KiB", True, 256, size=bench.size)
    sizes = []
    for number in range(bench.rounds):
        with started(2) as cluster:
            count = cluster.client.register_script(_SHUFFLED)
            _follow(bench, cluster, "count_words", files[0])  # loads scripts, and lets buffers grow
            before, stored, used = _used(cluster), int(count()), 0
            for _ in range(_TRIES):
                shutil.rmtree(bench.work / "out", ignore_errors=True)
                cluster.rqmr("run", JOBS / "count_words.py", *files, "-o", bench.work / "out")
                began = time.monotonic()
                while (status := cluster.wait(min(0.02, (time.monotonic() - began) / 200))) is None:
                    if (now := int(count())) > stored:
                        stored, used = now, _used(cluster) - before
                if status or stored:
                    break
            if status or not stored:
                raise SystemExit(f"redis-memory: {(cluster.directory / 'rqmr.log').read_text() or 'nothing was seen'}")
            during.values.append(used / stored)
            sizes.append(stored)
            after.values.append(max(0, _used(cluster) - before) / 1024)
        bench.say(f"redis-memory {number + 1}: {stored / MIB:.1f} MiB shuffled, {during.values[-1]:.2f} × in Redis")
    during.notes.append(f"{told_size(bench.size)}; the shuffle was {statistics.median(sizes) / MIB:.1f} MiB.")
    return [during, after]


def _used(cluster: Cluster) -> int:
    return int(cluster.client.info("memory")["used_memory"])
