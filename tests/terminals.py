"""Terminals: real `rqmr` commands at work at the same time, each in a session of its own, on one named Redis."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import JOBS, wait_until

from rqmr.connection import connect
from rqmr.model import RunState
from rqmr.sessions import members, send
from rqmr.state import State

#: Runs the command line, and ends or stops itself just before the nth call of a function of rqmr or Python.
STRUCK = """
import functools, importlib, os, signal
from rqmr import cli

module, name, number, how = os.environ["STRUCK"].split()
*path, last = name.split(".")
owner = functools.reduce(getattr, path, importlib.import_module(module))
original, calls = getattr(owner, last), 0

def struck(*arguments, **named):
    global calls
    calls += 1
    if calls == int(number):
        os.kill(os.getpid(), getattr(signal, how))
    return original(*arguments, **named)

setattr(owner, last, struck)
cli.main()
"""


class Terminal:
    """One `rqmr` command, and what it says."""

    def __init__(self, directory: Path, cwd: Path, arguments: Sequence[object], environment: dict[str, str]) -> None:
        self._out, self._err = directory / "stdout", directory / "stderr"
        program = ["-c", STRUCK] if "STRUCK" in environment else ["-m", "rqmr"]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, *program, *map(str, arguments)], cwd=cwd, env=os.environ | environment,
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True,
            )  # fmt: skip

    @property
    def stdout(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._err.read_text(errors="replace")

    @property
    def is_over(self) -> bool:
        return self.process.poll() is not None

    def ends(self, *statuses: int, timeout: float = 30) -> Terminal:
        """Wait for its end, with one of these exit statuses."""
        wait_until(lambda: self.is_over, timeout=timeout, what="the command exits")
        assert self.process.returncode in statuses, f"status {self.process.returncode}\n{self.stdout}\n{self.stderr}"
        assert 'Traceback (most recent call last):\n  File "<' not in self.stderr
        assert "rqmr/cli.py" not in self.stderr, self.stderr
        return self

    def signal(self, number: signal.Signals) -> Terminal:
        """Send it a signal."""
        os.kill(self.process.pid, number)
        return self

    def kill(self) -> None:
        """End it and what it has started."""
        send(signal.SIGKILL, members({self.process.pid}))
        self.process.wait()


class Desk:
    """Terminals on one Redis, inputs to read, and a place for marks."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.cwd = directory / "cwd"
        self.inputs = directory / "inputs"
        self.marks = directory / "marks"
        for each in (self.cwd, self.inputs, self.marks):
            each.mkdir()
        self.url = url
        self.environment = {"RQMR_REDIS_URL": url}
        self.client = connect(url)
        self.terminals: list[Terminal] = []

    def write(self, *texts: str) -> Desk:
        """Write a file for each text."""
        for number, text in enumerate(texts):
            (self.inputs / f"{number}.txt").write_text(f"{text}\n")
        return self

    def open(self, *arguments: object, cwd: Path | None = None, **environment: str) -> Terminal:
        """Begin a command."""
        directory = self.directory / f"terminal-{len(self.terminals)}"
        directory.mkdir()
        self.terminals.append(Terminal(directory, cwd or self.cwd, arguments, self.environment | environment))
        return self.terminals[-1]

    def do(self, *arguments: object, status: int = 0, **options: Any) -> Terminal:
        """Run a command to its end."""
        return self.open(*arguments, **options).ends(status)

    def run(self, job: str, *options: object, output: str = "out", **params: object) -> list[object]:
        """Return the arguments of a run: a map task a file, a lease that expires soon."""
        given = [text for name, value in params.items() for text in ("-p", f"{name}={value}")]
        path = JOBS / f"{job}.py" if "/" not in job else Path(job)
        inputs = sorted(self.inputs.iterdir())
        return ["run", path, *inputs, "-r", 2, "--split-size", "4KiB", "--lease", 1, "-o", output, *options, *given]

    def start(self, job: str, *options: object, output: str = "out", struck: str = "", **params: object) -> Terminal:
        """Begin a run; `struck`: MODULE FUNCTION NTH SIGNAL, at which it is struck."""
        told = {"STRUCK": struck} if struck else {}
        return self.open(*self.run(job, *options, output=output, marks=self.marks, **params), **told)

    def start_run(self, job: str, *options: object, **params: object) -> tuple[Terminal, str]:
        """Begin a run, and wait until it has an id."""
        before = set(self.run_ids())
        terminal = self.start(job, *options, **params)

        def new() -> str:
            assert not terminal.is_over or terminal.process.returncode <= 0, terminal.stderr
            return next((run for run in self.run_ids() if run not in before), "")

        return terminal, wait_until(new, timeout=10, what="the run begins")

    def run_ids(self) -> list[str]:
        return [run.decode() for run in self.client.zrange("rqmr:runs", 0, -1)]

    def state(self, run: str) -> State:
        return State(self.client, run)

    def ps(self, *options: object) -> dict[str, dict[str, Any]]:
        """Each run as `rqmr ps --json` tells it."""
        return {each["run"]: each for each in json.loads(self.do("ps", "--json", *options).stdout)}

    def keys_of(self, run: str) -> list[str]:
        """The names of the run's keys, without what they have in common."""
        return sorted(key.decode().removeprefix(f"rqmr:{run}") for key in self.client.scan_iter(f"rqmr:{run}*"))

    def wait_for_mark(self, name: str, count: int = 1) -> None:
        wait_until(lambda: self.marked(name) >= count, timeout=20, what=f"{count} x {name} is marked")

    def marked(self, name: str) -> int:
        """How many marks of that name there are."""
        return len(list(self.marks.glob(f"{name}.*")))

    def open_gate(self) -> None:
        (self.marks / "open").touch()

    def wait_until_done(self, run: str, timeout: float = 20) -> None:
        """Wait until all tasks of a run are committed, whoever drives."""
        state = self.state(run)

        def done() -> bool:
            facts = state.facts()
            assert facts is not None
            assert facts.state == RunState.RUNNING, facts.failure
            return all(each.committed == each.phase.tasks for each in facts.phases) and facts.phase == len(facts.phases)

        wait_until(done, timeout=timeout, what=f"all tasks of {run} are committed")

    def assert_right(self, job: str, terminal: Terminal, *options: object, output: str = "out") -> dict[str, bytes]:
        """What is in the output, and what a terminal told of it, is the oracle's, byte for byte and counter for counter."""
        found = files(self.cwd / output)
        oracle = self.do(*self.run(job, *options, "--inline", output=f"oracle-{len(self.terminals)}"))
        expected = files(
            next(path for path in self.cwd.glob("oracle-*") if path.name.endswith(str(len(self.terminals) - 1)))
        )
        assert found == expected
        assert told(terminal) == told(oracle)
        return found

    def end(self) -> None:
        self.open_gate()
        for terminal in self.terminals:
            terminal.kill()
        self.client.close()


def told(terminal: Terminal) -> list[str]:
    """The counters and records that a command told at its end."""
    counters = re.findall(r"^\w+: .* = .*$", terminal.stderr, re.MULTILINE)
    records = re.findall(r"succeeded in .*: (.* written)", terminal.stderr)
    assert records, terminal.stderr
    return [*counters, *records]


def files(directory: Path) -> dict[str, bytes]:
    """The names of all that is in a directory, and what the files of it hold."""
    with contextlib.suppress(FileNotFoundError):
        return {path.name: path.read_bytes() if path.is_file() else b"" for path in directory.iterdir()}
    return {}
