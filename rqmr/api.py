"""The Python door: `run` executes a job and returns its result. The command line goes through it too."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from msgspec import structs

from rqmr.config import Config
from rqmr.connection import check_server, connect, hide_password
from rqmr.dispatch import Dispatch
from rqmr.driver import Driver, Observer
from rqmr.errors import InputError, JobError, RefusedError, RunFailed
from rqmr.inline import run_inline
from rqmr.inputs import Source, expand, source_of
from rqmr.job import Job
from rqmr.loader import is_loading
from rqmr.local import Local
from rqmr.meter import report
from rqmr.model import Event, Facts, Failure, Header, Summary, new_run_id
from rqmr.output import Output, read_records
from rqmr.plan import default_workers, plan, program

STDIN = "-"


class View(Observer, Protocol):
    """Who wants to see a run, with what is about it."""

    def begin(self, header: Header) -> None:
        """Take the run that is about to begin."""

    def printed(self, worker: str, line: str) -> None:
        """Take a line that a local worker printed."""

    def note(self, text: str) -> None:
        """Take a line of news."""

    def end(self) -> None:
        """Leave the terminal as it should be, whatever happened; twice does no harm."""


class Silent:
    """Sees nothing."""

    def begin(self, header: Header) -> None:
        """Do nothing."""

    def update(self, facts: Facts, events: Sequence[Event]) -> None:
        """Do nothing."""

    def printed(self, worker: str, line: str) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""

    def end(self) -> None:
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

    def __repr__(self) -> str:
        return f"<Result of {self.summary.run}: {self.summary.records_written:,} records in {self.summary.output}>"

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """Yield each record; of a TSV output as strings."""
        return read_records(self.paths, self._form)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks for: what `run` and the command line have in common."""

    job: str | type[Job]
    inputs: Sequence[str | os.PathLike[str]]
    params: Mapping[str, Any]
    config: Config
    output: str  # a directory; {run} in it stands for the run's id
    temporary: bool = False  # whether that directory goes when it has been read
    redis_url: str | None = None
    inline: bool = False
    overwrite: bool = False

    @property
    def url(self) -> str | None:
        """The Redis that is named, if one is."""
        if self.inline:
            return None
        if self.redis_url is not None:
            return self.redis_url
        return os.environ.get("RQMR_REDIS_URL") or os.environ.get("REDIS_URL") or None

    @property
    def local_workers(self) -> int:
        """How many workers to start here."""
        if self.config.workers is not None:
            return self.config.workers
        return default_workers() if self.url is None else 0


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
    directory for as long as the result lives. Without `redis_url`, RQMR_REDIS_URL or REDIS_URL a private server is
    started for this run, with one worker for each core.

    Raises:
        RefusedError: the job, its parameters, the input, the output or Redis isn't fit to begin; nothing was done.
        RunFailed: the run failed; `failure` says why.
    """
    if is_loading():
        raise JobError("rqmr.run is called while a job's file is imported; put it below: if __name__ == '__main__':")
    config = config or Config()
    form = config.format or "jsonl"
    temporary = tempfile.TemporaryDirectory(prefix="rqmr-out-") if output is None else None
    request = Request(
        job=job,
        inputs=[inputs] if isinstance(inputs, (str, os.PathLike)) else list(inputs),
        params=params or {},
        config=structs.replace(config, format=form),
        output=temporary.name if temporary else os.fspath(output or ""),
        temporary=temporary is not None,
        redis_url=redis_url,
        inline=inline,
        overwrite=overwrite,
    )
    try:
        return Result(execute(request, view or Silent()), form, temporary)
    except BaseException as error:
        if isinstance(error, RunFailed):
            error.add_note(report(error.failure, error.printed))  # what the command prints, too
        if temporary is not None:
            temporary.cleanup()
        raise


def execute(request: Request, view: View) -> Summary:
    """Run what is asked for. Raises as `run`."""
    if not request.inline and request.url is None and not request.local_workers:
        raise RefusedError("0 workers on a private server would never end; name a Redis with workers, or use -w 1")
    with ExitStack() as stack:
        # First of all, so that the server starts while the job is loaded and its input looked at.
        local = _local(request, stack)
        made_program = program(request.job, request.params)
        named = [each for each in request.inputs if each != STDIN]
        sources = expand(named) if named or not request.inputs else []
        run = new_run_id(made_program.short_name)
        output = Output(Path(request.output.replace("{run}", run)), run)
        server = None if request.inline else _Server(request, local, stack)
        _prepare(output, request, local, stack)
        if STDIN in request.inputs:
            sources = _with_stdin(request.inputs, output.stage)
        workers = request.local_workers or (server.listening if server else 0) or default_workers()
        made = plan(made_program, sources, request.config, workers=workers, stage_in=output.directory, run=run)
        description = server.description if server else "this process, inline"
        view.begin(
            Header(
                run,
                made.spec.job,
                description,
                request.config.queue if server else "",
                made.spec.plan,
                made.spec.input_bytes,
            )
        )
        if server is None:
            return run_inline(made, output)
        for warning in server.warnings:
            view.note(f"warning: {warning}")
        watched = _Watched(view, local, output)
        try:
            return Driver(server.client, made, output, watched).run()
        except RunFailed as error:
            watched.drain()
            error.printed = list(watched.tail)
            raise
        finally:
            watched.drain()


def _local(request: Request, stack: ExitStack) -> Local | None:
    """Start the private server, unless a Redis is named, and the local workers."""
    if request.inline or not request.local_workers:
        return None
    return stack.enter_context(Local(workers=request.local_workers, queue=request.config.queue, url=request.url))


def _prepare(output: Output, request: Request, local: Local | None, stack: ExitStack) -> None:
    """Make the stage, and see that it goes, whatever happens to this process."""
    stack.enter_context(closing(output))
    stack.callback(output.discard)
    output.prepare(overwrite=request.overwrite)
    if local is not None:
        local.remove_on_death(output.directory if request.temporary else output.stage)
        for path in output.made:
            local.remove_on_death(path, if_empty=True)


class _Server:
    """The Redis of a run."""

    def __init__(self, request: Request, local: Local | None, stack: ExitStack) -> None:
        embedded = request.url is None
        ready = local.wait_ready() if local else None
        url = ready if request.url is None else request.url
        assert url is not None
        self.client = stack.enter_context(closing(connect(url)))
        name, self.warnings = check_server(self.client, url)
        self.description = f"private {name} on a unix socket" if embedded else f"{name} at {hide_password(url)}"
        if not embedded and request.redis_url is None:
            self.description += " (from the environment)"
        self.listening = 0 if embedded else Dispatch(self.client, request.config.queue).workers()


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
                self._tell(event)
        self._view.update(facts, events)

    def drain(self) -> None:
        """Show what was printed last."""
        if self._local is not None:
            for worker, line in self._local.drain():
                self._print(worker, line)

    def _tell(self, event: dict[str, Any]) -> None:
        match event:
            case {"worker_died": name, "status": status}:
                self._view.note(f"worker {name} died ({status}) and is started again")
            case {"server_died": status, "log": log}:
                raise RunFailed(Failure(f"the private server ended with status {status}; its last words: {log}"))
            case {"supervisor_died": status}:
                raise RunFailed(Failure(f"the supervisor of the local workers ended with status {status}"))
            case {"error": text}:
                raise RunFailed(Failure(f"the local workers can't run: {text}"))

    def _print(self, worker: str, line: str) -> None:
        self.tail.append(f"{worker} | {line}")
        self._output.log(f"{worker} | {line}")
        self._view.printed(worker, line)


def _with_stdin(inputs: Sequence[str | os.PathLike[str]], stage: Path) -> list[Source]:
    """Keep stdin in the stage, so that workers can read it in pieces and again."""
    if sys.stdin is None:
        raise InputError("standard input is closed; give files, or pipe something in")
    spool = stage / "stdin"
    with spool.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return [
        source for each in inputs for source in ([source_of(str(spool), STDIN)] if each == STDIN else expand([each]))
    ]
