"""The scheduler's policy, with plain values: facts in, instructions out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec
import pytest

from rqmr.facts import Facts, LostAttempt, Memory, Neighbour, PhaseFacts, RunningAttempt, Shortage
from rqmr.model import AttemptId, Kind, Phase, Progress, RunState, TaskId
from rqmr.scheduler import (
    Advance,
    AskAfter,
    BackUp,
    Enqueue,
    Expire,
    GiveUp,
    GoOn,
    LookFor,
    Pause,
    Policy,
    Stop,
    decide,
    is_complete,
)

NOW = 1_700_000_000_000
USUAL = Policy()
ENOUGH = Memory(used=50, limit=100)
SHORT = Memory(used=90, limit=100)


def attempt(
    index: int,
    *,
    age_ms: int = 0,
    fraction: float = 0.0,
    number: int = 1,
    kind: Kind = Kind.MAP,
    left_ms: int = 10_000,
    started_ms: int | None = None,
    worker: str | None = None,
    waits: Literal["", "memory", "input"] = "",
) -> RunningAttempt:
    """An attempt that began `age_ms` ago and whose lease ends in `left_ms`."""
    return RunningAttempt(
        id=AttemptId(TaskId(0, kind, index), number),
        worker=f"w{index}" if worker is None else worker,
        host="somewhere",
        started_ms=NOW - age_ms if started_ms is None else started_ms,
        deadline_ms=NOW + left_ms,
        renewed_ms=NOW,
        progress=Progress(fraction=fraction, waits=waits),
    )


def facts(
    *running: RunningAttempt,
    maps: int = 10,
    reducers: int = 4,
    phase: int = 0,
    pending: tuple[int, int] = (0, 0),
    tickets: dict[str, int] | None = None,
    workers: int = 0,
    median_ms: int = 0,
    backups: Iterable[TaskId] = (),
    state: RunState = RunState.RUNNING,
    has_standby: bool = True,
    lost: tuple[LostAttempt, ...] = (),
    memory: Memory = ENOUGH,
    shortage: Shortage | None = None,
    neighbours: tuple[Neighbour, ...] = (),
) -> Facts:
    """A run of two phases; what of the current phase neither runs nor waits is committed."""

    def of_phase(number: int, described: Phase) -> PhaseFacts:
        of_it = len({each.id.task for each in running if each.id.task.kind == described.kind})
        committed = described.tasks - of_it - pending[number] if number <= phase else 0
        return PhaseFacts(described, committed, pending[number], of_it, 0, 0, 0, 0, NOW - 60_000)

    described = Phase(0, Kind.MAP, maps), Phase(0, Kind.REDUCE, reducers)
    return Facts(
        now_ms=NOW,
        state=state,
        phase=phase,
        started_ms=NOW - 60_000,
        phases=tuple(of_phase(number, each) for number, each in enumerate(described)),
        running=running,
        tickets=tickets or {},
        backups=frozenset(backups),
        median_ms=median_ms,
        failure=None,
        has_standby=has_standby,
        lost=lost,
        memory=memory,
        shortage=shortage,
        neighbours=neighbours,
        workers=workers,
    )


def backed_up(told: Facts, policy: Policy = USUAL) -> list[int]:
    """The tasks that get a backup, by index, in the order of the instructions."""
    return [each.attempt.task.index for each in decide(told, policy) if isinstance(each, BackUp)]


def enqueued(told: Facts, policy: Policy = USUAL) -> int:
    """How many new tickets are wanted."""
    return sum(each.count for each in decide(told, policy) if isinstance(each, Enqueue))


def outstanding(count: int, *, age_ms: int = 0) -> dict[str, int]:
    return {f"x-t{number}": NOW - age_ms for number in range(count)}


# --- leases and barriers ------------------------------------------------------------------------------------------


def test_an_attempt_whose_lease_has_run_out_is_expired():
    """At its deadline, and not a millisecond before."""
    late, just, alive = attempt(0, left_ms=-500), attempt(1, left_ms=0), attempt(2, left_ms=1)

    assert decide(facts(late, just, alive)) == [Expire(late.id), Expire(just.id)]


def test_a_silent_attempt_of_any_phase_is_expired():
    """A reduce task that waits for a reopened map can die too."""
    reducer = attempt(0, kind=Kind.REDUCE, left_ms=-1)

    assert Expire(reducer.id) in decide(facts(reducer, attempt(1)))


def test_a_phase_with_all_winners_is_passed_before_all_else():
    """The facts of what comes next are read after it."""
    loser = attempt(0, age_ms=99_000, left_ms=-1)
    told = facts(loser, median_ms=10, workers=9, tickets=outstanding(3, age_ms=99_000))
    complete = PhaseFacts(Phase(0, Kind.MAP, 10), 10, 0, 1, 0, 0, 0, 0, NOW)
    told = msgspec.structs.replace(told, phases=(complete, told.phases[1]))

    assert decide(told) == [Advance(0)]


def test_the_last_phase_is_passed_too():
    """Then the run is complete, and there is nothing left to decide."""
    assert decide(facts(phase=1)) == [Advance(1)]
    assert not is_complete(facts(phase=1))
    assert is_complete(facts(phase=2))
    assert decide(facts(phase=2)) == []


def test_a_phase_with_one_task_missing_is_not_passed():
    """However many run of the others."""
    assert decide(facts(attempt(0))) == []


@pytest.mark.parametrize("state", [RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED])
def test_nothing_is_decided_for_a_run_that_has_ended(state):
    """No lease, no ticket, no barrier, no straggler."""
    running = attempt(0, age_ms=99_000), attempt(1, left_ms=-1)

    assert decide(facts(*running, state=state, median_ms=10, workers=5, tickets=outstanding(3, age_ms=99_000))) == []
    assert decide(facts(state=state)) == []
    assert decide(facts(state=state, pending=(10, 0))) == []


# --- the window of tickets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "pending", "there", "wanted"),
    [
        (0, 100, 0, 1),  # nobody listens yet: one for who joins
        (1, 100, 0, 1),  # the only one is busy
        (8, 100, 0, 8),
        (8, 100, 5, 3),  # filled up
        (8, 100, 8, 0),  # full
        (8, 100, 90, 0),  # more than full: tickets are not taken back
        (8, 3, 0, 3),  # no more than there are tasks
        (8, 3, 3, 0),
        (8, 0, 0, 0),  # nothing waits
        (0, 2, 0, 1),
    ],
)
def test_the_window_is_filled_up(workers, pending, there, wanted):
    """A ticket for each worker that is free and some more, but never more than tasks that wait; one worker is busy."""
    told = facts(attempt(0), maps=200, workers=workers, pending=(pending, 0), tickets=outstanding(there))

    assert enqueued(told) == wanted


def test_the_policy_sets_the_window():
    """Its numbers, and no others."""
    told = facts(maps=200, workers=3, pending=(100, 0))

    assert enqueued(told, Policy(tickets_beyond=5)) == 8


def test_a_reopened_map_gets_a_ticket():
    """It counts as waiting while the map phase is open again."""
    assert enqueued(facts(phase=0, pending=(1, 0), workers=2)) == 1


def test_tasks_of_a_later_phase_get_no_tickets():
    """Reduce tasks that wait for a reopened map can't be claimed."""
    assert enqueued(facts(attempt(0), phase=0, pending=(0, 4), workers=2)) == 0


