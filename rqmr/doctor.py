"""`rqmr doctor`: looks at the server, the queue, every worker that listens and the paths, and says what to mend."""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

if TYPE_CHECKING:
    from rqmr.access import Server
    from rqmr.checkup import Question
    from rqmr.diagnosis import Finding
    from rqmr.inputs import InputMark
    from rqmr.where import Where

#: Inputs that workers are asked for: of more, some from everywhere among them.
_MOST_INPUTS = 100
_COLOURS = {"ok": typer.colors.GREEN, "warning": typer.colors.YELLOW, "problem": typer.colors.RED}
_LEAST_WIDTH = 40


def doctor(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT…", help="Inputs that workers may see, as for rqmr run.", show_default=False),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Output directory that workers may see.", show_default=False
        ),
    ] = None,
    job: Annotated[
        str | None,
        typer.Option("--job", help="A job whose imports the workers need, as for rqmr run.", show_default=False),
    ] = None,
    queue: Annotated[str, typer.Option("--queue", help="RQ queue that the workers listen on.")] = "rqmr",
    redis_url: Annotated[
        str | None,
        typer.Option(
            "--redis-url", help="Redis to look at, else RQMR_REDIS_URL or REDIS_URL.", show_default="this host alone"
        ),
    ] = None,
    shuffle_url: Annotated[
        list[str] | None,
        typer.Option("--shuffle-url", metavar="URL", help="Another Redis for a share of the shuffle, as for rqmr run."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Look at the server, the queue and each worker that listens, and say what to mend; exit status 1: a problem."""
    from rqmr.config import Config
    from rqmr.diagnosis import summary
    from rqmr.where import Where

    servers = Config(shuffle_urls=tuple(shuffle_url or ())).shuffle_urls
    findings = examine(Where(redis_url), queue, inputs=inputs or [], output=output, job=job, servers=servers)
    if as_json:
        _print_json(findings)
    else:
        _print(findings)
        typer.echo(summary(findings), err=True)
    if any(each.level == "problem" for each in findings):
        raise typer.Exit(1)


def examine(
    where: Where,
    queue: str,
    *,
    inputs: Sequence[str] = (),
    output: str | None = None,
    job: str | None = None,
    servers: tuple[str, ...] = (),
) -> list[Finding]:
    """Return what was found; raises nothing for what it looks at."""
    from rqmr.checkup import Question

    findings: list[Finding] = []
    with ExitStack() as stack:
        marks, urls = _marks(inputs, findings)
        modules = (*_modules(job, findings), *_modules_of_urls([*inputs, output or ""]))
        stage = stack.enter_context(_stage(output, findings))
        _look(where, queue, Question(modules, marks, urls, servers, stage), findings, stack)
    return findings


def _look(
    where: Where,
    queue: str,
    question: Question,
    findings: list[Finding],
    stack: ExitStack,
) -> None:
    """Look at the server and, if there is one, at its workers."""
    import redis

    from rqmr.access import reach
    from rqmr.diagnosis import Finding
    from rqmr.errors import RqmrError

    if where.url is None:
        findings += _without_server()
        return
    try:
        server = reach(where, None, stack)
        findings += _of_server(server)
        for url in question.servers:
            findings += _of_shuffle_server(server, url, stack)
        findings += _of_workers(server, queue, where.option, question)
    except (RqmrError, redis.RedisError) as error:
        findings.append(Finding("problem", "server", str(error)))


def _without_server() -> Iterator[Finding]:
    from rqmr import __version__
    from rqmr.diagnosis import Finding
    from rqmr.errors import RqmrError
    from rqmr.local import default_workers
    from rqmr.server import find_server

    here = f"rqmr {__version__}, Python {platform.python_version()}"
    try:
        told = f"{here}; no Redis is named, so rqmr run starts a private one ({find_server().name})"
        yield Finding("ok", "here", f"{told} and {default_workers()} workers")
    except RqmrError as error:
        yield Finding("problem", "here", f"{here}; {error}")


def _of_server(server: Server) -> Iterator[Finding]:
    import redis

    from rqmr.checkup import round_trip_ms
    from rqmr.connection import memory_of
    from rqmr.diagnosis import Finding, of_access, of_disk, of_memory, of_server

    try:
        info = server.client.info()
    except redis.ResponseError:
        info = {}
    yield from of_server(server.description, server.url, round_trip_ms(server.client), info)
    yield from of_access(server.url)
    if not info:
        yield Finding("warning", "memory", "not known: this user may not call INFO", "allow +info, see deploy/acl")
        return
    policy = info.get("maxmemory_policy", "noeviction")
    yield from of_memory(memory_of(server.client), policy, info.get("evicted_keys", 0), server.url)
    yield from of_disk(info, server.url)


def _of_shuffle_server(server: Server, url: str, stack: ExitStack) -> Iterator[Finding]:
    """Look at a server for a share of the shuffle, as this process reaches it."""
    from contextlib import closing

    from rqmr.checkup import round_trip_ms
    from rqmr.connection import IN_ENVIRONMENT, check_server, join, memory_of
    from rqmr.diagnosis import Finding, of_memory, of_server
    from rqmr.errors import RedisError

    try:
        client = stack.enter_context(closing(join(url, server.client, patient=False)))
        name, _ = check_server(client, url, login=IN_ENVIRONMENT)
    except RedisError as error:
        yield Finding("problem", "shuffle", str(error))
        return
    info = client.info()
    yield from of_server(f"{name} at {url}, for a share of the shuffle", url, round_trip_ms(client), info)
    policy = info.get("maxmemory_policy", "noeviction")
    yield from of_memory(memory_of(client), policy, info.get("evicted_keys", 0), url)


def _of_workers(server: Server, queue: str, option: str, question: Question) -> Iterator[Finding]:
    import redis

    from rqmr import __version__, signing
    from rqmr.checkup import ask
    from rqmr.diagnosis import Finding, Here, of_queue, of_workers
    from rqmr.model import PROTOCOL

    try:
        checkup = ask(server.client, queue, question)
    except redis.exceptions.NoPermissionError as error:
        todo = "ask as the user that runs jobs; deploy/acl says what that one may"
        yield Finding("warning", "queue", f"this user may not ask the workers ({error})", todo)
        return
    yield from of_queue(checkup, queue, option)
    here = Here(__version__, PROTOCOL, platform.python_version(), bool(os.environ.get(signing.VARIABLE)))
    yield from of_workers(checkup, question, here)


def _marks(
    inputs: Sequence[str], findings: list[Finding]
) -> tuple[tuple[tuple[bytes, InputMark], ...], tuple[str, ...]]:
    """Return how inputs are here, and of those at URLs one of each store."""
    from rqmr.diagnosis import Finding, in_bytes
    from rqmr.errors import RqmrError
    from rqmr.inputs import expand, marks_of
    from rqmr.urls import is_url

    if not inputs:
        return (), ()
    try:
        sources = expand(inputs)
        step = -(-len(sources) // _MOST_INPUTS)
        marks = tuple(marks_of(sources[::step]).items())
    except (RqmrError, OSError) as error:
        findings.append(Finding("problem", "input", str(error)))
        return (), ()
    size = sum(source.size for source in sources)
    files = "1 file" if len(sources) == 1 else f"{len(sources):,} files"
    among = f"; the workers are asked for {len(marks)} of them" if step > 1 else ""
    findings.append(Finding("ok", "input", f"{files}, {in_bytes(size)}{among}"))
    urls = [source.path.decode() for source in sources if is_url(source.path)]
    return marks, tuple({urlsplit(url)[:2]: url for url in urls}.values())


def _modules(job: str | None, findings: list[Finding]) -> tuple[str, ...]:
    """Return what the workers have to have: the modules that a job imports and that don't travel with it."""
    from rqmr.diagnosis import Finding
    from rqmr.errors import JobError
    from rqmr.loader import NOT_A_JOBS, find, imported_by

    if job is None:
        return ()
    try:
        package, _ = find(job)
    except JobError as error:
        findings.append(Finding("problem", "job", str(error)))
        return ()
    own = {name.partition(".")[0] for name in package.modules} | NOT_A_JOBS
    modules = tuple(sorted({name for each in package.modules.values() for name in imported_by(each)} - own))
    needed = f"; it needs {', '.join(modules)}" if modules else "; it needs nothing that isn't Python's or rqmr's"
    count = len(package.modules)
    files = "1 module travels" if count == 1 else f"{count} modules travel"
    findings.append(Finding("ok", "job", f"{job}: {files} to the workers{needed}"))
    return modules


def _modules_of_urls(places: Sequence[str]) -> list[str]:
    from rqmr.urls import is_url, modules_for

    return sorted({name for place in places if is_url(place) for name in modules_for(place)})


def _at_url(output: str, findings: list[Finding]) -> None:
    """Try to write to a store from here; what lets workers in is their own."""
    from rqmr.diagnosis import Finding
    from rqmr.errors import OutputError, WorkerUnfit
    from rqmr.remote import path_at

    try:
        trial = path_at(output.replace("{run}", "run")) / f".rqmr-doctor-{secrets.token_hex(4)}"
        trial.touch()
        trial.unlink(missing_ok=True)
    except OSError as error:
        told = f"{output} can't be written to from here: {error.strerror}"
        findings.append(Finding("problem", "output", told, "name another place with -o, or let this command in"))
    except (OutputError, WorkerUnfit) as error:
        findings.append(Finding("problem", "output", str(error)))
    else:
        findings.append(Finding("ok", "output", f"{output} can be written to from here"))


@contextmanager
def _stage(output: str | None, findings: list[Finding]) -> Iterator[str]:
    """Yield a directory in which workers may try to write, "" for none; it is gone afterwards. Or the output's URL."""
    from rqmr.diagnosis import Finding, in_bytes
    from rqmr.urls import is_url

    if output is None or output == "-":
        yield ""
        return
    if is_url(output):
        _at_url(output, findings)
        yield output
        return
    directory = Path(output.replace("{run}", "run")).absolute()
    there = next(path for path in (directory, *directory.parents) if path.exists())
    stage = there / f".rqmr-doctor-{secrets.token_hex(4)}"
    try:
        stage.mkdir()  # as a run makes its own, with the same permissions
    except OSError as error:
        told = f"{there} can't be written to: {error.strerror}"
        findings.append(Finding("problem", "output", told, "name another directory with -o"))
        yield ""
        return
    try:
        free = shutil.disk_usage(stage).free
        findings.append(Finding("ok", "output", f"{directory} can be written to, {in_bytes(free)} free"))
        yield str(stage)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _print(findings: Sequence[Finding]) -> None:
    """Print a table as wide as the terminal; without one, a line for each."""
    from rqmr.meter import plain

    encoding = sys.stdout.encoding or "utf-8"
    width = max(_LEAST_WIDTH, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 10_000
    column = min(16, max((len(each.about) for each in findings), default=0))
    indent = " " * (len("problem") + column + 4)
    for each in findings:
        level = typer.style(f"{each.level:<7}", fg=_COLOURS[each.level]) if sys.stdout.isatty() else f"{each.level:<7}"
        about = plain(each.about, encoding)[:16]
        lines = _wrapped(plain(each.told, encoding), width - len(indent))
        if each.todo:
            lines += _wrapped(f"-> {plain(each.todo, encoding)}", width - len(indent), hang="   ")
        typer.echo(f"{level}  {about:<{column}}  {lines[0]}")
        for line in lines[1:]:
            typer.echo(indent + line)


def _wrapped(text: str, width: int, hang: str = "") -> list[str]:
    # Paths and URLs are copied: they are never broken.
    return textwrap.wrap(
        text, width, subsequent_indent=hang, break_long_words=False, break_on_hyphens=False
    ) or [""]  # fmt: skip


def _print_json(findings: Sequence[Finding]) -> None:
    import json

    import msgspec

    problems = sum(each.level == "problem" for each in findings)
    told = {"problems": problems, "findings": [msgspec.to_builtins(each) for each in findings]}
    print(json.dumps(told, ensure_ascii=False))
