"""What docs/protocol.md says of a run, in plain Python: no Redis, no clock, nothing taken from the scripts.

Tasks and attempts go by their names, `s0-m0001` and `s0-m0001-a2`. Each move returns the word that its script has to
answer, and `keys` all that Redis has to hold afterwards, but for times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rqmr.model import Outcome, Spec

#: What a claim gets: an attempt, whether it is careful, which records it leaves out; or the script's word.
Claimed = tuple[str, bool, dict[int, str]] | str

#: Attempts that hold a lease, and those that may still say something: lost is not dead.
HOLDING = ("running", "revived")
ALIVE = (*HOLDING, "lost")


@dataclass(eq=False)
class Attempt:
    """One try of a task, and what is known of it."""

    task: str
    number: int
    worker: str
    ticket: str
    state: str = "running"
    is_overdue: bool = False  # its lease has run out, and nobody has said so
    is_held: bool = True  # it hasn't told its end,
    has_been_lost: bool = False  # and since when it is lost, if it is, is known
    place: int | None = None  # the record that it has told, while it has a lease
    outcome: Outcome | None = None  # of the commit that won,
    is_dropped: bool = False  # with all that the run held, so that it isn't the winner any more

    @property
    def name(self) -> str:
        return f"{self.task}-a{self.number}"


@dataclass
class Model:
    """One run."""

    spec: Spec
    state: str = "running"
    phase: int = 0
    opened: int = 0  # the highest phase that was begun
    failure: str | None = None  # the task that has failed the run, "" for none
    end: str = ""  # the state that it ended in, once that is written down
    shortage: str = ""  # of memory: how many tasks were committed and bytes used when there was last hope
    pending: dict[str, bool] = field(default_factory=dict)  # task -> whether it is urgent
    attempts: dict[str, Attempt] = field(default_factory=dict)
    winners: dict[str, Attempt] = field(default_factory=dict)
    made: Counter[str] = field(default_factory=Counter)  # attempts of a task, ever
    failed: Counter[str] = field(default_factory=Counter)  # of a task's budget
    lost: Counter[str] = field(default_factory=Counter)
    died: Counter[str] = field(default_factory=Counter)  # attempts of a task whose process died,
    died_at: Counter[tuple[str, int]] = field(default_factory=Counter)  # and at which record
    bad: dict[str, dict[int, str]] = field(default_factory=dict)  # of a task: records to leave out, and why
    totals: Counter[tuple[int, str]] = field(default_factory=Counter)  # of a phase: attempts "lost" and "failed"
    commits: Counter[int] = field(default_factory=Counter)  # of a phase, ever
    claims: dict[str, tuple[int, str]] = field(default_factory=dict)  # horse -> sequence, attempt
    backups: dict[str, str] = field(default_factory=dict)  # task -> the straggler's worker
    standby: str = ""
    tickets: set[int] = field(default_factory=set)
    last_ticket: int = 0
    driver: str = ""
    epoch: int = 0
    resumed: int = 0  # times
    segments: set[tuple[int, int, str]] = field(default_factory=set)  # step, partition, field
    key_types: dict[int, str] = field(default_factory=dict)  # step -> the type of its keys
    events: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pending = dict.fromkeys(self.tasks(0), False)

    # --- what a name says -----------------------------------------------------------------------------------------

    def tasks(self, number: int) -> list[str]:
        phase = self.spec.phases[number]
        return [f"s{phase.step}-{phase.kind}{index:04}" for index in range(phase.tasks)]

    def phase_of(self, task: str) -> int:
        return next(number for number, phase in enumerate(self.spec.phases) if task.startswith(phase.name))

    def partitions_of(self, task: str) -> range:
        """The reducers of the next phase, which read what the task writes."""
        following = self.phase_of(task) + 1
        return range(self.spec.phases[following].tasks if following < len(self.spec.phases) else 0)

    def segment(self, attempt: Attempt, partition: int) -> tuple[int, int, str]:
        step = self.spec.phases[self.phase_of(attempt.task) + 1].step
        return step, partition, f"{index_of(attempt.task)}.{attempt.number}.0"

    # --- looks ----------------------------------------------------------------------------------------------------

    def running(self, task: str) -> list[Attempt]:
        return [each for each in self.attempts.values() if each.task == task and each.state in HOLDING]

    def line(self) -> list[str]:
        """The pending tasks: earlier phases first, in each the urgent ones, then by index."""
        return sorted(self.pending, key=self.rank)

    def rank(self, task: str) -> int:
        return self.phase_of(task) * 2**32 + index_of(task) - (2**31 if self.pending[task] else 0)

    def is_complete(self, number: int) -> bool:
        return all(task in self.winners for task in self.tasks(number))

    def skipped(self) -> int:
        """Bad records that the winners have left out."""
        return sum(len(winner.outcome.skipped) for winner in self.winners.values() if winner.outcome)

    def lacks_segments(self) -> set[tuple[int, int, str]]:
        """The segments that the winners have told of and that aren't there, while there may be a reader."""
        if self.state == "gone":
            return set()
        named = {
            self.segment(winner, partition)
            for winner in self.winners.values()
            for partition in self.partitions_of(winner.task)
            if winner.outcome and winner.outcome.has_partition(partition)
        }
        return named - self.segments

    # --- an attempt's life ----------------------------------------------------------------------------------------

    def claim(self, horse: str, sequence: int, worker: str, *, ticket: int | None = None, named: str = "") -> Claimed:
        if self.state != "running":
            return "ENDED"
        last, attempt = self.claims.get(horse, (0, ""))
        if sequence == last:
            return self._claimed(self.attempts[attempt])
        if sequence < last:
            return "NOTHING"  # a repeat that comes late: its horse has gone on
        self.tickets.discard(ticket or 0)
        task = self._next_task(worker, named)
        if not task:
            if self.standby not in ("", horse):
                return "NOTHING"
            self.standby = horse
            return "STAND BY"
        if self.standby == horse:
            self.standby = ""
        del self.pending[task]
        self.made[task] += 1
        made = Attempt(task, self.made[task], worker, str(ticket or ""))
        self.attempts[made.name] = made
        self.claims[horse] = (sequence, made.name)
        self._happened("claimed", made.name)
        return self._claimed(made)

    def _claimed(self, attempt: Attempt) -> Claimed:
        """Who follows a death is careful, and leaves out what processes have died at."""
        return attempt.name, self.died[attempt.task] > 0, self.bad.get(attempt.task, {})

    def _next_task(self, worker: str, named: str) -> str:
        if self.shortage:
            return ""
        line = [task for task in self.line() if self.phase_of(task) <= self.phase and self.backups.get(task) != worker]
        first = line[0] if line else ""
        return named if named in line and not self.pending[first] else first

    def renew(self, name: str) -> str:
        attempt = self.attempts.get(name)
        if self.state != "running" or attempt is None:
            return "ENDED"
        winner = self.winners.get(attempt.task)
        if winner:
            return "ENDED" if winner is attempt else "STALE"
        if attempt.state == "lost":
            attempt.state = "revived"
            self.pending.pop(attempt.task, None)
            self._happened("revived", name)
        if attempt.state not in HOLDING:
            return "ENDED"
        attempt.place = None if attempt.is_overdue else attempt.place
        attempt.is_overdue = False
        return "RENEWED"

    def write(self, name: str, partitions: Iterable[int]) -> str:
        if self.state != "running":
            return "ENDED"
        self.segments.update(self.segment(self.attempts[name], partition) for partition in partitions)
        return "WRITTEN"

    def discard(self, name: str, partitions: Iterable[int]) -> str:
        self.segments.difference_update(self.segment(self.attempts[name], partition) for partition in partitions)
        return "DISCARDED"

    def commit(self, name: str, outcome: Outcome) -> list[Any]:
        attempt = self.attempts.get(name)
        if attempt and self.winners.get(attempt.task) is attempt and self.state != "gone":
            return self._committed(attempt)
        if self.state != "running" or attempt is None:
            return ["ENDED"]
        if attempt.task in self.winners:
            return ["STALE"]
        if attempt.state not in ALIVE:
            return ["ENDED"]
        told = [partition for partition in self.partitions_of(attempt.task) if outcome.has_partition(partition)]
        for place, partition in enumerate(told, 1):
            if self.segment(attempt, partition) not in self.segments:
                return ["MISSING", place]
        step = self.spec.phases[self.phase_of(attempt.task) + 1].step if outcome.key_type else -1
        if self.key_types.get(step, outcome.key_type) != outcome.key_type:
            return ["MIXED", self.key_types[step]]
        if outcome.skipped and self.skipped() + len(outcome.skipped) > self.spec.skip_bad:
            self.state, self.failure = "failed", ""
            return ["RUN FAILED"]
        if outcome.key_type:
            self.key_types[step] = outcome.key_type
        self._ends(attempt, "committed")
        attempt.outcome = outcome
        self.winners[attempt.task] = attempt
        self.pending.pop(attempt.task, None)
        self.commits[self.phase_of(attempt.task)] += 1
        self._happened("committed", name)
        return self._committed(attempt)

    def _committed(self, attempt: Attempt) -> list[Any]:
        return ["COMMITTED", len(self.winners.keys() & set(self.tasks(self.phase_of(attempt.task))))]

    def fail(self, name: str, *, final: bool = False) -> str:
        attempt = self.attempts.get(name)
        if self.state != "running" or attempt is None or attempt.state not in ALIVE:
            return "ENDED"
        if attempt.task in self.winners:
            self._ends(attempt, "stale")
            return "STALE"
        self._ends(attempt, "failed")
        self.backups.pop(attempt.task, None)  # one of the two attempts is gone
        self._happened("failed", name)
        self.totals[self.phase_of(attempt.task), "failed"] += 1
        if self._charge(self.failed, attempt.task, 1 if final else self.spec.max_failed):
            return "RUN FAILED"
        self._give_back(attempt.task)
        return "FAILED"

    def expire(self, name: str, *, is_gone: bool = False, heard_since: bool = False, how: str = "") -> str:
        """`is_gone`: RQ says so of its horse; `heard_since`: and it has renewed since; `how`: its process died."""
        attempt = self.attempts.get(name)
        if self.state != "running" or attempt is None or attempt.state not in HOLDING:
            return "ENDED"
        if heard_since or not (attempt.is_overdue or is_gone):
            return "ALIVE"
        is_first, at = attempt.state == "running", attempt.place
        is_held = attempt.is_held and not is_gone
        self._ends(attempt, "lost")
        attempt.is_held = attempt.has_been_lost = is_held
        if attempt.task in self.winners:
            return "LOST"
        self.backups.pop(attempt.task, None)
        self._happened("lost", name)
        self.totals[self.phase_of(attempt.task), "lost"] += is_first
        deaths = self._deaths(attempt.task, at, how) if how else 0
        if deaths == 2 and self.spec.skip_bad:
            self.bad.setdefault(attempt.task, {})[at or 0] = how
        elif deaths > 1 and self._charge(self.failed, attempt.task, self.spec.max_failed, 2 if deaths == 2 else 1):
            return "RUN FAILED"
        # Two deaths at one record are the code's fault; the first one was taken for the machine's.
        charge = is_first - (0 if deaths < 2 else 2 if deaths == 2 else 1)
        if self._charge(self.lost, attempt.task, self.spec.max_lost, charge):
            return "RUN FAILED"
        self._give_back(attempt.task, urgent=True)
        return "LOST"

    def _deaths(self, task: str, at: int | None, how: str) -> int:
        """Note a process's death; return how many there were at the same record, 0 if none was told."""
        self.died[task] += 1
        if at is None:
            return 0
        self.died_at[task, at] += 1
        return self.died_at[task, at]

    def tell_place(self, name: str, index: int) -> str:
        attempt = self.attempts[name]
        if self.state == "gone" or attempt.state not in HOLDING or attempt.is_overdue:
            return "ENDED"
        attempt.place = index
        return "TOLD"

    def release(self, name: str) -> str:
        attempt = self.attempts.get(name)
        if self.state != "running" or attempt is None or attempt.state not in ALIVE:
            return "ENDED"
        if attempt.task in self.winners:
            self._ends(attempt, "stale")
            return "STALE"
        self._ends(attempt, "released")
        self.backups.pop(attempt.task, None)
        self._give_back(attempt.task)
        return "STALE" if self.running(attempt.task) else "RELEASED"

    def reopen(self, name: str, reader: str) -> str:
        attempt = self.attempts.get(name)
        if self.state != "running" or attempt is None or self.winners.get(attempt.task) is not attempt:
            return "ALREADY"
        if reader in self.winners:
            return "ALREADY"
        del self.winners[attempt.task]
        self.backups.pop(attempt.task, None)
        attempt.state = "reopened"
        self._happened("reopened", attempt.task)
        self.totals[self.phase_of(attempt.task), "lost"] += 1
        if self._charge(self.lost, attempt.task, self.spec.max_lost):
            return "RUN FAILED"
        self.pending[attempt.task] = True
        self.phase = min(self.phase, self.phase_of(attempt.task))
        return "REOPENED"

    def back_up(self, name: str, worker: str) -> str:
        attempt = self.attempts.get(name)
        if self.state != "running" or attempt is None or attempt.state not in HOLDING:
            return "ALREADY"
        if attempt.task in self.winners or attempt.task in self.backups:
            return "ALREADY"
        self.backups[attempt.task] = worker
        self.pending.setdefault(attempt.task, False)
        self._happened("backed up", name)
        return "BACKED UP"

    def let_go(self, name: str) -> None:
        self.attempts[name].is_held = False

    def _ends(self, attempt: Attempt, state: str) -> None:
        attempt.state = state
        attempt.is_overdue = attempt.is_held = False
        attempt.place = None

    def _charge(self, budget: Counter[str], task: str, allowed: int, count: int = 1) -> bool:
        """Charge a task; whether that was one too many."""
        budget[task] += count
        if count <= 0 or budget[task] < allowed:
            return False
        self.state, self.failure = "failed", task
        return True

    def _give_back(self, task: str, *, urgent: bool = False) -> None:
        if not self.running(task):
            self.pending[task] = urgent or self.pending.get(task, False)

    # --- the run's life -------------------------------------------------------------------------------------------

    def advance(self, number: int) -> str:
        if self.state != "running" or number != self.phase:
            return "ALREADY"
        if not self.is_complete(number):
            return "NOT YET"
        self.phase += 1
        if self.phase > self.opened:
            self.opened = self.phase
            if self.phase < len(self.spec.phases):
                self.pending |= dict.fromkeys(self.tasks(self.phase), False)
                self._happened("began", self.spec.phases[self.phase].name)
        return "ADVANCED"

    def issue(self, count: int) -> list[tuple[int, str]]:
        """Return the number of each new ticket, and the task that it names."""
        if self.state != "running":
            return []
        numbers = range(self.last_ticket + 1, self.last_ticket + count + 1)
        self.last_ticket += count
        self.tickets.update(numbers)
        line = [*self.line(), *[""] * count]
        return list(zip(numbers, line, strict=False))

    def drive(self, driver: str) -> list[Any]:
        if self.state == "gone":
            return ["ENDED"]
        if self.driver not in ("", driver):
            return ["HELD", self.driver]
        self.epoch += not self.driver
        self.driver = driver
        return ["DRIVING", self.epoch]

    def resign(self, driver: str) -> list[Any]:
        if self.state == "gone":
            return ["ENDED"]
        if self.driver not in ("", driver):
            return ["HELD", self.driver]
        self.driver = ""
        return ["RESIGNED"]

    def stand_down(self) -> None:
        self.standby = ""

    def pause(self, shortage: str) -> str:
        if self.state != "running":
            return "ENDED"
        if not self.shortage:
            self._happened("paused", "run")
        was, self.shortage = self.shortage, shortage
        return "NOTED" if was else "PAUSED"

    def go_on(self) -> str:
        if self.state != "running":
            return "ENDED"
        if not self.shortage:
            return "ALREADY"
        self.shortage = ""
        self._happened("went on", "run")
        return "GOES ON"

    def tell(self, what: str, subject: str) -> None:
        if self.state != "gone":
            self._happened(what, subject)

    def finish(self, state: str, *, seen: bool = False) -> str:
        """`seen`: it has that state already, which is only written down."""
        if self.state == "running" and not seen:
            self.state, self.end = state, ""
            self._happened(state, "run")
        if self.state == state and not self.end:
            self.end = state
        return self.state

    def resume(self, spec: Spec, *, fresh: bool) -> bool:
        if self.state == "running" and spec == self.spec:
            return True
        if self.state != "failed":
            return False
        self.resumed += 1
        self.state, self.spec, self.failure, self.shortage, self.end = "running", spec, None, "", ""
        if fresh:
            self.winners, self.pending, self.segments, self.key_types = {}, {}, set(), {}
            self.totals.clear()
            self.opened = 0
        for attempt in self.attempts.values():
            if self.winners.get(attempt.task) is not attempt and not (attempt.is_dropped and not fresh):
                self._ends(attempt, "released")
        self.failed.clear()
        self.lost.clear()
        self.died.clear()
        self.died_at.clear()
        self.bad.clear()
        self.backups.clear()
        begun = range(min(self.opened + 1, len(spec.phases)))
        for task in (task for number in begun for task in self.tasks(number) if task not in self.winners):
            self.pending.setdefault(task, False)
        self.phase = next((number for number in begun if not self.is_complete(number)), self.opened)
        self._happened("resumed", "run")
        return True

    def drop(self) -> None:
        if self.state != "failed":
            return
        for number in range(len(self.spec.phases) - 1):
            for task in self.winners.keys() & set(self.tasks(number)):
                self.winners.pop(task).is_dropped = True
            self.commits[number] = self.totals[number, "lost"] = self.totals[number, "failed"] = 0
        self.segments, self.key_types = set(), {}

    def unlink(self) -> None:
        self.state = "gone"

    def _happened(self, what: str, subject: str) -> None:
        self.events.append((what, subject))

    # --- what has to be true, whatever happens --------------------------------------------------------------------

    def check(self) -> None:
        phases = range(len(self.spec.phases))
        committed = [each for each in self.attempts.values() if each.state == "committed" and not each.is_dropped]
        assert {each.task: each for each in committed} == self.winners, "a task has one winner"
        assert len(committed) == len(self.winners), "a task has one winner"
        assert not self.pending.keys() & self.winners.keys(), "a task that has a winner isn't pending"
        if self.state == "running":
            assert all(map(self.is_complete, phases[: self.phase])), "a phase begins when those before it are complete"
            assert all(map(self.running, self.backups.keys() - self.winners.keys())), (
                "a backup is for an attempt that runs"
            )
            begun = [task for number in phases[: self.opened + 1] for task in self.tasks(number)]
            forgotten = [
                task for task in begun if not (task in self.winners or task in self.pending or self.running(task))
            ]
            assert not forgotten, "a task that was begun is pending, running or committed"

    # --- what Redis has to hold -----------------------------------------------------------------------------------

    def keys(self) -> dict[str, Any]:
        """Return all keys of the run by what follows its own, with what they hold, but for times."""
        end = {":end": self.end} if self.end else {}
        if self.state == "gone":
            return end
        phases = self.spec.phases
        attempts = self.attempts.values()
        run = {"state": self.state, "phase": self.phase, "opened": self.opened, "epoch": self.epoch,
               "keep_ms": self.spec.keep_ms, "spec": self.spec.plan,
               **{f"started:{number}": ... for number in range(self.opened + 1)},
               **{f"keys:s{step}": told for step, told in self.key_types.items()}}  # fmt: skip
        run |= {"tickets": self.last_ticket} if self.last_ticket else {}
        run |= {"failure": self.failure} if self.failure is not None else {}
        run |= {"skipped": self.skipped()} if self.skipped() else {}
        run |= {"full": self.shortage} if self.shortage else {}
        run |= {"resumed": self.resumed} if self.resumed else {}
        held = {
            ":" + key: value
            for key, value in {
                "splits": phases[0].tasks,
                "inputs": 1,  # the run of these tests has one that is marked
                "pending": {task: self.rank(task) for task in self.pending},
                "leases": {each.name: each.is_overdue for each in attempts if each.state in HOLDING},
                "attempts": {each.name: each.state for each in attempts},
                "tries": self._tries(),
                "claims": self.claims,
                "holders": {each.name: _holder(each) for each in attempts if each.is_held},
                "standby": self.standby,
                "tickets": self.tickets,
                "backups": self.backups,
                "driver": self.driver,
                "events": self.events,
            }.items()
            if value
        }
        for each in attempts:
            if each.state in HOLDING and not each.is_overdue:
                held[f":lease:{each.name}"] = (each.worker, each.place)
        for number, phase in enumerate(phases):
            winners = {task: self.winners[task] for task in self.tasks(number) if task in self.winners}
            if winners:
                held[f":{phase.name}:winners"] = {task: (won.name, won.outcome) for task, won in winners.items()}
            if totals := self._totals(number, winners.values()):
                held[f":{phase.name}:totals"] = totals
            if self.commits[number]:
                held[f":{phase.name}:durations"] = min(100, self.commits[number])
        for step, partition, name in self.segments:
            held.setdefault(f":s{step}:shuffle:{partition}", set()).add(name)
        return {"": run, **held, **end}

    def _tries(self) -> dict[str, Any]:
        told: dict[str, Any] = {
            f"{task}:{what}": number
            for what, numbers in [
                ("made", self.made),
                ("failed", self.failed),
                ("lost", self.lost),
                ("died", self.died),
            ]
            for task, number in numbers.items()
        }
        for each in self.attempts.values():
            told[f"{each.task}:running"] = len(self.running(each.task))
        told |= {f"{task}:died:{index}": number for (task, index), number in self.died_at.items()}
        told |= {f"{task}:bad": bad for task, bad in self.bad.items()}
        return _but_zeros(told)

    def _totals(self, number: int, winners: Iterable[Attempt]) -> dict[str, int]:
        outcomes = [each.outcome for each in winners if each.outcome]
        return _but_zeros(
            {
                "records": sum(outcome.records for outcome in outcomes),
                "bytes": sum(outcome.size for outcome in outcomes),
                "lost": self.totals[number, "lost"],
                "failed": self.totals[number, "failed"],
            }
        )


def index_of(task: str) -> int:
    return int(task[-4:])


def _holder(attempt: Attempt) -> tuple[str, str, bool]:
    return attempt.ticket, attempt.worker, attempt.has_been_lost


def _but_zeros(told: dict[str, Any]) -> dict[str, Any]:
    return {name: number for name, number in told.items() if number}
