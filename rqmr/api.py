"""The Python door: `run` executes a job and returns its result. The command line goes through it too."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import redis
from msgspec import structs

from rqmr import registry
from rqmr.access import Server, join_shuffle, reach
from rqmr.config import Config
from rqmr.connection import clone
from rqmr.driver import Driver
from rqmr.errors import JobError, OutputError, RedisError, RefusedError, RqmrError, RunCancelled, RunFailed, RunLeft
from rqmr.facts import Header, Summary
from rqmr.inline import run_inline
from rqmr.inputs import expand, marks_of
from rqmr.job import Job
from rqmr.loader import is_loading
from rqmr.local import Local, default_workers
from rqmr.meter import report
from rqmr.model import Spec
from rqmr.output import Output
from rqmr.parts import read_records
from rqmr.plan import Plan, new_run_id, plan, program
from rqmr.remote import path_at
from rqmr.request import Request, starting
from rqmr.spilled import Spill
from rqmr.spool import STDIN, Input, Text, spool
from rqmr.state import State
from rqmr.urls import is_url
from rqmr.view import Silent, View, Watched
from rqmr.where import Where


class Result:
    """A run's output: iterate it for its records, part after part."""

    def __init__(self, summary: Summary, form: str, temporary: tempfile.TemporaryDirectory[str] | None = None) -> None:
        self.summary = summary
        self._form = form
        self._temporary = temporary  # removed together with the result

    @property
    def output(self) -> Path:
        """The directory that the part files are in; at a URL, what can be read and listed as one."""
        return path_at(self.summary.output)

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


def run(
    job: str | type[Job],
    inputs: Sequence[Input] | Input,
    *,
    output: str | os.PathLike[str] | None = None,
    params: Mapping[str, Any] | None = None,
    include: Sequence[str | os.PathLike[str]] = (),
    config: Config | None = None,
    redis_url: str | None = None,
    durable: str | os.PathLike[str] | None = None,
    inline: bool = False,
    overwrite: bool = False,
    view: View | None = None,
) -> Result:
    """Run a job over its inputs, and return its output.

    `job` is a Job subclass, or its name as `rqmr run` takes it; `inputs` are paths, globs, URLs or `Text`; `include`
    are files, modules and directories that travel with the job (see `Job.included`). Without `output` the records are
    kept in a temporary directory for as long as the result lives. Without `redis_url`, RQMR_REDIS_URL or REDIS_URL a
    private server is started for this run, with one worker for each core; with `durable` it keeps its data in that
    directory.

    A run with an output on a named Redis or a durable server outlives this call: if it is interrupted or fails, it can
    be attached to or resumed (`rqmr attach RUN`, `rqmr resume RUN`).

    Raises:
        RefusedError: the job, its parameters, the input, the output or Redis isn't fit to begin; nothing was done.
        RunFailed: the run failed; `failure` says why.
        RunCancelled: somebody cancelled it.
    """
    config = config or Config()
    form = config.format or "jsonl"
    temporary = tempfile.TemporaryDirectory(prefix="rqmr-out-") if output is None else None
    try:
        request = Request(
            job=job,
            inputs=[inputs] if isinstance(inputs, (str, os.PathLike, Text)) else list(inputs),
            params=params or {},
            includes=[include] if isinstance(include, (str, os.PathLike)) else list(include),
            config=structs.replace(config, format=form),
            output=temporary.name if temporary else os.fspath(output or ""),
            temporary=temporary is not None,
            where=Where(redis_url, durable),
            inline=inline,
            overwrite=overwrite,
        )
        if is_loading():
            raise JobError(
                "rqmr.run is called while a job's file is imported; put it below: if __name__ == '__main__':"
            )
        with starting(request) as local:
            return Result(execute(request, view or Silent(), local), form, temporary)
    except BaseException as error:
        if isinstance(error, RunFailed):
            told = report(error.failure, error.printed)  # what the command prints, too
            error.add_note(f"{told}\n\n{error.advice}" if error.advice else told)
        if temporary is not None:
            temporary.cleanup()
        raise


def execute(request: Request, view: View, local: Local | None) -> Summary:
    """Run what is asked for, on the server and the workers that were started for it. Raises as `run`."""
    with ExitStack() as stack:
        begun = _begin(request, view, local, stack)
        if begun.server is None:
            return run_inline(begun.plan, begun.output)
        watched = Watched(view, begun.local, begun.output)
        with _created(begun, request.where):
            return follow(
                begun.server, begun.plan.spec, begun.output, watched, request.where,
                ship_memory=request.config.ship_memory,
            )  # fmt: skip


def submit(request: Request, view: View) -> str:
    """Begin what is asked for, leave it to the workers that listen, and return the run's id. Raises as `run`."""
    if request.ends_with_driver or request.local_workers:
        raise RefusedError(
            "--detach leaves the run to workers that go on without this command: name a Redis that has some "
            "(--redis-url), an output directory (-o DIR), and no local workers (-w)"
        )
    with ExitStack() as stack:
        begun = _begin(request, view, None, stack)
        assert begun.server
        spec = begun.plan.spec
        with _created(begun, request.where):
            try:
                Driver(begun.server.client, spec, begun.output, view).hand_over()
            except RunLeft as error:
                error.advice = _left(spec, request.where)
                raise
        if not begun.server.listening(spec.queue):
            view.note(f"no worker listens on queue '{spec.queue}' yet: the run waits for one")
        return spec.run


