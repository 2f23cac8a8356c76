"""Runs that exist: what there are, and what can be done with one: attach, resume, cancel, remove."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import redis
from msgspec import structs

from rqmr import registry
from rqmr.access import Server, reach, visit
from rqmr.api import clear_spilled, follow, header_of
from rqmr.driver import end_run
from rqmr.durable import live_url
from rqmr.errors import AttemptEnded, DamagedError, RefusedError, RqmrError, RunCancelled, RunFailed
from rqmr.facts import End, Facts, Summary
from rqmr.inputs import check_unchanged
from rqmr.keys import is_run_id
from rqmr.loader import decode_package, pack_again
from rqmr.local import Local, default_workers
from rqmr.model import Failure, Kind, Part, RunState, Spec, TaskId
from rqmr.output import Output
from rqmr.parcels import is_there
from rqmr.plan import Program, new_run_id, place_of, program_of, refit
from rqmr.sockets import private_servers
from rqmr.state import NOBODY, State
from rqmr.status import Status, status_of_end, status_of_facts, status_unknown
from rqmr.view import View, Watched
from rqmr.where import Where

T = TypeVar("T")

_NAMED = 8


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
        if facts and self.server.is_woken:  # whoever worked or drove has ended with the server
            facts = structs.replace(facts, running=(), driver="", has_standby=False, tickets={})
        if facts and self.spec and facts.state != RunState.SUCCEEDED:
            return status_of_facts(facts, self.spec, self.end, self.server.description)
        return status_of_end(self.end, self.server.description) if self.end else None


def list_runs(where: Where) -> list[Status]:
    """Return every run that something is known of, the oldest first.

    On the Redis that is named, or else in the private servers of this user's commands that run now.

    Raises:
        RedisError: the Redis that is named can't be reached.
    """
    with _opened() as stack:
        statuses = [status for server in _servers(where, stack) for status in _statuses_on(server)]
    return sorted(statuses, key=lambda status: status.began_ms)


def _statuses_on(server: Server) -> Iterator[Status]:
    with _unless_it_ends(server):
        for run, at in registry.runs(server.client):
            try:
                status = (found := _look(server, run)) and found.status()
            except RqmrError:  # another release's, damaged, or not signed
                status = status_unknown(run, at, server.description)
            if status:
                yield status


def status_of(run: str, where: Where) -> Status:
    """Return what is true of a run now.

    Raises:
        RefusedError: nothing is known of it.
    """
    with _opened() as stack:
        status = _find(run, where, stack).status()
        return status or _refuse(run, where)


def attach(run: str, where: Where, view: View, *, workers: int | None = None) -> Summary:
    """Follow a run to its end: show it, drive it if nobody else does, collect its output. Returns how it ended.

    `workers`: local workers to start; None for one a core where the server has to be started, none elsewhere.

    Raises:
        RefusedError: nothing is known of it.
        RunFailed: it has failed, or fails.
        RunCancelled: it was cancelled, or is.
    """
    with _opened() as stack:
        found = _find(run, where, stack, workers=workers)
        return _follow(found, where, view, stack)


def resume(
    run: str,
    where: Where,
    view: View,
    *,
    fresh: bool = False,
    skip_bad: int | None = None,
    spill: str | None = None,
    workers: int | None = None,
) -> Summary:
    """Let a failed run go on, with its job's code as it is now, and follow it to its end.

    What is committed is kept, with the code that made it; `fresh`: nothing is. The inputs have to be those of the plan.
    `skip_bad`: how many bad records may be left out from now on; None for as many as before. `spill`: the directory, or
    URL, that segments are spilled to from now on; None for the one of before, if there was one.

    Raises:
        RefusedError: the run hasn't failed, or nothing is known of it; its job or an input has changed too much.
        RunFailed: it fails again.
        RunCancelled: it was cancelled meanwhile.
    """
    with _opened() as stack:
        found = _find(run, where, stack, workers=workers)
        spec = found.spec
        facts = found.state.facts() if spec else None
        if spec is None or facts is None or facts.state != RunState.FAILED:
            raise RefusedError(_why_not_resumed(found, facts, where.option))
        check_unchanged(found.state.inputs())
        program = _mended(found, spec, view)
        mended = refit(spec, program)
        if skip_bad is not None:
            mended = structs.replace(mended, skip_bad=skip_bad)
        kept = [] if fresh else [task for phase in spec.phases for task in found.state.winners(phase)]
        if spill is not None:
            mended = _spilling(mended, spill, has_kept=bool(kept))
        if kept and mended.shapes != spec.shapes:
            raise RefusedError(
                f"what the job shuffles has changed ({' and '.join(spec.shapes)} before, {' and '.join(mended.shapes)} "
                f"now), so what is committed can't be merged with it: rqmr resume {run} --fresh runs all tasks again"
            )
        if kept and mended.code != spec.code:
            view.note(f"committed and with the old code: {_tasks(kept)}; --fresh runs them again")
        Output(spec.output, run, is_new=False).prepare_again()
        if not found.state.resume(mended, program.package.encode(), fresh=fresh):
            raise RefusedError(f"somebody else has resumed run {run} just now: rqmr attach {run}{where.option}")
        found.spec = mended
        _reopen_parts_that_are_gone(found, mended)
        return _follow(found, where, view, stack)


def cancel(run: str, where: Where) -> None:
    """End a run that runs; its attempts stop within seconds, its keys and what it has written so far go.

    Raises:
        RefusedError: it has ended already, or nothing is known of it.
    """
    with _opened() as stack:
        found = _find(run, where, stack)
        try:
            facts = found.state.facts() if found.spec else None
        except DamagedError as error:
            raise DamagedError(f"{error}; rqmr rm {run}{where.option} removes it") from error
        if found.spec is None or facts is None or facts.state != RunState.RUNNING:
            state = facts.state if facts else found.end and found.end.state
            told = _ENDED[state or RunState.CANCELLED]
            raise RefusedError(f"run {run} {told} already; rqmr rm {run}{where.option} removes what is left of it")
        parts = _parts(found.state, found.spec)
        end = end_run(found.server.client, found.spec, RunState.CANCELLED)
        if end and end.state != RunState.CANCELLED:
            raise RefusedError(f"run {run} {_ENDED[end.state]} just now")
        _discard(found.spec.output, run, parts)


def remove(run: str, where: Where) -> None:
    """Remove what is left of a run that has ended: its keys, how it ended, what it has staged; never a whole output.

    Raises:
        RefusedError: it still runs, or nothing is known of it.
    """
    with _opened() as stack:
        found = _find(run, where, stack)
        facts = _readable(found.state.facts) if found.spec else None
        if facts and facts.state == RunState.RUNNING:
            raise RefusedError(f"run {run} is still running; end it first: rqmr cancel {run}{where.option}")
        if found.spec:
            parts = _parts(found.state, found.spec)
            found.state.unlink()
            _discard(found.spec.output, run, parts)
        elif found.end:
            _discard(found.end.output, run, [])
        registry.forget(found.server.client, run)


# --- finding ------------------------------------------------------------------------------------------------------


def _find(run: str, where: Where, stack: ExitStack, *, workers: int | None = 0) -> Found:
    """Find a run, and start local workers: `workers`, or (None) one a core if the others ended with the server."""
    if not is_run_id(run):
        raise RefusedError(f"{run!r:.80} is no run's id, as {new_run_id('wordcount')} would be one; rqmr ps lists them")
    for server in _servers(where, stack):
        found = None
        with _unless_it_ends(server):
            found = _look(server, run)
        if found is None:
            continue
        if found.spec and server.is_woken:
            _bury_the_dead(found.state)
        count = workers if workers is not None else default_workers() if server.is_woken else 0
        if found.spec and count:
            found.local = stack.enter_context(Local(workers=count, queue=found.spec.queue, url=server.url))
        return found
    return _refuse(run, where)


def _servers(where: Where, stack: ExitStack) -> Iterator[Server]:
    """Yield the server that is named, or the durable directory's, or those of this user's commands that live now."""
    directory = where.directory
    url = live_url(directory) if directory is not None else None
    if where.url is not None:
        yield reach(where, None, stack)
    elif directory is not None and url is None:
        if not directory.is_dir():
            raise RefusedError(
                f"there is no directory {directory}; --durable names the one that the run was started with"
            )
        local = stack.enter_context(Local(workers=0, queue="rqmr", durable=directory))
        server = reach(where, local, stack)
        server.is_woken = True
        yield server
    else:
        for living in [url] if url else private_servers():
            yield visit(living, stack)


@contextlib.contextmanager
def _opened() -> Iterator[ExitStack]:
    """What a command opens, and closes at its end. Raises RqmrError if Redis stops to answer."""
    try:
        with ExitStack() as stack:
            yield stack
    except redis.exceptions.NoPermissionError as error:
        raise RefusedError(f"Redis doesn't let this user do that: {error}") from error
    except redis.RedisError as error:
        raise RqmrError(f"Redis doesn't answer any more: {error}") from error


@contextlib.contextmanager
def _unless_it_ends(server: Server) -> Iterator[None]:
    """Look at a server; the one of another command may end meanwhile, and has nothing to say then."""
    try:
        yield
    except redis.RedisError:
        if not server.is_visited:
            raise


def _look(server: Server, run: str) -> Found | None:
    state = State(server.client, run)
    end = registry.read_end(server.client, run)
    try:
        return Found(server, state, state.spec, end)
    except AttemptEnded:
        return Found(server, state, None, end) if end else None


def _bury_the_dead(state: State) -> None:
    """Call all attempts lost: their workers, and the driver, ended with the server that was started again just now."""
    state.depose()
    facts = state.facts()
    for attempt in facts.running if facts else ():
        state.expire(attempt.id, dead_since=attempt.renewed_ms)


def _refuse(run: str, where: Where) -> NoReturn:
    looked = "on that Redis" if where.url else "there" if where.durable else "in this user's private servers"
    others = "" if where.url or where.durable else "; name its Redis, --redis-url URL, or its directory, --durable DIR"
    raise RefusedError(f"nothing is known of a run {run} {looked}; rqmr ps{where.option} lists what there is{others}")


# --- going on -----------------------------------------------------------------------------------------------------


def _follow(found: Found, where: Where, view: View, stack: ExitStack) -> Summary:
    spec, end = found.spec, found.end
    if spec is None:
        assert end is not None
        if end.summary:
            return end.summary
        if end.state == RunState.CANCELLED:
            raise RunCancelled(f"run {end.run} was cancelled")
        raise RunFailed(end.failure or Failure(f"run {end.run} failed"))
    output = Output(spec.output, spec.run, is_new=False)
    stack.enter_context(closing(output))
    stack.callback(output.discard)
    stack.callback(clear_spilled, spec, output)
    output.is_kept = True
    with contextlib.suppress(redis.exceptions.NoPermissionError):  # who may only look
        found.state.touch()
    view.begin(header_of(spec, found.server.description))
    watched = Watched(view, found.local, output)
    return follow(found.server, spec, output, watched, where, is_creator=False)


def _mended(found: Found, spec: Spec, view: View) -> Program:
    """Return the run's program, with its code as it is now if it can be found here."""
    package = decode_package(found.state.package(), spec.code)
    again = pack_again(package)
    if again is None:
        path = package.modules[package.entry].path
        view.note(f"{path} isn't here (any more): the run goes on with the code that it has")
    return program_of(spec, again or package)