def test_overdue_tickets_are_looked_for():
    """RQ can lose a popped one for ever; those that wait for a short time are left alone."""
    tickets = {"x-t1": NOW - 2_001, "x-t2": NOW - 2_000, "x-t3": NOW - 60_000, "x-t4": NOW}

    assert decide(facts(pending=(4, 0), tickets=tickets)) == [LookFor(("x-t1", "x-t3"))]


def test_overdue_tickets_are_not_looked_for_when_nothing_waits():
    """Nobody needs them; they are removed when the run ends."""
    assert decide(facts(attempt(0), tickets=outstanding(5, age_ms=60_000))) == []


def test_when_nothing_waits_one_ticket_brings_a_horse_that_stands_by():
    """If the driver dies then, somebody sees it."""
    assert enqueued(facts(attempt(0), workers=4, has_standby=False)) == 1
    assert enqueued(facts(attempt(0), workers=4, has_standby=True)) == 0
    assert enqueued(facts(attempt(0), workers=4, has_standby=False, tickets=outstanding(1))) == 0


def test_where_all_ends_with_the_driver_nobody_stands_by():
    assert enqueued(facts(attempt(0), workers=4, has_standby=False), Policy(stands_by=False)) == 0


def test_a_full_server_brings_no_horses_but_the_one_that_stands_by():
    """They would find nothing to claim, again and again."""
    assert enqueued(facts(pending=(8, 0), workers=4, shortage=since(0))) == 0
    assert enqueued(facts(pending=(8, 0), workers=4, shortage=since(0), has_standby=False)) == 1


