"""The Python door: `run` executes a job and returns its result. The command line goes through it too."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol, Self

from rqmr.config import Config
from rqmr.connection import check_server, connect, hide_password
from rqmr.dispatch import Dispatch
from rqmr.driver import Driver, Observer
from rqmr.errors import RunFailed
from rqmr.inline import run_inline
from rqmr.inputs import Source, expand, source_of
from rqmr.job import Job
from rqmr.local import Local
from rqmr.model import Event, Facts, Summary, new_run_id
from rqmr.output import Output, read_records
from rqmr.plan import Plan, Program, default_workers, plan, program

STDIN = "-"


class View(Observer, Protocol):
    """Who wants to see a run, with what is about it."""

    def begin(self, made: Plan, server: str) -> None:
        """Take the run that is about to begin."""

    def printed(self, worker: str, line: str) -> None:
        """Take a line that a local worker printed."""

    def note(self, text: str) -> None:
        """Take a line of news."""


class Silent:
    """Sees nothing."""

    def begin(self, made: Plan, server: str) -> None:
        """Do nothing."""

    def update(self, facts: Facts, events: Sequence[Event]) -> None:
        """Do nothing."""

    def printed(self, worker: str, line: str) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""


class Result:
    """A run's output: iterate it for its records, part after part."""

    def __init__(self, summary: Summary, form: str, temporary: tempfile.TemporaryDirectory[str] | None = None) -> None:
        self.summary = summary
        self._form = form
        self._temporary = temporary  # removed together with the result

    @property
    def output(self) -> Path:
        """The directory that the part files are in."""
        return Path(self.summary.output)

    @property
    def paths(self) -> list[Path]:
        """The part files, in order."""
        return [self.output / part for part in self.summary.parts]

    @property
    def counters(self) -> dict[str, dict[str, int]]:
        """The job's counters: group -> name -> number."""
        return self.summary.counters

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """Yield each record; of a TSV output as strings."""
        return read_records(self.paths, self._form)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()


def run(
    job: str | type[Job],
    inputs: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    params: Mapping[str, Any] | None = None,
    config: Config | None = None,
    redis_url: str | None = None,
    inline: bool = False,
    overwrite: bool = False,
    view: View | None = None,
) -> Result:
    """Run a job over its inputs, and return its output.

    `job` is a Job subclass, or its name as `rqmr run` takes it. Without `output` the records are kept in a temporary
    directory for as long as the result lives. `config`'s format is "jsonl" unless given, since that gives back the
    types of keys and values. Without `redis_url`, RQMR_REDIS_URL or REDIS_URL a private server is started for this
    run, with one worker for each core.

    Raises:
        RefusedError: the job, its parameters, the input, the output or Redis isn't fit to begin; nothing was done.
        RunFailed: the run failed; `failure` says why.
    """
    given = [inputs] if isinstance(inputs, (str, os.PathLike)) else list(inputs)
    config = config or Config(format="jsonl")
    temporary = tempfile.TemporaryDirectory(prefix="rqmr-out-") if output is None else None
    directory = Path(output if output is not None else temporary.name)  # type: ignore[union-attr]
    try:
        summary = execute(
            lambda: program(job, params or {}),
            given,
            config,
            directory=lambda run: directory,
            redis_url=redis_url,
            inline=inline,
            overwrite=overwrite,
            view=view or Silent(),
        )
    except BaseException:
        if temporary is not None:
            temporary.cleanup()
        raise
    return Result(summary, config.format, temporary)


def execute(
    make_program: Any,
    inputs: Sequence[str | os.PathLike[str]],
    config: Config,
    *,
    directory: Any,
    redis_url: str | None,
    inline: bool,
    overwrite: bool,
    view: View,
) -> Summary:
    """Run a job. What `run` and the command line share; `directory` gives the output directory of a run's id."""
    url = None if inline else redis_url or os.environ.get("RQMR_REDIS_URL") or os.environ.get("REDIS_URL")
    count = config.workers if config.workers is not None else 0 if url else default_workers()
    with ExitStack() as stack:
        local = None
        if not inline and (count or not url):
            # First of all, so that the server starts while the job is loaded and its input looked at.
            local = stack.enter_context(Local(workers=count, queue=config.queue, url=url))
        made_program: Program = make_program()
        sources = expand([each for each in inputs if each != STDIN]) if any(each != STDIN for each in inputs) or not inputs else []
        run = new_run_id(made_program.short_name)
        output = Output(directory(run), run)
        server = None if inline else _Server(local, url, config.queue, stack)
        output.prepare(overwrite=overwrite)
        stack.enter_context(closing(output))
        stack.callback(output.discard)
        if local is not None:
            local.remove_on_death(output.stage)
        if STDIN in inputs:
            sources = _with_stdin(inputs, output.stage)
        workers = count or (server.listening if server else 0) or default_workers()
        made = plan(made_program, sources, config, workers=workers, stage_in=output.directory, run=run)
        if server is None:
            view.begin(made, "inline: this process, no server")
            return run_inline(made, output)
        for warning in server.warnings:
            view.note(f"warning: {warning}")
        view.begin(made, server.description)
        watched = _Watched(view, local, output)
        try:
            return Driver(server.client, made, output, watched).run()
        except RunFailed as error:
            watched.drain()
            error.printed = list(watched.tail)
            raise
        finally:
            watched.drain()


class _Server:
    """The Redis of a run."""

    def __init__(self, local: Local | None, url: str | None, queue: str, stack: ExitStack) -> None:
        embedded = local is not None and url is None
        if local is not None:
            ready = local.wait_ready()
            url = url or ready
        assert url is not None
        self.client = stack.enter_context(closing(connect(url)))
        name, self.warnings = check_server(self.client, url)
        self.description = f"private {name} on a unix socket" if embedded else f"{name} at {hide_password(url)}"
        self.listening = 0 if embedded else Dispatch(self.client, queue).workers()


class _Watched:
    """Shows a run together with what its local workers print and how they fare."""

    def __init__(self, view: View, local: Local | None, output: Output) -> None:
        self._view = view
        self._local = local
        self._output = output
        self.tail: deque[str] = deque(maxlen=10)

    def update(self, facts: Facts, events: Sequence[Event]) -> None:
        if self._local is not None:
            for worker, line in self._local.new_lines():
                self._print(worker, line)
            for event in self._local.events():
                if "worker_died" in event:
                    self._view.note(f"worker {event['worker_died']} died ({event['status']}) and is started again")
        self._view.update(facts, events)

    def drain(self) -> None:
        """Show what was printed last."""
        if self._local is not None:
            for worker, line in self._local.drain():
                self._print(worker, line)

    def _print(self, worker: str, line: str) -> None:
        self.tail.append(f"{worker} | {line}")
        self._output.log(f"{worker} | {line}")
        self._view.printed(worker, line)


def _with_stdin(inputs: Sequence[str | os.PathLike[str]], stage: Path) -> list[Source]:
    """Keep stdin in the stage, so that workers can read it in pieces and again."""
    spool = stage / "stdin"
    with spool.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return [
        source
        for each in inputs
        for source in ([source_of(str(spool), STDIN)] if each == STDIN else expand([each]))
    ]