def follow(
    server: Server,
    spec: Spec,
    output: Output,
    watched: Watched,
    where: Where,
    *,
    is_creator: bool = True,
    ship_memory: int = Config().ship_memory,
) -> Summary:
    """Follow a run to its end. Raises as `run`; what ends this command early has a note on how to go on."""
    try:
        driver = Driver(
            server.client, spec, output, watched, is_creator=is_creator, is_visitor=server.is_visited,
            ship_memory=ship_memory,
        )  # fmt: skip
        return driver.run()
    except RunFailed as error:
        watched.drain()
        error.printed = list(watched.tail)
        if isinstance(error, RunLeft):
            error.advice = _left(spec, where)
        elif spec.ends_with_driver:
            error.advice = (
                "nothing can be resumed, as all of this run ends with its command; with an output directory and "
                "--durable DIR, or a Redis of yours (--redis-url), it could be"
            )
        else:
            output.is_kept = error.failure.can_resume
            if output.is_kept:
                error.advice = f"mend the cause, and go on with what is done:  rqmr resume {spec.run}{where.option}"
        raise
    except RunCancelled:
        output.is_kept = False
        raise
    except BaseException as error:
        _note(error, output, spec, where)
        raise
    finally:
        watched.drain()
        server.see_visitors_out()


def _note(error: BaseException, output: Output, spec: Spec, where: Where) -> None:
    """Tell whom a signal has ended what becomes of the run."""
    if output.is_kept and not isinstance(error, RqmrError) and not hasattr(error, "__notes__"):
        error.add_note(_left(spec, where))


def _left(spec: Spec, where: Where) -> str:
    """Tell how to go on with a run that this command leaves."""
    goes_on = "which goes on where workers listen"
    if spec.ends_with_driver:
        goes_on = "which goes on, as the command that it belongs to does"
    elif where.directory is not None:
        goes_on = f"which is kept in {where.durable}, and goes on with the next command"
    return (
        f"left run {spec.run}, {goes_on}\n"
        f"  rqmr attach {spec.run}{where.option}    shows it"
        + ("" if spec.ends_with_driver else ", and collects its output")
        + f"\n  rqmr cancel {spec.run}{where.option}    ends it"
    )


@dataclass(frozen=True)
class _Begun:
    """A run that is ready to be created."""

    plan: Plan
    output: Output
    server: Server | None  # None: inline
    local: Local | None


def _begin(request: Request, view: View, local: Local | None, stack: ExitStack) -> _Begun:
    made_program = program(request.job, request.params, request.includes)
    named = [each for each in request.inputs if not isinstance(each, Text) and each != STDIN]
    sources = expand(named) if named or not request.inputs else []
    run = new_run_id(made_program.short_name)
    output = Output(request.output.replace("{run}", run), run)
    if is_url(request.output) and len(named) < len(request.inputs):
        raise OutputError("an input that can be read only once is kept beside the output: name a directory for that")
    server = None if request.inline else reach(request.where, local, stack)
    config = structs.replace(
        request.config,
        shuffle_urls=join_shuffle(server, request.config.shuffle_urls) if server else (),
        spill=request.config.spill if server else None,
    )
    _prepare(output, request, local, stack)
    if len(named) < len(request.inputs):
        sources = spool(request.inputs, output.stage)
    listening = server.listening(request.config.queue) if server and not request.is_private else 0
    made = plan(
        made_program,
        sources,
        config,
        workers=request.local_workers or listening or default_workers(),
        stage_in=output.directory,
        run=run,
        inputs=marks_of(sources) if request.is_spread or not request.ends_with_driver else {},
        is_spread=request.is_spread,
        ends_with_driver=request.ends_with_driver,
    )
    stack.callback(clear_spilled, made.spec, output)
    if local is not None and request.ends_with_driver and made.spec.spill and not is_url(made.spec.spill):
        local.remove_on_death(Spill(made.spec.spill, run).directory)
    description = server.description if server else "this process, inline"
    view.begin(header_of(made.spec, description))
    for warning in server.warnings if server else []:
        view.note(f"warning: {warning}")
    return _Begun(made, output, server, local)


def clear_spilled(spec: Spec, output: Output) -> None:
    """Remove what a run has spilled, unless somebody else goes on with it; what is collected has none any more."""
    if spec.spill and not output.is_kept:
        Spill(spec.spill, spec.run).clear()


def header_of(spec: Spec, server: str) -> Header:
    """Return what a view says of a run before it begins."""
    return Header(spec.run, spec.job, server, spec.queue, spec.plan, spec.input_bytes)


@contextlib.contextmanager
def _created(begun: _Begun, where: Where) -> Iterator[None]:
    """Write the run into Redis; from then on it may outlive this command."""
    assert begun.server
    made, output = begun.plan, begun.output
    state = State(begun.server.client, made.spec.run)
    try:
        state.create(made.spec, made.splits, made.program.package.encode(), made.inputs)
        output.is_kept = not made.spec.ends_with_driver
    except BaseException as error:
        with contextlib.suppress(redis.RedisError), closing(clone(begun.server.client, patient=False)) as client:
            state = State(client, made.spec.run)
            state.adopt(made.spec)
            state.unlink()
            registry.forget(client, made.spec.run)
        if isinstance(error, redis.RedisError):
            raise RedisError(f"the run can't be written to Redis: {error}") from error
        raise
    try:
        yield
    except BaseException as error:
        _note(error, output, made.spec, where)
        raise


def _prepare(output: Output, request: Request, local: Local | None, stack: ExitStack) -> None:
    """Make the stage, and see that it goes, whatever happens to this process, unless others go on with it."""
    stack.enter_context(closing(output))
    stack.callback(output.discard)
    output.prepare(overwrite=request.overwrite)
    if local is not None and request.ends_with_driver and not is_url(request.output):
        local.remove_on_death(output.directory if request.temporary else output.stage)
        for path in output.made:
            local.remove_on_death(path, if_empty=True)
