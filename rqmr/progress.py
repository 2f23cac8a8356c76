"""The view of a run: it reads facts and decides nothing.

Arithmetic and wording are plain functions of plain values. `LiveView` draws on a terminal, `LogView` writes lines where
there is none. Durations are differences of the server's times; this machine's clock only limits how often we draw.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple, Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from rqmr.model import Event, Facts, Kind, Phase, PhaseFacts, Progress, RunningAttempt, RunState, TaskId

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


def choose_view(*, quiet: bool, stream: TextIO | None = None) -> View:
    """Return the view that fits where its text goes: stderr, if not said otherwise."""
    if quiet:
        return QuietView()
    stream = stream or sys.stderr
    is_drawable = stream.isatty() and os.environ.get("TERM") != "dumb"
    return LiveView(Console(file=stream, highlight=False)) if is_drawable else LogView(stream)


# --- arithmetic ---------------------------------------------------------------------------------------------------


def done_so_far(phase: PhaseFacts, running: Iterable[RunningAttempt]) -> Progress:
    """Return how far the phase is, with those that run; of a task's attempts only the one that is further counts."""
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
        seconds = max(1000, now_ms - then_ms) / 1000  # in its first moments a rate would tell nothing
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
        """What runs and waits, or what was read, and what went wrong: texts and styles."""
        told = [(f"{self.facts.running} running", ""), (f"{self.facts.pending} pending", "")]
        if self.is_complete:
            told = [(f"{self.done.records:,} records", "dim"), (f"{self.done.size / 2**20:,.1f} MiB", "dim")]
        troubles = ((self.facts.lost, "lost", "yellow"), (self.facts.failed, "failed", "red"))
        return told + [(f"{count} {what}", style) for count, what, style in troubles if count]

    @property
    def rates(self) -> list[str]:
        """Records and bytes, each in a fixed width; none when it is over."""
        told = [f"{compact(self.records_per_second):>5} records/s", f"{self.bytes_per_second / 2**20:5.1f} MiB/s"]
        return [] if self.is_complete else told


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
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_ASCII = str.maketrans({"━": "#", "╸": "#", "─": "-", "│": "|", "–": "-", "…": "..."})
_LOCAL = re.compile(r"\brqmr-[0-9a-f]+-(?=w\d)")


def plain(text: str, encoding: str = "utf-8") -> str:
    """Return text that can't move the cursor, change colours or fail to be encoded."""
    text = _CONTROL.sub("", _ESCAPE.sub("", text).replace("\n", " ")).expandtabs()
    text = text if encoding.lower().startswith("utf") else text.translate(_ASCII)
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


def subject_title(subject: str, facts: Facts) -> str:
    """Return a phase, task or attempt in words: ``map 5``, ``reduce 3 (2nd try)``, of several steps ``reduce 2 #3``."""
    phases = [each.phase for each in facts.phases]
    titles = dict(zip((each.name for each in phases), phase_titles(phases), strict=True))
    name, _, number = subject.partition("-a")
    try:
        task, tries = TaskId.parse(name), int(number or 1)
        title = titles[f"s{task.step}-{task.kind}"]
    except (ValueError, KeyError):
        return titles.get(subject, subject)
    title += f" #{task.index}" if title[-1].isdigit() else f" {task.index}"
    nth = "backup" if task in facts.backups else {2: "2nd try", 3: "3rd try"}.get(tries, f"try {tries}")
    return title if tries == 1 else f"{title} ({nth})"


def short_worker(name: str, host: str = "") -> str:
    """Return a worker's name in at most 16 columns, with its host if one is given."""
    name = _LOCAL.sub("", name)
    name = name[:8] if re.fullmatch(r"[0-9a-f]{32}", name) else name  # RQ's own choice, if the user made none
    if host and len(name) + 3 < NAME_WIDTH:
        name = f"{host.partition('.')[0][-(NAME_WIDTH - 1 - len(name)) :]}:{name}"
    return name[-NAME_WIDTH:]  # names of one kind differ at their ends


def natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key by which w2 comes before w10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


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


# --- the views ----------------------------------------------------------------------------------------------------


