"""The words of rqmr as frozen records: ids, states, the plan of a run and what can be seen of it.

Ids nest and grep: run ``wordcount-7k2p``, task ``wordcount-7k2p-s0-m0005``, attempt
``wordcount-7k2p-s0-m0005-a2``. Inside one run's keys the run's own part is left out: ``s0-m0005-a2``.
Records are msgspec structs, so that what comes back from Redis is checked when it is decoded, and is data only.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any, Literal

from msgspec import Struct

#: Raised whenever a worker of another release could misread a run.
PROTOCOL = 4


class RunState(StrEnum):
    """A run's life: running, then one of the three others, for good."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Kind(StrEnum):
    """Which half of a step a task belongs to."""

    MAP = "m"
    REDUCE = "r"


class Phase(Struct, frozen=True):
    """The map or the reduce half of a step, and how many tasks it has.

    A run is a list of phases. Only the first is a map phase: the mapper of a later step runs inside the reduce
    tasks of the step before it, so each phase but the first reads what the one before it has shuffled.
    """

    step: int
    kind: Kind
    tasks: int

    @property
    def name(self) -> str:
        """The phase in keys and ids: ``s0-m``."""
        return f"s{self.step}-{self.kind}"

    def __contains__(self, task: TaskId) -> bool:
        return (task.step, task.kind) == (self.step, self.kind)


class TaskId(Struct, frozen=True, order=True):
    """One task of a run."""

    step: int
    kind: Kind
    index: int

    def __str__(self) -> str:
        return f"s{self.step}-{self.kind}{self.index:04d}"

    @classmethod
    def parse(cls, text: str) -> TaskId:
        """Read what `str` wrote; ValueError if it didn't."""
        match = re.fullmatch(r"s(\d+)-([mr])(\d+)", text, re.ASCII)
        task = match and cls(int(match[1]), Kind(match[2]), int(match[3]))
        if not task or str(task) != text:
            raise ValueError(f"{text!r} is no task id")
        return task


class AttemptId(Struct, frozen=True, order=True):
    """One try of a task, numbered from 1 by the claim."""

    task: TaskId
    number: int

    def __str__(self) -> str:
        return f"{self.task}-a{self.number}"

    @classmethod
    def parse(cls, text: str) -> AttemptId:
        """Read what `str` wrote; ValueError if it didn't."""
        task, _, number = text.rpartition("-a")
        attempt = cls(TaskId.parse(task), int(number))
        if attempt.number < 1 or str(attempt) != text:
            raise ValueError(f"{text!r} is no attempt id")
        return attempt


class Piece(Struct, frozen=True):
    """A range of one input file: its lines that begin in [start, stop); `stop` is None for a file read whole."""

    name: str  # the input's name as the mapper sees it
    path: bytes  # absolute, as the file system spells it
    start: int
    stop: int | None
    size: int  # bytes on disk that this piece stands for
    end: int | None = None  # of the file when the run was planned: what was added since isn't read
    version: str = ""  # of what is at a URL, as its store tells it


class Split(Struct, frozen=True):
    """What one map task reads: one range of a big file, or several small files."""

    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(piece.size for piece in self.pieces)


class Ask(Struct, frozen=True):
    """What an attempt asks for: a range of an input that its worker doesn't see."""

    id: str  # tells where the shipment is to go
    path: bytes
    name: str  # of the input
    start: int
    size: int
    worker: str = ""
    host: str = ""


class Settings(Struct, frozen=True):
    """How the tasks of a run read and write; travels with the run."""

    encoding: str = "utf-8"
    decode_errors: str = "replace"
    format: str = "tsv"
    memory: int = 64 << 20  # bytes of keys and values that a task may hold


