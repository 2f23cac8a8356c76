"""What `rqmr doctor` makes of what it has found: facts in, findings out. Plain functions of plain values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Literal
from urllib.parse import urlsplit

from msgspec import Struct, structs

from rqmr.checkup import Answer, Checkup, Listed, Question
from rqmr.facts import Memory
from rqmr.meter import short_worker
from rqmr.urls import is_url, shown
from rqmr.where import hide_password

#: The share of its memory from which on a server waits for more, as the scheduler's policy has it; and when to say so.
_FULL_SHARE, _MUCH_SHARE = 0.85, 0.7
_FAR_MS, _UNEVEN_MS = 10.0, 100.0
_CLIENTS_SHARE = 0.8
_NAMED = 3
#: What RQ says of a module that can't be imported, too.
_NOT_THERE = "Invalid attribute name"
_NEAR = ("", "localhost", "127.0.0.1", "::1")


class Finding(Struct, frozen=True):
    """One thing that was looked at."""

    level: Literal["ok", "warning", "problem"]
    about: str  # "server", "memory", "queue", …, or a worker's host
    told: str
    todo: str = ""  # what to do now
    workers: tuple[str, ...] = ()  # the workers that it is about


class Here(Struct, frozen=True):
    """This command, to compare workers with."""

    rqmr: str
    protocol: int
    python: str
    has_secret: bool


# --- the server ---------------------------------------------------------------------------------------------------


def of_server(
    description: str, url: str, latency_ms: tuple[float, float], info: Mapping[str, Any]
) -> Iterator[Finding]:
    """Judge the server by its INFO, and by how far away it is: usually, and at worst."""
    usual, worst = latency_ms
    far = f"{description}, {usual:.1f} ms away"
    if info.get("role") in ("slave", "replica"):
        yield Finding(
            "problem", "server", f"{far}: a replica, which takes no writes", "name its primary in --redis-url"
        )
    elif info.get("cluster_enabled"):
        todo = "RQ needs a server, or a sentinel's primary, that isn't one of a cluster"
        yield Finding("problem", "server", f"{far}: part of a cluster", todo)
    elif info.get("loading"):
        yield Finding("problem", "server", f"{far}: it loads its data", "wait until it has")
    elif usual > _FAR_MS:
        yield Finding("warning", "server", far, "each claim and each chunk waits for that: move it near to the workers")
    elif worst > _UNEVEN_MS:
        todo = f"its machine is busy, or commands are slow: {_cli(url)} SLOWLOG GET"
        yield Finding("warning", "server", f"{far}, but {worst:.0f} ms at worst", todo)
    else:
        yield Finding("ok", "server", far)
    connected, most = info.get("connected_clients", 0), info.get("maxclients", 0)
    if most and connected > most * _CLIENTS_SHARE:
        todo = f"a work-horse takes up to three: {_cli(url)} CONFIG SET maxclients {most * 2}"
        yield Finding("warning", "clients", f"{connected:,} of at most {most:,} connections are open", todo)


def of_access(url: str) -> Iterator[Finding]:
    """Judge who else can read and write there, by the URL."""
    parts = urlsplit(url)
    if parts.scheme == "unix" or (parts.hostname or "") in _NEAR:
        return
    if not parts.password and "password=" not in parts.query:
        told = "no password: whoever reaches it can run code on its workers"
        yield Finding("warning", "access", told, "set one (requirepass, or users as in deploy/acl), and a firewall")
    elif parts.scheme != "rediss":
        told = "no TLS: password and data cross the network as plain text"
        yield Finding("warning", "access", told, "use rediss://, unless the network is yours alone")


def of_memory(memory: Memory, policy: str, evicted: int, url: str) -> Iterator[Finding]:
    """Judge whether a run's data fits, and stays."""
    if policy != "noeviction":
        told = f"maxmemory-policy is {policy}: the server may throw a run's data away"
        told += f", and has evicted {evicted:,} keys" if evicted else ""
        todo = f"{_cli(url)} CONFIG SET maxmemory-policy noeviction, and in its configuration"
        yield Finding("problem", "memory", told, todo)
        return
    if not memory.limit:
        told = f"{in_bytes(memory.used)} used, without a limit (maxmemory 0)"
        todo = f"the system may kill it when memory runs out: {_cli(url)} CONFIG SET maxmemory 4gb, or what it may take"
        yield Finding("warning", "memory", told, todo)
        return
    told, share = f"{in_bytes(memory.used)} of {in_bytes(memory.limit)} used, noeviction", memory.used / memory.limit
    if share > _FULL_SHARE:
        yield Finding(
            "problem", "memory", f"{told}: runs wait for memory", "raise maxmemory, or rqmr ps and rqmr rm RUN"
        )
    elif share > _MUCH_SHARE:
        yield Finding("warning", "memory", told, "rqmr ps shows runs that failed and are kept; rqmr rm RUN removes one")
    else:
        yield Finding("ok", "memory", told)


