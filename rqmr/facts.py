"""What can be seen of a run, as frozen records: what is true of it now, what happened, and how it ended."""

from __future__ import annotations

from msgspec import Struct

from rqmr.model import Ask, AttemptId, Failure, Phase, Progress, RunState, TaskId


class RunningAttempt(Struct, frozen=True):
    """An attempt that holds a lease."""

    id: AttemptId
    worker: str
    host: str
    started_ms: int
    deadline_ms: int
    renewed_ms: int
    progress: Progress
    ticket: str = ""


class LostAttempt(Struct, frozen=True):
    """An attempt that was lost and hasn't been heard of since; its work-horse may be stuck in it."""

    id: AttemptId
    ticket: str
    lost_ms: int
    is_beaten: bool  # whether another attempt of its task has won


class PhaseFacts(Struct, frozen=True):
    """What is true of one phase now."""

    phase: Phase
    committed: int
    pending: int
    running: int
    lost: int  # attempts, ever
    failed: int  # attempts, ever
    records: int  # read by the winners
    size: int  # bytes read by the winners
    started_ms: int  # 0 until it has begun


class Event(Struct, frozen=True):
    """One change of state, as the events stream tells it."""

    at_ms: int
    what: str
    subject: str
    note: str


class Memory(Struct, frozen=True):
    """The memory of the server."""

    used: int = 0  # bytes
    limit: int = 0  # bytes, its maxmemory; 0: none
    clients: int = 1  # connections: any of them may be about to write, too
    holds: int = 0  # bytes, its maxmemory or half of its machine's memory; 0: not known
    server: str = ""  # the one that it is the memory of, "" for the run's own

    @property
    def share(self) -> float:
        """How full it is, from 0 to 1 and beyond; 0 without a limit."""
        return self.used / self.limit if self.limit else 0.0


class Shortage(Struct, frozen=True):
    """A run's claims wait for memory: how things were when there was last a reason to hope for some."""

    noted_ms: int
    committed: int  # tasks, of all phases
    used: int  # bytes


class Neighbour(Struct, frozen=True):
    """Another run of the same server that hasn't ended."""

    is_younger: bool
    is_full: bool  # its claims wait for memory, too
    is_at_work: bool  # it has attempts
    is_attended: bool  # somebody drives it, works on it or stands by


class Facts(Struct, frozen=True):
    """What is true of a run now; all times are the server's, in milliseconds."""

    now_ms: int
    state: RunState
    phase: int  # the number of the current phase; len(phases) when all are committed
    started_ms: int
    phases: tuple[PhaseFacts, ...]
    running: tuple[RunningAttempt, ...]
    tickets: dict[str, int]  # enqueued and not yet taken: when
    backups: frozenset[TaskId]
    median_ms: int  # of the current phase's committed attempts; 0 before the first
    failure: Failure | None
    workers: int = 0  # listening on the queue
    lost: tuple[LostAttempt, ...] = ()
    has_standby: bool = False
    driver: str = ""  # who holds the driver's lease
    memory: Memory = Memory()
    shortage: Shortage | None = None
    neighbours: tuple[Neighbour, ...] = ()  # known only while memory is short
    asks: tuple[Ask, ...] = ()  # some of those that nobody has answered for a while
    shipped: int = 0  # bytes of input

    @property
    def is_full(self) -> bool:
        """Whether claims wait for memory."""
        return self.shortage is not None

    @property
    def committed(self) -> int:
        """Committed tasks of all phases."""
        return sum(phase.committed for phase in self.phases)

    @property
    def writes_segments(self) -> bool:
        """Whether the tasks of the current phase do."""
        return self.phase < len(self.phases) - 1


class Header(Struct, frozen=True):
    """What is said of a run before it begins."""

    run: str
    job: str
    server: str
    queue: str
    plan: str  # one line
    input_bytes: int


class Summary(Struct, frozen=True):
    """A run that succeeded, in numbers."""

    run: str
    job: str
    output: str
    parts: tuple[str, ...]
    seconds: float
    map_tasks: int
    reducers: int
    records_read: int
    bytes_read: int
    records_written: int
    counters: dict[str, dict[str, int]]
    skipped: int = 0  # bad records, listed in the output's _skipped.jsonl
    skew: tuple[str, ...] = ()  # partitions and keys that have far more than others, in words


class End(Struct, frozen=True):
    """What is kept of a run that is over, and for how long it ran."""

    run: str
    job: str
    state: RunState
    output: str
    began_ms: int
    ended_ms: int
    summary: Summary | None = None
    failure: Failure | None = None