# --- silence ------------------------------------------------------------------------------------------------------


def silent(index: int, silent_ms: int, **told: int) -> RunningAttempt:
    return msgspec.structs.replace(attempt(index, **told), renewed_ms=NOW - silent_ms, ticket=f"x-t{index}")


def test_rq_is_asked_after_an_attempt_that_missed_a_heartbeat():
    """It may know that the work-horse died, long before the lease runs out."""
    asked = [each for each in decide(facts(silent(0, 1_501), silent(1, 1_500))) if isinstance(each, AskAfter)]
    assert [[every.id.task.index for every in each.attempts] for each in asked] == [[0]]


def test_rq_is_not_asked_after_an_attempt_whose_lease_has_run_out():
    assert decide(facts(silent(0, 20_000, left_ms=0))) == [Expire(silent(0, 0).id)]


def lost(*, for_ms: int, is_beaten: bool) -> LostAttempt:
    return LostAttempt(AttemptId(TaskId(0, Kind.MAP, 3), 1), "x-t3", NOW - for_ms, is_beaten)


@pytest.mark.parametrize(
    ("for_ms", "is_beaten", "stall_ms", "is_stopped"),
    [
        (10_001, True, 0, True),  # told to stop, it would have ended
        (10_000, True, 0, False),
        (3_600_000, False, 0, False),  # its work may still be good
        (60_001, False, 60_000, True),
        (59_000, False, 60_000, False),
        (2_000, False, 1_000, False),
    ],
)
def test_a_horse_that_is_stuck_in_a_lost_attempt_is_stopped(for_ms, is_beaten, stall_ms, is_stopped):
    """One that holds the interpreter hears nothing; only its worker can end it."""
    decided = decide(facts(attempt(0), lost=(lost(for_ms=for_ms, is_beaten=is_beaten),)), Policy(stall_ms=stall_ms))
    assert decided == ([Stop(lost(for_ms=0, is_beaten=True).id, "x-t3")] if is_stopped else [])


# --- stragglers ---------------------------------------------------------------------------------------------------


def test_backups_can_be_turned_off():
    told = facts(attempt(0, age_ms=3_600_000), median_ms=1_000)
    assert backed_up(told) == [0]
    assert backed_up(told, Policy(backs_up=False)) == []


def test_nothing_is_slow_while_nothing_is_committed():
    """With no committed task there is no median."""
    assert backed_up(facts(attempt(0, age_ms=3_600_000), median_ms=0)) == []


def test_nothing_is_backed_up_while_tasks_of_the_phase_are_pending():
    """There is better work for an idle worker."""
    slow = attempt(0, age_ms=3_600_000)

    assert backed_up(facts(slow, median_ms=100, pending=(1, 0))) == []
    assert backed_up(facts(slow, median_ms=100)) == [0]


@pytest.mark.parametrize("times", [1.0, 2.0, 3.0, 4.0])
def test_a_task_that_takes_some_times_the_median_is_not_slow(times):
    """Tasks vary two- or threefold of themselves."""
    assert backed_up(facts(attempt(0, age_ms=int(10_000 * times)), median_ms=10_000)) == []


def test_a_task_that_takes_more_than_four_times_the_median_is_slow():
    """The backup is for another worker, so the instruction names the slow one."""
    slow = attempt(0, age_ms=40_001)

    assert decide(facts(slow, median_ms=10_000)) == [BackUp(slow.id, "w0")]