class Spec(Struct, frozen=True):
    """Everything a worker needs to know of a run but its splits and its code. Never changes."""

    run: str
    job: str  # the job's name as given
    code: str  # content hash of the package
    job_class: str  # in the package's entry module
    params: dict[str, Any]
    phases: tuple[Phase, ...]
    stage: str  # absolute path of the directory that the last phase's attempts write to
    settings: Settings
    lease_ms: int
    keep_ms: int
    max_failed: int
    max_lost: int
    queue: str
    python: str = ""  # version that it was planned with
    backups: bool = True
    stall_ms: int = 0  # an attempt none of whose records ends for so long is stuck; 0: never
    task_ms: int = 0  # longest time for an attempt; 0: any
    skip_bad: int = 0  # bad records that may be left out
    is_spread: bool = False  # workers may be on hosts that see neither inputs nor stage
    ends_with_driver: bool = False  # its server or its output does, so nobody else can go on with it
    shapes: tuple[str, ...] = ()  # what each step's segments hold
    is_cut: bool = True  # whether map tasks may read parts of files
    input_bytes: int = 0
    plan: str = ""  # one line
    priority: str = "normal"  # high, normal or low
    bounds: list[Any] = []  # what parts the partitions of the first step, if they are in total order by a sample
    shuffle: tuple[str, ...] = ()  # URLs, without a login, of the servers that segments are on besides the run's own
    spill: str = ""  # absolute path, or URL, of the directory that segments are spilled to; "" for none
    protocol: int = PROTOCOL

    @property
    def output(self) -> str:
        """The directory that the output is collected into, or its URL."""
        return self.stage.rpartition("/")[0] or "/"

    def tasks(self, phase_number: int) -> list[TaskId]:
        """All tasks of a phase."""
        phase = self.phases[phase_number]
        return [TaskId(phase.step, phase.kind, index) for index in range(phase.tasks)]

    def cost_of(self, seconds: float) -> int:
        """Return what a worker's time costs the run: ms, weighted so that a high priority gets four times as much."""
        return round(seconds * 1000 * {"high": 1, "normal": 4, "low": 16}[self.priority])

    def phase_of(self, task: TaskId) -> int:
        """The number of the task's phase."""
        return task.step + (task.kind == Kind.REDUCE)


class Failure(Struct, frozen=True):
    """Why a task or a run failed, in words for its user."""

    message: str
    task: str = ""
    worker: str = ""
    host: str = ""
    source: str = ""  # the input's name, and
    offset: int = -1  # the byte offset in it, of the record that was being mapped
    record: str = ""  # the record, shortened
    traceback: str = ""  # the user's own frames
    final: bool = False  # trying again can't help
    can_resume: bool = True  # its run, once the cause is mended


class RecordAt(Struct, frozen=True):
    """One of a task's records, or in a reduce task one of its keys, and where it is from."""

    index: int  # in the task, from 0
    source: str  # the input's name, "" for a key
    offset: int  # byte offset in it, -1 for a key
    record: str  # shortened


class Skipped(RecordAt, frozen=True):
    """A bad record that was left out."""

    message: str  # why


class Part(Struct, frozen=True):
    """One part file as its attempt left it in the stage, or in Redis."""

    file: str
    size: int
    crc: int
    chunks: int = 0  # it travels in, if its worker didn't see the stage; 0: it is in the stage


class Outcome(Struct, frozen=True):
    """What a finished attempt has to say at its commit."""

    records: int  # read
    size: int  # bytes read
    written: int  # records
    counters: dict[str, dict[str, int]]
    partitions: bytes = b""  # bitmap: which reducers this task has a segment for
    key_type: str = ""  # signature of the keys it shuffled, if it shuffled any,
    key_example: str = ""  # and one of them, to be shown
    part: Part | None = None
    skipped: tuple[Skipped, ...] = ()  # in the order of the records
    values: int = 0  # that it gave to a reducer,
    largest_key: tuple[str, int] = ("", 0)  # and the key that had most of them, to be shown, with how many

    @property
    def reducers(self) -> list[int]:
        """Those that this task has a segment for."""
        return [index for index in range(len(self.partitions) * 8) if self.has_partition(index)]

    def has_partition(self, index: int) -> bool:
        """Whether the task has a segment for that reducer; absent is not lost."""
        byte = index >> 3
        return byte < len(self.partitions) and bool(self.partitions[byte] >> (index & 7) & 1)


def bitmap(indexes: set[int]) -> bytes:
    """Return the bitmap that `Outcome.has_partition` reads."""
    return sum(1 << index for index in indexes).to_bytes(max(indexes, default=-1) // 8 + 1, "little")


class Claim(Struct, frozen=True):
    """A worker's right to run one attempt."""

    attempt: AttemptId
    started_ms: int  # server's time
    careful: bool = False  # whether to tell each record before it begins: the process of an earlier attempt died
    bad: dict[int, str] = {}  # indexes of records to leave out, since processes died at them, and how the last one did
    split: bytes | None = None  # a map task's, as it is stored, if it is there


class Progress(Struct, frozen=True):
    """How far an attempt is, as its heartbeat tells it."""

    records: int = 0
    size: int = 0  # bytes
    fraction: float = 0.0
    waits: Literal["", "memory", "input"] = ""  # for room in Redis to write, or for an input to be shipped
