"""Terminals: real `rqmr` commands at work at the same time, each in a session of its own, on one named Redis."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import JOBS, wait_until

import rqmr
from rqmr import registry
from rqmr.config import Config
from rqmr.connection import connect
from rqmr.errors import AttemptEnded
from rqmr.facts import End, Facts
from rqmr.model import RunState
from rqmr.runs import list_runs
from rqmr.sessions import members, send
from rqmr.state import State
from rqmr.where import Where

#: Runs the command line. Just before the nth call of a function of rqmr's or Python's it leaves a mark, and then kills
#: or stops itself, or goes on.
STRUCK = """
import functools, importlib, os, pathlib, signal
from rqmr import cli

module, name, number, how = os.environ["STRUCK"].split()
*path, last = name.split(".")
owner = functools.reduce(getattr, path, importlib.import_module(module))
original, calls = getattr(owner, last), 0

def struck(*arguments, **named):
    global calls
    calls += 1
    if calls == int(number):
        pathlib.Path(os.environ["MARKS"], f"struck.{os.getpid()}").touch()
        if how != "marks":
            os.kill(os.getpid(), getattr(signal, how))
    return original(*arguments, **named)

setattr(owner, last, struck)
cli.main()
"""
#: A map task for each file, and a lease that expires soon.
CUT = Config(workers=0, reducers=2, split_bytes=4 << 10, lease_seconds=1, format="tsv")
OPTIONS = ("-r", 2, "--split-size", "4KiB", "--lease", 1)


class Terminal:
    """One `rqmr` command, and what it says."""

    def __init__(self, directory: Path, cwd: Path, arguments: Sequence[object], environment: dict[str, str]) -> None:
        self._out, self._err = directory / "stdout", directory / "stderr"
        self._command = " ".join(map(str, arguments))
        program = ["-c", STRUCK] if "STRUCK" in environment else ["-m", "rqmr"]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, *program, *map(str, arguments)], cwd=cwd, env=environment,
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
        """Wait for its end, which is one of these, and no traceback of ours."""
        wait_until(lambda: self.is_over, timeout=timeout, what=f"rqmr {self._command} exits")
        assert self.process.returncode in statuses, f"status {self.process.returncode}\n{self.stdout}\n{self.stderr}"
        assert "rqmr/cli.py" not in self.stderr, self.stderr
        return self

    def says(self, text: str) -> Terminal:
        """Wait until it has said something on stderr."""
        wait_until(lambda: text in self.stderr or self.is_over, timeout=15, what=f"rqmr {self._command} says {text!r}")
        assert text in self.stderr
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
        self.elsewhere = directory / "elsewhere"
        self.inputs = directory / "inputs"
        self.marks = directory / "marks"
        for each in (self.cwd, self.elsewhere, self.inputs, self.marks):
            each.mkdir()
        self.output = self.cwd / "out"
        self.environment = {key: value for key, value in os.environ.items() if "REDIS_URL" not in key}
        self.environment |= {"RQMR_REDIS_URL": url, "MARKS": str(self.marks), "COLUMNS": "80"}
        self.url = url
        self.client = connect(url)
        self.terminals: list[Terminal] = []
        self._oracles: dict[str, rqmr.Result] = {}

    # --- commands -------------------------------------------------------------------------------------------------

    def open(self, *arguments: object, cwd: Path | None = None, **environment: str) -> Terminal:
        """Begin a command; an empty variable isn't set."""
        directory = self.directory / f"terminal-{len(self.terminals)}"
        directory.mkdir()
        variables = {key: value for key, value in (self.environment | environment).items() if value}
        self.terminals.append(Terminal(directory, cwd or self.cwd, arguments, variables))
        return self.terminals[-1]

    def do(self, *arguments: object, status: int = 0, **options: Any) -> Terminal:
        """Run a command to its end."""
        return self.open(*arguments, **options).ends(status)

    def run(
        self, job: str | Path, *options: object, output: str = "out", struck: str = "", **params: object
    ) -> Terminal:
        """Begin a run of a map task a file. `struck`: MODULE FUNCTION NTH SIGNAL, where it is struck."""
        path = JOBS / f"{job}.py" if isinstance(job, str) else job
        given = [text for name, value in params.items() for text in ("-p", f"{name}={value}")]
        inputs = sorted(self.inputs.iterdir())
        return self.open(
            "run", path, *inputs, *OPTIONS, "-o", output, *options, *given, STRUCK=struck
        )  # fmt: skip

    def begin(self, job: str | Path, *options: object, **told: Any) -> tuple[Terminal, str]:
        """Begin a run with a place for its marks, and wait until it has an id."""
        before = set(self.run_ids())
        terminal = self.run(job, *options, **{"marks": self.marks, **told})

        def new() -> str:
            assert not terminal.is_over or terminal.process.returncode <= 0, terminal.stderr
            return next((run for run in self.run_ids() if run not in before), "")

        return terminal, wait_until(new, timeout=15, what="the run begins")

    def ps(self, *options: object, **environment: str) -> dict[str, dict[str, Any]]:
        """Each run as `rqmr ps --json` tells it."""
        return {each["run"]: each for each in json.loads(self.do("ps", "--json", *options, **environment).stdout)}

    def end(self) -> None:
        self.open_gate()
        for terminal in self.terminals:
            terminal.kill()
        self.client.close()

    # --- inputs and marks -----------------------------------------------------------------------------------------

    def write(self, *texts: str) -> None:
        """Write a file for each text."""
        for number, text in enumerate(texts):
            (self.inputs / f"{number}.txt").write_text(f"{text}\n")

    def marked(self, name: str) -> int:
        """How many marks of that name there are."""
        return len(list(self.marks.glob(f"{name}.*")))

    def wait_for_marks(self, name: str, count: int = 1) -> None:
        wait_until(lambda: self.marked(name) >= count, timeout=20, what=f"{count} x {name} is marked")

    def open_gate(self) -> None:
        (self.marks / "open").touch()

    # --- what is in Redis -----------------------------------------------------------------------------------------

    def run_ids(self) -> list[str]:
        return [run.decode() for run in self.client.zrange("rqmr:runs", 0, -1)]

    def look(self, run: str) -> Facts | None:
        """What is true of a run, None if its keys are gone."""
        with contextlib.suppress(AttemptEnded):
            return State(self.client, run).facts()
        return None

    def facts(self, run: str) -> Facts:
        facts = self.look(run)
        assert facts is not None, f"run {run} is gone"
        return facts

    def committed(self, run: str) -> list[str]:
        """The tasks of a run that are committed."""
        state = State(self.client, run)
        return [str(task) for phase in state.spec.phases for task in state.winners(phase)]

    def state_of(self, run: str) -> str:
        """The state that `rqmr ps` tells."""
        return next(each.state for each in list_runs(Where(self.url)) if each.run == run)

    def end_of(self, run: str) -> End:
        end = registry.read_end(self.client, run)
        assert end is not None, f"run {run} has not ended"
        return end

    def wait_until_done(self, run: str) -> None:
        """Wait until all tasks of a run are committed, whoever drives."""

        def done() -> bool:
            facts = self.facts(run)
            assert facts.state == RunState.RUNNING, facts.failure
            return facts.phase == len(facts.phases)

        wait_until(done, timeout=20, what=f"all tasks of {run} are committed")

    def keys_of(self, run: str) -> list[str]:
        """The names of the run's keys, without what they have in common."""
        return sorted(key.decode().removeprefix(f"rqmr:{run}") for key in self.client.scan_iter(f"rqmr:{run}*"))

    # --- what must be ---------------------------------------------------------------------------------------------

    def assert_right(self, run: str, job: str | Path, output: Path | None = None, **params: object) -> None:
        """The output is the oracle's, byte for byte and counter for counter; of the run only its end is left."""
        oracle = self.assert_output(run, job, output, **params)
        summary = self.end_of(run).summary
        assert summary
        assert summary.counters == oracle.counters
        assert (summary.records_read, summary.records_written) == (
            oracle.summary.records_read, oracle.summary.records_written,
        )  # fmt: skip
        assert self.keys_of(run) == [":end"]

    def assert_output(self, run: str, job: str | Path, output: Path | None = None, **params: object) -> rqmr.Result:
        """The output is the oracle's, byte for byte; return that."""
        oracle = self._oracles.get(run) or self._oracles.setdefault(run, self._oracle(run, job, params))
        assert files(output or self.output) == files(oracle.output)
        return oracle

    def _oracle(self, run: str, job: str | Path, params: dict[str, object]) -> rqmr.Result:
        return rqmr.run(
            str(JOBS / f"{job}.py" if isinstance(job, str) else job), sorted(self.inputs.iterdir()), config=CUT,
            params=params, output=self.directory / f"oracle of {run}", inline=True,
        )  # fmt: skip


def told(terminal: Terminal) -> list[str]:
    """How a command told a success: counters, and the numbers."""
    lines = terminal.stderr.splitlines()
    return [*(line for line in lines if " = " in line), next(line for line in lines if " succeeded in " in line)]


def files(directory: Path) -> dict[str, bytes]:
    """The names of all that is in a directory, and what the files of it hold; nothing if it isn't there."""
    with contextlib.suppress(FileNotFoundError):
        return {path.name: path.read_bytes() if path.is_file() else b"" for path in directory.iterdir()}
    return {}
