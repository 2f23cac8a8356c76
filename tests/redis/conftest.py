"""What the tests of the scripts share: a run made by hand, and the moves of its workers."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from rqmr.inputs import InputMark
from rqmr.keys import RUNS
from rqmr.model import (
    AttemptId,
    Claim,
    Failure,
    Kind,
    Outcome,
    Phase,
    Piece,
    Progress,
    RecordAt,
    RunState,
    Settings,
    Spec,
    Split,
    TaskId,
    bitmap,
)
from rqmr.segments import RedisSink
from rqmr.state import State

NO_PROGRESS = Progress()

_READERS: dict[bytes, Callable[[Any, bytes], Any]] = {
    b"string": lambda redis, key: redis.get(key),
    b"hash": lambda redis, key: redis.hgetall(key),
    b"list": lambda redis, key: redis.lrange(key, 0, -1),
    b"zset": lambda redis, key: redis.zrange(key, 0, -1, withscores=True),
    b"stream": lambda redis, key: redis.xrange(key),
    b"none": lambda redis, key: None,  # it expired meanwhile
}


class Run:
    """One run, with the moves of its workers. Each move is the script call that a worker makes."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.redis = state.client
        self.keys = state.keys
        self.scripts = state.scripts
        self.spec = state.spec
        self._horses = itertools.count(1)

    def through(self, client: Any) -> Run:
        """Return the same run, through another client."""
        state = State(client, self.spec.run)
        state.adopt(self.spec)
        return Run(state)

    # --- moves, each of which returns the script's words -------------------------------------------------------

    def claim(
        self, worker: str = "w1", *, ticket: str = "", named: str = "", token: str = "", sequence: int = 1
    ) -> Claim | None:
        """Claim as a horse of its own, unless a token is given; None if there is nothing to take."""
        told = self.ask(worker, ticket=ticket, named=named, token=token, sequence=sequence)
        return told if isinstance(told, Claim) else None

    def ask(
        self, worker: str = "w1", *, ticket: str = "", named: str = "", token: str = "", sequence: int = 1
    ) -> Claim | str:
        """Claim, and return also the script's word."""
        token = token or f"horse-{next(self._horses)}"
        return self.state.claim(
            token=token, sequence=sequence, ticket=ticket, named=named, worker=worker, host="somewhere"
        )

    def renew(
        self, claim: Claim, worker: str = "w1", *, lease_ms: int = 10_000, progress: Progress = NO_PROGRESS
    ) -> str:
        return self.scripts.renew(claim, worker=worker, host="somewhere", lease_ms=lease_ms, progress=progress)

    def write(
        self, claim: Claim, *partitions: int, records: int = 10, size: int = 100, content: bytes = b"", **told: Any
    ) -> Outcome:
        """Write a segment for each of the partitions, and return what there is to commit."""
        sink = RedisSink(self.state, claim.attempt)
        for partition in partitions:
            sink.write(partition, 0, content or f"{claim.attempt} for {partition}".encode())
        sink.flush()
        return Outcome(records, size, 0, told.pop("counters", {}), bitmap(set(partitions)), **told)

    def commit(self, claim: Claim, outcome: Outcome | None = None) -> list[Any]:
        """Commit; without an outcome, one that has nothing for any reducer."""
        outcome = outcome or Outcome(10, 100, 0, {})
        partitions = [index for index in range(len(outcome.partitions) * 8) if outcome.has_partition(index)]
        following = self.spec.phase_of(claim.attempt.task) + 1
        step = self.spec.phases[following].step if following < len(self.spec.phases) else 0
        return self.scripts.commit(
            claim,
            outcome,
            msgspec.msgpack.encode(outcome),
            partitions,
            step,
            self.spec.skip_bad,
            msgspec.msgpack.encode(Failure("too many are bad")),
        )

    def fail(self, claim: Claim, message: str = "ValueError: boom", *, final: bool = False) -> str:
        return self.state.fail(claim.attempt, Failure(message, task=str(claim.attempt.task), final=final))

    def die(self, claim: Claim, *, at: int | None = None, how: str = "SIGKILL") -> str:
        """Let RQ tell that the attempt's process died, at a record that it had told if one is given."""
        lease = self.keys.lease(claim.attempt)
        if at is not None:
            place = RecordAt(at, "a.txt", 10 * at, f"'record {at}'")
            self.redis.hset(lease, "place", msgspec.msgpack.encode(place))
        return self.state.expire(claim.attempt, dead_since=int(self.redis.hget(lease, "renewed")), how=how)

    def lose(self, claim: Claim) -> str:
        """Let the attempt's lease run out, and expire it; one that is lost already revives first."""
        assert self.renew(claim, lease_ms=1) == "RENEWED"
        return self.wait_until(lambda: (word := self.state.expire(claim.attempt)) != "ALIVE" and word)

    def commit_phase(self) -> dict[TaskId, Claim]:
        """Claim and commit all that is pending, and pass the barrier; return who won."""
        won = {}
        while claim := self.claim():
            assert self.commit(claim)[0] == "COMMITTED"
            won[claim.attempt.task] = claim
        facts = self.state.facts()
        assert self.state.advance(facts.phase) == "ADVANCED"
        return won

    def end(self, how: str) -> None:
        """End the run in one of the four ways of the fixture `ending`."""
        if how == "gone":
            self.state.unlink()
        else:
            assert self.state.finish(RunState(how)) == how

    # --- looks ---------------------------------------------------------------------------------------------------

    def dump(self, *besides: str) -> dict[str, Any]:
        """Return all that is in the database, but its TTLs and the index of runs, which belongs to none."""
        found = {key: _READERS[self.redis.type(key)](self.redis, key) for key in self.redis.scan_iter("*")}
        return {key.decode(): value for key, value in sorted(found.items()) if key.decode() not in (*besides, RUNS)}

    def line(self) -> list[str]:
        """Return the pending tasks, the next one first."""
        return [task.decode() for task in self.redis.zrange(self.keys.pending, 0, -1)]

    def attempt_is(self, claim: Claim) -> str:
        return self.redis.hget(self.keys.attempts, str(claim.attempt)).decode()

    def tries(self, claim: Claim, what: str) -> int:
        """Return one of the numbers that are kept of the attempt's task."""
        return int(self.redis.hget(self.keys.tries, f"{claim.attempt.task}:{what}") or 0)

    def events(self) -> list[tuple[str, str]]:
        return [(event.what, event.subject) for event in self.state.events()[1]]

    def is_leased(self, claim: Claim) -> bool:
        listed = self.redis.zscore(self.keys.leases, str(claim.attempt)) is not None
        assert listed == bool(self.redis.exists(self.keys.lease(claim.attempt))), "the two halves of a lease differ"
        return listed

    @staticmethod
    def wait_until(predicate: Callable[[], Any]) -> Any:
        """Wait for a fact that a few milliseconds bring about; return what the predicate gave."""
        deadline = time.monotonic() + 5
        while not (value := predicate()):
            assert time.monotonic() < deadline, "waited 5 s in vain"
            time.sleep(0.001)
        return value


MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(redis: Any) -> MakeRun:
    """Create a run through `State.create`, as a driver does; its leases are too long to expire unasked."""

    def make(maps: int = 3, reducers: int = 2, **spec: Any) -> Run:
        reduce_phases = (Phase(0, Kind.REDUCE, reducers),) if reducers else ()
        given = {
            "run": "wordcount-7k2p9x",
            "job": "wordcount",
            "code": "c0de",
            "job_class": "WordCount",
            "params": {},
            "phases": (Phase(0, Kind.MAP, maps), *reduce_phases),
            "stage": "/out/.rqmr-wordcount-7k2p9x",
            "settings": Settings(),
            "lease_ms": 10_000,
            "keep_ms": 60_000,
            "max_failed": 4,
            "max_lost": 20,
            "queue": "rqmr",
        }
        whole = Spec(**{**given, **spec})
        splits = [split(index) for index in range(whole.phases[0].tasks)]
        state = State(redis, whole.run)
        state.create(whole, splits, b"the code", {b"/in/0.txt": InputMark("0.txt", 100, 1, 2)})
        return Run(state)

    return make


def split(index: int) -> Split:
    return Split((Piece(f"{index}.txt", f"/in/{index}.txt".encode(), 0, 100, 100),))


@pytest.fixture
def maxmemory(redis: Any) -> Iterator[Callable[[int], None]]:
    """Set the server's memory limit, in bytes, until the test ends."""
    yield lambda limit: redis.config_set("maxmemory", limit)
    redis.config_set("maxmemory", 0)


@pytest.fixture
def run(make_run: MakeRun) -> Run:
    """A run of three map tasks and two reduce tasks."""
    return make_run()


@pytest.fixture(params=["succeeded", "failed", "cancelled", "gone"])
def ending(request: pytest.FixtureRequest) -> str:
    """How a run has ended; a late call must do nothing in all four cases."""
    return request.param


@pytest.fixture
def never_claimed() -> AttemptId:
    """An attempt that nobody has made."""
    return AttemptId(TaskId(0, Kind.MAP, 0), 7)
