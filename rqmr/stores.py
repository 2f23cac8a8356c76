"""The servers that a run's segments are on: its own Redis, and those that `--shuffle-url` names.

Reducer r's are on server r modulo their number; all else of a run is on its own Redis, the first. Each other one has
the run's *mark*: a hash with the run's name and what `write` looks at, so that nothing is written there when the run
has ended. A server that has forgotten it is given it again, if the run still runs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import redis
from msgspec import structs

from rqmr.connection import IN_ENVIRONMENT, Client, join, memory_of
from rqmr.errors import AttemptEnded, RedisError, RefusedError, StoreError, WorkerUnfit
from rqmr.facts import Memory
from rqmr.keys import RunKeys, segment_field
from rqmr.memory import memory_in_words
from rqmr.model import AttemptId, RunState, Spec
from rqmr.scripts import Scripts
from rqmr.spilled import Spill, stub_in
from rqmr.where import hide_password

#: Keys, or commands, in one go.
_BATCH = 1000
#: Seconds for which a look at the memory of the other servers holds.
_LOOK_SECONDS = 0.2
_RUNNING = RunState.RUNNING.value.encode()


class Full(StoreError):
    """The server refuses to write."""


class Store:
    """One server that segments are on."""

    def __init__(self, client: Client, keys: RunKeys, scripts: Scripts, name: str = "") -> None:
        """`name`: its URL as it can be shown, "" for the run's own Redis."""
        self.client = client
        self.scripts = scripts
        self.name = name
        self.is_away = False
        self._keys = keys

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Tell what goes wrong with the server inside a task, where any other exception is taken for the job's own.

        Raises:
            Full: it refuses to write.
            WorkerUnfit: this process can't use it; if no worker can, the run fails with that.
            StoreError: the run's own Redis failed, which every worker needs.
        """
        try:
            yield
        except redis.OutOfMemoryError as error:
            raise Full(f"{type(error).__name__}: {error}") from error
        except redis.RedisError as error:
            self.is_away = True
            if self.name and isinstance(error, redis.AuthenticationError):
                raise WorkerUnfit(f"it can't log in to the shuffle server {self.name}: {IN_ENVIRONMENT}") from error
            if self.name:
                raise WorkerUnfit(f"it can't use the shuffle server {self.name}: {error}") from error
            raise StoreError(f"{type(error).__name__}: {error}") from error

    def memory(self) -> Memory:
        """Return how full the server is."""
        return structs.replace(memory_of(self.client), server=self.name)

    def mark(self, keep_ms: int) -> None:
        """Let attempts write."""
        with self.client.pipeline(transaction=True) as pipe:
            pipe.hset(self._keys.run, mapping={"state": RunState.RUNNING.value, "keep_ms": keep_ms})
            pipe.pexpire(self._keys.run, keep_ms)
            pipe.execute()


class Stores:
    """All servers that one run's segments are on, and what is done on each of them."""

    def __init__(self, client: Client, keys: RunKeys, scripts: Scripts, spec: Spec) -> None:
        self._own = Store(client, keys, scripts)
        self._keys = keys
        self._spec = spec
        self._looked = -_LOOK_SECONDS
        self._fullest = Memory()

    @cached_property
    def others(self) -> list[Store]:
        """Those besides the run's own; connected when they are first used."""
        return [self._joined(url, patient=True) for url in self._spec.shuffle]

    @cached_property
    def spill(self) -> Spill | None:
        """Where chunks are spilled to, if they are."""
        return Spill(self._spec.spill, self._spec.run) if self._spec.spill else None

    def of(self, partition: int) -> Store:
        """Return the server that the segments for a reducer are on."""
        number = self.number_of(partition)
        return self.others[number - 1] if number else self._own

    def number_of(self, partition: int) -> int:
        """Return the number of that server, 0 for the run's own."""
        return partition % (1 + len(self._spec.shuffle))

    def begin(self, pipe: Client) -> None:
        """Make ready what segments go to, and then do what begins the run on its own Redis.

        Raises:
            RefusedError: a server is full, or one of the others, or what is spilled to, can't be used.
        """
        if self.spill:
            self.spill.prepare()
        for store in self.others:
            try:
                with _taking(store.client, f"the shuffle server {store.name}"):
                    store.mark(self._spec.keep_ms)
            except redis.RedisError as error:
                raise RefusedError(f"the shuffle server {store.name} can't be used: {error}") from None
        with _taking(self._own.client, "the Redis server"):
            pipe.execute()

    def check(self) -> None:
        """Return if all other servers answer; raise WorkerUnfit if this process can't use one."""
        for store in self.others:
            with store.serving():
                store.client.ping()

    def write(self, store: Store, fields: dict[str, dict[str, bytes]]) -> None:
        """Write fields of shuffle hashes, all in one go. Raises as `Store.serving`, and AttemptEnded: the run has."""
        with store.serving():
            if "ENDED" not in store.scripts.write(fields):
                return
            if store is not self._own and self._is_running():
                store.mark(self._spec.keep_ms)  # it was started again, without its data
                if self._is_running():  # still: nobody has removed the mark, and nobody would again
                    if "ENDED" not in store.scripts.write(fields):
                        return
                else:
                    store.client.unlink(self._keys.run)
        raise AttemptEnded(f"run {self._spec.run} has ended")

    def fetch(self, step: int, partition: int, fields: Sequence[str]) -> list[bytes | None]:
        """Return chunks of a reducer's segments, spilled or not; None for one that is missing. Raises as `serving`."""
        store = self.of(partition)
        with store.serving():
            found: list[bytes | None] = store.client.hmget(self._keys.shuffle(step, partition), fields)
        stubs = {number: stub for number, data in enumerate(found) if (stub := stub_in(data))}
        if stubs:
            for number, data in zip(stubs, self._spilled(list(stubs.values())), strict=True):
                found[number] = data
        return found

    def missing(self, step: int, attempt: AttemptId, partitions: Sequence[int]) -> list[int]:
        """Return for which reducers on other servers the attempt has no whole segment; the commit sees the rest."""
        field = segment_field(attempt.task.index, attempt.number, 0)
        missing: list[int] = []
        for number, store in enumerate(self.others, 1):
            mine = [partition for partition in partitions if self.number_of(partition) == number]
            if not mine:
                continue
            with store.serving(), store.client.pipeline(transaction=False) as pipe:
                for partition in mine:
                    pipe.hexists(self._keys.shuffle(step, partition), field)
                missing += [each for each, there in zip(mine, pipe.execute(), strict=True) if not there]
        return missing

    def on_own(self, partitions: Sequence[int]) -> list[int]:
        """Return those of the reducers whose segments are on the run's own Redis."""
        return [partition for partition in partitions if not self.number_of(partition)]

    def fullest(self, own: Memory) -> Memory:
        """Return how full the fullest of the servers is; `own`: how full the run's own is."""
        if self._spec.shuffle and time.monotonic() - self._looked > _LOOK_SECONDS:
            others = [Memory()]
            for store in self._watched:
                with suppress(redis.RedisError):  # its share isn't known; workers tell if they can't use it
                    others.append(store.memory())
            self._fullest = max(others, key=lambda each: each.share)
            self._looked = time.monotonic()
        return max(own, self._fullest, key=lambda each: each.share)

    def sizes(self, step: int, reducers: int, server: str) -> int | None:
        """Return how many bytes the segments of a step take on a server; None if it may not be asked."""
        size = 0
        store = next((each for each in self.others if each.name == server), self._own)
        mine = [reducer for reducer in range(reducers) if self.of(reducer) is store]
        for start in range(0, len(mine), _BATCH):
            pipe = store.client.pipeline(transaction=False)
            for reducer in mine[start : start + _BATCH]:
                pipe.memory_usage(self._keys.shuffle(step, reducer), samples=0)  # of all fields: chunks differ in size
            try:
                size += sum(each or 0 for each in pipe.execute())
            except redis.ResponseError:
                return None
        return size

    def touch(self) -> None:
        """Let what is on the other servers live for another `keep`, where they answer."""
        self._on_others(lambda pipe, name: pipe.pexpire(name, self._spec.keep_ms), [self._keys.run, *self._shuffles])

    def drop(self) -> None:
        """Remove all segments but those in the run's own Redis."""
        self._on_others(lambda pipe, name: pipe.unlink(name), self._shuffles)
        if self.spill:
            self.spill.clear()

    def unlink(self) -> None:
        """Remove the run's mark on the other servers, so that nobody writes there any more, and what `drop` removes."""
        self._on_others(lambda pipe, name: pipe.unlink(name), [self._keys.run])
        self.drop()

    def _on_others(self, act: Any, names: Sequence[str]) -> None:
        """Do something with keys of the other servers; those that don't answer are left to the keys' TTL."""
        if not self._spec.shuffle:
            return
        for store in self._watched:
            with suppress(redis.RedisError):
                for start in range(0, len(names), _BATCH):
                    pipe = store.client.pipeline(transaction=False)
                    for name in names[start : start + _BATCH]:
                        act(pipe, name)
                    pipe.execute()

    @cached_property
    def _watched(self) -> list[Store]:
        """The others, through clients that don't wait for one that is away."""
        return [self._joined(url, patient=False) for url in self._spec.shuffle]

    @property
    def _shuffles(self) -> list[str]:
        return [
            self._keys.shuffle(phase.step, reducer) for phase in self._spec.phases[1:] for reducer in range(phase.tasks)
        ]

    def _joined(self, url: str, *, patient: bool) -> Store:
        try:
            client = join(url, self._own.client, patient=patient)
        except RedisError as error:
            raise WorkerUnfit(str(error)) from None
        return Store(client, self._keys, Scripts(client, self._keys), hide_password(url))

    def _is_running(self) -> bool:
        with self._own.serving():
            return bool(self._own.client.hget(self._keys.run, "state") == _RUNNING)

    def _spilled(self, stubs: Sequence[Any]) -> list[bytes | None]:
        if not self.spill:
            return [None] * len(stubs)
        with self.seeing_spill():
            return self.spill.read(stubs)

    @contextmanager
    def seeing_spill(self) -> Iterator[None]:
        """Tell why the directory that chunks are spilled to isn't there. Raises AttemptEnded or WorkerUnfit."""
        try:
            yield
        except FileNotFoundError:
            if not self._is_running():
                raise AttemptEnded(f"run {self._spec.run} has ended") from None
            raise WorkerUnfit(
                f"it doesn't see the spill directory {self._spec.spill}: --spill takes one that all workers see"
            ) from None


@contextmanager
def _taking(client: Client, server: str) -> Iterator[None]:
    """Refuse a new run if its server is full."""
    try:
        yield
    except redis.OutOfMemoryError:
        used = memory_in_words(memory_of(client))
        raise RefusedError(
            f"{server} is full ({used}): it takes no new run; free something on it, or raise its maxmemory"
        ) from None
