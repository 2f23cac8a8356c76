"""The command line: parses, prints, and nothing else."""

from __future__ import annotations

import _thread
import contextlib
import gc
import os
import signal
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NoReturn

import typer

from rqmr import __version__, commands
from rqmr.delivery import deliver, plain, print_json, tell_id, tell_plan
from rqmr.errors import ParameterError, RefusedError, RqmrError, RunFailed, RunLeft

if TYPE_CHECKING:
    pass

#: How often to look whether a signal's exception was swallowed.
_REMINDER_SECONDS = 0.5
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_EXAMPLES = """
[bold]Examples[/]

  rqmr run wordcount input/*.txt

  rqmr run wordcount 'logs/**/*.gz' -o counts -r 4

  rqmr run grep -p pattern=mutex src --format jsonl -o -

  cat access.log | rqmr run jobs/hits.py - --inline

  rqmr run wordcount books --redis-url redis://cache:6379/0      (workers: rq worker rqmr --url …)
"""

app = typer.Typer(
    name="rqmr",
    help="MapReduce for Python on Redis and RQ.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; the exit status is 0, 1 (the run failed), 2 (refused), 130 or 143 (ended by a signal)."""
    try:
        with _signals():
            app()
    except RefusedError as error:
        _fail(2, f"rqmr: {error}")
    except RunFailed as error:
        from rqmr.meter import report

        advice = f"\n\n{error.advice}" if error.advice else ""
        what = "" if isinstance(error, RunLeft) else "the run failed: "
        _fail(1, f"rqmr: {what}{report(error.failure, error.printed)}{advice}")
    except RqmrError as error:
        _fail(1, f"rqmr: {error}")
    except _Ended as ended:
        for number in _SIGNALS:  # what is raised while Python ends would be printed, and change nothing
            signal.signal(number, signal.SIG_IGN)
        name = signal.Signals(ended.signal).name
        notes = "".join(f"; {note}" for note in getattr(ended, "__notes__", []))
        _fail(128 + ended.signal, f"rqmr: ended by {name}{notes}")
    except BrokenPipeError:
        _fail(1, "")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"rqmr {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """MapReduce for Python on Redis and RQ."""


@app.command(epilog=_EXAMPLES)
def run(
    job: Annotated[str, typer.Argument(help="A .py file, jobs/NAME.py here, a dotted module, or an example: NAME.")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT…",
            help="Files, quoted globs, directories (recursive), URLs, or - for stdin.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="DIR",
            help="Output directory, or its URL, or - for stdout.",
            show_default="output/RUN",
        ),
    ] = None,
    reducers: Annotated[
        int | None, typer.Option("-r", "--reducers", help="Reduce tasks.", show_default="by size")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("-w", "--workers", help="Local workers.", show_default="one a core; none with a Redis named"),
    ] = None,
    redis_url: Annotated[
        str | None,
        typer.Option(
            "--redis-url", help="Redis to use, else RQMR_REDIS_URL or REDIS_URL.", show_default="a private server"
        ),
    ] = None,
    shuffle_url: Annotated[
        list[str] | None,
        typer.Option(
            "--shuffle-url", metavar="URL", help="Another Redis that holds a share of the shuffle; or several."
        ),
    ] = None,
    spill: Annotated[
        str | None,
        typer.Option(
            "--spill", metavar="DIR", help="Directory, or URL, that all workers see, for what Redis has no memory for."
        ),
    ] = None,
    durable: Annotated[
        str | None,
        typer.Option("--durable", metavar="DIR", help="Keep the private server's data in DIR, to resume runs."),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Leave the run to the workers at once, and print its id.")
    ] = False,
    queue: Annotated[str, typer.Option("--queue", help="RQ queue that the workers listen on.")] = "rqmr",
    split_size: Annotated[
        str | None,
        typer.Option("--split-size", help="Input of one map task.", show_default="16MiB, less for small inputs"),
    ] = None,
    param: Annotated[
        list[str] | None, typer.Option("-p", "--param", metavar="NAME=VALUE", help="A job's parameter.")
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="PATH", help="A file, module or directory that travels with the job."),
    ] = None,
    form: Annotated[str, typer.Option("--format", help="tsv or jsonl.")] = "tsv",
    encoding: Annotated[str, typer.Option("--encoding", help="Encoding of text inputs.")] = "utf-8",
    decode_errors: Annotated[str, typer.Option("--decode-errors", help="replace or strict.")] = "replace",
    lease: Annotated[float, typer.Option("--lease", help="Seconds of silence after which a task is another's.")] = 15.0,
    backup: Annotated[
        bool, typer.Option("--backup/--no-backup", help="Give stragglers a second attempt on another worker.")
    ] = True,
    stall: Annotated[
        float, typer.Option("--stall", help="Seconds without a finished record until an attempt is replaced; 0: never.")
    ] = 600.0,
    task_timeout: Annotated[
        float, typer.Option("--task-timeout", help="Longest time for an attempt in seconds; 0: any.")
    ] = 0.0,
    skip_bad: Annotated[
        int,
        typer.Option(
            "--skip-bad", metavar="N", help="Leave out up to N records that raise, or end their process, twice."
        ),
    ] = 0,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory", help="Keys and values that a task may hold; what is more goes to disk.", show_default="64MiB"
        ),
    ] = None,
    ship_memory: Annotated[
        str | None,
        typer.Option(
            "--ship-memory", help="Input that may wait in Redis for workers that don't see it.", show_default="256MiB"
        ),
    ] = None,
    priority: Annotated[
        str, typer.Option("--priority", help="high, normal or low: its share of workers that other runs want, too.")
    ] = "normal",
    explain: Annotated[bool, typer.Option("--explain", help="Print the plan, and why it is so; run nothing.")] = False,
    inline: Annotated[bool, typer.Option("--inline", help="Run in this process: no Redis, no workers.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output in DIR.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show errors only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Run JOB over the inputs: map, shuffle, reduce, and the output as part files."""
    # Imported late, so that --help and mistakes are answered at once.
    from rqmr.config import Config
    from rqmr.request import Request, starting
    from rqmr.where import Where

    if (output == "-" or as_json) and sys.__stdout__ is None:
        raise RefusedError("standard output is closed, and the result is to be written there; give -o a directory")
    if output == "-" and as_json:
        raise RefusedError("-o - and --json both write to stdout; choose one")
    config = Config(
        queue=queue,
        lease_seconds=lease,
        backups=backup,
        stall_seconds=stall,
        task_seconds=task_timeout,
        skip_bad=skip_bad,
        priority=priority,
        reducers=reducers,
        split_bytes=_bytes("--split-size", split_size),
        memory=_bytes("--memory", memory) or Config().memory,
        shuffle_urls=tuple(shuffle_url or ()),
        spill=spill,
        ship_memory=_bytes("--ship-memory", ship_memory) or Config().ship_memory,
        workers=workers,
        format=form,
        encoding=encoding,
        decode_errors=decode_errors,
    )
    with contextlib.ExitStack() as stack:
        if output == "-" or as_json:
            # What an inline job prints would mix with the result.
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if output == "-":
            temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="rqmr-out-"))
        request = Request(
            job=job,
            inputs=inputs or [],
            params=_parameters(param or []),
            includes=include or [],
            config=config,
            output=temporary if output == "-" else output or "output/{run}",
            temporary=output == "-",
            where=Where(redis_url, durable),
            inline=inline,
            overwrite=overwrite,
        )
        if explain:
            tell_plan(request)
            return
        try:
            with contextlib.nullcontext() if detach else starting(request) as local:
                with _importing():  # while the server and the workers start
                    from rqmr.api import execute, submit
                    from rqmr.progress import choose_view
                view = choose_view(quiet=quiet)
                stack.callback(view.end)
                if detach:
                    tell_id(submit(request, view), as_json=as_json)
                    return
                summary = execute(request, view, local)
        except RunFailed as error:
            if as_json:
                state = "left" if isinstance(error, RunLeft) else "failed"
                print_json({"state": state, "job": job, "failure": plain(error.failure)})
            raise
        except _Ended as ended:
            if not hasattr(ended, "__notes__"):
                ended.add_note("the run was cancelled, and no incomplete output is left")
            raise
        view.end()
        deliver(summary, to_stdout=output == "-", as_json=as_json, quiet=quiet, first_rows=output is None)


