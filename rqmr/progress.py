"""The view of a run: it reads facts and decides nothing.

Arithmetic and wording are plain functions of plain values. `LiveView` draws on a terminal, `LogView` writes lines where
there is none. Durations are differences of the server's times; this machine's clock only limits how often we draw.
"""

from __future__ import annotations

import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from rqmr.model import AttemptId, Event, Facts, Kind, Phase, PhaseFacts, Progress, RunningAttempt, RunState, TaskId

RATE_MS = 10_000  # two heartbeats of the default lease, so that a rate doesn't jump with each of them
LINGER_MS = 2_000  # a worker's row outlives its attempt: most have the next one by then, and nothing jumps
ABSENT_MS = 1_000  # before we say that nobody listens: local workers need a moment to start
RECENT_MS = 20_000  # an important event keeps its place against newer commits
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
        """Begin to show a run."""

    def update(self, facts: Facts, events: Sequence[Event]) -> None:
        """Take what is true now, and the events that are new."""

    def printed(self, worker: str, line: str) -> None:
        """Take a line that user code printed in a local worker."""

    def note(self, text: str) -> None:
        """Take one line of news."""

    def end(self) -> None:
        """Leave the terminal as it should be, whatever happened; twice does no harm."""


class QuietView(View):
    """Shows nothing."""


def choose_view(*, quiet: bool, stream: TextIO | None = None) -> View:
    """Return the view that fits where its text goes, stderr if not said otherwise."""
    stream = stream or sys.stderr
    if quiet:
        return QuietView()
    console = Console(file=stream, highlight=False)
    return LiveView(console) if stream.isatty() and not console.is_dumb_terminal else LogView(stream)


# --- arithmetic ---------------------------------------------------------------------------------------------------


def done_so_far(phase: PhaseFacts, running: Iterable[RunningAttempt]) -> Progress:
    """Return how far the phase is, by its winners and by those that run; of a task's attempts the one that is further."""
    best: dict[TaskId, Progress] = {}
    for attempt in running:
        task = attempt.id.task
        if (task.step, task.kind) == (phase.phase.step, phase.phase.kind):
            best[task] = max(best.get(task, Progress()), attempt.progress, key=lambda each: each.fraction)
    return Progress(
        phase.records + sum(each.records for each in best.values()),
        phase.size + sum(each.size for each in best.values()),
        min(1.0, (phase.committed + sum(each.fraction for each in best.values())) / max(1, phase.phase.tasks)),
    )


class Pace:
    """How fast a phase goes, and when it will be done."""

    def __init__(self, started_ms: int) -> None:
        self._started_ms = self._changed_ms = started_ms
        self._samples = deque([(started_ms, Progress())])

    def add(self, now_ms: int, done: Progress) -> None:
        """Take how much is done now."""
        if done.fraction != self._samples[-1][1].fraction:
            self._changed_ms = now_ms
        self._samples.append((now_ms, done))
        while len(self._samples) > 2 and self._samples[1][0] <= now_ms - RATE_MS:
            self._samples.popleft()

    def per_second(self) -> tuple[float, float]:
        """Return records and bytes per second of late; never negative, though a lost attempt takes its share away."""
        (then_ms, then), (now_ms, now) = self._samples[0], self._samples[-1]
        seconds = max(1, now_ms - then_ms) / 1000
        return max(0, now.records - then.records) / seconds, max(0, now.size - then.size) / seconds

    def left_ms(self) -> int | None:
        """Return how long the rest takes if it goes on as before; None if that can't be told yet.

        Between two heartbeats nothing is heard, so it counts down from the last change.
        """
        now_ms, done = self._samples[-1]
        if not done.fraction or now_ms - self._started_ms < 1000:
            return None
        whole = (self._changed_ms - self._started_ms) / done.fraction
        return max(0, round(whole - (now_ms - self._started_ms)))


