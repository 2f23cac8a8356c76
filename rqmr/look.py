"""Reads what is true of a run now: one consistent look, and what is told of the attempts in it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from rqmr import registry
from rqmr.connection import Client, memory_of
from rqmr.facts import Facts, LostAttempt, Neighbour, PhaseFacts, RunningAttempt, Shortage
from rqmr.keys import RunKeys, ranks_of
from rqmr.model import Ask, AttemptId, Failure, Phase, Progress, RecordAt, RunState, Spec, TaskId

_OF_A_PHASE = 4  # replies
#: An ask that is older hasn't found anybody who sees the input; so many of them are read.
_UNANSWERED_MS, _ASKS = 2_000, 16


def read_facts(client: Client, keys: RunKeys, spec: Spec, *, workers: int) -> Facts | None:
    """Return what is true of a run now; None if it is gone. `workers`: how many listen."""
    phases = spec.phases
    pipe = client.pipeline(transaction=True)
    pipe.time()
    pipe.hmget(keys.run, "state", "phase", "failure", "full", *(f"started:{number}" for number in range(len(phases))))
    pipe.zrange(keys.leases, 0, -1, withscores=True)
    pipe.hgetall(keys.holders)
    pipe.zrange(keys.tickets, 0, -1, withscores=True)
    pipe.hkeys(keys.backups)
    pipe.exists(keys.standby)
    pipe.get(keys.driver)
    pipe.zrange(keys.asks, 0, _ASKS - 1, withscores=True)
    pipe.hget(keys.run, "shipped")
    for number, phase in enumerate(phases):
        low, high = ranks_of(number)
        pipe.hlen(keys.winners(phase))
        pipe.zcount(keys.pending, low, high - 1)
        pipe.hgetall(keys.totals(phase))
        pipe.lrange(keys.durations(phase), 0, -1)
    time, of_run, leases, holders, tickets, backups, standby, driver, asks, shipped, *rest = pipe.execute()
    state, current, failure, full, *started = of_run
    if state is None:
        return None
    now_ms = time[0] * 1000 + time[1] // 1000
    held = {AttemptId.parse(attempt.decode()): _Holder(spec.run, holder) for attempt, holder in holders.items()}
    deadlines = {AttemptId.parse(attempt.decode()): int(deadline) for attempt, deadline in leases}
    running = _running(client, keys, deadlines, held)
    told = [rest[start : start + _OF_A_PHASE] for start in range(0, len(rest), _OF_A_PHASE)]
    durations = told[min(int(current), len(phases) - 1)][3]
    return Facts(
        now_ms=now_ms,
        state=RunState(state.decode()),
        phase=int(current),
        started_ms=int(started[0] or 0),
        phases=tuple(_phase_facts(*each, running) for each in zip(phases, started, told, strict=True)),
        running=tuple(running),
        tickets={f"{spec.run}-t{ticket.decode()}": int(at) for ticket, at in tickets},
        backups=frozenset(TaskId.parse(task.decode()) for task in backups),
        median_ms=max(1, int(statistics.median(map(int, durations)))) if durations else 0,
        failure=msgspec.msgpack.decode(failure, type=Failure) if failure else None,
        workers=workers,
        lost=_lost(client, keys, {each: holder for each, holder in held.items() if each not in deadlines}),
        has_standby=bool(standby),
        driver=(driver or b"").decode(),
        asks=tuple(msgspec.msgpack.decode(ask, type=Ask) for ask, at in asks if at < now_ms - _UNANSWERED_MS),
        shipped=int(shipped or 0),
        memory=memory_of(client),
        shortage=Shortage(*map(int, full.split())) if full else None,
        neighbours=_neighbours(client, spec.run) if full else (),
    )


def read_place(client: Client, keys: RunKeys, attempt: AttemptId) -> tuple[RecordAt, int] | None:
    """Return the record that a careful attempt has told, and how many processes have died at it."""
    place = client.hget(keys.lease(attempt), "place")
    if not place:
        return None
    at = msgspec.msgpack.decode(place, type=RecordAt)
    return at, int(client.hget(keys.tries, f"{attempt.task}:died:{at.index}") or 0)


class _Holder:
    """Who took an attempt, as the claim wrote it and expire added to it."""

    def __init__(self, run: str, entry: bytes) -> None:
        number, self.worker, self.host, *lost = entry.decode().split("\n")
        self.ticket = f"{run}-t{number}" if number else ""
        self.lost_ms = int(lost[0]) if lost else 0


def _running(
    client: Client, keys: RunKeys, deadlines: dict[AttemptId, int], held: dict[AttemptId, _Holder]
) -> list[RunningAttempt]:
    pipe = client.pipeline(transaction=False)
    for attempt in deadlines:
        pipe.hgetall(keys.lease(attempt))
    told = pipe.execute()
    return [
        _attempt(attempt, deadlines[attempt], fields, held.get(attempt))
        for attempt, fields in zip(deadlines, told, strict=True)
    ]


def _attempt(attempt: AttemptId, deadline: int, told: dict[bytes, bytes], holder: _Holder | None) -> RunningAttempt:
    def number(name: bytes) -> int:
        return int(told.get(name, b"0"))

    return RunningAttempt(
        id=attempt,
        worker=holder.worker if holder else "",
        host=holder.host if holder else "",
        started_ms=number(b"started"),
        deadline_ms=deadline,
        renewed_ms=number(b"renewed"),
        progress=Progress(
            number(b"records"), number(b"bytes"), float(told.get(b"fraction", b"0")), _waits(told.get(b"waits", b""))
        ),
        ticket=holder.ticket if holder else "",
    )


def _waits(told: bytes) -> Literal["", "memory", "input"]:
    return "memory" if told == b"memory" else "input" if told == b"input" else ""


def _lost(client: Client, keys: RunKeys, held: dict[AttemptId, _Holder]) -> tuple[LostAttempt, ...]:
    pipe = client.pipeline(transaction=False)
    for attempt in held:
        pipe.hexists(keys.winners(attempt.task), str(attempt.task))
    beaten = pipe.execute() if held else []
    return tuple(
        LostAttempt(attempt, holder.ticket, holder.lost_ms, bool(is_beaten))
        for (attempt, holder), is_beaten in zip(held.items(), beaten, strict=True)
        if holder.lost_ms  # else it has ended since the look at the leases
    )


def _neighbours(client: Client, run: str) -> tuple[Neighbour, ...]:
    """Return the other runs of this server that haven't ended."""
    listed = registry.runs(client)
    own = next(((at, each) for each, at in listed if each == run), (0, run))
    others = [(at, each) for each, at in listed if each != run]
    pipe = client.pipeline(transaction=False)
    for _, each in others:
        keys = RunKeys(each)
        pipe.hmget(keys.run, "state", "full")
        pipe.exists(keys.leases)
        pipe.exists(keys.driver, keys.standby, keys.leases)
    told = iter(pipe.execute() if others else [])
    return tuple(
        Neighbour(other > own, full is not None, bool(at_work), bool(attended))
        for other, (state, full), at_work, attended in zip(others, told, told, told, strict=True)
        if state == RunState.RUNNING.value.encode()
    )


def _phase_facts(phase: Phase, started: bytes | None, told: Any, running: Sequence[RunningAttempt]) -> PhaseFacts:
    committed, pending, totals, _ = told
    of_phase = [each for each in running if each.id.task in phase]
    return PhaseFacts(
        phase=phase,
        committed=committed,
        pending=pending,
        running=len(of_phase),
        lost=int(totals.get(b"lost", 0)),
        failed=int(totals.get(b"failed", 0)),
        records=int(totals.get(b"records", 0)),
        size=int(totals.get(b"bytes", 0)),
        started_ms=int(started or 0),
    )
