"""The benchmarks still run."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from harness import ROOT

sys.path.append(str(ROOT / "benchmarks"))

from seconds import WAITING, counted
from simulate import Plan, Simulation


def test_the_fault_table_is_measured_and_printed():
    """With so little work its figures tell nothing; a wrong output or a fault that didn't happen would end it."""
    options = ["--wait", "--rounds", "1", "--workers", "2", "--tasks", "8", "--seconds", "0.3", "--rows", "map"]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "faults.py", *options], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["| fault", "| no fault", "| a worker killed mid-map, started again"]
    assert all(int(row[4]) >= 16 for row in rows[1:]), "eight map and eight reduce tasks"


def bench(work: Path, *arguments: object) -> Counter[str]:
    """Run the benchmark on next to nothing; return how many rows of its table each target has."""
    small = ["--rounds", 1, "--size", "64KiB", "--tasks", 20, "--work", work, "--outputs", work]
    done = subprocess.run(
        list(map(str, [sys.executable, ROOT / "benchmarks" / "run.py", *arguments, *small])),
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Counter(re.findall(r"^\| `([a-z-]+)` ", done.stdout, re.MULTILINE))


def test_rqmr_and_a_pool_written_by_hand_give_the_same(tmp_path):
    """Outputs that differ would end the benchmark."""
    names = ["words-books", "batch-source", "index", "grep", "reducer", "sort", "tiny"]
    assert bench(tmp_path, *names) == Counter(names)


def test_the_limits_are_measured_and_printed(tmp_path):
    rows = {"tasks": 1, "wide": 3, "scaling": 1, "memory": 1, "one-key": 2, "redis-memory": 2}
    assert bench(tmp_path, *rows) == rows


def test_what_was_measured_gets_into_a_page_and_its_drawings(tmp_path):
    page = tmp_path / "page.md"
    kinds = ["targets", "curves"]
    page.write_text("".join(f"# {kind}\n<!-- {kind} -->\nolder\n<!-- /{kind} -->\n" for kind in kinds) + "the end\n")

    bench(tmp_path, "grep", "--curves", "--points", 2, "--write", page)

    text = page.read_text()
    assert "older" not in text
    assert text.startswith("# targets\n<!-- targets -->\n\n| `scripts/bench`")
    assert text.endswith("the end\n")
    for name in re.findall(r"!\[.*\]\((.*)\)", text):
        names = [element.tag.rpartition("}")[2] for element in ElementTree.parse(tmp_path / name).iter()]
        assert names.count("polyline") >= 1


def test_backups_of_a_simulated_run_end_it_sooner():
    """By the simulated clock; the scheduler is the real one."""
    plan = Plan(workers=20, tasks=400, slow=0.01, slow_workers=0.05)
    without, with_backups = Simulation(replace(plan, backups=False)).run(), Simulation(plan).run()
    assert with_backups.ideal < with_backups.makespan < without.makespan
    assert with_backups.backups > 0
    assert without.attempts == 400


def test_a_profile_counts_a_sample_for_the_innermost_frame_that_tells_something():
    horse = ["<module> (rq:8)", "Worker.perform_job (rq/worker/base.py:1)", "run_ticket (rqmr/worker.py:5)"]
    task = [
        *horse,
        "Task._write (rqmr/tasks.py:7)",
        "Shuffler.consume (rqmr/shuffle.py:9)",
        "Sum.fold (rqmr/aggregators.py:3)",
    ]
    samples = [
        (task, 3),
        ([*task, "Task._mapped (rqmr/tasks.py:2)", "words (functions.py:4)"], 2),
        ([*horse, "Thread.run (threading.py:9)", "wait (threading.py:1)"], 7),
    ]
    assert counted(samples) == {"folding": 3, "the user's mapper, and what is fused with it": 2, WAITING: 7}


def test_a_corpus_is_the_beginning_of_a_larger_one(tmp_path):
    def made(size: str) -> list[bytes]:
        command = [sys.executable, ROOT / "benchmarks" / "corpora.py", "source", "--size", size, "--work", tmp_path]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return [Path(line).read_bytes() for line in done.stdout.splitlines()]

    small, large = made("512KiB"), made("1MiB")
    assert len(small) == 2
    assert len(large) == 4
    assert large[:2] == small
    assert len(b"".join(large)) >= 1 << 20
