"""The example jobs: their output, their lesson, and the command in their docstring."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

import rqmr
from rqmr.config import Config
from rqmr.loader import find, load

ROOT = Path(__file__).resolve().parent.parent
JOBS = {path.stem: path for path in sorted((ROOT / "jobs").glob("*.py"))}
#: Splits of a line or two and several partitions, so that little texts too are combined, shuffled and merged.
CUT = Config(workers=2, reducers=3, split_bytes=40, format="jsonl")

SEA = "The sea, the SEA\nand a ship\n"
LAND = "a ship on land\nno sea, no ship\n"
TEMPERATURES = "oslo 4\nlyon 20.5\noslo 7\nno number\n\nlyon 21.5 C\noslo 1\nlyon 22.5\n"
READINGS = """\
{"home": "h1", "at": "2026-03-01T00:00:00", "kwh": 0.25}
{"home": "h2", "at": "2026-03-01T00:00:00", "kwh": 0.5}
{"home": "h3", "at": "2026-03-01T00:00:00", "kwh": 0.375}
{"home": "h1", "at": "2026-03-01T00:15:00", "kwh": -1}
{"home": "h2", "at": "2026-03-01T00:15:00"}
{"home": "h3", "at": "2026-03-01T00:15:00", "kwh": 0.125}
{"home": "h1", "at": "2026-03-01T00:30:00", "kwh": 0}
"""


@dataclass(frozen=True)
class Example:
    """A job, what it is given, and all that it has to give."""

    job: str
    files: dict[str, str]
    records: list[tuple[Any, Any]]
    counters: dict[str, dict[str, int]] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)


TEXTS = {"land.txt": LAND, "sea.txt": SEA}
EXAMPLES = [
    Example(
        "wordcount",
        TEXTS,
        [("a", 2), ("and", 1), ("land", 1), ("no", 2), ("on", 1), ("sea", 1), ("sea,", 2), ("ship", 3), ("the", 2)],
    ),
    Example(
        "inverted_index",
        TEXTS,
        [
            ("a", ["land.txt", "sea.txt"]),
            ("and", ["sea.txt"]),
            ("land", ["land.txt"]),
            ("no", ["land.txt"]),
            ("on", ["land.txt"]),
            ("sea", ["land.txt", "sea.txt"]),
            ("ship", ["land.txt", "sea.txt"]),
            ("the", ["sea.txt"]),
        ],
    ),
    Example(
        "grep",
        TEXTS,
        [("land.txt", "no sea, no ship"), ("sea.txt", "The sea, the SEA")],
        params={"pattern": r"\bsea\b"},
    ),
    Example("grep", TEXTS, [("sea.txt", "The sea, the SEA")], params={"pattern": "SHE|^the", "ignore_case": True}),
    Example(
        "grep_count",
        TEXTS,
        [("land.txt", 2), ("sea.txt", 1)],
        counters={"grep": {"lines read": 4, "lines that match": 3}},
        params={"pattern": "SHIP", "ignore_case": True},
    ),
    Example(
        "mean_by_key",
        {"temperatures.txt": TEMPERATURES},
        [("lyon", 21.5), ("oslo", 4.0)],  # of lyon two numbers, not three: "lyon 21.5 C" is a bad line
        counters={"mean_by_key": {"bad lines": 3}},
    ),
    Example(
        "sort_lines",
        TEXTS,
        [("The", " sea, the SEA"), ("a s", "hip on land"), ("and", " a ship"), ("no ", "sea, no ship")],
        params={"key_length": 3},
    ),
    # Of the four that occur twice, the last in the alphabet.
    Example("top_words", TEXTS, [(3, "ship"), (2, "the"), (2, "sea,")], params={"k": 3}),
    Example(
        "telemetry",
        {"readings.jsonl": READINGS},
        [
            ("B", {"homes": 1, "least": 0.125, "mean": 0.125, "greatest": 0.125}),
            ("E", {"homes": 1, "least": 0.25, "mean": 0.25, "greatest": 0.25}),
            ("G", {"homes": 1, "least": 0.5, "mean": 0.5, "greatest": 0.5}),
        ],
        counters={"telemetry": {"bad readings": 2}},
    ),
    Example(
        "telemetry",
        {"readings.jsonl": READINGS},
        [("h1", ["B", 0.125]), ("h2", ["G", 0.5]), ("h3", ["E", 0.25])],
        counters={"telemetry": {"bad readings": 2}},
        params={"per_home": True},
    ),
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory without jobs/, with no Redis named: jobs are found by name as the examples that they are."""
    for name in ("RQMR_REDIS_URL", "REDIS_URL", "RQ_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=EXAMPLES, ids=lambda example: "-".join([example.job, *example.params]))
def example(request: pytest.FixtureRequest, here: Path) -> Example:
    """One example after the other, its files written."""
    given: Example = request.param
    for name, text in given.files.items():
        (here / name).write_text(text)
    return given


def run(example: Example, config: Config = CUT, *, inline: bool = True) -> rqmr.Result:
    return rqmr.run(example.job, sorted(example.files), params=example.params, config=config, inline=inline)


def test_every_job_has_an_example() -> None:
    assert set(JOBS) == {example.job for example in EXAMPLES}


def test_the_output_is_the_one_that_was_worked_out_by_hand(example: Example) -> None:
    with run(example, Config(reducers=1, format="jsonl")) as result:
        assert list(result) == example.records
        assert result.counters == example.counters


def test_the_output_is_the_same_however_the_work_is_cut(example: Example) -> None:
    with run(example) as result:
        assert result.summary.map_tasks > 1
        assert sorted(result, key=repr) == sorted(example.records, key=repr)
        assert result.counters == example.counters


def test_workers_on_a_server_of_their_own_write_the_bytes_that_inline_writes(example: Example) -> None:
    with run(example) as expected, run(example, inline=False) as result:
        assert [path.read_bytes() for path in result.paths] == [path.read_bytes() for path in expected.paths]
        assert result.counters == expected.counters


@pytest.mark.parametrize("name", JOBS)
def test_a_job_fits_on_one_screen(name: str) -> None:
    assert len(JOBS[name].read_text().splitlines()) < 60


def commands_of(name: str) -> list[str]:
    """The commands in a job's docstring: its indented lines."""
    docstring = ast.get_docstring(ast.parse(JOBS[name].read_text()), clean=False)
    return re.findall(r"^    (.+)$", docstring or "", re.MULTILINE)


@pytest.mark.parametrize("name", JOBS)
def test_the_command_in_a_jobs_docstring_works_as_it_stands(name: str, here: Path) -> None:
    # Given a directory with what a clone has, but without its jobs
    for directory in ("input", "scripts"):
        (here / directory).symlink_to(ROOT / directory)
    # When the command is given to a shell, here without server and view
    (command,) = commands_of(name)
    assert f"rqmr run {name} " in command
    called = f"{shlex.quote(sys.executable)} -m rqmr run --inline --quiet"
    done = subprocess.run(
        ["sh", "-c", command.replace("rqmr run", called)], capture_output=True, text=True, check=False
    )
    # Then it succeeds without a word, and there are records
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(list(here.glob(f"output/{name}-*/_SUCCESS"))) == 1
    assert any(path.stat().st_size for path in here.glob("output/*/part-*"))


def job_class(name: str) -> Any:
    return load(*find(name))


def test_the_reducer_of_mean_by_key_gets_one_pair_of_each_map_task_whatever_it_read(here: Path) -> None:
    class Watched(job_class("mean_by_key")):  # type: ignore[misc]
        def reducer(self, key: str, pairs: Iterable[tuple[float, int]]) -> Iterator[tuple[str, float]]:
            pairs = list(pairs)
            self.count("pairs", key, len(pairs))
            self.count("numbers", key, sum(count for _, count in pairs))
            return super().reducer(key, pairs)  # type: ignore[no-any-return]

    (here / "numbers.txt").write_text("".join(f"lyon {n}\noslo {n % 7}\n" for n in range(500)))
    with rqmr.run(Watched, "numbers.txt", config=Config(split_bytes=2000, format="jsonl"), inline=True) as result:
        assert result.summary.map_tasks == 4
        assert result.counters["pairs"] == {"lyon": 4, "oslo": 4}
        assert result.counters["numbers"] == {"lyon": 500, "oslo": 500}
        assert dict(result) == {"lyon": 249.5, "oslo": fmean(n % 7 for n in range(500))}


def test_a_mean_of_means_would_be_wrong(here: Path) -> None:
    """The lesson of mean_by_key: its reducer as the combiner gives another result as soon as the work is cut."""

    class MeanOfMeans(rqmr.Job):
        def mapper(self, source: str, line: str) -> Iterator[tuple[str, float]]:
            key, number = line.split()
            yield key, float(number)

        def reducer(self, key: str, numbers: Iterable[float]) -> Iterator[tuple[str, float]]:
            yield key, fmean(numbers)

        combiner = reducer

    (here / "few.txt").write_text("oslo 1\n")
    (here / "many.txt").write_text("oslo 4\n" * 10)
    config = Config(split_bytes=1000, format="jsonl")  # a small file counts for 4 KiB: each is a map task of its own
    for job, mean in ((MeanOfMeans, (1 + 4) / 2), ("mean_by_key", (1 + 4 * 10) / 11)):
        with rqmr.run(job, ["few.txt", "many.txt"], config=config, inline=True) as result:
            assert list(result) == [("oslo", mean)]


def test_only_k_words_travel_from_each_reducer_of_top_words(here: Path) -> None:
    travelled: list[int] = []

    class Watched(rqmr.Top):
        def merge(self, accumulator: list[Any], other: list[Any]) -> list[Any]:
            travelled.append(len(other))
            return super().merge(accumulator, other)

    class TopWords(job_class("top_words")):  # type: ignore[misc]
        def steps(self) -> list[rqmr.Step]:
            count, top, ranked = super().steps()
            return [count, rqmr.Step(top.mapper, Watched(self.k)), ranked]

    words = [f"w{n % 100}" for n in range(1000)] + ["often"] * 99
    (here / "words.txt").write_text("\n".join(words))
    config = Config(reducers=3, split_bytes=100, format="jsonl")
    with rqmr.run(TopWords, "words.txt", params={"k": 4}, config=config, inline=True) as result:
        assert list(result) == [(99, "often"), (10, "w99"), (10, "w98"), (10, "w97")]
    assert travelled == [4, 4, 4]


def test_each_file_travels_once_for_a_word_that_fills_it(here: Path) -> None:
    travelled: list[list[str]] = []

    class Watched(rqmr.Distinct):
        def merge(self, accumulator: dict[Any, None], other: dict[Any, None]) -> dict[Any, None]:
            travelled.append(list(other))
            return super().merge(accumulator, other)

    class InvertedIndex(job_class("inverted_index")):  # type: ignore[misc]
        reducer = Watched()

    (here / "rain.txt").write_text("rain rain rain\n" * 500)
    with rqmr.run(InvertedIndex, "rain.txt", inline=True) as result:
        assert list(result) == [("rain", ["rain.txt"])]
    assert travelled == [["rain.txt"]]


def test_the_reducer_of_telemetry_gets_the_dataclass_that_the_mapper_yielded(here: Path) -> None:
    seen: set[str] = set()

    class Telemetry(job_class("telemetry")):  # type: ignore[misc]
        def rating(self, home: str, usages: Iterable[Any]) -> Iterator[tuple[str, tuple[str, float]]]:
            usages = list(usages)
            seen.update(type(usage).__name__ for usage in usages)
            return super().rating(home, usages)  # type: ignore[no-any-return]

    (here / "readings.jsonl").write_text(READINGS)
    with rqmr.run(Telemetry, "readings.jsonl", config=CUT, inline=True) as result:
        assert len(list(result)) == 3
    assert seen == {"Usage"}


@pytest.fixture(scope="session")
def make_telemetry() -> Callable[..., str]:
    def make(homes: int, readings: int, seed: int) -> str:
        given = ["--homes", str(homes), "--readings", str(readings), "--seed", str(seed)]
        return subprocess.run(
            [ROOT / "scripts/make-telemetry", *given], capture_output=True, text=True, check=True
        ).stdout

    return make


def test_telemetry_agrees_with_plain_python(make_telemetry: Callable[..., str], here: Path) -> None:
    # Given the readings of a seed, and each home's good ones
    text = make_telemetry(200, 24, seed=7)
    (here / "readings.jsonl").write_text(text)
    readings = [json.loads(line) for line in text.splitlines()]
    good = defaultdict(list)
    for reading in readings:
        if reading.get("kwh", -1) >= 0:
            good[reading["home"]].append(reading["kwh"])
    bad = len(readings) - sum(map(len, good.values()))
    config = Config(reducers=3, split_bytes=50_000, format="jsonl")
    # When the job ends after its first step
    with rqmr.run("telemetry", "readings.jsonl", params={"per_home": True}, config=config, inline=True) as result:
        assert result.summary.map_tasks > 2
        assert result.counters == {"telemetry": {"bad readings": bad}}
        ratings = dict(result)
    # Then it gives each home's mean (a sum in another order may be rounded otherwise), and the class that it is in
    assert {home: mean for home, (_, mean) in ratings.items()} == pytest.approx(
        {home: fmean(kwh) for home, kwh in good.items()}, abs=0.000501
    )
    lower_limits = {"A": 0, "B": 0.1, "C": 0.15, "D": 0.2, "E": 0.25, "F": 0.35, "G": 0.5}
    for letter, mean in ratings.values():
        assert letter == max(letter for letter, limit in lower_limits.items() if limit <= mean)
    # When it goes on
    with rqmr.run("telemetry", "readings.jsonl", config=config, inline=True) as result:
        classes = dict(result)
    # Then it gives the statistics of each class
    assert {letter: of_class["homes"] for letter, of_class in classes.items()} == Counter(
        letter for letter, _ in ratings.values()
    )
    for of_letter, of_class in classes.items():
        means = [mean for letter, mean in ratings.values() if letter == of_letter]
        assert (of_class["least"], of_class["greatest"]) == (min(means), max(means))
        assert of_class["mean"] == round(fmean(means), 3)


def test_telemetry_is_the_same_for_the_same_seed_only(make_telemetry: Callable[..., str]) -> None:
    assert make_telemetry(5, 20, seed=1) == make_telemetry(5, 20, seed=1) != make_telemetry(5, 20, seed=2)


def test_made_telemetry_has_all_classes_and_both_faults(make_telemetry: Callable[..., str], here: Path) -> None:
    readings = [json.loads(line) for line in make_telemetry(1000, 8, seed=1).splitlines()]
    assert len(readings) == 8000
    assert len({(reading["home"], reading["at"]) for reading in readings}) == 8000
    assert readings[0] | {"kwh": 0.2} == {"home": "h00000", "at": "2026-03-01T00:00:00", "kwh": 0.2}
    missing = sum("kwh" not in reading for reading in readings)
    negative = sum(reading.get("kwh", 0) < 0 for reading in readings)
    assert 10 < missing < 100
    assert 10 < negative < 100
    (here / "readings.jsonl").write_text("\n".join(map(json.dumps, readings)))
    with rqmr.run("telemetry", "readings.jsonl", inline=True) as result:
        assert [letter for letter, _ in result] == list("ABCDEFG")