@dataclass(frozen=True)
class Measure:
    """One phase in numbers, and its numbers in words."""

    title: str
    facts: PhaseFacts
    done: Progress
    elapsed_ms: int = 0
    left_ms: int | None = None
    records_per_second: float = 0.0
    bytes_per_second: float = 0.0

    @property
    def is_complete(self) -> bool:
        """Whether every task is committed."""
        return self.facts.committed >= self.facts.phase.tasks

    @property
    def percent(self) -> str:
        """The fraction; 100% only when every task is committed."""
        return "100%" if self.is_complete else f"{min(99, int(self.done.fraction * 100))}%"

    @property
    def tasks(self) -> str:
        """How many are committed, of how many."""
        return f"{self.facts.committed}/{self.facts.phase.tasks}"

    @property
    def counts(self) -> list[tuple[str, str]]:
        """What it has read or what waits, and what went wrong: texts and styles."""
        told = [(f"{self.facts.running} running", ""), (f"{self.facts.pending} pending", "")]
        if self.is_complete:
            told = [(f"{self.done.records:,} records", "dim"), (f"{self.done.size / 2**20:,.1f} MiB", "dim")]
        troubles = ((self.facts.lost, "lost", "yellow"), (self.facts.failed, "failed", "red"))
        return told + [(f"{count} {what}", style) for count, what, style in troubles if count]

    @property
    def rates(self) -> str:
        """Both rates, in a fixed width."""
        return f"{compact(self.records_per_second):>5} records/s  {self.bytes_per_second / 2**20:6.1f} MiB/s"


class Meter:
    """Measures a run's phases from one facts to the next."""

    def __init__(self) -> None:
        self._paces: dict[int, Pace] = {}
        self._ends: dict[int, int] = {}
        self._absent_since = 0

    def measure(self, facts: Facts) -> list[Measure]:
        """Return every phase as it is now."""
        titles = phase_titles([each.phase for each in facts.phases])
        return [self._phase(facts, number, title) for number, title in enumerate(titles)]

    def is_deserted(self, facts: Facts) -> bool:
        """Whether for a while no worker has been listening and none at work."""
        if facts.workers or facts.running or facts.state != RunState.RUNNING:
            self._absent_since = 0
            return False
        self._absent_since = self._absent_since or facts.now_ms
        return facts.now_ms - self._absent_since >= ABSENT_MS

    def _phase(self, facts: Facts, number: int, title: str) -> Measure:
        phase = facts.phases[number]
        now_ms, started_ms, done = facts.now_ms, phase.started_ms, done_so_far(phase, facts.running)
        if not started_ms:
            return Measure(title, phase, done)
        pace = self._paces.setdefault(number, Pace(started_ms))
        pace.add(now_ms, done)
        if phase.committed < phase.phase.tasks:
            self._ends.pop(number, None)  # a task may have been reopened
            return Measure(title, phase, done, now_ms - started_ms, pace.left_ms(), *pace.per_second())
        following = facts.phases[number + 1].started_ms if number + 1 < len(facts.phases) else 0
        elapsed = max(1, self._ends.setdefault(number, following or now_ms) - started_ms)
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
    """Return a number in at most five columns: ``9,876``, ``99k``, ``1.2M``."""
    if number < 999_500:
        return f"{number:,.0f}" if number < 9_999.5 else f"{number / 1e3:.0f}k"
    return f"{number / 1e6:.1f}M" if number < 99.95e6 else f"{number / 1e6:.0f}M"


def time_of_day(ms: int) -> str:
    """Return a time as this machine's user reads it."""
    return datetime.fromtimestamp(ms / 1000).strftime("%H:%M:%S")


def phase_titles(phases: Sequence[Phase]) -> list[str]:
    """Return the phases in words: map, reduce; several reduce phases are numbered from 1."""
    several = sum(each.kind == Kind.REDUCE for each in phases) > 1
    return ["map" if p.kind == Kind.MAP else f"reduce {p.step + 1}" if several else "reduce" for p in phases]


def subject_title(subject: str, phases: Sequence[Phase], backups: Iterable[TaskId] = ()) -> str:
    """Return a phase, task or attempt in words: ``map 5``, ``reduce 3 (2nd try)``, of several steps ``reduce 2 #3``."""
    titles = dict(zip((each.name for each in phases), phase_titles(phases), strict=True))
    name, _, number = subject.partition("-a")
    try:
        task, tries = TaskId.parse(name), int(number or 1)
    except ValueError:
        return titles.get(subject, subject)
    title = titles[f"s{task.step}-{task.kind}"]
    title += f" #{task.index}" if title[-1].isdigit() else f" {task.index}"
    nth = "backup" if task in backups else {2: "2nd try", 3: "3rd try"}.get(tries, f"try {tries}")
    return title if tries == 1 else f"{title} ({nth})"


