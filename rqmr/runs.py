"""Runs that exist: what there are, and what can be done with one: attach, resume, cancel, remove."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import redis
from msgspec import Struct, structs

from rqmr import registry
from rqmr.access import Server, Where, reach
from rqmr.api import follow, header_of
from rqmr.connection import connect
from rqmr.driver import end_run
from rqmr.errors import AttemptEnded, JobError, RefusedError
from rqmr.inputs import check_unchanged
from rqmr.job import steps_of
from rqmr.keys import RunKeys
from rqmr.loader import Package, decode_package, find, pack_file
from rqmr.local import Local, live_url, private_servers
from rqmr.meter import Meter, phase_titles
from rqmr.model import AttemptId, End, Facts, Failure, Kind, RunningAttempt, RunState, Spec, Summary, TaskId
from rqmr.output import Output
from rqmr.plan import Program, default_workers, load_program
from rqmr.scheduler import is_complete
from rqmr.state import State
from rqmr.view import View, Watched


class PhaseStatus(Struct, frozen=True):
    """One phase in numbers."""

    title: str
    tasks: int
    committed: int
    running: int
    pending: int
    lost: int
    failed: int
    records: int
    bytes: int


class Status(Struct, frozen=True):
    """One run, as `ps` and `status` tell it; times are the server's, in milliseconds."""

    run: str
    job: str
    #: A RunState; or of one that runs "stalled" (nobody drives or works) or "uncollected" (done but for its collecting).
    state: str
    began_ms: int
    now_ms: int  # or when it ended
    output: str
    server: str
    phases: tuple[PhaseStatus, ...] = ()
    attempts: tuple[RunningAttempt, ...] = ()
    driver: str = ""
    workers: int = 0  # that listen on its queue
    summary: Summary | None = None
    failure: Failure | None = None


@dataclass
class Found:
    """One run and the server that it is on."""

    server: Server
    state: State
    spec: Spec | None  # None: it is over, and its keys are gone
    end: End | None
    local: Local | None = None

    @property
    def run(self) -> str:
        """Its id."""
        return self.state.run

    def status(self) -> Status | None:
        """Return what is true of it now; None if nothing is left of it."""
        facts = None
        if self.spec is not None:
            facts = self.state.facts(workers=self.server.listening(self.spec.queue))
        if facts is None or self.spec is None or facts.state == RunState.SUCCEEDED:
            return self.end and _status_of_end(self.end, self.server.description)
        return Status(
            run=self.run,
            job=self.spec.job,
            state=_state_of(facts),
            began_ms=facts.started_ms,
            now_ms=self.end.ended_ms if self.end else facts.now_ms,
            output=str(self.spec.output),
            server=self.server.description,
            phases=_phases_of(facts),
            attempts=facts.running,
            driver=facts.driver,
            workers=facts.workers,
            failure=facts.failure,
        )


def list_runs(where: Where) -> list[Status]:
    """Return every run that something is known of, the oldest first: on the Redis that is named, or else in the private
    servers of this user's commands that live now.

    Raises:
        RedisError: the Redis that is named can't be reached.
    """
    with ExitStack() as stack:
        found = [
            status
            for server in _living(where, stack)
            for run, _ in registry.runs(server.client)
            if (each := _look(server, run)) and (status := each.status())
        ]
    return sorted(found, key=lambda status: status.began_ms)


def status_of(run: str, where: Where) -> Status:
    """Return what is true of a run now.

    Raises:
        RefusedError: nothing is known of it.
    """
    with ExitStack() as stack:
        status = _find(run, where, stack).status()
        return status or _unknown(run, where)


def attach(run: str, where: Where, view: View, *, workers: int | None = None) -> Summary:
    """Follow a run to its end: show it, drive it if nobody else does, collect its output. Returns how it ended.

    `workers`: local workers to start; None for one a core where the server has to be started, none elsewhere.

    Raises:
        RefusedError: nothing is known of it.
        RunFailed: it has failed, or fails.
        RunCancelled: it was cancelled, or is.
    """
    with ExitStack() as stack:
        found = _find(run, where, stack, workers=workers)
        return _follow(found, where, view, stack)


