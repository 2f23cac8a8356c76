"""The view of a run: it reads facts and decides nothing.

Arithmetic and wording are plain functions of plain values. `LiveView` draws on a terminal, `LogView` writes lines where
there is none. All durations are differences of the server's times; this machine's clock only limits how often we draw.
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from rqmr.model import AttemptId, Event, Facts, Kind, Phase, PhaseFacts, Progress, RunningAttempt, RunState, TaskId

#: Two heartbeats of the default lease, so that a rate doesn't jump with each of them.
RATE_MS = 10_000
#: How long a worker's row stays when its attempt is over: most have the next one before that, and nothing jumps.
LINGER_MS = 2_000
#: How long nobody listens before we say so: local workers need a moment to start.
ABSENT_MS = 1_000
#: How long an important event keeps its place against newer commits.
RECENT_MS = 20_000
REFRESH_SECONDS = 0.12
LOG_SECONDS, LOG_SECONDS_MAX = 2.0, 30.0
MOST_WORKERS, MOST_WIDTH, NAME_WIDTH = 12, 100, 16

EVENT_STYLES = {"failed": "red", "lost": "yellow", "reopened": "yellow", "backed up": "cyan", "revived": "green"}


@dataclass(frozen=True)
class Header:
    """What is known of a run before it begins."""

    run: str
    job: str
    server: str  # fit to be shown: without its password
    queue: str
    plan: str  # one line
    input_bytes: int


class View(Protocol):
    """Who shows a run. Every call is cheap."""

    def begin(self, header: Header) -> None:
        """The run begins."""

    def update(self, facts: Facts, events: Sequence[Event]) -> None:
        """Take what is true now, and the events that are new."""

    def printed(self, worker: str, line: str) -> None:
        """Take a line that user code printed in a local worker."""

    def note(self, text: str) -> None:
        """Take one line of news."""

    def end(self) -> None:
        """Leave the terminal as it should be, whatever happened. Calling it twice does no harm."""


# --- arithmetic ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Amount:
    """How much of a phase is done, by the winners and by those that run."""

    tasks: float = 0.0
    records: int = 0
    size: int = 0


def done_so_far(phase: PhaseFacts, running: Iterable[RunningAttempt]) -> Amount:
    """Return how much of the phase is done. Of two attempts of one task only the one that is further counts."""
    best: dict[TaskId, Progress] = {}
    for attempt in running:
        task = attempt.id.task
        if (task.step, task.kind) == (phase.phase.step, phase.phase.kind):
            best[task] = max(best.get(task, Progress()), attempt.progress, key=lambda each: each.fraction)
    return Amount(
        min(phase.phase.tasks, phase.committed + sum(each.fraction for each in best.values())),
        phase.records + sum(each.records for each in best.values()),
        phase.size + sum(each.size for each in best.values()),
    )


class Pace:
    """How fast a phase goes, and when it will be done."""

    def __init__(self, started_ms: int) -> None:
        self._started_ms = started_ms
        self._samples = deque([(started_ms, Amount())])
        self._changed_ms = started_ms

    def add(self, now_ms: int, amount: Amount) -> None:
        """Take how much is done now."""
        if amount.tasks != self._samples[-1][1].tasks:
            self._changed_ms = now_ms
        self._samples.append((now_ms, amount))
        while len(self._samples) > 2 and self._samples[1][0] <= now_ms - RATE_MS:
            self._samples.popleft()

    def per_second(self) -> tuple[float, float]:
        """Return records and bytes per second of late; never negative, though a lost attempt takes its share away."""
        (then_ms, then), (now_ms, now) = self._samples[0], self._samples[-1]
        seconds = max(1, now_ms - then_ms) / 1000
        return max(0, now.records - then.records) / seconds, max(0, now.size - then.size) / seconds

    def left_ms(self, tasks: int) -> int | None:
        """Return how long the rest will take if it goes on as before; None if that can't be told yet.

        Between two heartbeats nothing is heard, so we count down from the last change.
        """
        now_ms, amount = self._samples[-1]
        if not amount.tasks or now_ms - self._started_ms < 1000:
            return None
        total = (self._changed_ms - self._started_ms) * tasks / amount.tasks
        return max(0, round(total - (now_ms - self._started_ms)))


@dataclass(frozen=True)
class Measure:
    """One phase in numbers."""

    title: str
    facts: PhaseFacts
    done: Amount
    elapsed_ms: int
    left_ms: int | None
    records_per_second: float
    bytes_per_second: float

    @property
    def tasks(self) -> int:
        """How many the phase has."""
        return self.facts.phase.tasks

    @property
    def fraction(self) -> float:
        """How much is done, from 0 to 1."""
        return self.done.tasks / self.tasks if self.tasks else 1.0

    @property
    def percent(self) -> str:
        """The fraction as text; 100% is said only when all is done."""
        return f"{math.floor(self.fraction * 100)}%" if self.is_complete else f"{min(99, int(self.fraction * 100))}%"

    @property
    def has_begun(self) -> bool:
        """Whether it has."""
        return self.facts.started_ms > 0

    @property
    def is_complete(self) -> bool:
        """Whether every task is committed."""
        return self.facts.committed >= self.tasks

    @property
    def rates(self) -> str:
        """Both rates, with their units, in a fixed width."""
        return f"{compact(self.records_per_second):>5} records/s  {self.bytes_per_second / 2**20:6.1f} MiB/s"

    @property
    def amount(self) -> str:
        """What it has read."""
        return f"{self.done.records:,} records  {self.done.size / 2**20:,.1f} MiB"

    @property
    def troubles(self) -> list[tuple[str, str]]:
        """Attempts lost and failed, if any: text and style."""
        counts = ((self.facts.lost, "lost", "yellow"), (self.facts.failed, "failed", "red"))
        return [(f"{count:,} {what}", style) for count, what, style in counts if count]


class Meter:
    """Measures the phases of a run from one facts to the next."""

    def __init__(self) -> None:
        self._paces: dict[int, Pace] = {}
        self._ends: dict[int, int] = {}
        self._absent_since: int | None = None

    def measure(self, facts: Facts) -> list[Measure]:
        """Return every phase of the run as it is now."""
        titles = phase_titles([each.phase for each in facts.phases])
        return [self._phase(facts, number, title) for number, title in enumerate(titles)]

    def is_deserted(self, facts: Facts) -> bool:
        """Whether for a while no worker has been listening and none at work."""
        if facts.workers or facts.running or facts.state != RunState.RUNNING:
            self._absent_since = None
            return False
        self._absent_since = self._absent_since or facts.now_ms
        return facts.now_ms - self._absent_since >= ABSENT_MS

    def _phase(self, facts: Facts, number: int, title: str) -> Measure:
        phase, done = facts.phases[number], done_so_far(facts.phases[number], facts.running)
        if not phase.started_ms:
            return Measure(title, phase, done, 0, None, 0, 0)
        pace = self._paces.setdefault(number, Pace(phase.started_ms))
        pace.add(facts.now_ms, done)
        if phase.committed < phase.phase.tasks:
            self._ends.pop(number, None)  # a reopened task may have undone it
            elapsed = max(0, facts.now_ms - phase.started_ms)
            return Measure(title, phase, done, elapsed, pace.left_ms(phase.phase.tasks), *pace.per_second())
        following = facts.phases[number + 1].started_ms if number + 1 < len(facts.phases) else 0
        elapsed = max(1, self._ends.setdefault(number, following or facts.now_ms) - phase.started_ms)
        return Measure(title, phase, done, elapsed, None, done.records / elapsed * 1000, done.size / elapsed * 1000)


# --- words --------------------------------------------------------------------------------------------------------

_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])|\x9b[0-?]*[ -/]*[@-~]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_LOCAL = re.compile(r"\brqmr-[0-9a-f]+-(?=w\d)")


def plain(text: str, encoding: str = "utf-8") -> str:
    """Return text that can't move the cursor, change colours or fail to be encoded."""
    text = _CONTROL.sub("", _ESCAPE.sub("", text.expandtabs().replace("\n", " ")))
    return text.encode(encoding, "backslashreplace").decode(encoding)


