"""A thousand workers and a hundred thousand tasks, without any of them: what `rqmr.scheduler` decides, and how fast.

    python benchmarks/simulate.py                       (about half a minute)
    python benchmarks/simulate.py --workers 100 --tasks 5000 --slow 0.01

The clock is simulated; the decisions are real: each second of it the scheduler gets the facts, as a driver's tick would
give them to it, and what it says is done. Tasks' lengths are lognormal; some attempts are slow, wherever they run, and
some workers are slow in all they do. The ideal is what the same lengths, without slowness, take at least.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import statistics
import time
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from rqmr.facts import Facts, PhaseFacts, RunningAttempt
from rqmr.model import AttemptId, Kind, Phase, Progress, RunState, TaskId
from rqmr.scheduler import Advance, BackUp, Enqueue, Policy, decide

#: Between two renewals of a lease, and so the age of what is known of an attempt.
HEARTBEAT_MS = 1000
LEASE_MS = 15_000
TICK_MS = 1000


@dataclass(frozen=True)
class Plan:
    """What is simulated."""

    workers: int = 1000
    tasks: int = 100_000
    seconds: float = 10.0  # median of a task
    sigma: float = 0.3  # of the logarithm of its length
    slow: float = 0.001  # of the attempts
    slow_workers: float = 0.005  # of the workers
    factor: float = 10.0  # how many times as long those take
    backups: bool = True
    seed: int = 1


@dataclass
class Found:
    """What came of it."""

    makespan: float = 0.0  # simulated seconds
    ideal: float = 0.0
    ticks: list[float] = field(default_factory=list)  # real seconds, each
    judged: int = 0  # running attempts that a tick looked at
    backups: int = 0
    attempts: int = 0


@dataclass
class Attempt:
    """One that runs."""

    id: AttemptId
    worker: int
    started_ms: int
    length_ms: int
    is_over: bool = False

    def seen(self, now_ms: int) -> RunningAttempt:
        """What is known of it: what its last heartbeat told."""
        age = (now_ms - self.started_ms) // HEARTBEAT_MS * HEARTBEAT_MS
        told = self.started_ms + age
        fraction = age / self.length_ms
        name = f"w{self.worker}"
        return RunningAttempt(
            self.id, name, name, self.started_ms, told + LEASE_MS, told, Progress(fraction=fraction), "t"
        )


class Simulation:
    """The workers, their tasks and the clock."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._chance = random.Random(plan.seed)
        lengths = random.Random(plan.seed + 1)
        self._lengths = [
            int(1000 * plan.seconds * math.exp(lengths.gauss(0, plan.sigma))) for _ in range(plan.tasks)
        ]  # fmt: skip
        self._slow_workers = set(lengths.sample(range(plan.workers), round(plan.slow_workers * plan.workers)))
        self._phase = Phase(0, Kind.MAP, plan.tasks)
        self._pending = [TaskId(0, Kind.MAP, index) for index in reversed(range(plan.tasks))]
        self._avoided: dict[TaskId, str] = {}  # backed up: the worker that is slow at it
        self._numbers: dict[TaskId, int] = {}
        self._running: dict[int, Attempt] = {}  # by worker
        self._idle = list(range(plan.workers))
        self._tickets = 0
        self._ends: list[tuple[int, int, AttemptId]] = []
        self._committed: set[TaskId] = set()
        self._taken: list[int] = []  # ms, sorted
        self._policy = Policy(stands_by=False, backs_up=plan.backups)
        self.found = Found(ideal=max(sum(self._lengths) / plan.workers, max(self._lengths)) / 1000)

    def run(self) -> Found:
        """Run it to its end."""
        now_ms = 0
        while self._tick(now_ms):
            now_ms += TICK_MS
            self._go_on_until(now_ms)
        self.found.makespan = now_ms / 1000
        return self.found

    def _tick(self, now_ms: int) -> bool:
        facts = self._facts(now_ms)
        began = time.perf_counter()
        decisions = decide(facts, self._policy)
        self.found.ticks.append(time.perf_counter() - began)
        self.found.judged += len(facts.running)
        for decision in decisions:
            match decision:
                case Advance():
                    return False
                case Enqueue(count):
                    self._tickets += count
                case BackUp(attempt, worker):
                    self._avoided[attempt.task] = worker
                    self._pending.append(attempt.task)
                    self.found.backups += 1
        self._take_tickets(now_ms)
        return True

    def _facts(self, now_ms: int) -> Facts:
        running = tuple(attempt.seen(now_ms) for attempt in self._running.values())
        phase = PhaseFacts(self._phase, len(self._committed), len(self._pending), len(running), 0, 0, 0, 0, 1)
        return Facts(
            now_ms=now_ms, state=RunState.RUNNING, phase=0, started_ms=0, phases=(phase,), running=running,
            tickets={f"t{number}": now_ms for number in range(self._tickets)}, backups=frozenset(self._avoided),
            median_ms=self._taken[len(self._taken) // 2] if self._taken else 0, failure=None,
            workers=self._plan.workers,
        )  # fmt: skip

    def _go_on_until(self, now_ms: int) -> None:
        while self._ends and self._ends[0][0] <= now_ms:
            at_ms, worker, attempt = heapq.heappop(self._ends)
            mine = self._running.get(worker)
            if mine is not None and mine.id == attempt and not mine.is_over:
                self._end(mine, at_ms)

    def _end(self, attempt: Attempt, now_ms: int) -> None:
        if attempt.id.task not in self._committed:
            self._committed.add(attempt.id.task)
            insort(self._taken, now_ms - attempt.started_ms)
            for other in self._running.values():
                if attempt.id.task in self._avoided and other.id.task == attempt.id.task and other is not attempt:
                    # It hears so with its next heartbeat.
                    heapq.heappush(self._ends, (now_ms + HEARTBEAT_MS, other.worker, other.id))
        del self._running[attempt.worker]
        if not self._claim(attempt.worker, now_ms):
            self._idle.append(attempt.worker)

    def _take_tickets(self, now_ms: int) -> None:
        waiting, self._idle = self._idle, []
        for worker in waiting:
            if self._tickets and self._claim(worker, now_ms):
                self._tickets -= 1
            else:
                self._idle.append(worker)

    def _claim(self, worker: int, now_ms: int) -> bool:
        for position in range(len(self._pending) - 1, -1, -1):
            task = self._pending[position]
            if task in self._committed:
                del self._pending[position]
            elif self._avoided.get(task) != f"w{worker}":
                del self._pending[position]
                self._start(task, worker, now_ms)
                return True
        return False

    def _start(self, task: TaskId, worker: int, now_ms: int) -> None:
        number = self._numbers[task] = self._numbers.get(task, 0) + 1
        is_slow = self._chance.random() < self._plan.slow or worker in self._slow_workers
        length = int(self._lengths[task.index] * (self._plan.factor if is_slow else 1))
        attempt = Attempt(AttemptId(task, number), worker, now_ms, length)
        self._running[worker] = attempt
        heapq.heappush(self._ends, (now_ms + length, worker, attempt.id))
        self.found.attempts += 1


def table(plan: Plan) -> Iterator[str]:
    """Run what is to be compared; yield the lines of the table."""
    yield f"{plan.workers:,} workers, {plan.tasks:,} tasks of {plan.seconds:g} s (median), seed {plan.seed}:"
    yield ""
    yield "| | makespan | of the ideal | attempts | backups | a tick decides in | attempts judged a second |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    slow = f"{plan.slow:.1%} of the attempts and {plan.slow_workers:.1%} of the workers {plan.factor:g} × slower"
    rows = {
        "nothing is slow": replace(plan, slow=0, slow_workers=0),
        f"{slow}, no backups": replace(plan, backups=False),
        f"{slow}, backups": plan,
    }
    for title, each in rows.items():
        found = Simulation(each).run()
        ticks = [1000 * seconds for seconds in found.ticks]
        yield (
            f"| {title} | {found.makespan:,.0f} s | {found.makespan / found.ideal:.3f} × | {found.attempts:,} | "
            f"{found.backups} | {statistics.median(ticks):.2f} ms (at most {max(ticks):.1f} ms) | "
            f"{found.judged / sum(found.ticks):,.0f} |"
        )
    yield ""
    yield (
        "The ideal: the work divided by the workers, or the longest task. A tick judges every running attempt: is it "
        "lost, silent, stuck, a straggler?"
    )


def main() -> None:
    """Simulate what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, default in (
        ("workers", 1000), ("tasks", 100_000), ("seconds", 10.0), ("slow", 0.001), ("slow-workers", 0.005),
        ("factor", 10.0), ("seed", 1),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=type(default), default=default, help="default: %(default)s")
    for line in table(Plan(**vars(parser.parse_args()))):
        print(line, flush=True)


if __name__ == "__main__":
    main()
