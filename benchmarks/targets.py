"""The targets that are whole commands: rqmr and a yardstick in turn, A B A B, their outputs compared each time."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from corpora import MAKERS, RECORD_BYTES, corpus, real_corpus
from measure import Usage, digest, run, warm
from results import MIB, Result, told_size

HERE = Path(__file__).resolve().parent
JOBS = HERE / "jobs"
RQMR = Path(sys.executable).with_name("rqmr")


@dataclass
class Bench:
    """Where and how much is measured."""

    rounds: int
    size: int  # bytes of input
    tasks: int  # where they are counted
    cache: Path
    work: Path  # where outputs go; empty
    directory: Path | None = None  # a real corpus, in place of a made one
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)
    _files: dict[tuple[str, int], list[Path]] = field(default_factory=dict)

    def files(self, name: str, size: int = 0) -> list[Path]:
        """Return the files of a corpus, read once just now."""
        size = size or self.size
        if (name, size) not in self._files:
            self.say(f"a corpus of {name}, {told_size(size)}")
            is_real = self.directory and name != "records"
            found = real_corpus(self.directory, size) if is_real and self.directory else corpus(name, size, self.cache)
            warm(found)
            self._files[name, size] = found
        return self._files[name, size]

    def rqmr(self, job: str, files: Iterable[object], *options: object) -> tuple[Usage, list[Path]]:
        """Run a job of the benchmarks with two workers, or as the options say; return also what it wrote."""
        output = self.work / "rqmr"
        shutil.rmtree(output, ignore_errors=True)
        used = run([RQMR, "run", JOBS / f"{job}.py", *files, "-o", output, "-w", 2, "--quiet", *options], cwd=self.work)
        return used, sorted(output.glob("part-*"))

    def pool(self, program: str, files: Iterable[object]) -> tuple[Usage, list[Path]]:
        """Run a hand-written pool."""
        output = self.work / "pool.tsv"
        return run([sys.executable, HERE / "pools.py", program, output, *files], cwd=self.work), [output]


@dataclass(frozen=True)
class Ratio:
    """A target: this many times as long as a hand-written pool."""

    name: str
    title: str
    job: str
    program: str
    corpus: str
    limit: float
    options: tuple[str, ...] = ()
    is_ordered: bool = False  # whether the part files, one after the other, are what the pool writes

    def files(self, bench: Bench) -> tuple[list[Path], str]:
        """Return what is read, and what is to be told of it."""
        if self.corpus != "records":
            return bench.files(self.corpus), f"{self.title}, {told_size(bench.size)}"
        size = records_size(bench)
        return bench.files(self.corpus, size), f"{self.title}, {size // RECORD_BYTES:,} records"

    def measure(self, bench: Bench) -> list[Result]:
        """Run both, in turn."""
        files, title = self.files(bench)
        result = Result(self.name, title, "×", at_most=True, limit=self.limit)
        for number in range(bench.rounds):
            ours, parts = bench.rqmr(self.job, files, *self.options)
            theirs, output = bench.pool(self.program, files)
            check_equal(self.name, parts, output, is_ordered=self.is_ordered)
            result.seconds.setdefault("rqmr", []).append(ours.seconds)
            result.seconds.setdefault("pool", []).append(theirs.seconds)
            result.values.append(ours.seconds / theirs.seconds)
            result.cpu.append(ours.cpu / theirs.cpu)
            bench.say(
                f"{self.name} {number + 1}: rqmr {ours.seconds:.2f} s (CPU {ours.cpu:.2f}), "
                f"pool {theirs.seconds:.2f} s (CPU {theirs.cpu:.2f}): {ours.seconds / theirs.seconds:.2f} ×"
            )
        return [result]


def records_size(bench: Bench) -> int:
    """Bytes of records to sort: a million records where 256 MiB of text are read."""
    return bench.size * 10**8 // (256 * MIB)


def check_equal(name: str, parts: Sequence[Path], output: Sequence[Path], *, is_ordered: bool = False) -> None:
    """SystemExit if what rqmr has written isn't what another has."""
    ours, theirs = digest(parts, is_ordered=is_ordered, is_escaped=True), digest(output, is_ordered=is_ordered)
    if ours != theirs:
        raise SystemExit(f"{name}: the outputs differ: {ours} by rqmr, {theirs} in {output[0].name}")


RATIOS = (
    Ratio("words-books", "word count, books", "count_words", "words", "books", 0.95),
    Ratio("words-source", "word count, source", "count_words", "words", "source", 0.70),
    Ratio("batch-books", "word count by batches, books", "count_words_by_batch", "chunks", "books", 1.10),
    Ratio("batch-source", "word count by batches, source", "count_words_by_batch", "chunks", "source", 0.85),
    Ratio("index", "inverted index, source", "index_words", "index", "source", 0.80),
    Ratio("grep", "grep, source", "find_lines", "grep", "source", 1.05),
    Ratio(
        "reducer", "word count by a reducer that combines, books", "count_words_by_reducer", "reducer", "books", 1.10
    ),
    Ratio("sort", "sort, total order", "sort_records", "sort", "records", 1.5, is_ordered=True),
)
assert {ratio.corpus for ratio in RATIOS} <= set(MAKERS)
