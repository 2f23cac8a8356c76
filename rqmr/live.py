"""The view of a run on a terminal, drawn at its bottom again and again. It alone imports rich, which takes its time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from rqmr.facts import Event, Facts, Header, RunningAttempt
from rqmr.meter import (
    EVENT_STYLES,
    LOCAL_NAME,
    Measure,
    Meter,
    absence_of_redis,
    choose_events,
    clock,
    natural,
    plain,
    short_worker,
    subject_title,
    time_of_day,
)
from rqmr.model import RunState

LINGER_MS = 2_000  # a worker's row outlives its attempt: most have the next one by then, and nothing jumps
REFRESH_SECONDS = 0.12
MOST_WORKERS, MOST_WIDTH = 12, 100


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
        self._waits_for: list[str] = []
        self._away = ""  # what there is to say of a Redis that doesn't answer
        self._is_over = False
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
        self._facts, self._away = facts, ""
        self._measures = self._meter.measure(facts)
        self._waits_for = self._meter.waits_for(facts, self._header) if self._header else []
        self._events = choose_events([*self._events, *events], facts.now_ms, 5)
        self._note_workers(facts)
        self._refresh()

    def away(self, seconds: float) -> None:
        """Draw it, in the place of the workers."""
        self._away = absence_of_redis(seconds)
        self._refresh()

    def printed(self, worker: str, line: str) -> None:
        """Let the line scroll by."""
        self._lines.append(self._text((f"{short_worker(worker)} │ ", "cyan"), (line, "")))
        self._refresh()

    def note(self, text: str) -> None:
        """Let the text scroll by."""
        self._lines.append(self._text((LOCAL_NAME.sub("", text), "yellow")))
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
        if self._away:
            return [self._text((self._away, "yellow"))]
        if self._waits_for:
            told = [self._text((line, "yellow")) for line in self._waits_for[: max(1, most)]]
            return [*told, *self._workers(facts, most - len(told))]
        if not self._rows:
            waits = facts.state == RunState.RUNNING and any(each.pending for each in facts.phases)
            return [self._text(("waiting for a worker…", "dim"))] if waits else []
        return self._workers(facts, most)

    def _workers(self, facts: Facts, most: int) -> list[Text]:
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
        told = f"{event.what:<9}  {subject:<{self._task_width}}  {LOCAL_NAME.sub('', event.note)}"
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