def of_disk(info: Mapping[str, Any], url: str) -> Iterator[Finding]:
    """Judge what survives a restart, and whether writing it fails."""
    if not info:
        return
    if info.get("aof_enabled"):
        if info.get("aof_last_write_status", "ok") != "ok":
            yield Finding("problem", "disk", "the last write to its append-only file failed", "is its disk full?")
        else:
            yield Finding("ok", "disk", "append-only file: runs survive a restart of the server")
        return
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        told = "the last snapshot failed, and a server refuses writes after that"
        todo = f"is its disk full, or its memory? or without snapshots: {_cli(url)} CONFIG SET save ''"
        yield Finding("problem", "disk", told, todo)
    else:
        told = "no append-only file: runs end when the server restarts"
        yield Finding("ok", "disk", f"{told} (to keep them: CONFIG SET appendonly yes)")


# --- the queue and its workers ------------------------------------------------------------------------------------


def of_queue(checkup: Checkup, queue: str, option: str) -> Iterator[Finding]:
    """Judge whether anybody listens; `option`: how to say in a command which Redis."""
    count = len(checkup.listed)
    waiting = f"; {checkup.waiting:,} RQ jobs wait" if checkup.waiting else ""
    if checkup.is_suspended:
        yield Finding("problem", "queue", f"all RQ workers of this server are suspended{waiting}", "rq resume --url …")
    elif not count:
        todo = f"on any host:  rqmr worker{option}   or stock ones:  rq worker {queue} --url …"
        yield Finding("problem", "queue", f"no worker listens on queue '{queue}'{waiting}", todo)
    else:
        listen = "1 worker listens" if count == 1 else f"{count} workers listen"
        yield Finding("ok", "queue", f"{listen} on queue '{queue}'{waiting}")


def of_workers(checkup: Checkup, question: Question, here: Here) -> Iterator[Finding]:
    """Judge each worker: those of one host that have told the same together."""
    alike = sorted(checkup.answers, key=lambda each: (each.host, _without_name(each).__repr__(), each.worker))
    for _, group in groupby(alike, key=_without_name):
        answers = list(group)
        yield from _of_answers(answers[0], tuple(each.worker for each in answers), question, here)
    listed = {each.name: each for each in checkup.listed}
    for worker, error in checkup.refusals:
        host = listed[worker].host if worker in listed else ""
        why = "it isn't there, or is an older release" if _NOT_THERE in error else "it failed"
        told = f"{_names((worker,))} can't run rqmr: {why} ({error})"
        todo = f"in its Python environment:  pip install rq-mapreduce=={here.rqmr}"
        yield Finding("problem", host or "worker", told, todo, (worker,))
    heard = {each.worker for each in checkup.answers} | {worker for worker, _ in checkup.refusals}
    if not checkup.is_suspended:
        for each in checkup.listed:
            if each.name not in heard:
                yield _of_silent(each)


def _without_name(answer: Answer) -> Answer:
    return structs.replace(answer, worker="", latency_ms=0.0)


def _of_silent(each: Listed) -> Finding:
    who, where, workers = f"{_names((each.name,))} (pid {each.pid})", each.host or "worker", (each.name,)
    last = f"; last heard of at {each.heartbeat[11:19]} by its clock" if len(each.heartbeat) > 18 else ""
    if each.is_leaving:
        return Finding("ok", where, f"{who} was told to stop, and leaves", workers=workers)
    if each.state == "busy":
        return Finding("ok", where, f"{who} is busy with an RQ job, so it could not be asked{last}", workers=workers)
    told = f"{who} is listed but doesn't answer{last}"
    todo = "it has died (RQ forgets it within eight minutes), hangs, or is cut off: look for it on its host"
    return Finding("warning", where, told, todo, workers)