def resume(run: str, where: Where, view: View, *, fresh: bool = False, workers: int | None = None) -> Summary:
    """Let a failed run go on, with its job's code as it is now, and follow it to its end.

    What is committed is kept, with the code that made it; `fresh`: nothing is. The inputs have to be those of the plan.

    Raises:
        RefusedError: the run hasn't failed, or nothing is known of it; its job or an input has changed too much.
        RunFailed: it fails again.
        RunCancelled: it was cancelled meanwhile.
    """
    with ExitStack() as stack:
        found = _find(run, where, stack, workers=workers)
        spec = found.spec
        facts = found.state.facts() if spec else None
        if spec is None or facts is None or facts.state != RunState.FAILED:
            raise RefusedError(_why_not_resumed(found, facts))
        check_unchanged(found.state.inputs())
        program = _mended(found, spec)
        mended = structs.replace(
            spec,
            code=program.package.content_hash,
            job_class=type(program.job).__name__,
            shapes=tuple(step.shape for step in steps_of(program.job)),
        )
        kept = [] if fresh else [task for phase in spec.phases for task in found.state.winners(phase)]
        if kept and mended.shapes != spec.shapes:
            raise RefusedError(
                f"what the job shuffles has changed ({' and '.join(spec.shapes)} before, {' and '.join(mended.shapes)} "
                f"now), so what is committed can't be merged with it: rqmr resume {run} --fresh runs all tasks again"
            )
        if kept and mended.code != spec.code:
            view.note(f"{_tasks(kept)} are committed and keep the old code; --fresh runs them again")
        Output(spec.output, run, is_new=False).stage.mkdir(parents=True, exist_ok=True)
        if not found.state.resume(mended, program.package.encode(), fresh=fresh):
            raise RefusedError(f"somebody else has resumed run {run} just now: rqmr attach {run}{where.option}")
        registry.forget_end(found.server.client, run)
        found.spec = mended
        _reopen_parts_that_are_gone(found, mended)
        return _follow(found, where, view, stack)


def cancel(run: str, where: Where) -> None:
    """End a run that runs; its attempts stop within seconds, its keys and what it has written so far go.

    Raises:
        RefusedError: it has ended already, or nothing is known of it.
    """
    with ExitStack() as stack:
        found = _find(run, where, stack, workers=0)
        facts = found.state.facts() if found.spec else None
        if found.spec is None or facts is None or facts.state != RunState.RUNNING:
            state = facts.state if facts else found.end and found.end.state
            raise RefusedError(f"run {run} has {_ENDED[state]} already; rqmr rm {run}{where.option} removes what is left")
        end_run(found.server.client, found.spec, RunState.CANCELLED)
        _discard(found.spec.output, run)


def remove(run: str, where: Where) -> None:
    """Remove what is left of a run that has ended: its keys, how it ended, what it has staged; never a whole output.

    Raises:
        RefusedError: it still runs, or nothing is known of it.
    """
    with ExitStack() as stack:
        found = _find(run, where, stack, workers=0)
        facts = found.state.facts() if found.spec else None
        if facts and facts.state == RunState.RUNNING:
            raise RefusedError(f"run {run} is still running; end it first: rqmr cancel {run}{where.option}")
        if found.spec:
            found.state.unlink()
            _discard(found.spec.output, run)
        elif found.end:
            _discard(Path(found.end.output), run)
        registry.forget(found.server.client, run)


# --- finding ------------------------------------------------------------------------------------------------------


def _find(run: str, where: Where, stack: ExitStack, *, workers: int | None = None) -> Found:
    for server in _living(where, stack):
        if found := _look(server, run):
            if workers and found.spec:
                found.local = stack.enter_context(Local(workers=workers, queue=found.spec.queue, url=server.url))
                found.local.wait_ready()
            return found
    if where.directory is not None and live_url(where.directory) is None and where.directory.is_dir():
        return _wake(run, where, stack, workers)
    return _unknown(run, where)


def _living(where: Where, stack: ExitStack) -> Iterator[Server]:
    """Yield the servers that answer: the one that is named, the durable directory's, or this user's private ones."""
    if where.url is not None:
        yield reach(where, None, stack)
        return
    alive = [live_url(where.directory)] if where.directory is not None else private_servers()
    for url in filter(None, alive):
        with contextlib.suppress(redis.RedisError):  # it has ended since
            client = stack.enter_context(closing(connect(url)))
            client.ping()
            yield Server(client, url, "a private server of a running command")


def _wake(run: str, where: Where, stack: ExitStack, workers: int | None) -> Found:
    """Start a durable directory's server, with workers unless there are to be none."""
    spec: Spec | None = None
    count = default_workers() if workers is None else workers
    local = stack.enter_context(Local(workers=count, queue="rqmr", durable=where.directory))
    server = reach(where, local, stack)
    found = _look(server, run) or _unknown(run, where)
    found.local = local
    spec = found.spec
    facts = found.state.facts() if spec else None
    for attempt in facts.running if facts else ():
        # Its worker ended with the server.
        found.state.expire(attempt.id, dead_since=attempt.renewed_ms)
    return found


def _look(server: Server, run: str) -> Found | None:
    state = State(server.client, run)
    end = registry.read_end(server.client, run)
    try:
        return Found(server, state, state.spec, end)
    except AttemptEnded:
        return Found(server, state, None, end) if end else None


def _unknown(run: str, where: Where) -> Found:
    looked = "on that Redis" if where.url else "there" if where.durable else "in the private servers of this user"
    others = "" if where.url or where.durable else "; name its Redis, --redis-url URL, or its directory, --durable DIR"
    raise RefusedError(f"nothing is known of a run {run} {looked}; rqmr ps{where.option} lists what there is{others}")
