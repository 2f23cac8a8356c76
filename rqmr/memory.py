"""The server's memory: how much of it a run may fill, and what is said when there is too little. Plain functions."""

from __future__ import annotations

import math

from rqmr.facts import Facts, Memory
from rqmr.model import Failure, Kind

#: What segments may fill. The rest is for what is being received, for commits, and for RQ, whose workers exit when a
#: server refuses to write.
_WRITE_SHARE = 0.95
_LEAST_REST = 1 << 20  # bytes
#: What segments may fill if they can be spilled: below what makes claims wait, and with room for their stubs.
_SPILL_SHARE = 0.6
#: How much of its maxmemory a run should fill at most: below what makes claims wait, as an estimate is none too sure.
_GOOD_SHARE = 0.75
#: The least that is advised, if the estimate says that less would do: it didn't.
_LEAST_GROWTH = 1.25
_TASKS = {Kind.MAP: "map tasks", Kind.REDUCE: "reduce tasks"}


def room_for_segments(memory: Memory, *, spills: bool = False) -> int | None:
    """Return how many bytes may be written now; None for any number. `spills`: the rest can go elsewhere."""
    if spills:
        return int(memory.holds * _SPILL_SHARE) - memory.used if memory.holds else None
    if not memory.limit:
        return None
    return min(int(memory.limit * _WRITE_SHARE), memory.limit - _LEAST_REST) - memory.used


def memory_in_words(memory: Memory) -> str:
    """Return how full the server is: ``1.8 of 2.0 GiB used``."""
    if not memory.limit:
        return "it refuses to write"
    unit, name = _unit(memory.limit)
    return f"{memory.used / unit:.1f} of {memory.limit / unit:.1f} {name} used"


def shortage_failure(facts: Facts, segments: int | None, *, spills: bool = False) -> Failure:
    """Return why a run is given up whose next segments don't fit, with the memory that it would take.

    `segments`: bytes that those of the current phase take on that server, if that is known. `spills`: it does already.
    """
    memory, current = facts.memory, facts.phases[facts.phase]
    server = f"the shuffle server {memory.server}" if memory.server else "the Redis server"
    told = [f"{server} is full ({memory_in_words(memory)}) and waiting didn't help"]
    # Attempts that wait with their output are about half through it.
    done = (current.committed + current.running / 2) / current.phase.tasks
    others, needed = memory.used - (segments or 0), 0
    if segments and done:
        needed = int(segments / done)
        told.append(
            f"this run's segments take {_size(segments)} with {current.committed} of {current.phase.tasks} "
            f"{_TASKS[current.phase.kind]} done, so all of them would take about {_size(needed)}, besides "
            f"{_size(others)} of other data"
        )
    todo = ["free what others hold (rqmr ps, rqmr rm RUN)", "or shuffle less (an aggregator or a combiner)"]
    if not spills:
        todo.insert(0, "let it spill to files (--spill DIR, also of rqmr resume)")
    if memory.limit:
        wanted = max((others + needed) / _GOOD_SHARE, memory.limit * _LEAST_GROWTH)
        todo.insert(0, f"set maxmemory to {_setting(wanted)} or more")
    told.append(", ".join(todo))
    if facts.neighbours:
        told.append("what this run held was removed, so that others can go on")
    return Failure("; ".join(told))


def _unit(count: float) -> tuple[int, str]:
    return (1 << 30, "GiB") if count >= 1 << 30 else (1 << 20, "MiB")


def _size(count: float) -> str:
    unit, name = _unit(count)
    return f"{count / unit:.1f} {name}"


def _setting(count: float) -> str:
    """Return bytes as redis.conf takes them, in two digits, rounded up."""
    mib = max(1, math.ceil(count / (1 << 20)))
    step = 10 ** max(0, len(str(mib)) - 2)
    return f"{math.ceil(mib / step) * step}mb"
