"""The benchmarks still run."""

from __future__ import annotations

import subprocess
import sys

from harness import ROOT


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
