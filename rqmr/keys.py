"""Every Redis key that rqmr writes. No other module builds one.

Every key has a TTL, the run's `keep` (24 h unless said otherwise), set by whoever writes it and refreshed by the
driver; all keys of a run but its code and its end are unlinked when its result has been collected.

    rqmr:runs                           zset    run -> ms when it was created; lives for a week after the last one
    rqmr:writer                         string  the attempt that sends a big chunk to a nearly full server; EXPIRES
    rqmr:code:{hash}                    string  the job's package; shared by all runs of the same code
    rqmr:checkup:{id}                   hash    worker -> what it told rqmr doctor; EXPIRES
    rqmr:{run}                          hash    state, phase, spec, failure, times, key types (keys:s0), ticket number,
                                                and while claims wait for memory `full` (see pause.lua)
    rqmr:{run}:end                      string  how it ended, for ps and status; lives for a week
    rqmr:{run}:splits                   hash    map task's index -> its split
    rqmr:{run}:inputs                   hash    input's path -> its size and samples when the run was planned
    rqmr:{run}:pending                  zset    task -> rank in line (see `rank`)
    rqmr:{run}:leases                   zset    attempt -> deadline, server's ms
    rqmr:{run}:lease:{attempt}          hash    worker, host, started, progress, record; EXPIRES WITH THE LEASE
    rqmr:{run}:attempts                 hash    attempt -> running, revived, committed, lost, failed, stale, released, …
    rqmr:{run}:tries                    hash    {task}:made, :running, :failed, :lost, :died -> number; :bad -> records
    rqmr:{run}:claims                   hash    a work-horse's token -> its last claim, for a repeated one
    rqmr:{run}:holders                  hash    attempt that hasn't told its end -> ticket, worker, host, ms when lost
    rqmr:{run}:standby                  string  the work-horse that waits for what may come; EXPIRES
    rqmr:{run}:tickets                  zset    RQ jobs enqueued and not yet taken -> when
    rqmr:{run}:backups                  hash    task that was given a backup -> worker whose attempt is the straggler
    rqmr:{run}:{phase}:winners          hash    task -> attempt that won, newline, its outcome
    rqmr:{run}:{phase}:totals           hash    records and bytes read by the winners; attempts lost and failed
    rqmr:{run}:{phase}:durations        list    ms that the latest winners took, newest first, at most 100
    rqmr:{run}:s{n}:shuffle:{reducer}   hash    {producer}.{attempt}.{chunk} -> chunk of a segment, or its stub; on the
                                                reducer's server, where others than the run's own have of `rqmr:{run}`
                                                state and keep_ms alone
    rqmr:{run}:asks                     zset    an attempt's ask for a range of an input that it doesn't see -> when
    rqmr:{run}:shipment:{ask}           list    the range; taken out by who asked; EXPIRES
    rqmr:{run}:parts                    hash    {task}.{attempt}.{chunk} -> chunk of a part whose worker saw no stage
    rqmr:{run}:driver                   string  who drives; EXPIRES WITH THE DRIVER'S LEASE
    rqmr:{run}:events                   stream  what happened, about the last 1,000
"""

from __future__ import annotations

import re

from rqmr.model import AttemptId, Phase, TaskId

#: Distance between two phases in the pending line: twice as much as a phase can have tasks.
PHASE_STRIDE = 2**32


RUNS = "rqmr:runs"
WRITER = "rqmr:writer"


def is_run_id(name: str) -> bool:
    """Whether a name looks like a run's id: others could be the names of other keys."""
    return re.fullmatch(r"[A-Za-z0-9_-]{1,60}-[a-z0-9]{6}", name) is not None


def rank(phase_number: int, index: int, *, urgent: bool = False) -> int:
    """Return a task's score in the pending line: earlier phases first, in each the urgent ones, then by index."""
    return phase_number * PHASE_STRIDE + index - (PHASE_STRIDE // 2 if urgent else 0)


def ranks_of(phase_number: int) -> tuple[int, int]:
    """Return the lowest score that a task of the phase can have, and the lowest of the next phase."""
    half = PHASE_STRIDE // 2
    return phase_number * PHASE_STRIDE - half, (phase_number + 1) * PHASE_STRIDE - half


def code(content_hash: str) -> str:
    """Return the key of a job's package."""
    return f"rqmr:code:{content_hash}"


def checkup(name: str) -> str:
    """Return the key of what workers have answered to one checkup."""
    return f"rqmr:checkup:{name}"


class RunKeys:
    """The keys of one run."""

    def __init__(self, run: str) -> None:
        self.name = run
        self.run = f"rqmr:{run}"
        self.end = f"{self.run}:end"
        self.splits = f"{self.run}:splits"
        self.inputs = f"{self.run}:inputs"
        self.pending = f"{self.run}:pending"
        self.leases = f"{self.run}:leases"
        self.lease_prefix = f"{self.run}:lease:"
        self.attempts = f"{self.run}:attempts"
        self.tries = f"{self.run}:tries"
        self.claims = f"{self.run}:claims"
        self.holders = f"{self.run}:holders"
        self.standby = f"{self.run}:standby"
        self.tickets = f"{self.run}:tickets"
        self.backups = f"{self.run}:backups"
        self.asks = f"{self.run}:asks"
        self.parts = f"{self.run}:parts"
        self.driver = f"{self.run}:driver"
        self.events = f"{self.run}:events"

    def lease(self, attempt: AttemptId) -> str:
        """The expiring key of an attempt's lease."""
        return f"{self.lease_prefix}{attempt}"

    def shipment(self, ask: str) -> str:
        """What answers an ask."""
        return f"{self.run}:shipment:{ask}"

    def winners(self, phase: Phase | TaskId) -> str:
        """The winners of a phase, or of a task's phase."""
        return f"{self.run}:s{phase.step}-{phase.kind}:winners"

    def totals(self, phase: Phase | TaskId) -> str:
        """The running totals of a phase."""
        return f"{self.run}:s{phase.step}-{phase.kind}:totals"

    def durations(self, phase: Phase | TaskId) -> str:
        """How long the phase's latest winners took."""
        return f"{self.run}:s{phase.step}-{phase.kind}:durations"

    def shuffle(self, step: int, reducer: int) -> str:
        """The segments for one reduce task of a step."""
        return f"{self.run}:s{step}:shuffle:{reducer}"

    def all(self, phases: tuple[Phase, ...]) -> list[str]:
        """Every key of the run but the expiring ones of leases, and its end."""
        fixed = [
            self.run, self.splits, self.inputs, self.pending, self.leases, self.attempts, self.tries, self.claims,
            self.holders, self.standby, self.tickets, self.backups, self.asks, self.parts, self.driver, self.events,
        ]  # fmt: skip
        for phase in phases:
            fixed += [self.winners(phase), self.totals(phase), self.durations(phase)]
        for phase in phases[1:]:
            fixed += [self.shuffle(phase.step, reducer) for reducer in range(phase.tasks)]
        return fixed


def segment_field(producer: int, attempt: int, chunk: int) -> str:
    """Return the field of one chunk of a segment in its reducer's hash."""
    return f"{producer}.{attempt}.{chunk}"
