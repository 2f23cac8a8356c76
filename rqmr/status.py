"""What `ps` and `status` tell of a run: facts in, plain values out."""

from __future__ import annotations

from msgspec import Struct

from rqmr.facts import End, Facts, RunningAttempt, Summary
from rqmr.meter import phase_titles
from rqmr.model import Failure, RunState, Spec
from rqmr.scheduler import is_complete


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


class AttemptStatus(Struct, frozen=True):
    """One attempt that holds a lease."""

    id: str
    worker: str
    host: str
    started_ms: int
    deadline_ms: int
    fraction: float
    records: int


class Status(Struct, frozen=True):
    """One run, as `ps` and `status` tell it; times are the server's, in milliseconds."""

    run: str
    job: str
    #: A RunState; of one that runs also "waiting" (for a worker, or an input), "stalled" (nobody drives or works) or
    #: "uncollected" (all its tasks are done); "unknown" of one that another release of rqmr has made,
    #: that is damaged, or that isn't signed with the secret that the command has.
    state: str
    began_ms: int
    now_ms: int  # or when it ended
    output: str
    server: str
    phases: tuple[PhaseStatus, ...] = ()
    attempts: tuple[AttemptStatus, ...] = ()
    driver: str = ""
    queue: str = ""
    workers: int = 0  # that listen on it
    waits_for: tuple[str, ...] = ()  # inputs that no worker that wants them sees, nor anybody who follows the run
    shipped: int = 0  # bytes of input that went through Redis
    priority: str = "normal"
    summary: Summary | None = None
    failure: Failure | None = None


def _state_of(facts: Facts) -> str:
    if facts.state == RunState.RUNNING and facts.asks:
        return "waiting"
    if facts.state != RunState.RUNNING or facts.driver:
        return facts.state
    if is_complete(facts):
        return "uncollected"
    if facts.has_standby or any(each.deadline_ms > facts.now_ms for each in facts.running):
        return "running"
    return "waiting" if facts.tickets else "stalled"


def status_of_facts(facts: Facts, spec: Spec, end: End | None, server: str) -> Status:
    """Tell a run whose keys are there."""
    return Status(
        run=spec.run,
        job=spec.job,
        state=_state_of(facts),
        began_ms=facts.started_ms,
        now_ms=end.ended_ms if end and facts.state != RunState.RUNNING else facts.now_ms,
        output=spec.output,
        server=server,
        phases=_phases_of(facts),
        attempts=tuple(map(_attempt, facts.running)),
        driver=facts.driver,
        queue=spec.queue,
        workers=facts.workers,
        waits_for=tuple(dict.fromkeys(ask.name for ask in facts.asks)),
        shipped=facts.shipped,
        priority=spec.priority,
        failure=facts.failure,
    )


def _attempt(each: RunningAttempt) -> AttemptStatus:
    return AttemptStatus(
        str(each.id), each.worker, each.host, each.started_ms, each.deadline_ms, each.progress.fraction,
        each.progress.records,
    )  # fmt: skip


def status_of_end(end: End, server: str) -> Status:
    """Tell a run of which only the end is left."""
    return Status(
        run=end.run,
        job=end.job,
        state=end.state,
        began_ms=end.began_ms,
        now_ms=end.ended_ms,
        output=end.output,
        server=server,
        summary=end.summary,
        failure=end.failure,
    )


def status_unknown(run: str, began_ms: int, server: str) -> Status:
    """Tell a run of which this command can tell nothing."""
    return Status(run=run, job="", state="unknown", began_ms=began_ms, now_ms=began_ms, output="", server=server)


def _phases_of(facts: Facts) -> tuple[PhaseStatus, ...]:
    titles = phase_titles([each.phase for each in facts.phases])
    return tuple(
        PhaseStatus(
            title, each.phase.tasks, each.committed, each.running, each.pending, each.lost, each.failed, each.records,
            each.size,
        )
        for title, each in zip(titles, facts.phases, strict=True)
    )  # fmt: skip
