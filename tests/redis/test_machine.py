"""The protocol by machine: any calls in any order, each repeated whenever it likes, against the model in plain Python.

After every call its reply, and all that is in Redis but times, have to be the model's. RQMR_TEST_EXAMPLES=5000 looks
for longer.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from msgspec import structs
from protocol_model import ALIVE, HOLDING, Attempt, Claimed, Model, index_of

from rqmr.errors import AttemptEnded
from rqmr.facts import End, Memory
from rqmr.model import (
    AttemptId,
    Claim,
    Failure,
    Kind,
    Outcome,
    Phase,
    Progress,
    RecordAt,
    RunState,
    Skipped,
    Spec,
    TaskId,
    bitmap,
)
from rqmr.scripts import source
from rqmr.segments import RedisSink, drop_segments

F = TypeVar("F", bound=Callable[..., None])

EXAMPLES = int(os.environ.get("RQMR_TEST_EXAMPLES", "60"))
PHASES = (Phase(0, Kind.MAP, 3), Phase(0, Kind.REDUCE, 2), Phase(1, Kind.REDUCE, 2))
WORKERS = ("w0", "w1", "w2")
HORSES = 4  # one worker has two, which is what a ticket that was enqueued twice makes
LEASE_MS, KEEP_MS = 600_000, 3_600_000  # so long that none ends by itself
REMEMBERED = 20  # calls that may come again
NOBODY = "s9-r0000"  # a reader that waits for no task of the run
SHORT = Memory(used=90, limit=100)
RUNS, CODE = "rqmr:runs", "rqmr:code:c0de"  # all that isn't the run's own

#: All that is in the database, in one look: key, ms to live, what it holds.
LOOK = """
local readers = {
  string = function(key) return redis.call('GET', key) end,
  hash = function(key) return redis.call('HGETALL', key) end,
  list = function(key) return redis.call('LRANGE', key, 0, -1) end,
  zset = function(key) return redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') end,
  stream = function(key) return redis.call('XRANGE', key, '-', '+') end,
}
local found = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  found[#found + 1] = {key, redis.call('PTTL', key), readers[redis.call('TYPE', key).ok](key)}
end
local time = redis.call('TIME')
return {time[1] * 1000 + math.floor(time[2] / 1000), found}
"""


def one_of(look: Callable[[Machine], Any]) -> st.SearchStrategy[Any]:
    """Choose from what the machine knows at that moment."""
    return st.runner().flatmap(lambda machine: st.sampled_from(look(machine)))


def few(most: int) -> st.SearchStrategy[int]:
    return st.integers(0, most)


partitions = st.sets(few(1), max_size=2)
horses = few(HORSES - 1)
endings = st.sampled_from(["failed", "failed", "succeeded", "cancelled"])
any_task = st.sampled_from(["", *(f"{phase.name}{index:04}" for phase in PHASES for index in range(phase.tasks))])

# Attempts by their names, as far as the model says that they may still have a say.
any_attempt = one_of(lambda machine: [*machine.model.attempts, *machine.names(ALIVE) * 2])
living_attempt = one_of(lambda machine: machine.names(ALIVE))
#: One that was told that its work isn't wanted removes what it has written, and never writes again.
working_attempt = one_of(lambda machine: machine.working())
leased_attempt = one_of(lambda machine: machine.names(HOLDING))


@dataclass(frozen=True)
class Move:
    """How often a move is made, when it can be, and with what."""

    weight: int
    when: Callable[[Machine], Any]
    arguments: dict[str, st.SearchStrategy[Any]]


MOVES: dict[str, Move] = {}


def move(weight: int, when: Callable[[Machine], Any] = lambda machine: True, **arguments: Any) -> Callable[[F], F]:
    """Make a method one of the machine's moves.

    Hypothesis leaves out half of the rules in each example, and in one without claims, say, nothing happens: so there
    is one rule, and it chooses among these.
    """

    def decorate(method: F) -> F:
        MOVES[method.__name__] = Move(weight, when, arguments)
        return method

    return decorate


def possible_moves(machine: Machine) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    names = [name for name, each in MOVES.items() if each.when(machine) for _ in range(each.weight)]
    return st.sampled_from(names).flatmap(
        lambda name: st.tuples(st.just(name), st.fixed_dictionaries(MOVES[name].arguments))
    )


def somebody_works_on(machine: Machine) -> bool:
    return bool(machine.working())


def somebody_lives(machine: Machine) -> bool:
    return bool(machine.names(ALIVE))


def somebody_works(machine: Machine) -> bool:
    return bool(machine.names(HOLDING))


def has_ended(machine: Machine) -> bool:
    return machine.model.state != "running"


@dataclass(frozen=True)
class Call:
    """A call, to be made again as redis-py does when it got no reply."""

    real: Callable[[], Any]
    expected: Callable[[], Any]
    actor: str = ""  # the attempt whose horse makes it, if it listens to the reply:
    heard: Callable[[Any], None] = lambda reply: None
    is_new_each_time: bool = False


class Machine(RuleBasedStateMachine):
    """One run, its workers and drivers, and what goes wrong."""

    def __init__(self, make_run: Callable[..., Any], redis: Any) -> None:
        super().__init__()
        redis.flushdb()
        self.redis, self.make_run = redis, make_run
        self.look_script = redis.register_script(LOOK)
        self.place_script = redis.register_script(source("place"))
        self.claims: dict[str, Claim] = {}
        self.sequences: Counter[int] = Counter()  # of a horse
        self.outcomes: dict[str, Outcome] = {}  # of every attempt that has ever won
        self.knows_its_end: set[str] = set()  # attempts that don't want their segments any more
        self.vanished: set[tuple[int, int, str]] = set()
        self.sent: list[Call] = []
        self.how_it_ends, self.is_finished = "", False
        self.steps = 0
        self.is_sound = True  # the last look was as it should be
        self.has_just_asked = False

    def names(self, states: tuple[str, ...]) -> list[str]:
        return [each.name for each in self.model.attempts.values() if each.state in states]

    # --- calls ----------------------------------------------------------------------------------------------------

    def call(self, real: Callable[[], Any], expected: Callable[[], Any], **how: Any) -> Any:
        """Make a call, and remember it, since it may come again."""
        self.sent = [*self.sent[1 - REMEMBERED :], Call(real, expected, **how)]
        reply = self.make(self.sent[-1], is_heard=True)
        self.has_just_asked = True
        return reply

    def make(self, call: Call, *, is_heard: bool) -> Any:
        """Make a call, and hold its reply and all that is in Redis against the model's."""
        reply = self.ask(call)
        self.compare()
        if is_heard:
            call.heard(reply)
        return reply

    def ask(self, call: Call) -> Any:
        self.is_sound = self.has_just_asked = False
        due = call.expected()
        try:
            reply = call.real()
        except AttemptEnded:
            reply = "ENDED"
        assert reply == due
        return reply

    def claim_as(self, horse: int, named: str = "", ticket: int | None = None) -> str:
        self.sequences[horse] += 1
        sequence, worker = self.sequences[horse], WORKERS[horse % len(WORKERS)]

        def real() -> Claimed:
            told = self.run.ask(worker, ticket=f"x-t{ticket or ''}", named=named, token=f"h{horse}", sequence=sequence)
            if isinstance(told, str):
                return told
            self.claims[str(told.attempt)] = told
            return str(told.attempt), told.careful, told.bad

        reply = self.call(real, lambda: self.model.claim(f"h{horse}", sequence, worker, ticket=ticket, named=named))
        return str(reply) if isinstance(reply, str) else str(reply[0])

    def write_as(self, name: str, some: set[int]) -> str:
        known = sorted(some & set(self.model.partitions_of(self.model.attempts[name].task)))

        def real() -> str:
            self.run.write(self.claims[name], *known)
            return "WRITTEN"

        def expected() -> str:
            word = self.model.write(name, known) if known else "WRITTEN"
            self.vanished -= self.model.segments
            return word

        return self.call(real, expected)

    def commit_as(self, name: str, some: set[int], key_type: str = "str", bad: int = 0) -> str:
        attempt = self.model.attempts[name]
        told = some & set(self.model.partitions_of(attempt.task))
        index = index_of(attempt.task)
        skipped = (Skipped(0, "a.txt", 0, "'bad'", "ValueError: bad"),) * bad
        key_type = key_type if told else ""
        outcome = Outcome(index, 100 * attempt.number, 0, {}, bitmap(told), key_type, skipped=skipped)

        def heard(reply: list[Any]) -> None:
            if reply[0] == "COMMITTED":
                self.knows_its_end.discard(name)
                self.outcomes[name] = self.model.attempts[name].outcome
            elif reply[0] != "MISSING":
                self.knows_its_end.add(name)

        reply = self.call(
            lambda: self.run.commit(self.claims[name], outcome),
            lambda: self.model.commit(name, outcome),
            actor=name,
            heard=heard,
        )
        return str(reply[0])

    def fail_as(self, name: str, *, final: bool = False) -> str:
        reply = self.call(
            lambda: self.run.fail(self.claims[name], final=final), lambda: self.model.fail(name, final=final)
        )
        if reply != "ENDED":
            self.knows_its_end.add(name)
        return reply

    def release_as(self, name: str) -> str:
        attempt = AttemptId.parse(name)
        reply = self.call(lambda: self.run.state.release(attempt), lambda: self.model.release(name))
        if reply != "ENDED":
            self.knows_its_end.add(name)
        return reply

    def expire_as(self, name: str) -> str:
        attempt = AttemptId.parse(name)
        return self.call(lambda: self.run.state.expire(attempt), lambda: self.model.expire(name))

    def reopen_as(self, name: str, reader: str) -> str:
        attempt, task, outcome = AttemptId.parse(name), TaskId.parse(reader), self.outcomes[name]
        return self.call(lambda: self.run.state.reopen(attempt, outcome, task), lambda: self.model.reopen(name, reader))

    def advance_to_behind(self, number: int) -> str:
        return self.call(lambda: self.run.state.advance(number), lambda: self.model.advance(number))

    def discard_as(self, name: str) -> None:
        told = self.model.partitions_of(self.model.attempts[name].task)

        def real() -> str:
            sink = RedisSink(self.run.state, self.claims[name].attempt)
            for partition in told:
                sink.write(partition, 0, b"")  # as it did; it isn't sent without a flush
            sink.discard()
            return "DISCARDED"

        self.call(real, lambda: self.model.discard(name, told))

    def work_as(self, horse: int) -> bool:
        """Be a horse that claims, writes and commits; whether there was something to do."""
        name = self.claim_as(horse)
        if name not in self.model.attempts:
            return False
        self.write_and_commit_as(name)
        return True

    def write_and_commit_as(self, name: str) -> None:
        task = self.model.attempts[name].task
        everything = set(self.model.partitions_of(task))
        self.write_as(name, everything)
        word = self.commit_as(name, everything)
        if word == "COMMITTED":
            self.advance_to_behind(self.model.phase_of(task))
        elif word == "MIXED":
            self.fail_as(name, final=True)

    # --- moves ----------------------------------------------------------------------------------------------------

    @initialize(
        phases=few(2), claims=few(3), skip_bad=st.sampled_from([0, 2]), how_it_ends=endings, is_finished=st.booleans()
    )
    def begin(self, phases: int, claims: int, skip_bad: int, how_it_ends: str, is_finished: bool) -> None:
        """Some phases are done, some tasks taken; and it is settled how the run ends, and whether its work is done."""
        self.how_it_ends, self.is_finished = how_it_ends, is_finished
        self.run = self.make_run(
            phases=PHASES, max_failed=3, max_lost=4, skip_bad=skip_bad, lease_ms=LEASE_MS, keep_ms=KEEP_MS
        )
        self.model = Model(self.run.spec)
        while self.model.phase < phases:
            assert self.work_as(0)
        for horse in range(claims):
            self.claim_as(horse)

    @rule(move=st.runner().flatmap(possible_moves))
    def go_on(self, move: tuple[str, dict[str, Any]]) -> None:
        name, arguments = move
        getattr(self, name)(**arguments)

    @move(12, horse=horses, named=any_task, has_ticket=st.booleans())
    def claim(self, horse: int, named: str, has_ticket: bool) -> None:
        self.claim_as(horse, named, min(self.model.tickets) if self.model.tickets and has_ticket else None)

    @move(4, horse=horses)
    def work(self, horse: int) -> None:
        self.work_as(horse)

    @move(8, somebody_works, name=leased_attempt, horse=horses, is_lost=st.booleans(), wins=st.booleans())
    def rival(self, name: str, horse: int, is_lost: bool, wins: bool) -> None:
        """The task gets another attempt, a backup or since the first one is lost; the first one goes on."""
        if is_lost:
            self.lose(name)
        else:
            self.back_up(name)
        second = self.claim_as(horse, self.model.attempts[name].task)
        if second in self.model.attempts and wins:
            self.write_and_commit_as(second)
        self.renew(name)

    @move(6, lambda machine: machine.model.attempts, name=any_attempt)
    def renew(self, name: str) -> None:
        claim, worker = self.claims[name], self.model.attempts[name].worker
        self.call(
            lambda: self.run.renew(claim, worker, lease_ms=LEASE_MS, progress=Progress(1, 2, 0.5)),
            lambda: self.model.renew(name),
        )

    @move(2, somebody_works_on, name=working_attempt, some=partitions)
    def write(self, name: str, some: set[int]) -> None:
        self.write_as(name, some)

    @move(8, somebody_works_on, name=working_attempt, some=partitions)
    def write_and_commit(self, name: str, some: set[int]) -> None:
        self.write_as(name, some)
        self.commit_as(name, some)

    @move(2, somebody_works_on, name=working_attempt, bad=st.integers(1, 3))
    def skip_and_commit(self, name: str, bad: int) -> None:
        """It has left out bad records."""
        self.write_as(name, {0})
        self.commit_as(name, {0}, bad=bad)

    @move(4, lambda machine: machine.model.attempts, name=any_attempt, some=partitions)
    def commit(self, name: str, some: set[int]) -> None:
        """What it hasn't written is missing."""
        self.commit_as(name, some)

    @move(1, somebody_lives, name=living_attempt)
    def mix(self, name: str) -> None:
        """Its keys are of another type than the others'."""
        self.write_as(name, {0, 1})
        self.commit_as(name, {0, 1}, "int")

    @move(4, somebody_lives, name=living_attempt)
    def fail(self, name: str) -> None:
        self.fail_as(name)

    @move(1, somebody_lives, name=living_attempt)
    def fail_for_good(self, name: str) -> None:
        self.fail_as(name, final=True)

    @move(4, somebody_lives, name=living_attempt)
    def release(self, name: str) -> None:
        self.release_as(name)

    @move(4, lambda machine: machine.knows_its_end, name=one_of(lambda machine: sorted(machine.knows_its_end)))
    def discard(self, name: str) -> None:
        """It isn't wanted, so its segments aren't."""
        self.discard_as(name)

    @move(
        5,
        lambda machine: machine.outcomes,
        name=one_of(lambda machine: [*machine.outcomes, *machine.names(("committed",)) * 2]),
        index=few(1),
        comes_late=st.booleans(),
    )
    def reopen(self, name: str, index: int, comes_late: bool) -> None:
        """Somebody misses a segment of one that has won, or had; and another one, who slept until it was made good."""
        following = self.model.phase_of(self.model.attempts[name].task) + 1
        reader = f"{PHASES[following].name}{index:04}" if following < len(PHASES) else NOBODY
        self.reopen_as(name, reader)
        if comes_late:
            self.work_as(index)
            self.reopen_as(name, reader)

    @move(6, lambda machine: machine.readers(), name=one_of(lambda machine: machine.readers()), producer=few(2))
    def miss_a_segment(self, name: str, producer: int) -> None:
        """A segment vanishes; the attempt that needs it lets the winner's task run again, and lets go of its own."""
        reader = self.model.attempts[name]
        before = self.model.tasks(self.model.phase_of(reader.task) - 1)
        winner = self.model.winners.get(before[producer % len(before)])
        if winner is None:
            return
        gone = self.model.segment(winner, index_of(reader.task))
        self.redis.hdel(self.run.keys.shuffle(gone[0], gone[1]), gone[2])
        self.model.segments.discard(gone)
        self.vanished.add(gone)
        self.reopen_as(winner.name, reader.task)
        self.discard_as(name)
        self.release_as(name)

    def working(self) -> list[str]:
        return [name for name in self.names(ALIVE) if name not in self.knows_its_end]

    def readers(self) -> list[str]:
        return [name for name in self.names(HOLDING) if self.model.phase_of(self.model.attempts[name].task)]

    @move(6, behind=st.sampled_from([0, 0, 0, 1, 2]))
    def advance(self, behind: int) -> None:
        self.advance_to_behind(max(0, min(self.model.phase, len(PHASES) - 1) - behind))

    @move(2, lambda machine: machine.model.attempts, name=any_attempt)
    def expire(self, name: str) -> None:
        self.expire_as(name)

    @move(4, somebody_works, name=leased_attempt, times=st.integers(1, 2))
    def fall_silent_for_long(self, name: str, times: int) -> None:
        """Its lease runs out, and somebody says so; it comes back, perhaps, and falls silent again."""
        self.lose(name)
        for _ in range(times - 1):
            self.renew(name)
            if name in self.names(HOLDING):
                self.lose(name)

    def lose(self, name: str) -> None:
        self.fall_silent(name)
        self.expire_as(name)

    @move(2, somebody_works, name=leased_attempt)
    def fall_silent(self, name: str) -> None:
        self.redis.zadd(self.run.keys.leases, {name: 1}, xx=True)
        self.redis.delete(self.run.keys.lease_prefix + name)
        self.model.attempts[name].is_overdue = True
        self.has_just_asked = False

    @move(3, somebody_works, name=leased_attempt, is_old_news=st.booleans(), is_silent=st.booleans())
    def miss_its_horse(self, name: str, is_old_news: bool, is_silent: bool) -> None:
        """RQ says that it is gone, which may be old news."""
        known = self.renewed(name) - is_old_news
        if is_silent:
            self.fall_silent(name)
        self.tell_of_its_end(name, known)

    @move(8, somebody_works, name=leased_attempt, at=st.sampled_from([None, 0, 0, 1]), repeats=few(2), horse=horses)
    def die(self, name: str, at: int | None, repeats: int, horse: int) -> None:
        """Its process dies, at a record perhaps; so do those of the attempts that follow."""
        self.die_as(name, at)
        for _ in range(repeats):
            following = self.claim_as(horse, self.model.attempts[name].task)
            if following in self.model.attempts:
                self.die_as(following, at)

    def die_as(self, name: str, at: int | None) -> None:
        if at is not None:
            self.tell_place(name, at)
        self.tell_of_its_end(name, self.renewed(name), "SIGSEGV")

    @move(1, lambda machine: machine.model.attempts, name=any_attempt, at=few(1))
    def tell_place(self, name: str, at: int) -> None:
        """Nobody waits for a reply."""
        lease, place = self.run.keys.lease_prefix + name, RecordAt(at, "a.txt", 0, "'a line'")
        self.call(
            lambda: self.place_script(keys=[lease], args=[msgspec.msgpack.encode(place)]).decode(),
            lambda: self.model.tell_place(name, at),
        )

    def tell_of_its_end(self, name: str, known_ms: int, how: str = "") -> None:
        attempt = AttemptId.parse(name)

        def expected() -> str:
            heard_since = self.renewed(name) not in (0, known_ms)
            return self.model.expire(name, is_gone=True, heard_since=heard_since, how=how)

        self.call(lambda: self.run.state.expire(attempt, dead_since=known_ms, how=how), expected)

    def renewed(self, name: str) -> int:
        return int(self.redis.hget(self.run.keys.lease_prefix + name, "renewed") or 0)

    @move(3, lambda machine: machine.model.attempts, name=any_attempt)
    def back_up(self, name: str) -> None:
        attempt, worker = AttemptId.parse(name), self.model.attempts[name].worker
        self.call(lambda: self.run.state.back_up(attempt, worker), lambda: self.model.back_up(name, worker))

    @move(2, lambda machine: machine.model.attempts)
    def let_go(self) -> None:
        """The work-horses that are stuck in lost attempts are stopped."""
        for each in filter(was_lost_from, self.model.attempts.values()):
            attempt = AttemptId.parse(each.name)
            self.call(partial(self.run.state.let_go, attempt), partial(self.model.let_go, each.name))

    @move(2)
    def issue(self) -> None:
        def expected() -> list[tuple[str, str]]:
            return [(f"{self.run.spec.run}-t{number}", task) for number, task in self.model.issue(2)]

        self.call(lambda: self.run.state.tickets.issue(2), expected, is_new_each_time=True)

    @move(3, driver=st.sampled_from(["d0", "d1"]))
    def drive(self, driver: str) -> None:
        self.call(lambda: self.run.scripts.drive(driver, lease_ms=LEASE_MS), lambda: self.model.drive(driver))

    @move(1, driver=st.sampled_from(["d0", "d1"]))
    def resign(self, driver: str) -> None:
        self.call(lambda: self.run.scripts.drive(driver, lease_ms=0), lambda: self.model.resign(driver))

    @move(1)
    def stand_down(self) -> None:
        self.call(self.run.state.stand_down, self.model.stand_down)

    @move(2, place=st.sampled_from(["driver", "standby"]))
    def leave_a_place(self, place: str) -> None:
        """Who held it died a while ago."""
        self.redis.delete(f"{self.run.keys.run}:{place}")
        setattr(self.model, place, "")
        self.has_just_asked = False

    @move(1)
    def pause(self) -> None:
        committed = len(self.model.winners)
        self.call(lambda: self.run.state.pause(committed, SHORT), lambda: self.model.pause(f"{committed} {SHORT.used}"))

    @move(2)
    def end_pause(self) -> None:
        self.call(lambda: self.run.state.go_on(SHORT), self.model.go_on)

    @move(1)
    def tell(self) -> None:
        told = ("refused", "w0", "it has another rqmr")
        self.call(lambda: self.run.state.tell(*told), lambda: self.model.tell(*told[:2]), is_new_each_time=True)

    @move(1, end=endings)
    def finish(self, end: str) -> None:
        self.finish_as(end, seen=False)

    @move(3, has_ended, end=endings)
    def see_the_end(self, end: str) -> None:
        """And write it down; which end that is may be old news."""
        self.finish_as(end, seen=True)

    def finish_as(self, end: str, *, seen: bool) -> None:
        told = End(self.run.spec.run, "wordcount", RunState(end), "/out", 1, 2)

        def expected() -> str | None:
            word = self.model.finish(end, seen=seen)
            return None if word == "gone" else word

        self.call(lambda: self.run.state.finish(RunState(end), end=told, seen=seen), expected)

    @move(12, lambda machine: machine.model.state == "failed", fresh=st.booleans())
    def resume(self, fresh: bool) -> None:
        spec = structs.replace(self.run.spec, plan=f"resumed in step {self.steps}")
        self.call(
            lambda: self.run.state.resume(spec, b"the code", fresh=fresh),
            lambda: self.model.resume(spec, fresh=fresh),
        )

    @move(1, fresh=st.booleans())
    def resume_what_may_not_have_failed(self, fresh: bool) -> None:
        self.resume(fresh)

    @move(4, has_ended)
    def drop(self) -> None:
        self.call(lambda: drop_segments(self.run.state), self.model.drop)

    @move(2, has_ended)
    def unlink(self) -> None:
        self.call(self.run.state.unlink, self.model.unlink)

    @move(10, lambda machine: machine.has_just_asked)
    def ask_again_at_once(self) -> None:
        """The reply was lost; the same call follows, and changes nothing but times."""
        before = self.model.keys()
        self.make(self.sent[-1], is_heard=True)
        assert self.sent[-1].is_new_each_time or self.model.keys() == before

    @move(10, lambda machine: machine.sent, which=few(REMEMBERED - 1))
    def ask_again_late(self, which: int) -> None:
        """Meanwhile others have acted; or the call hung in a connection, and nobody waits for its reply any more."""
        call, *since = self.sent[-1 - which % len(self.sent) :]
        has_waited = call.actor != "" and all(each.actor != call.actor for each in since)
        self.make(call, is_heard=has_waited)

    @move(2)
    def look(self) -> None:
        """What the facts say is what the model knows."""
        model, facts = self.model, self.run.state.facts(workers=3)
        if model.state == "gone":
            assert facts is None
            return
        assert (facts.state, facts.phase, facts.driver) == (model.state, model.phase, model.driver)
        assert (facts.is_full, facts.has_standby) == (model.shortage != "", model.standby != "")
        assert {str(task) for task in facts.backups} == set(model.backups)
        assert set(facts.tickets) == {f"{self.run.spec.run}-t{number}" for number in model.tickets}
        assert {str(each.id) for each in facts.running} == set(self.names(HOLDING))
        lost = {each.name: each.task in model.winners for each in model.attempts.values() if was_lost_from(each)}
        assert {str(each.id): each.is_beaten for each in facts.lost} == lost
        for number, phase in enumerate(facts.phases):
            tasks = set(model.tasks(number))
            assert phase.committed == len(tasks & model.winners.keys())
            assert phase.pending == len(tasks & model.pending.keys())
            assert phase.running == len([name for name in self.names(HOLDING) if model.attempts[name].task in tasks])
            assert bool(phase.started_ms) == (number <= model.opened)

    # --- what has to be true --------------------------------------------------------------------------------------

    def compare(self) -> None:
        """All that is in Redis, but for times, is the model's, and what has to be true always is so."""
        self.is_sound = False
        self.steps += 1
        now, found = self.look_script()
        prefix = self.run.keys.run
        seen = {}
        for name, ms_to_live, content in found:
            key = name.decode()
            keep_ms = 7 * 24 * 3_600_000 if key == RUNS or key.endswith(":end") else KEEP_MS
            assert 0 < ms_to_live <= keep_ms, f"{key} lives for {ms_to_live} ms"
            if key not in (RUNS, CODE):
                assert key.startswith(prefix)
                seen[key.removeprefix(prefix)] = read(key.removeprefix(prefix), content, now)
        assert seen == self.model.keys()
        self.model.check()
        assert self.model.lacks_segments() <= self.vanished, "no segment goes that a reader may need"
        self.is_sound = True

    def teardown(self) -> None:
        """Whatever has happened, one worker alone can finish the run; when it has ended nothing changes any more."""
        if not self.is_sound:
            return
        self.look()
        if self.is_finished:
            self.finish_alone()
        self.finish(self.how_it_ends)
        self.come_too_late()
        self.unlink()
        self.come_too_late()

    def finish_alone(self) -> None:
        self.end_pause()
        for name in self.names(HOLDING):
            self.lose(name)
        for _ in range(50):
            if self.model.state != "running" or self.model.phase == len(PHASES):
                return
            if not self.work_as(0):
                assert self.advance_to_behind(self.model.phase) == "ADVANCED", "nothing is left to do, and no way on"
        pytest.fail("one worker can't finish the run")

    def come_too_late(self) -> None:
        """What was sent comes again, and those that don't know yet go on."""
        for call in self.sent:
            self.ask(call)
        self.compare()
        for name in self.names(ALIVE):
            self.renew(name)
            self.commit_as(name, set())
            self.expire_as(name)
            self.back_up(name)
            self.fail_as(name)
            self.release_as(name)


def was_lost_from(attempt: Attempt) -> bool:
    """Whether its horse may be stuck in it."""
    return attempt.state == "lost" and attempt.is_held


def read(key: str, content: Any, now: int) -> Any:
    """Return what a key holds in the model's words, without times."""
    if key == ":end":
        return msgspec.msgpack.decode(content, type=End).state
    if isinstance(content, bytes):
        return content.decode()
    if key == ":events":
        told = [dict(zip(fields[::2], fields[1::2], strict=True)) for _, fields in content]
        return [(each[b"what"].decode(), each[b"subject"].decode()) for each in told]
    if key.endswith(":durations"):
        return len(content)
    pairs = {name.decode(): value for name, value in zip(content[::2], content[1::2], strict=True)}
    if ":shuffle:" in key:
        return set(pairs)
    if key.startswith(":lease:"):
        place = pairs.get("place")
        return pairs["worker"].decode(), msgspec.msgpack.decode(place, type=RecordAt).index if place else None
    if key.endswith(":winners"):
        return {task: read_winner(entry) for task, entry in pairs.items()}
    if key in (":splits", ":inputs"):
        return len(pairs)
    if key == ":tickets":
        return set(map(int, pairs))
    if key == ":leases":
        return {attempt: int(deadline) <= now for attempt, deadline in pairs.items()}
    if key == ":claims":
        entries = {horse: entry.decode().split(" ") for horse, entry in pairs.items()}
        return {horse: (int(sequence), attempt) for horse, (sequence, attempt, _) in entries.items()}
    if key == ":holders":
        holders = {attempt: entry.decode().split("\n") for attempt, entry in pairs.items()}
        return {attempt: (ticket, worker, bool(since)) for attempt, (ticket, worker, _, *since) in holders.items()}
    if key == "":
        return read_run(pairs)
    told = {name: number_or_text(value) for name, value in pairs.items()}
    for name in told:
        if name.endswith(":bad"):
            lines = [line.split(" ", 1) for line in str(told[name]).splitlines()]
            told[name] = {int(index): how for index, how in lines}
    return {name: value for name, value in told.items() if value != 0 or key == ":pending"}


def read_winner(entry: bytes) -> tuple[str, Outcome]:
    attempt, _, outcome = entry.partition(b"\n")
    return attempt.decode(), msgspec.msgpack.decode(outcome, type=Outcome)


def read_run(fields: dict[str, bytes]) -> dict[str, Any]:
    told: dict[str, Any] = {name: ... for name in fields if name.startswith("started:")}
    if "failure" in fields:
        told["failure"] = msgspec.msgpack.decode(fields["failure"], type=Failure).task
    if "full" in fields:
        told["full"] = fields["full"].decode().partition(" ")[2]
    told["spec"] = msgspec.msgpack.decode(fields["spec"], type=Spec).plan
    told = {name: number_or_text(value) for name, value in fields.items()} | told
    return {name: value for name, value in told.items() if name != "skipped" or value}


def number_or_text(value: bytes) -> int | str:
    return int(value) if value.lstrip(b"-").isdigit() else value.decode(errors="replace")


@pytest.mark.timeout(0 if "RQMR_TEST_EXAMPLES" in os.environ else 600)  # what is found is made small, which takes long
def test_whatever_is_called_the_run_is_as_the_protocol_says(make_run, redis, monkeypatch):
    monkeypatch.setattr("rqmr.scripts.STANDBY_MS", LEASE_MS)
    run_state_machine_as_test(
        lambda: Machine(make_run, redis),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=50,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
