"""A bench for whole runs under faults: inputs to read, marks that jobs leave, and the oracle to compare with."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from harness import JOBS, Workers, wait_until

import rqmr
from rqmr.config import Config
from rqmr.connection import connect
from rqmr.facts import Event, Facts, Header
from rqmr.model import RunState
from rqmr.sessions import processes
from rqmr.state import State
from rqmr.view import Silent

#: A lease that expires soon, and a map task for each file.
CUT = Config(workers=0, reducers=2, split_bytes=4 << 10, lease_seconds=1)


class Run(Silent):
    """A run in a thread, and what its view has seen."""

    def __init__(
        self,
        job: str,
        inputs: Sequence[Path],
        output: Path,
        url: str,
        config: Config,
        params: Any,
        include: Sequence[Path] = (),
    ) -> None:
        self.id = ""
        self.facts: Facts | None = None
        self.seen: list[Event] = []
        self.away_for = 0.0  # seconds that Redis didn't answer at a time
        self.output = output
        self._url = url
        self._future: Future[rqmr.Result] = Future()

        def run() -> None:
            try:
                result = rqmr.run(
                    str(JOBS / f"{job.removesuffix('.py')}.py"),  # or an absolute path
                    inputs,
                    params=params,
                    include=include,
                    config=config,
                    output=output,
                    redis_url=url,
                    view=self,
                )
            except BaseException as error:
                self._future.set_exception(error)
            else:
                self._future.set_result(result)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def begin(self, header: Header) -> None:
        self.id = header.run

    def update(self, facts: Facts, events: Sequence[Event]) -> None:
        self.facts = facts
        self.seen.extend(events)

    def away(self, seconds: float) -> None:
        self.away_for = max(self.away_for, seconds)

    def result(self, timeout: float = 30) -> rqmr.Result:
        return self._future.result(timeout)

    def events(self, what: str) -> list[str]:
        """The subjects of all events of a kind."""
        return [event.subject for event in self.seen if event.what == what]

    def wait_for(self, what: str, count: int = 1, timeout: float = 15) -> list[str]:
        """Wait for events of a kind; return their subjects."""
        return wait_until(
            lambda: self._over() or (len(self.events(what)) >= count and self.events(what)),
            timeout=timeout,
            what=f"{count} x {what!r} in {self.id}",
        )

    def wait_until(self, predicate: Callable[[Facts], Any], *, what: str, timeout: float = 15) -> Any:
        return wait_until(
            lambda: self._over() or (self.facts is not None and predicate(self.facts)), timeout=timeout, what=what
        )

    @property
    def error(self) -> BaseException | None:
        """What it ended with, if it has ended and not well."""
        return self._future.exception() if self._future.done() else None

    @property
    def is_over(self) -> bool:
        return self._future.done()

    def _over(self) -> None:
        if self.is_over:
            self._future.result()
            pytest.fail("the run has ended already")

    def end(self) -> None:
        """Cancel it if it still runs."""
        if not self.is_over and self.id:
            client = connect(self._url)
            State(client, self.id).finish(RunState.CANCELLED)
            client.close()
        self._thread.join(20)


class Command:
    """`rqmr run` in a process of its own, on the Redis of the workers."""

    def __init__(self, bench: Bench, job: str, inputs: Sequence[Path], options: Sequence[object]) -> None:
        self.output = bench.directory / "out"
        self._arguments = ["run", JOBS / f"{job}.py", *inputs, *options]
        self._oracle = bench.directory / "oracle"
        self._stderr = bench.directory / "stderr"
        self._url = bench.url
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **params: object) -> Command:
        """Start it, with parameters that the oracle is not given."""
        given = [text for name, value in params.items() for text in ("-p", f"{name}={value}")]
        with self._stderr.open("wb") as stderr:
            self._process = subprocess.Popen(
                self._command(*given, "--redis-url", self._url, "-o", self.output),
                stdout=subprocess.DEVNULL, stderr=stderr,
            )  # fmt: skip
        return self

    def _command(self, *more: object) -> list[str]:
        return list(map(str, [sys.executable, "-m", "rqmr", *self._arguments, *more]))

    @property
    def is_over(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def assert_right(self, timeout: float = 30) -> dict[str, bytes]:
        """Wait until it exits; at that moment the output is what --inline gives, and all of it. Return the parts."""
        wait_until(lambda: self.is_over, timeout=timeout, what="the command exits")
        found = files(self.output)
        assert self._process is not None
        assert self._process.returncode == 0, self._stderr.read_text()
        subprocess.run(self._command("--inline", "--quiet", "-o", self._oracle), check=True, timeout=60)
        expected = files(self._oracle)
        assert sorted(found) == sorted(expected)
        assert found == expected
        return found

    def end(self) -> None:
        """Interrupt it if it still runs."""
        if self._process is not None:
            if not self.is_over:
                self._process.terminate()
            self._process.wait(20)


def files(directory: Path) -> dict[str, bytes]:
    """The names of all that is in a directory, and what the files of it hold."""
    return {path.name: path.read_bytes() if path.is_file() else b"" for path in directory.iterdir()}


class Bench:
    """Files to read, directories to write to, and a place for marks."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.marks = directory / "marks"
        self.marks.mkdir()
        self.inputs = directory / "inputs"
        self.inputs.mkdir()
        self.url = url
        self.runs: list[Run] = []
        self.commands: list[Command] = []

    def write(self, files: int, special: str = "", *, lines: int = 8, seed: int = 7) -> None:
        """Write files of ten words a line, and the special word once, in the middle of the third file."""
        print(f"words of seed {seed}")
        chance = random.Random(seed)
        for number in range(files):
            text = [" ".join(f"w{chance.randrange(500)}" for _ in range(10)) for _ in range(lines)]
            if number == min(2, files - 1):
                text[lines // 2] += f" {special}"
            (self.inputs / f"{number:02}.txt").write_text("\n".join(text) + "\n")

    def start(self, job: str, config: Config = CUT, **params: Any) -> Run:
        params = {"marks": str(self.marks), **params}
        inputs = sorted(self.inputs.iterdir())
        self.runs.append(Run(job, inputs, self.directory / f"out{len(self.runs)}", self.url, config, params))
        wait_until(lambda: self.runs[-1].id, timeout=10, what="the run begins")
        return self.runs[-1]

    def command(self, job: str, *options: object, inputs: Sequence[Path] = ()) -> Command:
        """Return a command to start, with options that the oracle gets too. Its inputs are the bench's, or others."""
        self.commands.append(Command(self, job, inputs or sorted(self.inputs.iterdir()), options))
        return self.commands[-1]

    def assert_right(
        self, run: Run, job: str, config: Config = CUT, timeout: float = 30, *, besides: str = ""
    ) -> rqmr.Result:
        """Wait for the run; it gives what one without any fault gives, besides one group of counters."""
        result = run.result(timeout)
        expected = self.assert_files(run, job, config)
        assert {group: each for group, each in result.counters.items() if group != besides} == expected.counters
        assert result.summary.records_read == expected.summary.records_read
        assert result.summary.records_written == expected.summary.records_written
        return result

    def assert_files(self, run: Run, job: str, config: Config = CUT) -> rqmr.Result:
        """The run's files are what one without any fault gives; return that one."""
        expected = rqmr.run(
            str(JOBS / f"{job}.py"), sorted(self.inputs.iterdir()), config=config,
            output=self.directory / f"oracle of {run.id}", inline=True,
        )  # fmt: skip
        for path in expected.paths:
            assert (run.output / path.name).read_bytes() == path.read_bytes(), path.name
        assert sorted(path.name for path in run.output.iterdir()) == [
            "_SUCCESS", *sorted(path.name for path in expected.paths),
        ]  # fmt: skip
        return expected

    def marked(self, name: str) -> int:
        """How often a job left marks of that name."""
        return len(list(self.marks.glob(f"{name}.*")))

    def pid_of(self, name: str) -> int:
        """The process that left the first mark of that name."""
        path = self.marks / f"{name}.0"
        return int(wait_until(lambda: path.exists() and path.read_text(), timeout=15, what=f"{name} is marked"))

    def wait_for_marks(self, name: str, count: int = 1) -> None:
        wait_until(lambda: self.marked(name) >= count, timeout=20, what=f"{count} x {name} is marked")

    def open_gate(self) -> None:
        (self.marks / "open").touch()


def horse_of(workers: Workers, worker: subprocess.Popen[bytes]) -> int:
    """The work-horse of a worker, once there is one."""
    return int(wait_until(lambda: workers.horses_of(worker), timeout=10, what="the worker has a work-horse")[0])


def is_alive(pid: int) -> bool:
    return any(process == pid for process, _, _ in processes())
