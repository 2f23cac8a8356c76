"""The docs can't rot: what they show runs, what they list exists."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from rqmr import driver, memory
from rqmr.keys import RunKeys, code
from rqmr.model import AttemptId, Kind, Phase, TaskId
from rqmr.scheduler import Policy
from rqmr.scripts import NAMES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()

type_of_block = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
PYTHON = [text for language, text in type_of_block.findall(README) if language == "python"]


def test_the_readmes_job_counts_hits_and_bad_lines(
    rqmr: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "hits.py").write_text(PYTHON[0])
    line = '127.0.0.1 - - [01/Mar/2026:00:00:01 +0000] "GET {} HTTP/1.1" 200 12\n'
    (tmp_path / "access.log").write_text(line.format("/a") + line.format("/b") + "junk\n" + line.format("/a"))

    done = rqmr("run", tmp_path / "hits.py", tmp_path / "access.log", "--inline", "-o", "-")

    assert done.stdout == "/a\t2\n/b\t1\n"
    assert "hits: bad lines = 1" in done.stderr


def test_the_readmes_python_program_runs(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PYTHON[1])
    (tmp_path / "input").symlink_to(ROOT / "input")

    done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert done.stdout.startswith("('the', ")


def test_the_protocol_lists_every_key_and_every_script() -> None:
    protocol = (ROOT / "docs" / "protocol.md").read_text()
    phases = (Phase(0, Kind.MAP, 1), Phase(0, Kind.REDUCE, 1))
    keys = RunKeys("RUN")
    names = [*keys.all(phases), code("HASH"), keys.lease(AttemptId(TaskId(0, Kind.MAP, 0), 1))]
    patterns = {
        re.sub(r":s0-[mr]:", ":{phase}:", name)
        .replace("RUN", "{run}")
        .replace("HASH", "{hash}")
        .replace("s0-m0000-a1", "{attempt}")
        .replace("s0:shuffle:0", "s{n}:shuffle:{reducer}")
        for name in names
    }
    assert {pattern for pattern in patterns if f"`{pattern}`" not in protocol} == set()
    assert {name for name in NAMES if f"| `{name}` |" not in protocol} == set()


def blocks(language: str) -> list[str]:
    """The examples of the operations manual."""
    return [text for of, text in type_of_block.findall((ROOT / "docs" / "operations.md").read_text()) if of == language]


def test_the_unit_that_keeps_workers_running_is_one(tmp_path: Path) -> None:
    (text,) = blocks("ini")
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(text)
    assert unit["Service"]["Restart"] == "always"
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert unit["Service"]["ExecStart"].endswith("/bin/rq worker rqmr")
    if not shutil.which("systemd-analyze"):
        return
    path = tmp_path / "rq-worker@1.service"
    path.write_text(text.replace("/srv/rq/venv/bin/rq ", f"{sys.executable} ").replace("User=rq", "User=root"))
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
    assert path.name not in done.stderr, done.stderr


def test_the_numbers_of_the_manual_are_the_programs() -> None:
    manual, policy = (ROOT / "docs" / "operations.md").read_text(), Policy()
    assert f"from {policy.pause_share:.0%}".replace("%", " %") in manual
    assert f"below {policy.go_on_share:.0%}".replace("%", " %") in manual
    assert f"from {memory._WRITE_SHARE:.0%}".replace("%", " %") in manual
    assert f"nothing moves for {policy.patience_ms // 1000} seconds" in manual
    assert driver._PATIENCE_SECONDS == 60
    assert "waits for a minute" in manual


def test_the_readme_fits_on_a_few_screens() -> None:
    assert len(README.splitlines()) <= 130


def test_nothing_names_the_machine_it_was_written_on() -> None:
    texts = [path for path in ROOT.rglob("*.md") if ".venv" not in path.parts]
    assert not [path for path in texts if re.search(r"(^|[^\w.-])/(work|farm|root|home)/", path.read_text())]
