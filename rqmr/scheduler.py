"""Decide what should happen next: facts in, instructions out.

No Redis, no RQ, no clock, so every policy is tested with plain values. An instruction is only advice: the script that
carries it out looks again, so it does no harm when the facts are old.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from rqmr.facts import Facts, Memory, RunningAttempt, Shortage
from rqmr.model import AttemptId, RunState, Spec


class Policy(Struct, frozen=True):
    """The numbers that decisions depend on."""

    #: Tickets enqueued beyond one for each worker that is free: for a worker that joins late. A work-horse goes on
    #: claiming for some seconds, so few are enough, and every one waits before others' RQ jobs in the queue. (A fork
    #: costs 26 ms, a claim 0.1 ms.)
    tickets_beyond: int = 1
    #: A ticket that was not taken in this time is looked for in its queue: RQ can lose a popped one for ever, and a
    #: worker that can't run it fails it.
    ticket_ms: int = 2_000
    #: An attempt that was silent for so long has missed a heartbeat: RQ is asked whether its work-horse died.
    silent_ms: int = 1_500
    #: A horse that is told to stop ends in five seconds. One that still holds a lost attempt after this is stuck.
    stuck_ms: int = 10_000
    #: From here on the run's own settings: whether one horse stands by when there is nothing to do,
    stands_by: bool = True
    #: whether stragglers get backups,
    backs_up: bool = True
    #: and how long a lost attempt may be silent (0: for ever) although nobody else has won.
    stall_ms: int = 0
    #: An attempt is a straggler when it has taken, or by its progress will take, this many times the median of those
    #: committed. Tasks that vary two- or threefold are none.
    straggler_factor: float = 4.0
    #: Below this age nothing is told from the time alone that a task takes: its work-horse may just have died.
    straggler_ms: int = 2_000
    #: Progress that was told earlier in an attempt, or is less than this, tells nothing about the whole.
    telling_ms: int = 1_000
    telling_fraction: float = 0.05
    #: Backups that may run at a time: this share of the phase's tasks, but at least one.
    backup_share: float = 0.1
    #: How full the server may be while tasks that write segments are given out: what then runs has room to end.
    pause_share: float = 0.85
    #: Below this they are given out again.
    go_on_share: float = 0.80
    #: How long to wait for memory when there is no reason to hope for some,
    patience_ms: int = 15_000
    #: which is looked for so often.
    note_ms: int = 1_000
    #: What of the limit counts as memory that was freed.
    freed_share: float = 0.01


_POLICY = Policy()


class Expire(Struct, frozen=True):
    """The attempt's lease has run out."""

    attempt: AttemptId


class AskAfter(Struct, frozen=True):
    """The attempts are silent: did their work-horses die?"""

    attempts: tuple[RunningAttempt, ...]


class Stop(Struct, frozen=True):
    """The lost attempt's work-horse is stuck in it, beyond hearing."""

    attempt: AttemptId
    ticket: str


class Advance(Struct, frozen=True):
    """All tasks of the phase are committed."""

    phase: int


class Enqueue(Struct, frozen=True):
    """More tickets are needed."""

    count: int


class LookFor(Struct, frozen=True):
    """These tickets have waited for long: are they still in the queue?"""

    tickets: tuple[str, ...]


class BackUp(Struct, frozen=True):
    """The attempt is a straggler."""

    attempt: AttemptId
    worker: str


class Pause(Struct, frozen=True):
    """Memory is short: no task is to be given out; or it still is, and there is a reason to hope."""

    committed: int
    memory: Memory


class GoOn(Struct, frozen=True):
    """There is memory again, or none is needed."""

    memory: Memory


class GiveUp(Struct, frozen=True):
    """Memory is short, and waiting doesn't help."""

    memory: Memory


Instruction = Expire | AskAfter | Stop | Advance | Enqueue | LookFor | BackUp | Pause | GoOn | GiveUp


def policy_of(spec: Spec) -> Policy:
    """Return the policy for a run."""
    return Policy(stands_by=not spec.ends_with_driver, backs_up=spec.backups, stall_ms=spec.stall_ms)


def decide(facts: Facts, policy: Policy = _POLICY) -> list[Instruction]:
    """Return what should be done now."""
    if facts.state != RunState.RUNNING or facts.phase >= len(facts.phases):
        return []
    current = facts.phases[facts.phase]
    if current.committed >= current.phase.tasks:
        return [Advance(facts.phase)]
    return [
        *_room(facts, policy),
        *_expired(facts),
        *_silent(facts, policy),
        *_stuck(facts, policy),
        *_window(facts, policy),
        *_stragglers(facts, policy),
    ]


def is_complete(facts: Facts) -> bool:
    """Whether every task of the run is committed."""
    return facts.phase >= len(facts.phases)


