"""How far a run is, and how that is said: arithmetic and words for the view, plain functions of plain values.

Durations are differences of the server's times; this machine's clock has no part in them.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from rqmr.facts import Event, Facts, Header, PhaseFacts, RunningAttempt
from rqmr.memory import memory_in_words
from rqmr.model import Failure, Kind, Phase, Progress, RunState, TaskId

RATE_MS = 10_000  # over which a rate is taken, so that it doesn't jump with each heartbeat
ABSENT_MS = 1_000  # before we say that nobody listens: local workers need a moment to start
AWAY_SECONDS = 2.0  # before we say that Redis doesn't answer
SILENT_MS = 3_000  # before we say that those who are listed do nothing
RECENT_MS = 20_000  # an important event keeps its place against newer commits
NAME_WIDTH = 16
#: Events that a user wants to see, even when many others come after them.
IMPORTANT = frozenset({"failed", "lost", "reopened", "backed up", "revived", "paused", "refused", "released"})
#: Events that aren't everyday ones, and how they look.
EVENT_STYLES = {
    "failed": "red", "lost": "yellow", "reopened": "yellow", "backed up": "cyan", "revived": "green",
    "went on": "green", "refused": "red", "resumed": "green", "released": "cyan",
}  # fmt: skip


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
        self._silent_since = 0

    def measure(self, facts: Facts) -> list[Measure]:
        """Return every phase as it is now."""
        titles = phase_titles([each.phase for each in facts.phases])
        return [self._phase(facts, number, title) for number, title in enumerate(titles)]

    def waits_for(self, facts: Facts, header: Header) -> list[str]:
        """Return in words what the run waits for that doesn't come by itself; nothing if it goes on."""
        silent_ms = self._silence_ms(facts)
        if told := shortage(facts) or unanswered(facts, header):
            return told
        if not facts.workers and silent_ms >= ABSENT_MS:
            return absence(header)
        return silence(facts, header) if silent_ms >= SILENT_MS else []

    def _silence_ms(self, facts: Facts) -> int:
        """For how long no worker has been heard of, though there is work."""
        is_heard = facts.has_standby or any(facts.now_ms - each.renewed_ms < SILENT_MS for each in facts.running)
        has_work = any(each.committed < each.phase.tasks for each in facts.phases[facts.phase : facts.phase + 1])
        if is_heard or not has_work or facts.state != RunState.RUNNING:
            self._silent_since = 0
            return 0
        self._silent_since = self._silent_since or facts.now_ms
        return facts.now_ms - self._silent_since

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
LOCAL_NAME = re.compile(r"\brqmr-[0-9a-f]+-(?=w\d)")


def plain(text: str, encoding: str = "utf-8") -> str:
    """Return text that can't move the cursor, change colours or fail to be encoded."""
    text = _CONTROL.sub("", _ESCAPE.sub("", text).replace("\n", " ")).expandtabs()
    text = text if encoding.lower().startswith("utf") else text.translate(_ASCII)
    return text.encode(encoding, "backslashreplace").decode(encoding)


def plain_lines(text: str, encoding: str = "utf-8") -> str:
    """Return text of several lines, each of them as `plain` returns it."""
    return "\n".join(plain(line, encoding) for line in text.split("\n"))


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
    name = LOCAL_NAME.sub("", name)
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


def absence_of_redis(seconds: float) -> str:
    """Return what to tell when Redis hasn't answered for so long; "" if that isn't worth it."""
    return f"Redis doesn't answer, for {seconds:.0f} s now; waiting for it" if seconds >= AWAY_SECONDS else ""


def silence(facts: Facts, header: Header) -> list[str]:
    """Return what to tell when no worker is heard of, though RQ has some listed: it never knows who is dead."""
    listed = f"{facts.workers} listed worker{'' if facts.workers == 1 else 's'}"
    lines = [f"no sign of life from {listed}: busy with other RQ jobs, or dead"]
    if facts.running:
        left = max(0, max(each.deadline_ms for each in facts.running) - facts.now_ms)
        lines.append(f"  what they had is another's in {left // 1000 + 1} s")
    return lines + [f"  to start another:  {command.strip()}" for command in absence(header)[1:]]


def shortage(facts: Facts) -> list[str]:
    """Return what to tell while claims wait for memory; nothing if they don't."""
    if not facts.is_full or facts.state != RunState.RUNNING:
        return []
    waiting = sum(each.progress.waits == "memory" for each in facts.running)
    attempts = f"; {waiting} attempt{'' if waiting == 1 else 's'} can't write" if waiting else ""
    return [
        f"waits for memory on {facts.memory.server or 'the server'}:",
        f"  {memory_in_words(facts.memory)}{attempts}",
    ]


def unanswered(facts: Facts, header: Header) -> list[str]:
    """Return what to tell while attempts wait for inputs that neither they nor who follows the run see."""
    if not facts.asks or facts.state != RunState.RUNNING:
        return []
    first = facts.asks[0]
    others = len({ask.path for ask in facts.asks}) - 1
    more = f" and {others} more" if others else ""
    return [
        f"waits for {first.name}{more}: {short_worker(first.worker, first.host)} and who follows the run don't see it",
        f"  rqmr attach {header.run}, where it is, ships it",
    ]


def choose_events(events: Sequence[Event], now_ms: int, count: int) -> list[Event]:
    """Return the last events, in which a recent important one is not pushed out by commits."""
    told = [each for each in events if each.what != "claimed"]
    told.sort(key=lambda each: (each.what in IMPORTANT and now_ms - each.at_ms < RECENT_MS, each.at_ms))
    return sorted(told[max(0, len(told) - count) :], key=lambda each: each.at_ms)


def report(failure: Failure, printed: list[str]) -> str:
    """Return a failure as its user reads it: what, where, the user's own traceback, what was printed last."""
    lines = [failure.message]
    if failure.task:
        host = f" ({failure.host})" if failure.host else ""
        lines.append(
            f"  task    {failure.task}" + (f" on worker {short_worker(failure.worker)}{host}" if failure.worker else "")
        )
    if failure.source:
        lines.append(f"  input   {failure.source}" + (f", byte {failure.offset}" if failure.offset >= 0 else ""))
    if failure.record:
        lines.append(f"  record  {failure.record}")
    if failure.traceback:
        lines += ["", failure.traceback]
    if printed:
        lines += ["", "printed last:", *(f"  {line}" for line in printed)]
    return "\n".join(lines)