class LogView:
    """Writes lines without escape codes: what happens when it does, and how far it is every now and then."""

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._now = stream, now
        self._meter = Meter()
        self._header: Header | None = None
        self._said: dict[str, str] = {}  # about what -> what was said last
        self._pause, self._next = LOG_SECONDS, now() + LOG_SECONDS

    def begin(self, header: Header) -> None:
        """Say which run it is, where, and its plan."""
        self._header = header
        self._write(f"{header.run} on {header.server}, queue {header.queue}")
        self._write(header.plan)

    def update(self, facts: Facts, events: Sequence[Event]) -> None:
        """Write what is news."""
        for event in events:
            if event.what in EVENT_STYLES:
                told = f"{subject_title(event.subject, facts)} {event.what}: {_LOCAL.sub('', event.note)}"
                self._write(f"{time_of_day(event.at_ms)} {told.removesuffix(': ')}")
        at = time_of_day(facts.now_ms)
        for measure in self._meter.measure(facts):
            if measure.facts.started_ms:
                self._phase(measure, at)
        deserted = self._meter.is_deserted(facts) and self._header
        self._say("workers", at, "".join(absence(deserted)) if deserted else "")

    def printed(self, worker: str, line: str) -> None:
        """Write the line behind the worker's name."""
        self._write(f"{short_worker(worker)} | {line}")

    def note(self, text: str) -> None:
        """Write the text."""
        self._write(_LOCAL.sub("", text))

    def end(self) -> None:
        """Nothing is left to do: every line is out."""

    def _phase(self, measure: Measure, at: str) -> None:
        title, tasks = measure.title, f"{measure.facts.phase.tasks} tasks"
        counts = ", ".join(text for text, _ in measure.counts)
        if title not in self._said:
            self._say(title, at, f"{title} begins: {tasks}")
        if measure.is_complete:
            self._say(title, at, f"{title} is done: {tasks} in {clock(measure.elapsed_ms)}, {counts}")
        elif self._now() >= self._next:
            told = f"{title} {measure.percent}: {measure.tasks} committed, {counts}, {measure.done.records:,} records"
            aside = [each.strip() for each in measure.rates]
            aside += [] if measure.left_ms is None else [f"{clock(measure.left_ms)} left"]
            if self._say(title, at, told, ", " + ", ".join(aside)):
                self._pause = min(2 * self._pause, LOG_SECONDS_MAX)
                self._next = self._now() + self._pause

    def _say(self, about: str, at: str, told: str, aside: str = "") -> bool:
        """Write what is told if it is news, and the aside with it; return whether it was."""
        is_news = told != self._said.get(about, "")
        self._said[about] = told
        if is_news and told:
            self._write(f"{at} {told}{aside}")
        return is_news

    def _write(self, text: str) -> None:
        print(plain(text, self._stream.encoding or "utf-8"), file=self._stream, flush=True)


class QuietView(LogView):
    """Writes nothing."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def _write(self, text: str) -> None:
        pass


def bar(fraction: float, width: int) -> tuple[str, str]:
    """Return both ends of a bar: what is done, and the rest."""
    whole, half = divmod(int(2 * max(0, width) * min(1.0, max(0.0, fraction))), 2)
    return "━" * whole + "╸" * half, "─" * (width - whole - half)


def share_out(height: int, phases: int) -> tuple[bool, int, int]:
    """Return what there is room for: details of the phases, how many lines of workers (or "… and more"), and of events.

    One line of the terminal stays free, each section has an empty one before it, and the workers have a heading.
    """
    is_roomy = height >= 2 * phases + 11
    free = height - 1 - (2 * phases + 3 if is_roomy else phases + 1)
    events = 0 if free < 8 else 3 if height < 32 else 5
    return is_roomy, max(0, min(MOST_WORKERS + 1, free - 2 - (events + 1 if events else 0))), events


class Row(NamedTuple):
    """A worker and its attempt, which is over if it wasn't seen just now."""

    name: str
    attempt: RunningAttempt
    seen_ms: int