def clock(ms: float) -> str:
    """Return a duration: ``0:42``, from one hour ``1h02m``."""
    seconds = int(ms / 1000)
    return f"{seconds // 60}:{seconds % 60:02}" if seconds < 3600 else f"{seconds // 3600}h{seconds // 60 % 60:02}m"


def compact(number: float) -> str:
    """Return a number in at most five columns: ``9,876``, ``98.8k``, ``1.23M``."""
    for limit, divisor, unit in ((9_999.5, 1, ""), (999_500, 1e3, "k"), (999.5e6, 1e6, "M"), (math.inf, 1e9, "G")):
        if number < limit:
            break
    value = number / divisor
    return f"{value:,.0f}" if not unit else f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}{unit}"


def time_of_day(ms: int) -> str:
    """Return a time as this machine's user reads it."""
    return datetime.fromtimestamp(ms / 1000).strftime("%H:%M:%S")


def phase_titles(phases: Sequence[Phase]) -> list[str]:
    """Return the phases in words: map, reduce; with several reduce phases they are numbered from 1."""
    several = sum(each.kind == Kind.REDUCE for each in phases) > 1
    return ["map" if p.kind == Kind.MAP else f"reduce {p.step + 1}" if several else "reduce" for p in phases]


def subject_title(subject: str, phases: Sequence[Phase], backups: Iterable[TaskId] = ()) -> str:
    """Return a phase, task or attempt in words: ``map 5``, ``reduce 3 (2nd try)``, ``reduce 2 #3`` of several steps."""
    titles = dict(zip((each.name for each in phases), phase_titles(phases), strict=True))
    name, _, number = subject.rpartition("-a") if "-a" in subject else (subject, "", "1")
    try:
        task, tries = TaskId.parse(name), int(number)
    except ValueError:
        return titles.get(subject, subject)
    title = titles.get(f"s{task.step}-{task.kind}", "map" if task.kind == Kind.MAP else "reduce")
    title += f" #{task.index}" if title[-1].isdigit() else f" {task.index}"
    return title if tries == 1 else f"{title} ({'backup' if task in backups else f'{ordinal(tries)} try'})"


def ordinal(number: int) -> str:
    """Return ``1st``, ``2nd``, ``11th``."""
    ending = "th" if number // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def short_worker(name: str, host: str = "") -> str:
    """Return a worker's name in at most 16 columns, with its host if one is given."""
    name = _LOCAL.sub("", name)
    name = name[:8] if re.fullmatch(r"[0-9a-f]{32}", name) else name  # what RQ calls a worker without a name
    if host and len(name) + 3 < NAME_WIDTH:
        name = f"{host.partition('.')[0][-(NAME_WIDTH - 1 - len(name)) :]}:{name}"
    return name[-NAME_WIDTH:]  # names of one kind differ at their end


def absence(header: Header) -> list[str]:
    """Return what to tell when no worker listens."""
    if "://" not in header.server:
        return [f"no worker listens on queue '{header.queue}' yet"]
    return [
        f"no worker listens on queue '{header.queue}': start one with",
        f"  rq worker {header.queue} --url {header.server}",
    ]
