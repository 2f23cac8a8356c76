"""A run's state in Redis: the only reader and writer of it.

Whatever is written can be written again: redis-py repeats a command whose reply was lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Literal

import msgspec
import redis

from rqmr import keys, registry, sealed
from rqmr.connection import Client, reading_keys
from rqmr.errors import AttemptEnded, MixedKeysError, RecordError, RefusedError, RqmrError, StoreError
from rqmr.facts import End, Event, Facts, Memory
from rqmr.failures import lost_too_often, reopened_too_often, spelled, too_many_bad
from rqmr.inputs import InputMark
from rqmr.keys import RunKeys
from rqmr.look import read_death, read_event, read_facts
from rqmr.memory import memory_in_words
from rqmr.model import (
    AttemptId,
    Claim,
    Failure,
    Kind,
    Outcome,
    Phase,
    Progress,
    RunState,
    Spec,
    Split,
    TaskId,
)
from rqmr.scripts import Scripts
from rqmr.stores import Stores
from rqmr.tickets import Tickets
from rqmr.winners import Winner, Winners

_pack = msgspec.msgpack.encode
_BATCH = 1000  # fields or members in one command
#: A task that no run has, so that none of its attempts has won.
NOBODY = TaskId(10**6, Kind.REDUCE, 0)
_NO_INPUTS: Mapping[bytes, InputMark] = {}


class State:
    """One run's state."""

    def __init__(self, client: Client, run: str) -> None:
        self.client = client
        self.run = run
        self.keys = RunKeys(run)
        self.scripts = Scripts(client, self.keys)
        self.tickets = Tickets(client, run, self.keys, self.scripts)
        self._winners = Winners(client, run, self.keys)
        self._spec: Spec | None = None
        self._resumed = 0  # how often the run had been when its spec was read

    # --- the run ----------------------------------------------------------------------------------------------

    def create(
        self, spec: Spec, splits: Sequence[Split], package: bytes, inputs: Mapping[bytes, InputMark] = _NO_INPUTS
    ) -> None:
        """Write a new run. The run's own hash comes last: while it is missing there is no run.

        `inputs`: how each input file is now, by its path, if the run may be resumed.

        Raises:
            RefusedError: the server is full; nothing is left of the run.
        """
        k = self.keys
        now = self.now_ms()
        pipe = self.client.pipeline(transaction=False)
        pipe.set(keys.code(spec.code), package, px=spec.keep_ms, nx=True)
        pipe.pexpire(keys.code(spec.code), spec.keep_ms, gt=True)  # another run may need it for longer
        tasks = spec.tasks(0)
        for start in range(0, len(splits), _BATCH):
            some = tasks[start : start + _BATCH]
            pipe.hset(k.splits, mapping={t.index: sealed.seal_split(self.run, t.index, splits[t.index]) for t in some})
            pipe.zadd(k.pending, {str(task): keys.rank(0, task.index) for task in some})
            pipe.pexpire(k.splits, spec.keep_ms)
            pipe.pexpire(k.pending, spec.keep_ms)
        marks = list(inputs.items())
        for start in range(0, len(marks), _BATCH):
            pipe.hset(
                k.inputs,
                mapping={path: sealed.seal_mark(self.run, path, mark) for path, mark in marks[start : start + _BATCH]},
            )
            pipe.pexpire(k.inputs, spec.keep_ms)
        registry.register(pipe, spec.run, now)
        fields = {"state": RunState.RUNNING.value, "phase": 0, "opened": 0, "epoch": 0, "keep_ms": spec.keep_ms}
        pipe.hset(k.run, mapping={**fields, "started:0": now, "spec": sealed.seal_spec(spec)})
        pipe.pexpire(k.run, spec.keep_ms)
        self.adopt(spec)
        try:
            self.stores.begin(pipe)
        except RefusedError:
            self.unlink()
            registry.forget(self.client, spec.run)
            raise

    def adopt(self, spec: Spec) -> None:
        """Take the spec from one who has it already."""
        self._spec = spec

    @property
    def spec(self) -> Spec:
        """What the run was created with.

        Raises:
            AttemptEnded: there is no such run (any more).
            RqmrError: as `open_spec`.
        """
        if self._spec is None:
            with reading_keys(f"the spec of run {self.run}"):
                data, resumed = self.client.hmget(self.keys.run, "spec", "resumed")
                resumed = int(resumed or 0)
            if data is None:
                raise AttemptEnded(f"there is no run {self.run} (any more)")
            self._spec = sealed.open_spec(self.run, data)
            self._resumed = resumed
        return self._spec

    @cached_property
    def stores(self) -> Stores:
        """The servers that the run's segments are on."""
        return Stores(self.client, self.keys, self.scripts, self.spec)

    def package(self) -> bytes:
        """Return the job's package.

        Raises:
            RqmrError: it is gone.
        """
        with reading_keys(f"the code of run {self.run}"):
            data = self.client.get(keys.code(self.spec.code))
        if data is None:
            raise RqmrError(f"the code of run {self.run} is gone from Redis; run the job again")
        return bytes(data)

    def inputs(self) -> dict[bytes, InputMark]:
        """Return how each input file was when the run was planned, by its path."""
        with reading_keys(f"the inputs of run {self.run}"):
            told = self.client.hgetall(self.keys.inputs)
        return {path: sealed.open_mark(self.run, path, mark) for path, mark in told.items()}

    def marks(self, paths: Sequence[bytes]) -> dict[bytes, InputMark | None]:
        """Return how input files were when the run was planned; None for one that isn't known."""
        with reading_keys(f"the inputs of run {self.run}"):
            told = self.client.hmget(self.keys.inputs, paths)
        return {
            path: sealed.open_mark(self.run, path, mark) if mark else None
            for path, mark in zip(paths, told, strict=True)
        }

    def pending(self, ranks: Iterable[int]) -> list[str]:
        """Return the tasks at these places in the line; none for a place behind its end."""
        pipe = self.client.pipeline(transaction=False)
        for rank in ranks:
            pipe.zrange(self.keys.pending, rank, rank)
        with reading_keys(f"the pending tasks of run {self.run}"):
            return [task.decode() for tasks in pipe.execute() for task in tasks]

    def split_of(self, claim: Claim) -> Split:
        """Return what a claimed map task reads. Raises as `splits`."""
        return sealed.open_split(self.run, claim.attempt.task.index, claim.split)

    def splits(self, indexes: Sequence[int]) -> dict[int, Split]:
        """Return what some map tasks read. Raises as `open_split`."""
        with reading_keys(f"the splits of run {self.run}"):
            told = dict(zip(indexes, self.client.hmget(self.keys.splits, indexes) if indexes else [], strict=True))
        return {index: sealed.open_split(self.run, index, data) for index, data in told.items()}

    def finish(
        self, state: RunState, failure: Failure | None = None, end: End | None = None, *, seen: bool = False
    ) -> RunState | None:
        """Give the run its last state (unless it was `seen` in it), and write down how it ended; return its state."""
        why, how = (_pack(told) if told else b"" for told in (failure, end))
        reply = self.scripts.finish(state, why, how, registry.KEEP_MS, seen=seen)
        return None if reply == "gone" else RunState(reply)

    def resume(self, spec: Spec, package: bytes, *, fresh: bool) -> bool:
        """Let a failed run go on with another spec and package; return whether it had failed. Raises as `create`."""
        pipe = self.client.pipeline(transaction=False)
        pipe.set(keys.code(spec.code), package, px=spec.keep_ms, nx=True)
        stores = Stores(self.client, self.keys, self.scripts, spec)
        if fresh:
            self.stores.drop()
        stores.begin(pipe)
        word = self.scripts.resume(sealed.seal_spec(spec), spec.phases, fresh=fresh)
        self.adopt(spec)
        self.stores = stores
        self._resumed = int(self.client.hget(self.keys.run, "resumed") or 0)
        return word == "RESUMED"

    def touch(self, *, in_time: bool = False) -> None:
        """Let every key of the run live for another `keep`; `in_time`: not while most of it is left."""
        if in_time and not 0 <= self.client.pttl(self.keys.splits) < self.spec.keep_ms * 3 // 4:
            return
        pipe = self.client.pipeline(transaction=False)
        for name in self.keys.all(self.spec.phases):
            if name not in (self.keys.driver, self.keys.standby):
                pipe.pexpire(name, self.spec.keep_ms)
        pipe.pexpire(keys.code(self.spec.code), self.spec.keep_ms, gt=True)
        pipe.execute()
        self.stores.touch()

    def unlink(self) -> None:
        """Remove every key of the run. The run's own hash goes first, so that nobody writes any more."""
        k = self.keys
        leases = []
        with contextlib.suppress(redis.ResponseError):  # it is no sorted set
            leases = [k.lease_prefix.encode() + attempt for attempt in self.client.zrange(k.leases, 0, -1)]
        names = [k.run, *leases, *k.all(self.spec.phases)]
        for start in range(0, len(names), _BATCH):
            self.client.unlink(*names[start : start + _BATCH])
        self.stores.unlink()

    def drive(self, driver: str, *, lease_ms: int) -> int | None:
        """Take or renew the driver's lease; return its epoch, None if another one holds it or the run is gone."""
        reply = self.scripts.drive(driver, lease_ms=lease_ms)
        return int(reply[1]) if reply[0] == "DRIVING" else None

    def resign(self, driver: str) -> None:
        """Give the driver's lease back, if it is held."""
        self.scripts.drive(driver, lease_ms=0)

    def depose(self) -> None:
        """Take the driver's lease from whoever held it, since it is known to be gone."""
        self.client.delete(self.keys.driver)

    # --- attempts ---------------------------------------------------------------------------------------------

    def claim(
        self, *, token: str, sequence: int, ticket: str, named: str, worker: str, host: str
    ) -> Claim | Literal["STAND BY", "NOTHING"]:
        """Take the next task, or "NOTHING" if there is none now, or "STAND BY": none, and this horse waits for one.

        Raises:
            AttemptEnded: the run has ended, or is resumed, and this horse has its old code.
        """
        try:
            reply = self.scripts.claim(
                token=token, sequence=sequence, ticket=ticket, named=named, worker=worker, host=host,
                lease_ms=self.spec.lease_ms, resumed=self._resumed,
            )  # fmt: skip
        except redis.OutOfMemoryError:
            return "STAND BY"  # RQ couldn't even write that the horse has come back
        if reply == "ENDED":
            raise AttemptEnded(f"run {self.run} has ended")
        if isinstance(reply, Claim):
            return reply
        return "STAND BY" if reply == "STAND BY" else "NOTHING"

    def renew(self, claim: Claim, *, worker: str, host: str, progress: Progress) -> bool:
        """Renew an attempt's lease; whether its work is still wanted."""
        reply = self.scripts.renew(claim, worker=worker, host=host, lease_ms=self.spec.lease_ms, progress=progress)
        return reply == "RENEWED"

    def commit(self, claim: Claim, outcome: Outcome) -> bool:
        """Make an attempt the winner of its task; return whether its phase is complete with it.

        Raises:
            AttemptEnded: another attempt won, or the run has ended.
            RecordError: with what it has skipped the run would skip more records than it may, and so has failed.
            MixedKeysError: the keys of other tasks have another type.
            StoreError: segments that were written are gone.
            WorkerUnfit: whether they are there can't be known.
        """
        phase = self.spec.phase_of(claim.attempt.task)
        limit, skipped = self.spec.skip_bad, outcome.skipped
        failure = too_many_bad(limit, skipped[-1], task=claim.attempt.task) if skipped else Failure("")
        step, partitions = self._shuffle_step(phase), outcome.reducers
        if self.stores.missing(step, claim.attempt, partitions):
            raise StoreError(f"{claim.attempt}: a segment that was written is gone from a shuffle server")
        reply = self.scripts.commit(
            claim, outcome, _pack(outcome), self.stores.on_own(partitions), step, limit, _pack(failure)
        )
        if reply[0] == "RUN FAILED":
            raise RecordError(failure)
        if reply[0] == "MIXED":
            raise MixedKeysError(
                f"keys of one step must have one type: in {claim.attempt.task} they are {outcome.key_type}, "
                f"such as {outcome.key_example}, in others {reply[1]}"
            )
        if reply[0] == "MISSING":
            raise StoreError(f"{claim.attempt}: a segment that was written is gone from Redis")
        if reply[0] != "COMMITTED":
            raise AttemptEnded(f"{claim.attempt} is {reply[0].lower()}")
        return int(reply[1]) >= self.spec.phases[phase].tasks

    def fail(self, attempt: AttemptId, failure: Failure) -> str:
        """Charge a failure to a task; return the script's word."""
        spec, failure = self.spec, spelled(failure)
        return self.scripts.fail(
            attempt,
            phase=spec.phase_of(attempt.task),
            max_failed=1 if failure.final else spec.max_failed,
            failure=_pack(failure),
            message=failure.message[:200],
        )

    def expire(self, attempt: AttemptId, *, dead_since: int | None = None, how: str = "") -> str:
        """Call an attempt lost if its lease has run out; return the script's word.

        `dead_since`: RQ says that its horse is gone; it is lost at once, unless it has renewed its lease after these
        ms. `how`: how the horse's process died, "" if it didn't or nobody knows.
        """
        spec, task = self.spec, attempt.task
        failure = _pack(lost_too_often(task, spec))
        death = None if dead_since is None else read_death(self.client, self.keys, spec, attempt, dead_since, how)
        return self.scripts.expire(
            attempt, phase=spec.phase_of(task), max_lost=spec.max_lost, failure=failure, death=death
        )

    def release(self, attempt: AttemptId) -> str:
        """Let go of an attempt's task, uncharged; return the script's word."""
        return self.scripts.release(attempt, phase=self.spec.phase_of(attempt.task))

    def reopen(self, attempt: AttemptId, outcome: Outcome, reader: TaskId) -> str:
        """Let a winner's task run again, since `reader` couldn't read its segment; return the script's word."""
        spec, task = self.spec, attempt.task
        failure = _pack(reopened_too_often(task, spec))
        return self.scripts.reopen(
            attempt, outcome, reader, phase=spec.phase_of(task), max_lost=spec.max_lost, failure=failure
        )

    def advance(self, number: int) -> str:
        """Pass the barrier behind a phase if it is complete; return the script's word."""
        phases = self.spec.phases
        following = phases[number + 1] if number + 1 < len(phases) else None
        return self.scripts.advance(number, phases[number], following)

    def back_up(self, attempt: AttemptId, worker: str) -> str:
        """Let another worker try the attempt's task too; return the script's word."""
        return self.scripts.back_up(attempt, phase=self.spec.phase_of(attempt.task), worker=worker)

    def _shuffle_step(self, phase: int) -> int:
        """The step whose reducers read what the phase writes."""
        phases = self.spec.phases
        return phases[phase + 1].step if phase + 1 < len(phases) else 0

    def stand_down(self) -> None:
        """Give up the place of the horse that stands by."""
        self.client.delete(self.keys.standby)

    def let_go(self, attempt: AttemptId) -> None:
        """Forget a lost attempt: nothing more is to be done about its work-horse."""
        self.client.hdel(self.keys.holders, str(attempt))

    # --- memory -----------------------------------------------------------------------------------------------

    def pause(self, committed: int, memory: Memory) -> str:
        """Let claims wait for memory, or note again how things are; return the script's word."""
        return self.scripts.pause(committed, memory.used, f"waits for memory, {memory_in_words(memory)}")

    def go_on(self, memory: Memory) -> str:
        """Let claims go on; return the script's word."""
        return self.scripts.pause(None, memory.used, memory_in_words(memory))

    # --- winners ----------------------------------------------------------------------------------------------

    def winners(self, phase: Phase) -> dict[TaskId, Winner]:
        """Return the winner of each committed task of a phase. As `Winners.of_phase`."""
        return self._winners.of_phase(phase)

    def winner(self, task: TaskId) -> Winner | None:
        """Return a task's winner, if it has one. As `Winners.of_task`."""
        return self._winners.of_task(task, self.spec.phases[self.spec.phase_of(task)])

    # --- facts ------------------------------------------------------------------------------------------------

    def facts(self, *, workers: int = 0) -> Facts | None:
        """Return what is true of the run now; None if it is gone. Raises as `read_facts`."""
        return read_facts(self.client, self.keys, self.spec, workers=workers)

    def now_ms(self) -> int:
        """Return the server's time."""
        seconds, microseconds = self.client.time()
        return int(seconds * 1000 + microseconds // 1000)

    def tell(self, what: str, subject: str, note: str) -> None:
        """Add an event, unless the run is gone."""
        self.scripts.tell(what, subject, note)

    def await_event(self, since: str, seconds: float) -> None:
        """Return when there is an event after a position in the stream, or after so many seconds."""
        with reading_keys(f"the events of run {self.run}"):
            self.client.xread({self.keys.events: since}, count=1, block=max(1, round(seconds * 1000)))

    def events(self, since: str = "0") -> tuple[str, list[Event]]:
        """Return the events after a position in the stream, and the position behind them."""
        with reading_keys(f"the events of run {self.run}"):
            entries = self.client.xrange(self.keys.events, min=f"({since}" if since != "0" else "-", count=_BATCH)
        return (entries[-1][0].decode() if entries else since), [read_event(*entry) for entry in entries]
