"""Reads what is true of a run now: one consistent look, and what is told of the attempts in it."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

import msgspec

from rqmr import registry
from rqmr.connection import Client, memory_of, reading_keys
from rqmr.damage import as_words, unpacked, whole
from rqmr.errors import DamagedError
from rqmr.facts import Event, Facts, LostAttempt, Neighbour, PhaseFacts, RunningAttempt, Shortage
from rqmr.failures import died_too_often
from rqmr.keys import RunKeys, ranks_of
from rqmr.model import Ask, AttemptId, Failure, Phase, Progress, RecordAt, RunState, Spec, TaskId
from rqmr.scripts import Death

_OF_A_PHASE = 4  # replies
#: An ask that is older hasn't found anybody who sees the input; so many of them are told.
_UNANSWERED_MS, _ASKS = 2_000, 16
_LATEST_MS = 1 << 42  # in the year 2109: later times can't be shown everywhere


def read_facts(client: Client, keys: RunKeys, spec: Spec, *, workers: int) -> Facts | None:
    """Return what is true of a run now; None if it is gone. `workers`: how many listen.

    Raises:
        DamagedError: what is there can't be what rqmr wrote.
    """
    with reading_keys(f"the state of run {spec.run}"):
        return _facts(client, keys, spec, workers)


def _facts(client: Client, keys: RunKeys, spec: Spec, workers: int) -> Facts | None:
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
    pipe.zrange(keys.asks, 0, -1, withscores=True)
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
    deadlines = {AttemptId.parse(attempt.decode()): whole(deadline) for attempt, deadline in leases}
    if strangers := [str(each) for each in (*held, *deadlines) if not any(each.task in phase for phase in phases)]:
        raise ValueError(f"{strangers[0]} is of no phase")
    running = _running(client, keys, deadlines, held)
    told = [rest[start : start + _OF_A_PHASE] for start in range(0, len(rest), _OF_A_PHASE)]
    durations = told[min(whole(current), len(phases) - 1)][3]
    return Facts(
        now_ms=now_ms,
        state=RunState(state.decode()),
        phase=whole(current),
        started_ms=whole(started[0] or 0),
        phases=tuple(_phase_facts(*each, running) for each in zip(phases, started, told, strict=True)),
        running=tuple(running),
        tickets={f"{spec.run}-t{whole(ticket)}": whole(at) for ticket, at in tickets},
        backups=frozenset(TaskId.parse(task.decode()) for task in backups),
        median_ms=max(1, int(statistics.median(map(whole, durations)))) if durations else 0,
        failure=msgspec.msgpack.decode(failure, type=Failure) if failure else None,
        workers=workers,
        lost=_lost(client, keys, {each: holder for each, holder in held.items() if each not in deadlines}),
        has_standby=bool(standby),
        asks=_unanswered(asks, now_ms, deadlines),
        shipped=whole(shipped or 0),
        driver=as_words(driver or b""),
        memory=memory_of(client),
        shortage=Shortage(*map(whole, full.split())) if full else None,
        neighbours=_neighbours(client, spec.run) if full else (),
    )


def read_place(client: Client, keys: RunKeys, attempt: AttemptId) -> tuple[RecordAt, int] | None:
    """Return the record that a careful attempt has told, and how many processes have died at it."""
    place = client.hget(keys.lease(attempt), "place")
    if not place:
        return None
    try:
        at = unpacked(place, RecordAt, f"the record that {attempt} has told")
    except DamagedError:
        return None  # as if it had told none
    return at, int(client.hget(keys.tries, f"{attempt.task}:died:{at.index}") or 0)


def read_death(client: Client, keys: RunKeys, spec: Spec, attempt: AttemptId, since: int, how: str) -> Death:
    """Return what is known of an attempt whose work-horse is gone; `how` its process died, "" if it didn't."""
    place = read_place(client, keys, attempt) if how else None
    if not place:
        return Death(since, how)
    at, deaths = place
    failure = msgspec.msgpack.encode(died_too_often(attempt.task, at, deaths + 1, how))
    return Death(since, how, at.index, spec.skip_bad, spec.max_failed, failure)


def read_event(at: bytes, fields: Mapping[bytes, bytes]) -> Event:
    """Return an event: whatever is in it is shown, and nothing is decided from it."""
    words = (as_words(fields.get(name, b"")) for name in (b"what", b"subject", b"note"))
    return Event(min(int(at.partition(b"-")[0]), _LATEST_MS), *words)


class _Holder:
    """Who took an attempt, as the claim wrote it and expire added to it."""

    def __init__(self, run: str, entry: bytes) -> None:
        number, self.worker, self.host, *lost = entry.decode().split("\n")
        self.ticket = f"{run}-t{number}" if number else ""
        self.lost_ms = whole(lost[0]) if lost else 0


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
        return whole(told.get(name, b"0"))

    return RunningAttempt(
        id=attempt,
        worker=holder.worker if holder else "",
        host=holder.host if holder else "",
        started_ms=number(b"started"),
        deadline_ms=deadline,
        renewed_ms=number(b"renewed"),
        progress=Progress(
            number(b"records"),
            number(b"bytes"),
            _fraction(told.get(b"fraction", b"0")),
            _waits(told.get(b"waits", b"")),
        ),
        ticket=holder.ticket if holder else "",
    )


def _unanswered(asks: Sequence[tuple[bytes, float]], now_ms: int, leased: Collection[AttemptId]) -> tuple[Ask, ...]:
    """Return asks that nobody has answered for a while, of attempts that still may take the answer."""
    told = (msgspec.msgpack.decode(ask, type=Ask) for ask, at in asks if at < now_ms - _UNANSWERED_MS)
    names = {str(attempt) for attempt in leased}
    return tuple(islice((ask for ask in told if ask.id.partition(".")[0] in names), _ASKS))


def _waits(told: bytes) -> Literal["", "memory", "input"]:
    return "memory" if told == b"memory" else "input" if told == b"input" else ""


def _fraction(text: bytes) -> float:
    fraction = float(text)
    return min(fraction, 1.0) if fraction > 0 else 0.0  # which nan isn't


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
    # What is damaged of another run is an error in its place, and no concern of this one.
    told = iter(pipe.execute(raise_on_error=False) if others else [])
    return tuple(
        Neighbour(other > own, fields[1] is not None, bool(at_work), bool(attended))
        for other, fields, at_work, attended in zip(others, told, told, told, strict=True)
        if isinstance(fields, list) and fields[0] == RunState.RUNNING.value.encode()
    )


def _phase_facts(phase: Phase, started: bytes | None, told: Any, running: Sequence[RunningAttempt]) -> PhaseFacts:
    committed, pending, totals, _ = told
    of_phase = [each for each in running if each.id.task in phase]
    return PhaseFacts(
        phase=phase,
        committed=committed,
        pending=pending,
        running=len(of_phase),
        lost=whole(totals.get(b"lost", 0)),
        failed=whole(totals.get(b"failed", 0)),
        records=whole(totals.get(b"records", 0)),
        size=whole(totals.get(b"bytes", 0)),
        started_ms=whole(started or 0),
    )