def _spilling(spec: Spec, directory: str, *, has_kept: bool) -> Spec:
    """Let a run spill to a directory from now on; refuse another one than that which holds what is kept."""
    place = place_of(directory)
    if spec.spill and place != spec.spill and has_kept:
        raise RefusedError(
            f"run {spec.run} has spilled segments to {spec.spill}: resume it without --spill, or give --fresh, too"
        )
    return structs.replace(spec, spill=place)


def _reopen_parts_that_are_gone(found: Found, spec: Spec) -> None:
    """Let the last phase's tasks run again whose part files aren't in the stage any more."""
    for attempt, outcome in found.state.winners(spec.phases[-1]).values():
        if outcome.part and not is_there(found.state, attempt, outcome.part):
            found.state.reopen(attempt, outcome, NOBODY)


def _why_not_resumed(found: Found, facts: Facts | None, option: str) -> str:
    if facts and facts.state == RunState.RUNNING:
        return f"run {found.run} hasn't failed, it is still running: rqmr attach {found.run}{option} shows it"
    if found.end and found.end.state == RunState.FAILED:
        return f"run {found.run} failed, but what it takes to resume it is gone; run the job anew"
    state = facts.state if facts else found.end.state if found.end else RunState.CANCELLED
    return f"run {found.run} {_ENDED[state]} already: there is nothing to resume"