def short_worker(name: str, host: str = "") -> str:
    """Return a worker's name in at most 16 columns, with its host if one is given."""
    name = _LOCAL.sub("", name)
    name = name[:8] if re.fullmatch(r"[0-9a-f]{32}", name) else name  # RQ's own choice, if the user made none
    if host and len(name) + 3 < NAME_WIDTH:
        name = f"{host.partition('.')[0][-(NAME_WIDTH - 1 - len(name)) :]}:{name}"
    return name[-NAME_WIDTH:]  # names of one kind differ at their ends


def absence(header: Header) -> list[str]:
    """Return what to tell when no worker listens: what to do, if the user can do it."""
    url = re.search(r"\S+://\S+", header.server)
    first = f"no worker listens on queue '{header.queue}'"
    return [f"{first}: start one with", f"  rq worker {header.queue} --url {url[0]}"] if url else [f"{first} yet"]


def choose_events(events: Sequence[Event], now_ms: int, count: int) -> list[Event]:
    """Return the last events, in which a recent important one is not pushed out by commits."""
    told = [each for each in events if each.what != "claimed"]
    told.sort(key=lambda each: (each.what in EVENT_STYLES and now_ms - each.at_ms < RECENT_MS, each.at_ms))
    return sorted(told[max(0, len(told) - count) :], key=lambda each: each.at_ms)


# --- lines --------------------------------------------------------------------------------------------------------


class LogView(View):
    """Writes lines, none of them with an escape code: what happens, and how far it is, every now and then."""

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._now = stream, now
        self._meter = Meter()
        self._header: Header | None = None
        self._begun: set[str] = set()
        self._ended: set[str] = set()
        self._last = ""
        self._pause, self._next = LOG_SECONDS, now() + LOG_SECONDS
        self._is_deserted = False

    def begin(self, header: Header) -> None:
        """Say which run it is, where, and its plan."""
        self._header = header
        self._write(f"{header.run} on {header.server}, queue {header.queue}")
        self._write(header.plan)

    def update(self, facts: Facts, events: Sequence[Event]) -> None:
        """Write what is news."""
        at, phases = f"{time_of_day(facts.now_ms)} ", [each.phase for each in facts.phases]
        for event in events:
            if event.what in EVENT_STYLES:
                told = f"{subject_title(event.subject, phases)} {event.what}: {_LOCAL.sub('', event.note)}"
                self._write(f"{time_of_day(event.at_ms)} {told.rstrip(': ')}")
        for measure in self._meter.measure(facts):
            for line in self._phase(measure):
                self._write(at + line)
        deserted = self._meter.is_deserted(facts)
        if deserted and not self._is_deserted and self._header:
            self._write(at + " ".join(absence(self._header)))
        self._is_deserted = deserted

    def printed(self, worker: str, line: str) -> None:
        """Write the line behind the worker's name."""
        self._write(f"{short_worker(worker)} | {line}")

    def note(self, text: str) -> None:
        """Write it."""
        self._write(_LOCAL.sub("", text))

    def end(self) -> None:
        """Nothing is left to do: every line is out already."""

    def _phase(self, measure: Measure) -> Iterator[str]:
        name, at = measure.title, measure.facts.phase
        if measure.facts.started_ms and name not in self._begun:
            self._begun.add(name)
            yield f"{name} begins: {at.tasks} tasks"
        if not measure.is_complete:
            self._ended.discard(name)
            if measure.facts.started_ms and self._is_due(told := self._told(measure)):
                yield f"{told}, {' '.join(measure.rates.split())}, {clock(measure.left_ms or 0)} left"
        elif name not in self._ended:
            self._ended.add(name)
            yield f"{name} is done: {at.tasks} tasks in {clock(measure.elapsed_ms)}, {_list(measure.counts)}"

    def _write(self, text: str) -> None:
        print(plain(text, self._stream.encoding or "utf-8"), file=self._stream, flush=True)