def test_a_task_is_slow_when_its_progress_says_that_it_will_be():
    """A tenth done after more than the median: it will take ten times as long, and nobody waits to see it."""
    assert backed_up(facts(attempt(0, age_ms=11_000, fraction=0.1), median_ms=10_000)) == [0]


def test_before_the_median_has_passed_nothing_is_slow():
    """Progress at the very beginning is no measure."""
    assert backed_up(facts(attempt(0, age_ms=9_999, fraction=0.06), median_ms=10_000)) == []


def test_too_little_progress_tells_nothing():
    """Then only the time that has passed counts."""
    assert backed_up(facts(attempt(0, age_ms=11_000, fraction=0.049), median_ms=10_000)) == []
    assert backed_up(facts(attempt(0, age_ms=40_001, fraction=0.049), median_ms=10_000)) == [0]


def test_a_task_that_is_nearly_done_is_not_slow():
    """Late, but a backup would not be sooner: by its progress it will take less than four times the median."""
    assert backed_up(facts(attempt(0, age_ms=30_000, fraction=0.9), median_ms=10_000)) == []


def test_below_two_seconds_nothing_is_slow_by_its_age():
    """The time that such short tasks take is noise, and a work-horse that died is told from a slow one by then."""
    assert backed_up(facts(attempt(0, age_ms=1_999), median_ms=10)) == []
    assert backed_up(facts(attempt(0, age_ms=2_000), median_ms=10)) == [0]


def test_below_one_second_nothing_is_slow_by_its_progress():
    """It tells that the work-horse lives, so it may tell the rest sooner."""
    assert backed_up(facts(attempt(0, age_ms=999, fraction=0.1), median_ms=10)) == []
    assert backed_up(facts(attempt(0, age_ms=1_000, fraction=0.1), median_ms=10)) == [0]


def told(age_ms: int, at_ms: int, fraction: float) -> RunningAttempt:
    """An attempt whose last heartbeat was at another age."""
    return msgspec.structs.replace(attempt(0, age_ms=age_ms, fraction=fraction), renewed_ms=NOW - age_ms + at_ms)


def test_progress_is_that_of_the_last_heartbeat():
    """A quarter done in two seconds is eight in all, though another second has passed since that was told."""
    assert backed_up(facts(told(3_000, 2_000, 0.25), median_ms=2_000)) == []
    assert backed_up(facts(told(3_000, 2_000, 0.25), median_ms=1_999)) == [0]


def test_progress_that_was_told_before_the_median_had_passed_tells_nothing():
    """Then only the time that has passed counts."""
    assert backed_up(facts(told(3_000, 1_999, 0.06), median_ms=2_000)) == []
    assert backed_up(facts(told(8_001, 1_999, 0.06), median_ms=2_000)) == [0]


def test_a_task_gets_one_backup():
    """Neither the straggler nor its backup gets another."""
    straggler, backup = attempt(0, age_ms=90_000), attempt(0, number=2, age_ms=80_000)

    assert backed_up(facts(straggler, median_ms=10_000, backups=[straggler.id.task])) == []
    assert backed_up(facts(straggler, backup, median_ms=10_000, backups=[straggler.id.task])) == []


@pytest.mark.parametrize(("maps", "most"), [(1, 1), (5, 1), (10, 1), (19, 1), (20, 2), (100, 10), (10_000, 1_000)])
def test_at_most_a_tenth_of_the_phase_and_at_least_one_is_backed_up_at_a_time(maps, most):
    """It fires on small phases too, and never doubles a big one."""
    slow = [attempt(index, age_ms=50_000) for index in range(maps)]

    assert len(backed_up(facts(*slow, maps=maps + 1, median_ms=10_000))) == max(1, int((maps + 1) * 0.1))
    assert len(backed_up(facts(*slow, maps=maps, median_ms=10_000))) == most