def _expired(facts: Facts) -> Iterator[Instruction]:
    for attempt in facts.running:
        if attempt.deadline_ms <= facts.now_ms:
            yield Expire(attempt.id)


def _silent(facts: Facts, policy: Policy) -> Iterator[Instruction]:
    silent = tuple(
        each
        for each in facts.running
        if each.ticket and each.deadline_ms > facts.now_ms and facts.now_ms - each.renewed_ms > policy.silent_ms
    )
    if silent:
        yield AskAfter(silent)


def _stuck(facts: Facts, policy: Policy) -> Iterator[Instruction]:
    for each in facts.lost:
        silent_ms = facts.now_ms - each.lost_ms
        is_stalled = policy.stall_ms and silent_ms > policy.stall_ms
        if silent_ms > policy.stuck_ms and (each.is_beaten or is_stalled):
            yield Stop(each.id, each.ticket)


def _window(facts: Facts, policy: Policy) -> Iterator[Instruction]:
    waiting = 0 if facts.is_full else sum(phase.pending for phase in facts.phases[: facts.phase + 1])
    busy = len({attempt.worker for attempt in facts.running})
    window = min(waiting, max(0, facts.workers - busy) + policy.tickets_beyond)
    if not window and policy.stands_by and not facts.has_standby:
        window = 1  # if the driver dies now, somebody has to see it
    if window > len(facts.tickets):
        yield Enqueue(window - len(facts.tickets))
    overdue = tuple(ticket for ticket, at in facts.tickets.items() if facts.now_ms - at > policy.ticket_ms)
    if window and overdue:
        yield LookFor(overdue)


def _room(facts: Facts, policy: Policy) -> Iterator[Instruction]:
    """Keep from writing more than the server holds: a stock worker exits on a full one."""
    memory, shortage = facts.memory, facts.shortage
    is_waited_for = any(each.progress.waits == "memory" for each in facts.running)
    if shortage is None:
        if facts.writes_segments and (is_waited_for or memory.share >= policy.pause_share):
            yield Pause(facts.committed, memory)
    elif not facts.writes_segments or (memory.share < policy.go_on_share and not is_waited_for):
        yield GoOn(memory)
    elif _has_hope(facts, shortage, policy):
        if facts.now_ms - shortage.noted_ms > policy.note_ms:
            yield Pause(facts.committed, memory)
    elif facts.now_ms - shortage.noted_ms > policy.patience_ms:
        yield GiveUp(memory)


def _has_hope(facts: Facts, shortage: Shortage, policy: Policy) -> bool:
    """Whether waiting may help: something moves, here or on the server. Of runs that wait the youngest gives way."""
    return (
        facts.committed != shortage.committed
        or facts.memory.used < shortage.used - policy.freed_share * facts.memory.limit
        or any(each.progress.waits != "memory" for each in facts.running)
        or any((each.is_younger and each.is_attended) if each.is_full else each.is_at_work for each in facts.neighbours)
    )


def _stragglers(facts: Facts, policy: Policy) -> Iterator[Instruction]:
    """Yield a backup for each straggler that may have one, the slowest first.

    When tasks are pending there is better work for an idle worker. With none committed there is no median, so
    nothing is a straggler. (The paper, section 3.6; what slow means is Zaharia's LATE: by the estimated end.)
    """
    current = facts.phases[facts.phase]
    if not policy.backs_up or facts.is_full or current.pending or not facts.median_ms:
        return
    of_phase = [each for each in facts.running if each.id.task in current.phase]
    backed_up = [each.id.task for each in of_phase if each.id.task in facts.backups]
    running_backups = len(backed_up) - len(set(backed_up))  # where a task has two attempts, one is the backup
    free = max(1, int(current.phase.tasks * policy.backup_share)) - running_backups
    slow = [each for each in of_phase if each.id.task not in facts.backups and _is_straggler(each, facts, policy)]
    slow.sort(key=lambda each: -_expected_ms(each, facts, policy))
    for each in slow[: max(0, free)]:
        yield BackUp(each.id, each.worker)


def _is_straggler(attempt: RunningAttempt, facts: Facts, policy: Policy) -> bool:
    if not attempt.started_ms or attempt.deadline_ms <= facts.now_ms:
        return False  # its lease is gone or about to go: it may be lost, and is told apart by that
    return _expected_ms(attempt, facts, policy) > policy.straggler_factor * facts.median_ms


def _expected_ms(attempt: RunningAttempt, facts: Facts, policy: Policy) -> float:
    """How long the attempt will have taken: by its progress, if that tells anything, else what it has taken."""
    age = facts.now_ms - attempt.started_ms
    told_at = attempt.renewed_ms - attempt.started_ms  # by now it is further
    fraction = attempt.progress.fraction
    if told_at >= max(policy.telling_ms, facts.median_ms) and fraction >= policy.telling_fraction:
        return max(age, told_at / fraction)
    return age if age >= policy.straggler_ms else 0
