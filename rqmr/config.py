"""One run's settings. A Config that exists is valid."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from msgspec import Struct

from rqmr.errors import RefusedError


class Config(Struct, frozen=True, kw_only=True):
    """What a user may choose for a run; None means "chosen from the input's size and the workers".

    Raises:
        RefusedError: a value makes no sense; the message names it.
    """

    #: The RQ queue that workers listen on. One for all runs: RQ never forgets a queue's name.
    queue: str = "rqmr"
    #: How long an attempt may be silent before its task is given to another.
    lease_seconds: float = 15.0
    #: How long a run's keys outlive the last sign of life of its driver.
    keep_seconds: float = 24 * 3600.0
    #: Attempts of one task that may raise; Hadoop's default, mapreduce.map.maxattempts.
    max_failed: int = 4
    #: Attempts of one task that may be lost. Far above max_failed: a crashing machine is no fault of the code.
    max_lost: int = 20
    #: Whether stragglers get backup attempts.
    backups: bool = True
    #: An attempt none of whose records ends for so long is stuck, and is replaced; 0 for never. Hadoop's default,
    #: mapreduce.task.timeout.
    stall_seconds: float = 600.0
    #: The longest time for one attempt; 0 for any.
    task_seconds: float = 0.0
    #: Records that may be left out because they raise, or end their process, twice.
    skip_bad: int = 0
    #: How much of the workers' time the run gets where others want it, too: "high" four times as much as "normal",
    #: and "low" a quarter.
    priority: str = "normal"
    #: Reduce tasks of each step.
    reducers: int | None = None
    #: Bytes of input for one map task.
    split_bytes: int | None = None
    #: Local workers.
    workers: int | None = None
    #: How the last phase spells its records, "tsv" or "jsonl". Unless given, the command writes TSV, which is for
    #: people and other programs, and `rqmr.run` JSON lines, which give back the types.
    format: str | None = None
    #: How text inputs are decoded, and what happens to bytes that aren't text ("replace" or "strict").
    encoding: str = "utf-8"
    decode_errors: str = "replace"
    #: Bytes of keys and values that a task may hold: a map task spills beyond it, and a reduce task merges in passes.
    memory: int = 64 << 20
    #: URLs, without user and password, of Redis servers that hold segments besides the run's own: reducer r's are on
    #: server r modulo their number.
    shuffle_urls: tuple[str, ...] = ()
    #: A directory that all workers see, or a URL, for the segments that Redis has no memory for.
    spill: str | None = None
    #: Bytes of input that may wait in Redis at a time, on their way to workers that don't see them.
    ship_memory: int = 256 << 20

    def __post_init__(self) -> None:
        _require(bool(self.queue), "queue", self.queue, "a name")
        _require(self.lease_seconds >= 1, "lease", self.lease_seconds, "at least 1 second")
        _require(self.keep_seconds >= 60, "keep", self.keep_seconds, "at least 60 seconds")
        _require(self.max_failed >= 1, "max failed", self.max_failed, "at least 1")
        _require(self.max_lost >= 1, "max lost", self.max_lost, "at least 1")
        _require(
            self.stall_seconds == 0 or self.stall_seconds >= 1, "stall", self.stall_seconds, "0 or 1 second or more"
        )
        _require(
            self.task_seconds == 0 or self.task_seconds >= 1, "task timeout", self.task_seconds, "0 or 1 second or more"
        )
        _require(self.skip_bad >= 0, "skip bad", self.skip_bad, "0 or more")
        _require(self.priority in ("high", "normal", "low"), "priority", self.priority, "high, normal or low")
        _require(self.reducers is None or 1 <= self.reducers <= 10_000, "reducers", self.reducers, "1 to 10000")
        _require(self.split_bytes is None or self.split_bytes >= 1, "split size", self.split_bytes, "1 byte or more")
        _require(self.workers is None or 0 <= self.workers <= 1000, "workers", self.workers, "0 to 1000")
        _require(self.memory >= 1, "memory", self.memory, "1 byte or more")
        _require(self.ship_memory >= 4 << 20, "ship memory", self.ship_memory, "4 MiB or more")
        _require(not isinstance(self.shuffle_urls, str), "shuffle URLs", self.shuffle_urls, "a tuple of URLs")
        for url in self.shuffle_urls:
            _require_server(url)
        _require(self.format in (None, "tsv", "jsonl"), "format", self.format, "tsv or jsonl")


def _require_server(url: str) -> None:
    """Refuse a URL that others may see a password in, without showing it."""
    parts = urlsplit(url)
    where = f"{parts.scheme}://{parts.hostname or ''}"
    if parts.username or parts.password or {"username", "password", "ssl_password"} & parse_qs(parts.query).keys():
        raise RefusedError(
            f"shuffle URL {where}…: the run's workers read it from Redis, so leave user and password out; each process "
            f"logs in as at the run's own Redis or, if its environment has it, with RQMR_SHUFFLE_LOGIN=USER:PASSWORD"
        )
    _require(
        parts.scheme in ("redis", "rediss", "unix"), "shuffle URL", f"{where}…", "redis://host:6379/0 or rediss://…"
    )


def _require(valid: bool, name: str, value: object, allowed: str) -> None:
    if not valid:
        raise RefusedError(f"{name} is {value!r}; it must be {allowed}")