def test_backups_that_run_count_against_the_tenth():
    """When one of them ends, the next straggler gets its turn."""
    slow = [attempt(index, age_ms=50_000 - index) for index in range(4)]
    backups = [attempt(index, number=2, age_ms=1_000) for index in range(2)]
    given = [each.id.task for each in backups]

    assert backed_up(facts(*slow, *backups, maps=20, median_ms=10_000, backups=given)) == []
    assert backed_up(facts(*slow, *backups[:1], maps=20, median_ms=10_000, backups=given)) == [2]
    assert backed_up(facts(*slow, *backups, maps=30, median_ms=10_000, backups=given)) == [2]


@pytest.mark.parametrize("maps", [10, 10_000])
def test_a_single_straggler_is_backed_up_in_a_phase_of_any_size(maps):
    """One slow task holds up ten as it does ten thousand."""
    told = facts(attempt(maps - 1, age_ms=50_000), attempt(0, age_ms=3_000), maps=maps, median_ms=10_000)

    assert backed_up(told) == [maps - 1]


def test_the_slowest_gets_its_backup_first():
    """By the estimated end, not by age."""
    old = attempt(0, age_ms=60_000, fraction=0.8)  # will have taken 75 s
    slowest = attempt(1, age_ms=30_000, fraction=0.1)  # 300 s
    older = attempt(2, age_ms=90_000)  # 90 s or more

    assert backed_up(facts(old, slowest, older, maps=10, median_ms=10_000)) == [1]
    assert backed_up(facts(old, slowest, older, maps=30, median_ms=10_000)) == [1, 2, 0]


def test_an_attempt_of_another_phase_is_never_backed_up():
    """Its peers are not those whose median is known: neither a reduce task behind a reopened map nor the reverse."""
    reducer, mapper = attempt(0, kind=Kind.REDUCE, age_ms=99_000), attempt(0, age_ms=99_000)

    assert backed_up(facts(reducer, attempt(5), phase=0, median_ms=100)) == []
    assert backed_up(facts(mapper, attempt(3, kind=Kind.REDUCE), phase=1, median_ms=100)) == []


def test_backups_of_another_phase_leave_the_tenth_free():
    """Each phase has a share of its own."""
    map_task = TaskId(0, Kind.MAP, 0)
    loser = attempt(0, number=2, age_ms=1_000)
    slow = attempt(1, kind=Kind.REDUCE, age_ms=50_000)

    assert backed_up(facts(loser, slow, phase=1, median_ms=10_000, backups=[map_task])) == [1]


def test_an_attempt_whose_lease_has_run_out_is_not_backed_up_as_well():
    """Its task is about to be pending anyway; were it renewed meanwhile, a backup would be given for nothing."""
    silent = attempt(0, age_ms=50_000, left_ms=-1)

    assert decide(facts(silent, median_ms=10_000)) == [Expire(silent.id)]


def test_an_attempt_of_which_nothing_is_known_is_not_slow():
    """Its lease key expired between two reads: when it began, and on which worker, is not 1970 and not nobody."""
    unknown = attempt(0, started_ms=0, worker="")

    assert backed_up(facts(unknown, median_ms=10_000)) == []


# --- memory ---------------------------------------------------------------------------------------------------------


def since(seconds: float, *, committed: int = 9, used: int = 90) -> Shortage:
    """Claims wait, and `seconds` ago there was last a reason to hope for memory."""
    return Shortage(NOW - int(seconds * 1000), committed, used)


def about_memory(told: Facts) -> list[Pause | GoOn | GiveUp]:
    return [each for each in decide(told) if isinstance(each, Pause | GoOn | GiveUp)]


@pytest.mark.parametrize(("used", "pauses"), [(84, False), (85, True), (99, True), (120, True)])
def test_claims_wait_from_85_percent_on(used, pauses):
    """What runs then has room to end."""
    memory = Memory(used, 100)
    told = facts(attempt(0), memory=memory, pending=(3, 0))

    assert about_memory(told) == ([Pause(6, memory)] if pauses else [])


def test_without_a_limit_claims_never_wait():
    """A server without maxmemory, or one that may not be asked."""
    assert about_memory(facts(pending=(3, 0), memory=Memory(10**12, 0))) == []


