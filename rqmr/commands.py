"""The commands for runs that exist (ps, status, attach …) and for workers. They parse, print, and nothing else."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rqmr.doctor import doctor

if TYPE_CHECKING:
    from rqmr.facts import Summary
    from rqmr.status import Status
    from rqmr.view import View
    from rqmr.where import Where

_Run = Annotated[str, typer.Argument(metavar="RUN", help="The run's id, as rqmr ps shows it.", show_default=False)]
_Url = Annotated[
    str | None,
    typer.Option(
        "--redis-url",
        help="Redis that the run is on, else RQMR_REDIS_URL or REDIS_URL.",
        show_default="your private servers",
    ),
]
_Durable = Annotated[
    str | None, typer.Option("--durable", metavar="DIR", help="Directory that the run was started with.")
]
_Workers = Annotated[
    int | None,
    typer.Option("-w", "--workers", help="Local workers to add.", show_default="one a core with --durable, else none"),
]
_Quiet = Annotated[bool, typer.Option("--quiet", help="Show errors only.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (ps, status, attach, resume, cancel):
        app.command()(command)
    app.command(name="rm")(remove)
    app.command()(worker)
    app.command()(doctor)


def ps(redis_url: _Url = None, durable: _Durable = None, as_json: _Json = False) -> None:
    """List the runs: those that run, those that failed and can be resumed, and those of the last seven days."""
    from rqmr.runs import list_runs

    found = list_runs(_where(redis_url, durable))
    if as_json:
        _print_json([_plain(each) for each in found])
    elif found:
        _print_table([("RUN", "STATE", "DONE", "TIME", "OUTPUT"), *map(_row, found)])
    else:
        typer.echo("no runs", err=True)


def status(run: _Run, redis_url: _Url = None, durable: _Durable = None, as_json: _Json = False) -> None:
    """Tell how far a run is, who works on it, or how it ended."""
    from rqmr.runs import status_of

    where = _where(redis_url, durable)
    told = status_of(run, where)
    if as_json:
        _print_json(_plain(told))
    else:
        _echo("\n".join(_description(told, where.option)))


def attach(
    run: _Run, redis_url: _Url = None, durable: _Durable = None, workers: _Workers = None, quiet: _Quiet = False
) -> None:
    """Show a run live, from any terminal, in any number at once; drive it if nobody does, and collect its output."""
    from rqmr.runs import attach as follow

    where = _where(redis_url, durable)
    _show(lambda view: follow(run, where, view, workers=workers), quiet=quiet)


def resume(
    run: _Run,
    redis_url: _Url = None,
    durable: _Durable = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Keep nothing: run all tasks again.")] = False,
    skip_bad: Annotated[
        int | None,
        typer.Option("--skip-bad", metavar="N", min=0, help="Leave out up to N bad records.", show_default="as before"),
    ] = None,
    spill: Annotated[
        str | None,
        typer.Option(
            "--spill",
            metavar="DIR",
            help="As for rqmr run: for what Redis has no memory for.",
            show_default="as before",
        ),
    ] = None,
    workers: _Workers = None,
    quiet: _Quiet = False,
) -> None:
    """Go on with a run that failed, with its job's file as it is now: what is committed isn't done again."""
    from rqmr.runs import resume as go_on

    where = _where(redis_url, durable)
    _show(
        lambda view: go_on(run, where, view, fresh=fresh, skip_bad=skip_bad, spill=spill, workers=workers), quiet=quiet
    )


def cancel(run: _Run, redis_url: _Url = None, durable: _Durable = None) -> None:
    """End a run: its attempts stop within seconds, and what it has made so far goes."""
    from rqmr.runs import cancel as end

    end(run, _where(redis_url, durable))
    typer.echo(f"{run} cancelled", err=True)


def remove(run: _Run, redis_url: _Url = None, durable: _Durable = None) -> None:
    """Remove what is kept of a run that has ended; its output stays."""
    from rqmr.runs import remove as end

    end(run, _where(redis_url, durable))
    typer.echo(f"{run} removed", err=True)


def worker(
    workers: Annotated[
        int | None, typer.Option("-n", "--workers", min=1, help="How many.", show_default="one a core")
    ] = None,
    queue: Annotated[
        list[str] | None,
        typer.Option("--queue", help="RQ queue, or several, the first ones first.", show_default="rqmr"),
    ] = None,
    redis_url: Annotated[
        str | None, typer.Option("--redis-url", help="Redis to work for, else RQMR_REDIS_URL or REDIS_URL.")
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(
            "--max-memory", metavar="SIZE", help="Kill a work-horse that has more, such as 2GiB.", show_default="any"
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show what RQ logs, too.")] = False,
) -> None:
    """Start RQ workers that have rqmr imported, and start those again that end. Ctrl-C ends them."""
    import time

    from rqmr.access import reach
    from rqmr.crew import Crew
    from rqmr.errors import RefusedError
    from rqmr.inputs import parse_size
    from rqmr.local import default_workers

    where = _where(redis_url, None)
    if where.url is None:
        raise RefusedError("which Redis? name it: --redis-url redis://host:6379/0, or RQMR_REDIS_URL")
    try:
        limit = parse_size(max_memory) if max_memory else 0
    except ValueError as error:
        raise RefusedError(f"--max-memory: {error}") from None
    with contextlib.ExitStack() as stack:
        server = reach(where, None, stack)
        for warning in server.warnings:
            typer.echo(f"rqmr: warning: {warning}", err=True)

        def say(line: str) -> None:
            with contextlib.suppress(OSError):  # its terminal may be gone
                typer.echo(f"{time.strftime('%H:%M:%S')} {line}", err=True)

        Crew(server, queue or ["rqmr"], workers or default_workers(), max_memory=limit, verbose=verbose, say=say).run()


def tell(summary: Summary, *, to_stdout: bool = False) -> None:
    """Print a run that succeeded: its counters, and one line in numbers."""
    for group, counters in summary.counters.items():
        for name, amount in counters.items():
            _echo(f"{group}: {name} = {amount:,}", err=True)
    if summary.skipped:
        told = "1 bad record" if summary.skipped == 1 else f"{summary.skipped:,} bad records"
        where = "with -o DIR a file there lists them" if to_stdout else _short(f"{summary.output}/_skipped.jsonl")
        _echo(f"{told} skipped: {where}", err=True)
    for line in summary.skew:
        _echo(f"skew: {line}", err=True)
    if summary.records_read and not summary.records_written:
        typer.echo("warning: nothing was written; is a yield missing in the mapper or the reducer?", err=True)
    where = "stdout" if to_stdout else _short(summary.output)
    files = "" if to_stdout else f" in {len(summary.parts)} part{'' if len(summary.parts) == 1 else 's'}"
    _echo(
        f"{summary.run} succeeded in {summary.seconds:.1f} s: {summary.records_read:,} records read, "
        f"{summary.records_written:,} written to {where}{files}",
        err=True,
    )


def _show(follow: Callable[[View], Summary], *, quiet: bool) -> None:
    from rqmr.progress import choose_view

    view = choose_view(quiet=quiet)
    with contextlib.ExitStack() as stack:
        stack.callback(view.end)
        summary = follow(view)
        view.end()
        if not quiet:
            tell(summary)


def _where(redis_url: str | None, durable: str | None) -> Where:
    from rqmr.where import Where

    return Where(redis_url, durable)


def _row(told: Status) -> tuple[str, ...]:
    from rqmr.meter import clock

    done = ", ".join(f"{each.title} {each.committed}/{each.tasks}" for each in told.phases)
    return told.run, told.state, done, clock(told.now_ms - told.began_ms), _short(told.output)


def _description(told: Status, option: str) -> list[str]:
    from rqmr.meter import clock, report, short_worker

    priority = "" if told.priority == "normal" else f", {told.priority} priority"
    lines = [f"{told.run}  {told.state}, {clock(told.now_ms - told.began_ms)}{priority}"]
    lines += [f"server    {told.server}", f"output    {_short(told.output)}"]
    for each in told.phases:
        counts = [f"{each.committed}/{each.tasks} committed", f"{each.running} running", f"{each.pending} pending"]
        counts += [f"{each.lost} lost"] * bool(each.lost) + [f"{each.failed} failed"] * bool(each.failed)
        lines.append(f"{each.title:<9} {', '.join(counts)}, {each.records:,} records")
    for attempt in told.attempts:
        far = f"{int(attempt.fraction * 100)}%  {clock(told.now_ms - attempt.started_ms)}"
        far = far if attempt.deadline_ms > told.now_ms else "its lease is over"
        lines.append(f"  {attempt.id}  {far}  on {short_worker(attempt.worker, attempt.host)}")
    if told.queue and told.state not in ("failed", "cancelled"):
        lines.append(f"driver    {told.driver or 'none'}; {_workers(told.workers)} on queue '{told.queue}'")
    if told.waits_for:
        names = ", ".join(told.waits_for[:_NAMED]) + (" …" if len(told.waits_for) > _NAMED else "")
        lines.append(f"waits for {names}, which its workers don't see; where it is:  rqmr attach {told.run}{option}")
    elif told.state in _ADVICE:
        lines.append(_ADVICE[told.state].format(run=told.run) + option)
    if told.summary:
        records = f"{told.summary.records_read:,} records read, {told.summary.records_written:,} written"
        lines.append(f"{records} in {len(told.summary.parts)} parts")
        lines += [f"skew      {line}" for line in told.summary.skew]
    if told.failure:
        lines += ["", report(told.failure, [])]
    return lines


#: Inputs that are named.
_NAMED = 4
_ADVICE = {
    "waiting": "it waits for a worker; if some listen, try:  rqmr attach {run}",
    "stalled": "nobody drives it or works on it; to go on:  rqmr attach {run}",
    "uncollected": "all its tasks are done; to collect the output:  rqmr attach {run}",
    "failed": "to go on when the cause is mended:  rqmr resume {run}",
}


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        _echo("  ".join([*cells, row[-1]]))


def _echo(text: str, *, err: bool = False) -> None:
    """Print lines with words that come from Redis: none of them shall move the cursor."""
    from rqmr.meter import plain_lines

    stream = sys.stderr if err else sys.stdout
    typer.echo(plain_lines(text, stream.encoding or "utf-8"), err=err)


def _workers(count: int) -> str:
    return "1 worker listens" if count == 1 else f"{count} workers listen"


def _short(path: str) -> str:
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path


def _plain(record: Status) -> dict[str, Any]:
    import msgspec

    return dict(msgspec.to_builtins(record))


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, ensure_ascii=False))
