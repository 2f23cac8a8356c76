"""The wheel alone is enough: the command, the Lua scripts and the example jobs are in it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(made), str(ROOT)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return next(made.glob("rq_mapreduce-*.whl"))


def test_the_wheel_has_scripts_types_and_examples(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())

    expected = {f"rqmr/lua/{path.name}" for path in (ROOT / "rqmr" / "lua").iterdir()} | {"rqmr/py.typed"}
    expected |= {f"rqmr/examples/{path.name}" for path in (ROOT / "jobs").glob("*.py")}
    assert expected <= names
    assert not [name for name in names if name.startswith(("tests", "jobs", "scripts"))]


def test_the_installed_command_runs_wordcount_in_an_empty_directory(wheel: Path, tmp_path: Path) -> None:
    installed, here = tmp_path / "site", tmp_path / "here"
    here.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    for name in ("RQMR_REDIS_URL", "REDIS_URL"):
        environment.pop(name, None)

    done = subprocess.run(
        [sys.executable, "-m", "rqmr", "run", "wordcount", "-", "-o", "-", "-w", "1"],
        cwd=here, env=environment, input="b a b\n", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert (done.stdout, done.returncode) == ("a\t1\nb\t2\n", 0), done.stderr
    assert "site" in subprocess.run(
        [sys.executable, "-c", "import rqmr; print(rqmr.__file__)"],
        cwd=here, env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
