"""The view of a run: it reads facts and decides nothing.

A `LiveView` draws on a terminal, a `LogView` writes lines elsewhere. This machine's clock only limits how often.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from rqmr.facts import Event, Facts, Header
from rqmr.meter import (
    EVENT_STYLES,
    LOCAL_NAME,
    Measure,
    Meter,
    absence_of_redis,
    clock,
    plain,
    short_worker,
    subject_title,
    time_of_day,
)
from rqmr.view import Silent, View

LOG_SECONDS, LOG_SECONDS_MAX = 2.0, 30.0


def choose_view(*, quiet: bool, stream: TextIO | None = None) -> View:
    """Return the view that fits where its text goes: stderr, if not said otherwise."""
    if quiet:
        return Silent()
    stream = stream or sys.stderr
    is_drawable = stream.isatty() and os.environ.get("TERM") != "dumb"
    if not is_drawable:
        return LogView(stream)
    from rich.console import Console

    from rqmr.live import LiveView

    return LiveView(Console(file=stream, highlight=False))


class LogView:
    """Writes lines without escape codes: what happens when it does, and how far it is every now and then."""

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._now = stream, now
        self._meter = Meter()
        self._header: Header | None = None
        self._said: dict[str, str] = {}  # about what -> what was said last
        self._pause, self._next = LOG_SECONDS, now() + LOG_SECONDS
        self._is_away = False  # Redis is, and it was said

    def begin(self, header: Header) -> None:
        """Say which run it is, where, and its plan."""
        self._header = header
        queue = f", queue {header.queue}" if header.queue else ""
        self._write(f"{header.run} on {header.server}{queue}")
        self._write(header.plan)

    def update(self, facts: Facts, events: Sequence[Event]) -> None:
        """Write what is news."""
        if self._is_away:
            self._is_away = False
            self._write("Redis answers again")
        for event in events:
            if event.what in EVENT_STYLES:
                told = f"{subject_title(event.subject, facts)} {event.what}: {LOCAL_NAME.sub('', event.note)}"
                self._write(f"{time_of_day(event.at_ms)} {told.removesuffix(': ')}")
        at = time_of_day(facts.now_ms)
        for measure in self._meter.measure(facts):
            if measure.facts.started_ms:
                self._phase(measure, at)
        waits_for = self._meter.waits_for(facts, self._header) if self._header else []
        self._say("waiting", at, "".join(waits_for[:1]), "".join(waits_for[1:]))

    def away(self, seconds: float) -> None:
        """Write it once, and when it is over."""
        if (told := absence_of_redis(seconds)) and not self._is_away:
            self._is_away = True
            self._write(told)

    def printed(self, worker: str, line: str) -> None:
        """Write the line behind the worker's name."""
        self._write(f"{short_worker(worker)} | {line}")

    def note(self, text: str) -> None:
        """Write the text."""
        self._write(LOCAL_NAME.sub("", text))

    def end(self) -> None:
        """Nothing is left to do: every line is out."""

    def _phase(self, measure: Measure, at: str) -> None:
        title, number = measure.title, measure.facts.phase.tasks
        tasks = f"{number} task{'' if number == 1 else 's'}"
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