def test_claims_wait_when_an_attempt_does_however_much_memory_there_is():
    """What it has to write may be more than is left."""
    assert about_memory(facts(attempt(0, waits="memory"), memory=ENOUGH)) == [Pause(9, ENOUGH)]


def test_tasks_that_write_no_segments_never_wait():
    """The last phase writes part files; with it the run's memory comes free."""
    assert about_memory(facts(phase=1, pending=(0, 2), memory=SHORT)) == []
    assert about_memory(facts(phase=1, pending=(0, 2), memory=SHORT, shortage=since(99))) == [GoOn(SHORT)]


@pytest.mark.parametrize(("used", "goes_on"), [(90, False), (81, False), (80, False), (79, True)])
def test_claims_go_on_below_80_percent(used, goes_on):
    """Not as soon as it falls below 85, or they would come and go."""
    memory = Memory(used, 100)
    told = facts(pending=(1, 0), memory=memory, shortage=since(1, used=used))

    assert about_memory(told) == ([GoOn(memory)] if goes_on else [])


def test_claims_do_not_go_on_while_an_attempt_waits():
    """It was there first."""
    assert GoOn not in map(type, about_memory(facts(attempt(0, waits="memory"), memory=ENOUGH, shortage=since(5))))


def test_after_fifteen_seconds_in_vain_the_run_is_given_up():
    """Nothing runs, nothing was committed, no memory came free, and there is no other run."""
    told = facts(pending=(1, 0), memory=SHORT, shortage=since(15))
    assert about_memory(told) == []

    told = facts(pending=(1, 0), memory=SHORT, shortage=since(15.1))
    assert about_memory(told) == [GiveUp(SHORT)]


def test_attempts_that_wait_themselves_are_no_reason_to_hope():
    """They wait for the same memory."""
    told = facts(attempt(0, waits="memory"), memory=SHORT, shortage=since(16))

    assert about_memory(told) == [GiveUp(SHORT)]


@pytest.mark.parametrize(
    ("running", "shortage"),
    [
        ([attempt(0, waits="memory"), attempt(1)], since(16, committed=8)),
        ([attempt(0, waits="memory")], since(16, committed=7)),
        ([attempt(0, waits="memory")], since(16, used=92)),
    ],
    ids=["another attempt works", "a task was committed", "memory came free"],
)
def test_whatever_moves_is_a_reason_to_go_on_waiting(running, shortage):
    """It is noted, and patience begins anew."""
    told = facts(*running, memory=SHORT, shortage=shortage)

    assert about_memory(told) == [Pause(told.committed, SHORT)]


def test_a_reason_to_hope_is_noted_once_a_second():
    """Ticks are more frequent than that."""
    told = facts(attempt(0), memory=SHORT, shortage=since(0.9))

    assert about_memory(told) == []


WORKING = Neighbour(is_younger=False, is_full=False, is_at_work=True, is_attended=True)


@pytest.mark.parametrize(
    ("neighbour", "waits"),
    [
        (WORKING, True),  # its end frees memory
        (msgspec.structs.replace(WORKING, is_younger=True), True),
        (msgspec.structs.replace(WORKING, is_at_work=False), False),  # it waits for workers, or for ever
        (msgspec.structs.replace(WORKING, is_full=True), False),  # the older one waits for this one
        (msgspec.structs.replace(WORKING, is_full=True, is_younger=True), True),
        (msgspec.structs.replace(WORKING, is_full=True, is_younger=True, is_attended=False), False),
    ],
)
def test_of_runs_that_all_wait_the_youngest_gives_way(neighbour, waits):
    """The others wait for it; and for a run that gets on, whatever its age."""
    told = facts(pending=(1, 0), memory=SHORT, shortage=since(16), neighbours=(neighbour,))

    assert about_memory(told) == [Pause(9, SHORT) if waits else GiveUp(SHORT)]


def test_nobody_is_backed_up_while_memory_is_short():
    """A second attempt would write as much again."""
    slow = attempt(0, age_ms=60_000, waits="memory")

    assert backed_up(facts(slow, median_ms=1000)) == [0]
    assert backed_up(facts(slow, median_ms=1000, shortage=since(1), memory=SHORT)) == []
