"""What the runs of the storm compute, from inputs of the storm's seed, and what each of them has to come to."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from rqmr.facts import Summary

_JOBS = Path(__file__).resolve().parent.parent / "jobs" / "stormy.py"
#: What doesn't depend on who ran it, when and where to.
_COMPARED = ("parts", "map_tasks", "reducers", "records_read", "bytes_read", "records_written", "counters")
_LETTERS = "etaoinshrdlucmfwyp"


@dataclass(frozen=True)
class Workload:
    """A job, its inputs and a plan that doesn't depend on the machine."""

    name: str
    job_class: str
    inputs: Sequence[Path]
    options: Sequence[str]
    oracle: Path

    @property
    def arguments(self) -> list[str]:
        """Of `rqmr run`, without parameters and output."""
        return [f"{_JOBS}:{self.job_class}", *map(str, self.inputs), *self.options]

    def consult_the_oracle(self) -> None:
        """Compute what is right."""
        command = [sys.executable, "-m", "rqmr", "run", *self.arguments, "--inline", "--json", "--quiet"]
        told = subprocess.run([*command, "-o", str(self.oracle)], check=True, stdout=subprocess.PIPE)
        self._summary.write_bytes(told.stdout)

    def differences(self, output: Path, summary: Summary | None) -> list[str]:
        """Tell what of a run's output isn't right; nothing if it is."""
        expected, found = _files(self.oracle), _files(output)
        wrong = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
        wrong += [f"{name} is too much" for name in sorted(found.keys() - expected.keys())]
        wrong += [f"{name} differs" for name in sorted(expected.keys() & found.keys()) if expected[name] != found[name]]
        right, told = json.loads(self._summary.read_bytes()), msgspec.to_builtins(summary)
        if told is None:
            return [*wrong, "Redis doesn't know how it ended"]
        told = json.loads(json.dumps(told))
        wrong += [f"{name} is {told[name]}, not {right[name]}" for name in _COMPARED if told[name] != right[name]]
        return wrong

    @property
    def _summary(self) -> Path:
        return self.oracle.with_suffix(".json")


def workloads(directory: Path, seed: int) -> list[Workload]:
    """Write the inputs, and compute what is right."""
    chance = random.Random(f"{seed} inputs")
    books = _books(directory / "books", chance)
    lines = directory / "lines.txt"
    _write_lines(lines, chance, mebibytes=5)
    cut = ("--split-size", "192KiB")
    made = [
        Workload("two steps", "Lengths", books, ("-r", "3", *cut), directory / "lengths"),
        Workload("map only", "Matches", books, cut, directory / "matches"),
        Workload("words", "Words", books, ("-r", "4", *cut), directory / "words"),
        Workload("index", "Index", books, ("-r", "3", "--split-size", "300KiB"), directory / "index"),
        Workload("sort", "SortByRange", [lines], ("-r", "3", "--split-size", "600KiB"), directory / "sort"),
        Workload("hash sort", "Sort", [lines], ("-r", "6", "--split-size", "200KiB"), directory / "hash-sort"),
    ]
    for workload in made:
        workload.consult_the_oracle()
    (by_range,) = (workload for workload in made if workload.name == "sort")
    parts = [data for name, data in sorted(_files(by_range.oracle).items()) if name.startswith("part-")]
    assert b"".join(parts) == _sorted(lines), "the oracle can't sort"
    return made


def _books(directory: Path, chance: random.Random) -> list[Path]:
    """Real books if RQMR_TEST_BOOKS names a directory that has some, else made-up ones."""
    if real := os.environ.get("RQMR_TEST_BOOKS"):
        return sorted(Path(real).glob("*.txt"))
    directory.mkdir()
    words = ["".join(chance.choices(_LETTERS, k=chance.randint(2, 9))) for _ in range(20_000)]
    weights = [1 / place for place in range(1, len(words) + 1)]
    for number in range(8):
        text = chance.choices(words, weights, k=70_000)
        lines = (" ".join(text[start : start + 10]) for start in range(0, len(text), 10))
        (directory / f"book-{number}.txt").write_text("\n".join(lines) + "\n")
    return sorted(directory.iterdir())


def _write_lines(path: Path, chance: random.Random, *, mebibytes: int) -> None:
    """Write lines of a hexadecimal key, now and then the same one, and what belongs to it."""
    with path.open("w") as file:
        for _ in range(mebibytes * 10_000):
            key = f"{chance.randrange(1 << 16):04x}" if chance.random() < 0.1 else chance.randbytes(6).hex()
            file.write(f"{key} {chance.randbytes(45).hex()}\n")


def _sorted(lines: Path) -> bytes:
    pairs = [line.split(" ", 1) for line in lines.read_text().splitlines()]
    pairs.sort(key=lambda pair: pair[0])  # stable: those of one key in the order of the input
    return "".join(f"{key}\t{rest}\n" for key, rest in pairs).encode()


def _files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() if path.is_file() else b"" for path in directory.iterdir()}