def _parts(state: State, spec: Spec) -> list[tuple[int, Part]]:
    """Return the parts that the last phase has made, each with its task's index."""
    won = _readable(lambda: state.winners(spec.phases[-1])) or {}
    return [(task.index, outcome.part) for task, (_, outcome) in won.items() if outcome.part]


def _readable(read: Callable[[], T]) -> T | None:
    """Read what is kept of a run that is to be removed; None if it is damaged."""
    try:
        return read()
    except DamagedError:
        return None


def _discard(directory: str, run: str, parts: Sequence[tuple[int, Part]]) -> None:
    """Remove a run's stage, and what was collected of these parts by a driver that died at it."""
    output = Output(directory, run, is_new=False)
    output.withdraw(parts)
    output.discard()
    with contextlib.suppress(OSError):  # it isn't there, or has something in it
        output.directory.rmdir()


# --- words --------------------------------------------------------------------------------------------------------

_ENDED = {
    RunState.SUCCEEDED: "has succeeded",
    RunState.FAILED: "has failed",
    RunState.CANCELLED: "was cancelled",
    RunState.RUNNING: "is running",
}


def _tasks(tasks: Sequence[TaskId]) -> str:
    """Name tasks: how many there are, and the first few."""
    maps = sum(task.kind == Kind.MAP for task in tasks)
    counts = [(maps, "map"), (len(tasks) - maps, "reduce")]
    told = " and ".join(f"{count:,} {kind} task{'s' * (count > 1)}" for count, kind in counts if count)
    names = ", ".join(map(str, tasks[:_NAMED])) + (" …" if len(tasks) > _NAMED else "")
    return f"{told} ({names})"
