"""The server's memory: what may be filled, and what is said when it doesn't suffice."""

from __future__ import annotations

import re

import pytest

from rqmr.facts import Facts, Memory, Neighbour, PhaseFacts
from rqmr.memory import memory_in_words, room_for_segments, shortage_failure
from rqmr.model import Kind, Phase, RunState

MIB, GIB = 1 << 20, 1 << 30
STEPS = (Phase(0, Kind.MAP, 40), Phase(0, Kind.REDUCE, 10), Phase(1, Kind.REDUCE, 4))


def facts(memory: Memory, *, phase: int = 0, committed: int = 0, running: int = 0, neighbours: int = 0) -> Facts:
    told = tuple(
        PhaseFacts(each, committed, 0, running, 0, 0, 0, 0, 1) if number == phase else PhaseFacts(each, *[0] * 8)
        for number, each in enumerate(STEPS)
    )
    return Facts(
        1, RunState.RUNNING, phase, 1, told, (), {}, frozenset(), 0, None,
        memory=memory, neighbours=(Neighbour(False, False, True, True),) * neighbours,
    )  # fmt: skip


def wanted(message: str) -> int:
    """The MiB that a failure advises."""
    found = re.search(r"set maxmemory to (\d+)mb or more", message)
    assert found, message
    return int(found[1])


@pytest.mark.parametrize(
    ("memory", "room"),
    [
        (Memory(0, 0), None),
        (Memory(10**12, 0), None),
        (Memory(1 * GIB, 2 * GIB), 2 * GIB * 95 // 100 - 1 * GIB),
        (Memory(2 * GIB, 2 * GIB), 2 * GIB * 95 // 100 - 2 * GIB),
        (Memory(3 * MIB, 8 * MIB), 4 * MIB),
    ],
)
def test_segments_leave_five_percent_and_at_least_a_mebibyte_free(memory: Memory, room: int | None) -> None:
    assert room_for_segments(memory) == room


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        (Memory(int(1.75 * GIB), 2 * GIB), "1.8 of 2.0 GiB used"),
        (Memory(19 * MIB, 20 * MIB), "19.0 of 20.0 MiB used"),
        (Memory(900 * MIB, GIB), "0.9 of 1.0 GiB used"),
        (Memory(), "it refuses to write"),
    ],
)
def test_used_and_limit_are_told_in_one_unit(memory: Memory, words: str) -> None:
    assert memory_in_words(memory) == words


def test_a_failure_tells_how_much_memory_the_run_would_take() -> None:
    """700 MiB after two of five parts, so 1,750; with the 1,000 of others that shall fill three quarters."""
    told = shortage_failure(facts(Memory(1_700 * MIB, 2_000 * MIB), committed=16), 700 * MIB).message
    assert told == (
        "the Redis server is full (1.7 of 2.0 GiB used) and waiting didn't help; "
        "this run's segments take 700.0 MiB with 16 of 40 map tasks done, so all of them would take about 1.7 GiB, "
        "besides 1000.0 MiB of other data; "
        "set maxmemory to 3700mb or more, let it spill to files (--spill DIR, also of rqmr resume), "
        "free what others hold (rqmr ps, rqmr rm RUN), "
        "or shuffle less (an aggregator or a combiner)"
    )


def test_attempts_that_wait_count_as_half_done() -> None:
    """Even when no task is done yet."""
    told = shortage_failure(facts(Memory(95 * MIB, 100 * MIB), running=4), 90 * MIB).message
    assert "90.0 MiB with 0 of 40 map tasks done, so all of them would take about 1.8 GiB" in told


def test_a_later_step_tells_its_own_tasks() -> None:
    told = shortage_failure(facts(Memory(95 * MIB, 100 * MIB), phase=1, committed=5), 40 * MIB).message
    assert "40.0 MiB with 5 of 10 reduce tasks done, so all of them would take about 80.0 MiB" in told
    assert wanted(told) == 180


@pytest.mark.parametrize("segments", [0, None])
def test_what_is_not_known_is_not_told(segments: int | None) -> None:
    """Others have filled the server, or it may not be asked; more than now is needed in any case."""
    told = shortage_failure(facts(Memory(950 * MIB, 1_000 * MIB)), segments).message
    assert "segments" not in told
    assert wanted(told) == 1300
    told = shortage_failure(facts(Memory()), segments).message
    assert told.startswith(
        "the Redis server is full (it refuses to write) and waiting didn't help; let it spill to files "
    )


def test_less_than_there_is_is_never_advised() -> None:
    """An estimate that says so is wrong: it didn't suffice."""
    told = shortage_failure(facts(Memory(95 * MIB, 100 * MIB), committed=39, running=1), 10 * MIB).message
    assert wanted(told) >= 125


def test_a_run_that_gives_way_says_that_it_begins_anew() -> None:
    told = shortage_failure(facts(Memory(95 * MIB, 100 * MIB), committed=1, neighbours=2), 10 * MIB).message
    assert told.endswith("; what this run held was removed, so that others can go on")


def test_one_of_several_servers_is_named_and_what_is_done_already_isnt_advised() -> None:
    """A run whose shuffle is spread, and that spills."""
    memory = Memory(95 * MIB, 100 * MIB, server="redis://b:6379/0")
    told = shortage_failure(facts(memory), 10 * MIB, spills=True).message
    assert told.startswith("the shuffle server redis://b:6379/0 is full (95.0 of 100.0 MiB used) and waiting")
    assert "--spill" not in told


@pytest.mark.parametrize(
    ("memory", "room"),
    [
        (Memory(10 * MIB, 100 * MIB, holds=100 * MIB), 50 * MIB),
        (Memory(90 * MIB, 100 * MIB, holds=100 * MIB), -30 * MIB),
        (Memory(10 * MIB, 0, holds=100 * MIB), 50 * MIB),
        (Memory(), None),
    ],
)
def test_what_can_be_spilled_leaves_the_server_early(memory: Memory, room: int | None) -> None:
    """Well before claims would wait; also where a server has no limit, but its machine has."""
    assert room_for_segments(memory, spills=True) == room
