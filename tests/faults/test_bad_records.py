"""Records that raise or end their process each time: found, left out and listed, or shown in the error.

The lease is far longer than any of these tests, so what drives them is RQ's word that a work-horse died.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import JOBS, Workers
from msgspec import structs

import rqmr
from rqmr import Config
from rqmr.runs import resume
from rqmr.view import Silent
from rqmr.where import Where

#: A map task for each file.
CONFIG = Config(workers=0, reducers=2, split_bytes=4 << 10, lease_seconds=30, format="tsv")
RAISE = {
    "error": "ValueError: this record is bad",
    "quit": "SystemExit: the job calls sys.exit",
    "memory": "MemoryError",
}
DIE = {"exit": "exit status 3", "kill": "SIGKILL", "segfault": "SIGSEGV"}


class Bench:
    """Files, and runs over them."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.url = url
        self.runs = 0

    def write(self, name: str, *bad: str) -> Path:
        """Write a directory of files; each of the bad words is in a line of one of its own."""
        directory = self.directory / name
        directory.mkdir()
        for number, word in enumerate([*bad, ""]):
            lines = [f"w{number} w{line % 3} all" for line in range(8)]
            lines.insert(5, f"all of it {word}")
            (directory / f"{number}.txt").write_text("".join(f"{line}\n" for line in lines if line[-1] != " "))
        return directory

    def run(self, inputs: Path, *, inline: bool = False, job: str = "bad", skip_bad: int = 0, **params: Any) -> Any:
        self.runs += 1
        config = structs.replace(CONFIG, skip_bad=skip_bad)
        return rqmr.run(
            str(JOBS / f"{job}.py"), inputs, params=params, config=config, inline=inline,
            output=self.directory / f"out{self.runs}", redis_url=None if inline else self.url,
        )  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path, redis_url: str) -> Bench:
    return Bench(tmp_path, redis_url)


def skipped(result: rqmr.Result) -> dict[str, str]:
    """The records that are listed, and why."""
    lines = (result.output / "_skipped.jsonl").read_text().splitlines()
    told = {each["record"]: each["message"] for each in map(json.loads, lines)}
    assert len(told) == len(lines) == result.summary.skipped
    return told


def files(result: rqmr.Result) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(result.output.iterdir())}


def test_records_that_raise_or_end_their_process_are_left_out_and_listed(workers: Workers, bench: Bench) -> None:
    """The output and the counters are those of the input without them."""
    ways = {**RAISE, **{way: f"its process died twice ({how})" for way, how in DIE.items()}}
    workers.start(3)
    result = bench.run(bench.write("inputs", *ways), skip_bad=len(ways))
    expected = bench.run(bench.write("clean", *["" for _ in ways]), inline=True)

    assert skipped(result) == {f"'all of it {way}'": told for way, told in ways.items()}
    assert {name: data for name, data in files(result).items() if name != "_skipped.jsonl"} == files(expected)
    assert result.counters == expected.counters
    assert result.summary.records_read == expected.summary.records_read + len(ways)


def test_what_raises_is_left_out_as_it_is_inline(workers: Workers, bench: Bench) -> None:
    """Byte for byte, the list included."""
    workers.start(2)
    inputs = bench.write("inputs", *RAISE)

    for where in ("map", "reduce"):
        results = [bench.run(inputs, inline=inline, where=where, skip_bad=3) for inline in (False, True)]
        assert len(skipped(results[0])) == 3
        assert files(results[0]) == files(results[1])
        assert results[0].counters == results[1].counters


def test_keys_at_which_a_process_dies_are_left_out(workers: Workers, bench: Bench) -> None:
    workers.start(2)
    inputs = bench.write("inputs", "exit", "error")
    result = bench.run(inputs, where="reduce", skip_bad=2)
    expected = bench.run(inputs, where="nowhere", inline=True)

    assert skipped(result) == {
        "key 'exit'": "its process died twice (exit status 3)",
        "key 'error'": "ValueError: this record is bad",
    }
    assert list(result) == [record for record in expected if record[0] not in ("exit", "error")]
    assert result.counters["seen"] == {**expected.counters["seen"], "keys": expected.counters["seen"]["keys"] - 2}


def test_without_the_option_the_record_at_which_processes_die_is_in_the_error(workers: Workers, bench: Bench) -> None:
    """After a few attempts, not after all that may be lost."""
    workers.start(2)
    inputs = bench.write("inputs", "segfault")

    with pytest.raises(rqmr.RunFailed, match=r"a process died at this record 4 times \(SIGSEGV\)") as caught:
        bench.run(inputs)

    failure = caught.value.failure
    offset = (inputs / "0.txt").read_text().index("all of it segfault")
    assert (failure.source, failure.offset) == (str(inputs / "0.txt"), offset)
    assert failure.record == "'all of it segfault'"


def test_processes_that_die_by_chance_cost_no_record(workers: Workers, bench: Bench) -> None:
    """One death at a record is nobody's fault: it takes two that are known to have been there."""
    workers.start(2)
    inputs = bench.write("inputs", "crash")
    marks = bench.directory / "marks"
    marks.mkdir()

    result = bench.run(inputs, job="crash", marks=str(marks), times=2, how="kill", skip_bad=5)

    assert len(list(marks.glob("crashed.*"))) == 2
    assert result.summary.skipped == 0
    assert files(result) == files(bench.run(inputs, job="crash", inline=True))


def test_one_bad_record_too_many_fails_the_run(workers: Workers, bench: Bench) -> None:
    workers.start(2)

    with pytest.raises(rqmr.RunFailed, match=r"more than 1 record is bad \(--skip-bad 1\)") as caught:
        bench.run(bench.write("inputs", "error", "memory"), skip_bad=1)

    assert caught.value.failure.record in ("'all of it error'", "'all of it memory'")
    assert not list(bench.directory.glob("out*/[!.]*")), "its stage is kept, for a resume"


def test_a_run_with_too_many_bad_records_can_be_resumed_with_leave_for_more(workers: Workers, bench: Bench) -> None:
    workers.start(2)
    inputs = bench.write("inputs", "error", "memory")
    with pytest.raises(rqmr.RunFailed, match=r"more than 1 record is bad"):
        bench.run(inputs, skip_bad=1)
    (stage,) = bench.directory.glob("out1/.rqmr-*")

    resume(stage.name.removeprefix(".rqmr-"), Where(bench.url), Silent(), skip_bad=2)

    expected = bench.run(inputs, skip_bad=2, inline=True)
    assert {path.name: path.read_bytes() for path in bench.directory.glob("out1/*")} == files(expected)


def test_the_command_tells_how_many_were_left_out_and_where_they_are_listed(
    rqmr: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    inputs = Bench(tmp_path, "").write("inputs", "error", "memory")
    command = ("run", JOBS / "bad.py", inputs, "--inline", "--split-size", "4KiB")

    done = rqmr(*command, "-o", "out", "--skip-bad", 2)
    assert done.returncode == 0
    assert "2 bad records skipped: out/_skipped.jsonl" in done.stderr

    done = rqmr(*command, "-o", "-", "--skip-bad", 2)
    assert "2 bad records skipped" in done.stderr

    done = rqmr(*command, "-o", "other", "--skip-bad", 1)
    assert done.returncode == 1
    assert "more than 1 record is bad (--skip-bad 1); the last: MemoryError" in done.stderr
    assert "record  'all of it memory'" in done.stderr
