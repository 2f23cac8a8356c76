"""What a command prints of a run: its plan, its id, its output, its result as JSON."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from rqmr.commands import tell

if TYPE_CHECKING:
    from rqmr.facts import Summary
    from rqmr.model import Failure
    from rqmr.request import Request

_FIRST_ROWS = 10


def tell_plan(request: Request) -> None:
    """Print what would be run, and why."""
    from rqmr.explain import explain

    for topic, told in explain(request):
        typer.echo(f"{topic:8} {told}")


def tell_id(run: str, *, as_json: bool) -> None:
    """Print the id of a run that goes on by itself."""
    if as_json:
        print_json({"state": "running", "run": run})
    else:
        typer.echo(run)


def deliver(summary: Summary, *, to_stdout: bool, as_json: bool, quiet: bool, first_rows: bool) -> None:
    """Print what a run has given: all of it, or where it is."""
    paths = [Path(summary.output) / part for part in summary.parts]
    if to_stdout:
        for path in paths:
            with path.open("rb") as part:
                shutil.copyfileobj(part, sys.__stdout__.buffer)  # type: ignore[union-attr]
        sys.__stdout__.flush()  # type: ignore[union-attr]
    elif as_json:
        print_json({"state": "succeeded", **plain(summary)})
    elif first_rows and not quiet:
        _show_first_rows(paths)
    if not quiet:
        tell(summary, to_stdout=to_stdout)


def _show_first_rows(paths: list[Path]) -> None:
    with contextlib.closing(_lines(paths)) as lines:
        for line in itertools.islice(lines, _FIRST_ROWS):
            typer.echo(line)
        if next(lines, None) is not None:
            typer.echo("…")


def _lines(paths: list[Path]) -> Generator[str, None, None]:
    for path in paths:
        with path.open(encoding="utf-8", newline="\n") as part:
            yield from (line.removesuffix("\n") for line in part)


def plain(record: Summary | Failure) -> dict[str, Any]:
    """Return a record as what JSON can spell."""
    import msgspec

    return dict(msgspec.to_builtins(record))


def print_json(value: dict[str, Any]) -> None:
    """Print one object on the standard output that the process began with."""
    import json

    print(json.dumps(value, ensure_ascii=False), file=sys.__stdout__, flush=True)