commands.register(app)


@contextlib.contextmanager
def _importing() -> Iterator[None]:
    """Import without looking for garbage, then and when Python ends: none of it is."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _bytes(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    from rqmr.inputs import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise RefusedError(f"{option}: {error}") from None


def _parameters(given: list[str]) -> dict[str, Any]:
    """Read NAME=VALUE; a name given several times has a list."""
    values: dict[str, list[str]] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name:
            raise ParameterError(f"-p {each} is not NAME=VALUE")
        values.setdefault(name.replace("-", "_"), []).append(value)
    return {name: value[0] if len(value) == 1 else value for name, value in values.items()}


class _Ended(BaseException):
    """A signal has come. Not a KeyboardInterrupt, which others take for theirs."""

    #: The latest one, as long as something refers to it.
    latest: ClassVar[Callable[[], _Ended | None]] = staticmethod(lambda: None)

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number
        _Ended.latest = weakref.ref(self)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Let a signal unwind the run, and ignore those that come meanwhile.

    The unwinding goes on for as long as its exception exists. One that was swallowed, as in a finalizer, is gone: then
    the signal is sent once more, by a thread that the handler leaves behind, and nothing is said of the first.
    """
    has_terminal = os.isatty(2)
    is_over = False
    tell_unraisable = sys.unraisablehook

    def tell_others(unraisable: sys.UnraisableHookArgs) -> None:
        if unraisable.exc_type is not _Ended:
            tell_unraisable(unraisable)

    def remind(number: int) -> None:
        time.sleep(_REMINDER_SECONDS)
        while not is_over and _Ended.latest() is not None:
            time.sleep(_REMINDER_SECONDS)
        if not is_over:
            os.kill(os.getpid(), number)

    def unwind(number: int, frame: FrameType | None) -> None:
        if has_terminal and number == signal.SIGHUP:  # it is gone, and whoever writes to it would fail
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, 1)
            os.dup2(nothing, 2)
            os.close(nothing)
        if _Ended.latest() is None:
            # Not by threading, whose locks what is interrupted here may hold.
            _thread.start_new_thread(remind, (number,))
            raise _Ended(number)  # and no name for it: a frame that refers to it would keep it

    sys.unraisablehook = tell_others
    before = {number: signal.signal(number, unwind) for number in _SIGNALS}
    try:
        yield
    finally:
        is_over = True
        sys.unraisablehook = tell_unraisable
    for number, handler in before.items():
        signal.signal(number, handler)


def _fail(status: int, text: str) -> NoReturn:
    if text:
        from rqmr.meter import plain_lines

        print(plain_lines(text, sys.stderr.encoding or "utf-8"), file=sys.stderr)
    raise SystemExit(status)