class LiveView:
    """Draws the run at the bottom of a terminal; what is printed scrolls by above it.

    The numbers of phases and of workers stand in the same columns, and columns only grow, so that nothing jumps.
    """

    def __init__(self, console: Console, now: Callable[[], float] = time.monotonic) -> None:
        self._console, self._now, self._next = console, now, 0.0
        self._meter = Meter()
        self._header: Header | None = None
        self._facts: Facts | None = None
        self._measures: list[Measure] = []
        self._events: list[Event] = []
        self._rows: dict[str, Row] = {}
        self._hosts: set[str] = set()
        self._name_width, self._task_width = 6, 12
        self._is_deserted = self._is_over = False
        self._lines: list[Text] = []  # to be printed with the next picture
        self._live = Live(
            console=console, get_renderable=self._draw, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )

    def begin(self, header: Header) -> None:
        """Start to draw."""
        self._header = header
        self._live.start(refresh=True)

    def update(self, facts: Facts, events: Sequence[Event]) -> None:
        """Remember what is true now, and draw it when the last picture is old enough."""
        self._facts = facts
        self._measures = self._meter.measure(facts)
        self._is_deserted = self._meter.is_deserted(facts)
        self._events = choose_events([*self._events, *events], facts.now_ms, 5)
        self._note_workers(facts)
        self._refresh()

    def printed(self, worker: str, line: str) -> None:
        """Let the line scroll by."""
        self._lines.append(self._text((f"{short_worker(worker)} │ ", "cyan"), (line, "")))
        self._refresh()

    def note(self, text: str) -> None:
        """Let the text scroll by."""
        self._lines.append(self._text((_LOCAL.sub("", text), "yellow")))
        self._refresh(at_once=True)

    def end(self) -> None:
        """Leave the bars as the final picture."""
        self._is_over = True
        try:
            self._refresh(at_once=True)
        finally:
            self._live.stop()

    def _note_workers(self, facts: Facts) -> None:
        working = [each for each in facts.running if each.worker]  # a lease that just expired names nobody
        self._hosts |= {each.host for each in working}
        for each in working:
            name = short_worker(each.worker, each.host if len(self._hosts) > 1 else "")
            self._rows[each.worker] = Row(name, each, facts.now_ms)
        self._rows = {name: row for name, row in self._rows.items() if facts.now_ms - row.seen_ms < LINGER_MS}

    def _refresh(self, *, at_once: bool = False) -> None:
        if self._now() < self._next and not at_once:
            return
        self._next = self._now() + REFRESH_SECONDS
        lines, self._lines = self._lines, []
        with self._console:  # all in one write, so that nothing flickers
            if lines:
                self._console.print(Text("\n").join(lines), soft_wrap=True)
            if self._live.is_started:
                self._live.refresh()

    # What follows makes the picture's lines, section by section.

    def _draw(self) -> Group:
        is_roomy, most_workers, most_events = share_out(self._console.height, len(self._measures))
        lines = self._title()[: 3 if is_roomy else 1]
        for measure in self._measures:
            lines += self._phase(measure)[: 2 if is_roomy else 1]
        if self._facts and not self._is_over:
            for section in (self._work(self._facts, most_workers), self._news(self._facts, most_events)):
                lines += [Text(), *section] if section else []
        return Group(*lines[: max(1, self._console.height - 1)])

    def _title(self) -> list[Text]:
        header, facts = self._header, self._facts
        if header is None:
            return []
        elapsed = clock(facts.now_ms - facts.started_ms) if facts and facts.started_ms else ""
        first = self._text((header.run, "bold"), (f"  queue {header.queue}  {header.server}", "dim"))
        return [self._spread(first, elapsed, "bold"), self._text((header.plan, "dim")), Text()]

    def _phase(self, measure: Measure) -> list[Text]:
        """The bar, and a line of details below it."""
        indent = max(len(each.title) for each in self._measures)
        if not measure.facts.started_ms:
            label = self._text((measure.title.ljust(indent), "dim"))
            later = self._text((f"{'':{indent}}  not begun", "dim"))
            return [self._columns(label, 0.0, "", [("", ""), (measure.tasks, "dim")]), later]
        left = "–" if measure.left_ms is None else f"{clock(measure.left_ms)} left"
        cells = [(measure.percent, "bold"), (measure.tasks, ""), (clock(measure.elapsed_ms), "")]
        cells += [] if measure.is_complete else [(left, "dim")]
        details = self._text((" " * indent, ""), *((f"  {text}", style) for text, style in measure.counts))
        rates = measure.rates
        while rates and details.cell_len + len("  ".join(rates)) + 2 > self._width:
            rates.pop()
        label, style = self._text((measure.title.ljust(indent), "bold")), "green" if measure.is_complete else "cyan"
        bars = self._columns(label, measure.done.fraction, style, cells)
        return [bars, self._spread(details, "  ".join(rates), "dim")]

    def _work(self, facts: Facts, most: int) -> list[Text]:
        """Who runs what, or why nobody does."""
        if self._is_deserted and self._header:
            return [self._text((line, "yellow")) for line in absence(self._header)]
        if not self._rows:
            waits = facts.state == RunState.RUNNING and any(each.pending for each in facts.phases)
            return [self._text(("waiting for a worker…", "dim"))] if waits else []
        count = len(self._rows) if len(self._rows) <= min(most, MOST_WORKERS) else most - 1
        if count < 1:
            return []
        rows = sorted(self._rows.values(), key=lambda each: natural(each.name))[:count]
        titles = [subject_title(str(row.attempt.id), facts) for row in rows]
        self._name_width = max(self._name_width, *(len(row.name) for row in rows))
        self._task_width = max(self._task_width, *map(len, titles))
        names = [(name, "dim") for name in ("", "records", "time", "lease")]
        heading = self._columns(self._label("worker", "task", "dim"), None, "", names)
        more = len(self._rows) - count
        rest = [self._text((f"… and {more} more workers", "dim"))] if more else []
        return [heading, *(self._worker(*each, facts.now_ms) for each in zip(rows, titles, strict=True)), *rest]

    def _worker(self, row: Row, title: str, now_ms: int) -> Text:
        attempt, progress = row.attempt, row.attempt.progress
        lease, age = attempt.deadline_ms - attempt.renewed_ms, max(0, row.seen_ms - attempt.renewed_ms)
        style = "red" if age > 0.8 * lease else "yellow" if age > 0.5 * lease else "dim"
        cells = [(f"{int(progress.fraction * 100)}%", ""), (f"{progress.records:,}", "")]
        cells += [(clock(row.seen_ms - attempt.started_ms), ""), (f"{age / 1000:.1f}/{lease / 1000:g} s", style)]
        line = self._columns(self._label(row.name, title), progress.fraction, "cyan", cells)
        if row.seen_ms < now_ms:
            line.stylize("dim")
        return line

    def _news(self, facts: Facts, most: int) -> list[Text]:
        events = choose_events(self._events, facts.now_ms, most)
        return [self._event(each, subject_title(each.subject, facts)) for each in events]

    def _event(self, event: Event, subject: str) -> Text:
        told = f"{event.what:<9}  {subject:<{self._task_width}}  {_LOCAL.sub('', event.note)}"
        return self._text((f"{time_of_day(event.at_ms)}  ", "dim"), (told, EVENT_STYLES.get(event.what, "dim")))

    # And these the parts of a line.

    @property
    def _width(self) -> int:
        return min(self._console.width, MOST_WIDTH)

    @property
    def _overflow(self) -> Literal["crop", "ellipsis"]:
        return "crop" if self._console.options.ascii_only else "ellipsis"

    def _text(self, *parts: tuple[str, str]) -> Text:
        told = ((plain(text, self._console.encoding), style) for text, style in parts)
        return Text.assemble(*told, no_wrap=True, overflow=self._overflow)

    def _label(self, name: str, title: str, style: str = "") -> Text:
        return self._text((f"{name:<{self._name_width}}  {title:<{self._task_width}}", style))

    def _spread(self, left: Text, right: str, style: str) -> Text:
        """A part at either end; the left one is cut if there isn't room for both."""
        left.truncate(max(0, self._width - len(right) - 2), overflow=self._overflow, pad=True)
        return left.append("  ").append(right, style)

    def _columns(self, label: Text, fraction: float | None, style: str, cells: Sequence[tuple[str, str]]) -> Text:
        """Label, bar, percent, count, time, and time left or lease; a narrow terminal does without the last."""
        widths = [4, max(9, *(len(each.tasks) for each in self._measures)), 6, 10]
        while len(widths) > 2 and self._width - sum(widths) - 2 * len(widths) < 24:
            widths.pop()
        space = self._width - label.cell_len - 2 - sum(width + 2 for width in widths)
        done, rest = ("", " " * space) if fraction is None else bar(fraction, space)
        line = label.append("  ").append(self._text((done, style), (rest, "bright_black")))
        for (text, cell_style), width in zip(cells, widths, strict=False):
            line.append("  ").append(text.rjust(width), cell_style)
        return line
