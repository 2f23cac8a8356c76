"""Run rqmr, the hand-written pool and the peers in turn: the same work, the same functions, the same output."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import digest, run
from msgspec import Struct
from results import MIB, told_size
from targets import HERE, Bench, records_size

from rqmr.server import find_server

#: What the peers' environment holds; mrjob needs what Python's standard library had until 3.11.
PACKAGES = ["dask[bag]", "duckdb", "mrjob", "polars", "py-spy", "pyspark", "ray", "rq-mr", "setuptools<81"]
_VERSIONS = "import json, sys, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"


@dataclass(frozen=True)
class Peer:
    """Another way to do the work."""

    title: str
    program: str  # in peers/
    package: str
    share: int = 1  # it gets this part of the input, since it would take too long
    joined: bool = False  # whether files are made one, where their names don't matter: each costs it processes


@dataclass(frozen=True)
class Work:
    """What all of them do."""

    name: str
    title: str
    corpus: str
    job: str  # rqmr's
    program: str  # the pools', and the peers'


PEERS = (
    Peer("rq-mr (whole pieces, joined in the driver)", "whole_rq_mr", "rq-mr"),
    Peer("Dask bag", "dask_bag", "dask"),
    Peer("Ray tasks (whole pieces)", "ray_tasks", "ray"),
    Peer("PySpark RDD, local[2]", "spark_rdd", "pyspark"),
    Peer("mrjob local (an eighth of the input)", "mrjob_local", "mrjob", share=8, joined=True),
    Peer("DuckDB (SQL)", "duckdb_sql", "duckdb"),
    Peer("polars (lazy)", "polars_lazy", "polars"),
)
WORKS = (
    Work("words-books", "word count, books", "books", "count_words", "words"),
    Work("words-source", "word count, source", "source", "count_words", "words"),
    Work("index", "inverted index, source", "source", "index_words", "index"),
    Work("grep", "grep, source", "source", "find_lines", "grep"),
    Work("sort", "sort", "records", "sort_records", "sort"),
    Work("tiny", "tiny input", "books", "count_words", "words"),
)
_RQMR, _BATCH, _POOL, _CHUNKS = "rqmr", "rqmr, batch mapper", "`Pool(2)` by hand", "the same, `Counter` by chunk"


class Comparison(Struct):
    """What was measured for one work."""

    work: str
    title: str
    size: int
    seconds: dict[str, list[float]] = {}  # by title, one for each round
    versions: dict[str, str] = {}


def environment(cache: Path) -> Path:
    """Return the Python of the peers' environment, which is made if it isn't there."""
    directory = cache / "peers"
    python, stamp = directory / "bin" / "python", directory / "installed"
    if not stamp.exists() or stamp.read_text() != " ".join(PACKAGES):
        print(f"installing the peers into {directory}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        stamp.write_text(" ".join(PACKAGES))
    return python


def compare(bench: Bench, names: Sequence[str]) -> Iterator[Comparison]:
    """Yield what was measured for each work; all of them without names."""
    python = environment(bench.cache)
    peers = [peer for peer in PEERS if peer.package != "pyspark" or _has_java(bench)]
    asked = subprocess.run(
        [python, "-c", _VERSIONS, *(peer.package for peer in peers)], check=True, capture_output=True, text=True
    )
    versions = json.loads(asked.stdout)
    for work in WORKS:
        if work.name in names or not names:
            yield _compare(bench, work, python, peers, versions)


def _compare(bench: Bench, work: Work, python: Path, peers: Sequence[Peer], versions: dict[str, str]) -> Comparison:
    size = bench.size
    if work.name == "tiny":
        size = MIB // 4
    elif work.corpus == "records":
        size = records_size(bench)
    found = Comparison(work.name, work.title, size, versions=versions)
    files = bench.files(work.corpus, size)
    expected: dict[Sequence[Path], str] = {}

    def note(title: str, seconds: float, output: Sequence[Path], of: Sequence[Path]) -> None:
        got = digest(output, is_ordered=work.name == "sort", is_escaped=title in (_RQMR, _BATCH))
        if expected.setdefault(tuple(of), got) != got:
            raise SystemExit(f"{work.name}: the output of {title} differs: {output[0]}")
        found.seconds.setdefault(title, []).append(seconds)
        bench.say(f"{work.name}: {seconds:7.2f} s  {title}")

    def run_pool(title: str, program: str) -> None:
        used, output = bench.pool(program, files)
        note(title, used.seconds, output, files)

    def run_rqmr(title: str, job: str) -> None:
        used, output = bench.rqmr(job, files)
        note(title, used.seconds, output, files)

    for _ in range(bench.rounds):
        run_pool(_POOL, work.program)
        run_rqmr(_RQMR, work.job)
        if work.program == "words" and work.name != "tiny":
            run_pool(_CHUNKS, "chunks")
            run_rqmr(_BATCH, "count_words_by_batch")
        for peer in list(peers):
            own = files if peer.share == 1 or work.name == "tiny" else bench.files(work.corpus, size // peer.share)
            given = _joined(bench, own) if peer.joined and work.program in ("words", "sort") else own
            output = bench.work / "peer.tsv"
            command = [python, HERE / "peers" / f"{peer.program}.py", work.program, output, *given]
            try:
                used = run(command, cwd=bench.work, env={"RQMR_REDIS_SERVER": str(find_server())})
            except SystemExit as error:  # it is not here, or can't do it; the others can
                bench.say(f"{work.name}: {peer.title} is left out: {error}")
                peers = [other for other in peers if other != peer]
                continue
            note(peer.title, used.seconds, [output], own)
    return found


def _joined(bench: Bench, files: Sequence[Path]) -> list[Path]:
    whole = bench.work / "joined.txt"
    with whole.open("wb") as file:
        for path in files:
            file.write(path.read_bytes())
    return [whole]


def _has_java(bench: Bench) -> bool:
    if shutil.which("java"):
        return True
    bench.say("PySpark is left out: it needs Java (apt-get install default-jre-headless, as root)")
    return False


def told(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Yield the lines of the table: a row for each program, a column for each work."""
    yield f"| seconds | {' | '.join(f'{each.title}, {_size(each)}' for each in comparisons)} |"
    yield f"|---|{'--:|' * len(comparisons)}"
    titles = [_POOL, _CHUNKS, _RQMR, _BATCH, *(peer.title for peer in PEERS)]
    for title in titles:
        if any(title in each.seconds for each in comparisons):
            cells = [_cell(each.seconds.get(title, ())) for each in comparisons]
            yield f"| {title} | {' | '.join(cells)} |"
    versions = ", ".join(f"{name} {version}" for name, version in sorted(comparisons[0].versions.items()))
    yield ""
    yield f"Peers: {versions}; median of {len(next(iter(comparisons[0].seconds.values())))}, all outputs equal."


def _size(comparison: Comparison) -> str:
    if comparison.work == "sort":
        return f"{comparison.size // 100:,} × 100 B"
    return told_size(comparison.size)


def _cell(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.1f}" if seconds else ""