def _of_answers(told: Answer, workers: tuple[str, ...], question: Question, here: Here) -> Iterator[Finding]:
    def finding(level: Literal["ok", "warning", "problem"], text: str, todo: str = "") -> Finding:
        return Finding(level, told.host, text, todo, workers)

    who = _names(workers)
    pip = f"on {told.host}:  {told.executable} -m pip install"
    if told.protocol != here.protocol:
        text = f"{who}: rqmr {told.rqmr} speaks protocol {told.protocol}, and this one {here.protocol}: it refuses runs"
        yield finding("problem", text, f"{pip} rq-mapreduce=={here.rqmr}")
    elif told.rqmr != here.rqmr:
        yield finding("warning", f"{who}: rqmr {told.rqmr}, and {here.rqmr} here", f"{pip} rq-mapreduce=={here.rqmr}")
    if told.refusal:
        text = f"{who} {_verb(workers, 'refuses', 'refuse')} this command: {told.refusal}"
        yield finding("problem", text, "set RQMR_SECRET here and there alike")
    elif here.has_secret and not told.has_secret:
        text = f"{who} {_verb(workers, 'has', 'have')} no RQMR_SECRET, so what anybody puts into the queue is run"
        yield finding("warning", text, "give the workers the same RQMR_SECRET")
    if _minor(told.python) < _minor(here.python):
        text = f"{who}: Python {told.python}, and {here.python} here, so a job may be too new for it"
        yield finding("warning", text, "test jobs with the workers' Python, or raise theirs")
    if told.missing:
        text = f"{who} can't import {', '.join(told.missing)}"
        yield finding("problem", text, f"{pip} {' '.join(told.missing)}")
    seen: list[str] = []
    yield from (finding(*each) for each in _of_inputs(told, who, question, seen))
    for url, trouble in zip(question.urls, told.urls, strict=False):
        if trouble:
            text = f"{who} can't read {shown(url)}: {trouble}"
            yield finding(
                "problem", text, "give its workers what lets this host read it: packages, environment, network"
            )
        else:
            seen.append(f"reads {shown(url)}")
    for server, trouble in zip(question.servers, told.servers, strict=False):
        if trouble:
            text = f"{who} can't use the shuffle server {hide_password(server)}: {trouble}"
            yield finding("problem", text, "let its host reach that server under this URL, and log in")
        else:
            seen.append(f"reaches {hide_password(server)}")
    yield from (finding(*each) for each in _of_stage(told, who, question, seen))
    sees = f"; {', '.join(seen)}" if seen else ""
    imports = f"; imports {', '.join(question.modules)}" if question.modules and not told.missing else ""
    base = f"{who}: rqmr {told.rqmr}, Python {told.python}, {told.latency_ms:.1f} ms from Redis{imports}{sees}"
    yield finding("ok", base)


def _of_inputs(
    told: Answer, who: str, question: Question, seen: list[str]
) -> Iterator[tuple[Literal["ok", "warning", "problem"], str, str]]:
    """Judge what is seen of the inputs; adds to `seen` what there is to say of them when all is well."""
    if not told.inputs:
        return
    by_word: dict[str, list[str]] = {}
    for (_, mark), word in zip(question.inputs, told.inputs, strict=False):
        by_word.setdefault(word, []).append(mark.name)
    count = len(told.inputs)
    if set(by_word) == {"seen"}:
        seen.append("sees the input" if count == 1 else f"sees all {count} inputs")
    elif set(by_word) == {"absent"}:
        seen.append(f"sees no input: {'it travels' if count == 1 else 'they travel'} through Redis")
    elif "absent" in by_word:
        seen.append(f"sees {len(by_word.get('seen', ()))} of {count} inputs: the rest travels through Redis")
    for word, names in by_word.items():
        if word == "other":
            text = f"{who} has another file called {_some(names)}; the right one travels through Redis"
            yield "warning", text, "mount the same directory there, or remove what is stale"
        elif word not in ("seen", "absent"):
            yield (
                "warning",
                f"{who} can't read {_some(names)} ({word}); it travels through Redis",
                (f"let user {told.user} read it"),
            )


def _of_stage(
    told: Answer, who: str, question: Question, seen: list[str]
) -> Iterator[tuple[Literal["ok", "warning", "problem"], str, str]]:
    if not question.stage or not told.stage:
        return
    if told.stage == "seen":
        seen.append("writes to the output directory")
    elif told.stage == "reached":
        seen.append("has what the output's URL takes")
    elif told.stage == "absent":
        seen.append("doesn't see the output directory: its parts travel through Redis")
    elif is_url(question.stage):
        text = f"{who} can't write to {shown(question.stage)}: {told.stage}"
        yield "problem", text, "give its workers what writing there takes"
    else:
        text = f"{who} sees the output directory, but can't write to it as user {told.user} ({told.stage})"
        yield "problem", text, "let that user write there, run the workers as you, or name a directory of your own"


# --- words --------------------------------------------------------------------------------------------------------


def summary(findings: Sequence[Finding]) -> str:
    """Return one line for all of them."""
    problems = sum(each.level == "problem" for each in findings)
    warnings = sum(each.level == "warning" for each in findings)
    if not problems and not warnings:
        return "all is well"
    return " and ".join(_count(n, word) for n, word in ((problems, "problem"), (warnings, "warning")) if n)


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _verb(workers: Sequence[str], one: str, several: str) -> str:
    return one if len(workers) == 1 else several


def _names(workers: Sequence[str]) -> str:
    more = f" and {len(workers) - _NAMED} more" if len(workers) > _NAMED else ""
    return ", ".join(short_worker(each) for each in workers[:_NAMED]) + more


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _minor(python: str) -> tuple[int, ...]:
    return tuple(int(number) for number in python.split(".")[:2] if number.isdigit())


def in_bytes(count: float) -> str:
    """Return a number of bytes in words."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def _cli(url: str) -> str:
    """Return how to reach the server by hand, without a password."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"redis-cli -s {parts.path}"
    tls = " --tls" if parts.scheme == "rediss" else ""
    host = f" -h {parts.hostname}" if parts.hostname else ""
    return f"redis-cli{host}{f' -p {parts.port}' if parts.port not in (None, 6379) else ''}{tls}"
