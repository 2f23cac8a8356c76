"""What will go wrong in which run, and when: all of it from one seed, and nothing from what happens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")

#: Seconds of silence after which a task is another's, in every run of the storm.
LEASE = 2.0
#: A run's faults end after so many seconds and so many faults, so that a task can't be lost 20 times: that is the end
#: of the run, and rightly so.
_STORM_SECONDS = 12.0
_MOST_FAULTS = 12
_MEAN_GAP = 0.7
#: Calls that raise in each phase of a run: fewer than the four tries of a task. A process that dies twice at one record
#: counts as two of them, from the second death of a task on.
_MOST_RAISES = 3
_MOST_RAISES_IF_IT_DIES = 1


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong."""

    at: float  # seconds after the beginning of the round, or after a run's last commit
    kind: str
    where: float  # which of those that are there: 0 is the first, just below 1 the last
    seconds: float  # how long it lasts, or until what was killed is replaced

    def choose(self, things: Sequence[_T]) -> _T:
        """Return the one that it hits."""
        return things[int(self.where * len(things))]


@dataclass(frozen=True)
class Plan:
    """What happens in one round: one run, or two at once."""

    number: int
    workloads: tuple[int, ...]
    faults: tuple[Fault, ...]
    at_the_end: tuple[Fault, ...]  # when all tasks of a run are committed, and its output is collected
    raises: int
    dawdles: int


#: How often each comes, and how many seconds it lasts.
KINDS: dict[str, tuple[float, float, float]] = {
    "horse killed": (4, 0, 0),
    "worker killed": (2, 0.2, 2),
    "machine killed": (2, 0.2, 2),  # worker and horse
    "all machines killed": (0.5, 0.2, 2),
    "worker told to leave": (2, 0, 0),
    "machine told to leave": (1, 0, 0),  # worker and horse
    "horse stopped": (2, LEASE + 0.5, 5),
    "worker stopped": (1, LEASE + 0.5, 5),
    "machine stopped": (2, LEASE + 0.5, 5),
    "driver killed": (3, 0.2, 4),
    "driver stopped": (2, LEASE + 0.5, 5),
    "driver joined": (1, 0, 0),
    "server paused": (1.5, 0.5, 6),
    "server restarted": (1, 0, 2),
    "server killed": (1, 0, 2),
    "server forgot": (1.5, 0.1, 1),  # its last second, as one whose machine goes down; its seconds say how much of it
    "connections cut": (1.5, 0, 1.5),  # again and again, so that replies get lost
    "scripts flushed": (1, 0, 0),
    "ticket deleted": (3, 0, 0),
    "segment deleted": (2, 0, 0),
    "segment damaged": (2, 0, 1),  # its seconds say where in the segment
    "shuffle deleted": (1, 0, 0),  # all that is there for one reducer
}

#: Those that come while the output is collected, in so many rounds out of one.
_AT_THE_END = ("driver killed", "driver stopped", "driver joined", "server killed", "connections cut")
_ENDS_BADLY = 0.5
_END_SECONDS = 0.2


def plan(seed: int, number: int, workloads: int) -> Plan:
    """Return what happens in a round of the storm; each of the `workloads` comes once before one comes again."""
    cycle, place = divmod(number - 1, workloads)
    order = list(range(workloads))
    random.Random(f"{seed} order {cycle}").shuffle(order)
    chance = random.Random(f"{seed} round {number}")
    chosen = [order[place]]
    if chance.random() < 0.25:
        chosen.append(chance.randrange(workloads))
    faults = _faults(chance)
    may_die_twice = sum(fault.kind == "horse killed" for fault in faults) > 2
    return Plan(
        number,
        tuple(chosen),
        tuple(faults),
        tuple(_faults_at_the_end(chance)),
        raises=chance.randint(0, _MOST_RAISES_IF_IT_DIES if may_die_twice else _MOST_RAISES),
        dawdles=chance.choice((0, 0, 0, 1)),
    )


def _faults(chance: random.Random) -> list[Fault]:
    names, weights = list(KINDS), [weight for weight, _, _ in KINDS.values()]
    faults: list[Fault] = []
    at = chance.expovariate(1 / _MEAN_GAP)
    while at < _STORM_SECONDS and len(faults) < _MOST_FAULTS:
        faults.append(_fault(chance, at, chance.choices(names, weights)[0]))
        at += chance.expovariate(1 / _MEAN_GAP)
    return faults


def _faults_at_the_end(chance: random.Random) -> list[Fault]:
    if chance.random() >= _ENDS_BADLY:
        return []
    return [_fault(chance, chance.uniform(0, _END_SECONDS), kind) for kind in chance.sample(_AT_THE_END, k=2)]


def _fault(chance: random.Random, at: float, kind: str) -> Fault:
    _, shortest, longest = KINDS[kind]
    return Fault(at, kind, chance.random(), chance.uniform(shortest, longest))
