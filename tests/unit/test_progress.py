"""The view of a run: its arithmetic, its words, its pictures and its lines."""

from __future__ import annotations

import io
import re
import time

import msgspec
import pytest
from rich.cells import cell_len
from rich.console import Console

from rqmr.facts import Event, Facts, Header, Memory, PhaseFacts, RunningAttempt, Shortage
from rqmr.live import LiveView, bar, share_out
from rqmr.meter import (
    Meter,
    Pace,
    choose_events,
    clock,
    compact,
    done_so_far,
    natural,
    plain,
    short_worker,
    subject_title,
)
from rqmr.model import AttemptId, Kind, Phase, Progress, RunState, TaskId
from rqmr.progress import LogView, choose_view
from rqmr.view import Silent

START = 1_700_000_000_000
HEADER = Header(
    "wordcount-7k2pab", "wordcount", "valkey at redis://db:6379/0", "rqmr", "40 map tasks, 8 reduce tasks", 1
)
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def attempt(
    index: int, fraction: float = 0.5, *, number: int = 1, host: str = "here", now: int = START, age: int = 1000
) -> RunningAttempt:  # fmt: skip
    progress = Progress(int(10_000 * fraction), int((1 << 20) * fraction), fraction)
    at = AttemptId(TaskId(0, Kind.MAP, index), number)
    return RunningAttempt(at, f"rqmr-1a2b-w{index + 1}", host, now - 4000, now - age + 15_000, now - age, progress)


def facts(
    now: int = START + 4000, *, committed: int = 0, tasks: int = 40, running: tuple[RunningAttempt, ...] = (),
    lost: int = 0, failed: int = 0, reduces: int = 1, backups: frozenset[TaskId] = frozenset(), workers: int = 8,
) -> Facts:  # fmt: skip
    pending = max(0, tasks - committed - len(running))
    maps = PhaseFacts(
        Phase(0, Kind.MAP, tasks),
        committed,
        pending,
        len(running),
        lost,
        failed,
        committed * 10_000,
        committed << 20,
        START,
    )
    rest = [PhaseFacts(Phase(step, Kind.REDUCE, 8), 0, 0, 0, 0, 0, 0, 0, 0) for step in range(reduces)]
    return Facts(
        now, RunState.RUNNING, 0, START, (maps, *rest), running, {}, backups, 0, None, workers
    )  # fmt: skip


def live(width: int = 80, height: int = 24, encoding: str = "utf-8") -> tuple[LiveView, io.StringIO, Clock]:
    class Stream(io.StringIO):
        pass

    Stream.encoding = encoding  # type: ignore[misc, assignment]
    stream, now = Stream(), Clock()
    console = Console(file=stream, width=width, height=height, force_terminal=True, highlight=False)
    return LiveView(console, now), stream, now


def picture(
    view: LiveView, stream: io.StringIO, now: Clock, *states: Facts, events: tuple[Event, ...] = ()
) -> list[str]:
    """Return the lines of the last picture, as they are read on the screen."""
    view.begin(HEADER)
    for number, state in enumerate(states):
        stream.seek(0)
        stream.truncate()
        now.now += 1
        view.update(state, events if number == 0 else ())
    return [line.rstrip() for line in ESCAPE.sub("", stream.getvalue()).replace("\r", "").split("\n")]


# --- arithmetic


def test_of_two_attempts_of_a_task_only_the_one_that_is_further_counts() -> None:
    state = facts(running=(attempt(0, 0.2), attempt(0, 0.6, number=2), attempt(1, 0.5)))
    assert done_so_far(state.phases[0], state.running) == Progress(11_000, int((1 << 20) * 0.6) + (1 << 19), 1.1 / 40)


def test_a_phase_is_never_more_than_done() -> None:
    state = facts(committed=40, running=(attempt(0, 0.9),))
    assert done_so_far(state.phases[0], state.running).fraction == 1


def test_a_phase_without_tasks_is_done() -> None:
    assert Meter().measure(facts(tasks=0))[0].percent == "100%"


def test_rates_are_never_negative_when_attempts_commit_or_are_lost() -> None:
    meter = Meter()
    states = [
        facts(START + 1000, running=(attempt(0, 0.9), attempt(1, 0.9))),
        facts(START + 2000, committed=1, running=(attempt(1, 0.95),)),
        facts(START + 3000, committed=1),
        facts(START + 15_000, committed=0),
        facts(START + 16_000, committed=3),
    ]
    rates = [meter.measure(state)[0].records_per_second for state in states]
    assert all(rate >= 0 for rate in rates)
    assert rates[0] == 18_000
    assert rates[1] == 19_500 / 2


def test_a_commit_does_not_change_the_rate_of_what_was_read_before() -> None:
    pace = Pace(START)
    pace.add(START + 1000, Progress(10_000, 0, 0.5))
    before = pace.per_second()
    pace.add(START + 1000, Progress(10_000, 0, 0.5))
    assert pace.per_second() == before == (10_000, 0)


def test_the_rate_is_that_of_the_last_ten_seconds() -> None:
    pace = Pace(START)
    for second in range(1, 31):
        pace.add(START + 1000 * second, Progress(1000 * min(second, 25), 0, second / 100))
    assert pace.per_second() == (500, 0)


def test_time_left_follows_from_what_is_done_and_counts_down_between_heartbeats() -> None:
    pace = Pace(START)
    pace.add(START + 4000, Progress(0, 0, 0.25))
    assert pace.left_ms() == 12_000
    pace.add(START + 5000, Progress(0, 0, 0.25))
    assert pace.left_ms() == 11_000
    pace.add(START + 60_000, Progress(0, 0, 0.25))
    assert pace.left_ms() == 0


def test_time_left_is_unknown_at_first() -> None:
    pace = Pace(START)
    pace.add(START + 4000, Progress())
    assert pace.left_ms() is None


def test_a_complete_phase_keeps_its_time_and_a_reopened_one_goes_on() -> None:
    meter = Meter()
    assert meter.measure(facts(START + 4000, committed=40))[0].elapsed_ms == 4000
    assert meter.measure(facts(START + 9000, committed=40))[0].elapsed_ms == 4000
    assert meter.measure(facts(START + 9000, committed=39))[0].elapsed_ms == 9000


def test_one_hundred_percent_is_said_only_when_all_is_committed() -> None:
    nearly = facts(committed=39, running=(attempt(39, 1.0),))
    assert Meter().measure(nearly)[0].percent == "99%"


# --- words


@pytest.mark.parametrize(("ms", "text"), [(0, "0:00"), (42_900, "0:42"), (754_000, "12:34"), (3_720_000, "1h02m")])
def test_durations_are_short(ms: int, text: str) -> None:
    assert clock(ms) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (9_876, "9,876"), (98_765, "99k"), (999_600, "1.0M"), (12.3e6, "12.3M"), (123e6, "123M")],
)
def test_numbers_take_five_columns(number: float, text: str) -> None:
    assert compact(number) == text


def test_control_characters_and_escapes_are_removed() -> None:
    nasty = "a\x1b[31mred\x1b[0m\x1b]0;title\x07\x1b[2J\r\x00\x9b1mb\x07\u202ec\td\ne"
    assert plain(nasty) == "aredbc  d e"
    assert plain("│ \u2603 \udc80", "ascii") == r"| \u2603 \udc80"


def test_attempts_and_phases_are_told_in_words() -> None:
    one, two = facts(backups=frozenset({TaskId(0, Kind.MAP, 5)})), facts(reduces=2)
    assert subject_title("s0-m0005-a1", one) == "map 5"
    assert subject_title("s0-m0005-a2", one) == "map 5 (backup)"
    assert subject_title("s0-r0003-a2", one) == "reduce 3 (2nd try)"
    assert subject_title("s0-r0003-a22", one) == "reduce 3 (try 22)"
    assert subject_title("s0-r0003", one) == "reduce 3"
    assert subject_title("s0-r", one) == "reduce"
    assert subject_title("s1-r0003-a1", two) == "reduce 2 #3"
    assert subject_title("run", one) == "run"
    assert subject_title("s7-r0003-a1", one) == "s7-r0003-a1"


def test_worker_names_are_short() -> None:
    assert short_worker("rqmr-1a2b-w1") == "w1"
    assert short_worker("rqmr-1a2b-w1-2") == "w1-2"
    assert short_worker("0123456789abcdef0123456789abcdef") == "01234567"
    assert short_worker("rqmr-1a2b-w1", "node7.example.org") == "node7:w1"
    assert all(len(short_worker(name, "a-very-long-host-name")) <= 16 for name in ("w1", "x" * 12, "y" * 14, "z" * 40))


def test_workers_are_sorted_as_people_count() -> None:
    assert sorted(["w10", "w2", "10", "a"], key=natural) == ["10", "a", "w2", "w10"]


def test_a_recent_failure_is_not_pushed_out_by_commits() -> None:
    failed = Event(START, "failed", "s0-m0001-a1", "boom")
    commits = [Event(START + n, "committed", f"s0-m{n:04}-a1", "") for n in range(1, 9)]
    claims = [Event(START + 20, "claimed", "s0-m0001-a1", "")]
    assert choose_events([failed, *commits, *claims], START + 100, 3) == [failed, *commits[-2:]]
    assert choose_events([failed, *commits, *claims], START + 60_000, 3) == commits[-3:]
    assert choose_events([failed], START, 0) == []


# --- pictures


@pytest.mark.parametrize("fraction", [-1, 0, 0.01, 0.5, 0.99, 1, 2])
def test_a_bar_has_its_width(fraction: float) -> None:
    assert len("".join(bar(fraction, 20))) == 20
    assert "".join(bar(fraction, -3)) == ""


@pytest.mark.parametrize("height", [3, 8, 12, 16, 24, 40, 100])
@pytest.mark.parametrize("phases", [1, 2, 5])
def test_the_picture_is_never_higher_than_the_terminal(height: int, phases: int) -> None:
    view, stream, now = live(80, height)
    failures = tuple(Event(START + n, "failed", f"s0-m{n:04}-a1", "boom") for n in range(9))
    running = tuple(attempt(index) for index in range(40))
    lines = picture(view, stream, now, facts(running=running, reduces=phases - 1), events=failures)
    view.end()
    assert len(lines) < height
    assert share_out(height, phases)[1] >= 0


@pytest.mark.parametrize("width", [80, 120])
def test_the_numbers_are_there_and_every_line_fits(width: int) -> None:
    view, stream, now = live(width, 30)
    running = (attempt(4, 0.25), attempt(5, 0.5, number=2), attempt(6, 0.75, number=2, age=13_000))
    state = facts(
        committed=10, tasks=400, running=running, lost=12, failed=3, backups=frozenset({running[2].id.task}), now=START
    )
    events = (Event(START, "failed", "s0-m0005-a1", "ZeroDivisionError: " + "x" * 200),)
    lines = picture(view, stream, now, state, events=events)
    view.end()
    assert all(cell_len(line) <= width for line in lines)
    text = "\n".join(lines)
    for told in (
        "wordcount-7k2pab", "queue rqmr", "redis://db:6379/0", "40 map tasks, 8 reduce tasks", "10/400", "3 running",
        "387 pending", "12 lost", "3 failed", "records/s", "MiB/s", "map 5 (2nd try)", "map 6 (backup)", "25%", "2,500",
        "0:04", "13.0/15 s", "ZeroDivisionError",
    ):  # fmt: skip
        assert told in text


def test_numbers_stand_below_each_other() -> None:
    view, stream, now = live()
    lines = picture(view, stream, now, facts(committed=10, running=(attempt(4, 0.25), attempt(50, 0.5))))
    view.end()
    assert len({line.index("%") for line in lines if "%" in line}) == 1


def test_of_forty_workers_twelve_are_shown() -> None:
    view, stream, now = live(80, 50)
    running = tuple(attempt(index) for index in range(40))
    lines = picture(view, stream, now, facts(running=running))
    view.end()
    assert [line.split()[0] for line in lines if re.match(r"w\d", line)] == [f"w{number}" for number in range(1, 13)]
    assert "… and 28 more workers" in lines


def test_a_row_stays_for_a_moment_when_its_attempt_is_over() -> None:
    view, stream, now = live()
    busy = facts(START + 4000, running=(attempt(0), attempt(1)))
    assert "w2  " in "\n".join(picture(view, stream, now, busy, facts(START + 5000, running=(attempt(0),))))
    assert "w2  " not in "\n".join(picture(view, stream, now, facts(START + 7000, running=(attempt(0),))))
    view.end()


def test_hosts_are_told_when_there_are_several() -> None:
    view, stream, now = live()
    text = "\n".join(picture(view, stream, now, facts(running=(attempt(0), attempt(1, host="there")))))
    view.end()
    assert "there:w2" in text


def test_an_attempt_whose_lease_just_expired_names_no_worker_and_does_no_harm() -> None:
    view, stream, now = live()
    expired = RunningAttempt(AttemptId(TaskId(0, Kind.MAP, 0), 1), "", "", 0, START, 0, Progress())
    lines = picture(view, stream, now, facts(running=(expired,)))
    view.end()
    assert "0/40" in "\n".join(lines)


def test_that_nobody_listens_is_told_after_a_second_with_what_to_do() -> None:
    view, stream, now = live()
    early = picture(view, stream, now, facts(START + 4000, workers=0))
    late = picture(view, stream, now, facts(START + 5100, workers=0))
    assert "waiting for a worker…" in early
    assert "no worker listens on queue 'rqmr': start one with" in late
    assert "  rq worker rqmr --url redis://db:6379/0" in late
    assert "waiting for a worker…" in picture(view, stream, now, facts(START + 6000))
    view.end()


def test_workers_that_are_listed_but_never_heard_of_are_told() -> None:
    """RQ lists those who were killed, too."""
    view, stream, now = live()
    assert "no sign of life" not in "\n".join(picture(view, stream, now, facts(START), facts(START + 2_999)))
    late = picture(view, stream, now, facts(START + 3_000))
    assert any(line.startswith("no sign of life from 8 listed workers: busy") for line in late), late
    assert "  to start another:  rq worker rqmr --url redis://db:6379/0" in late
    view.end()


def test_attempts_that_fell_silent_all_at_once_are_told_with_what_becomes_of_them() -> None:
    """All workers are gone: until the leases end nothing shows it but the silence."""
    view, stream, now = live()
    first = facts(START, running=(attempt(0, now=START, age=0),))
    told = [facts(START + later, running=(attempt(0, now=START, age=0),), workers=1) for later in (4_000, 7_000, 8_000)]
    lines = picture(view, stream, now, first, *told)
    assert "  what they had is another's in 8 s" in lines
    assert any(line.startswith("no sign of life from 1 listed worker:") for line in lines)
    view.end()


def test_that_a_run_waits_for_memory_is_told_with_what_is_used_and_who_can_not_write() -> None:
    view, stream, now = live()
    waiting = msgspec.structs.replace(attempt(0), progress=Progress(5, 5, 0.9, waits="memory"))
    short = msgspec.structs.replace(
        facts(running=(waiting, attempt(1))), memory=Memory(1800 << 20, 2 << 30), shortage=Shortage(START, 0, 0)
    )
    lines = picture(view, stream, now, facts(), short)
    assert "waits for memory on the server:" in lines
    assert "  1.8 of 2.0 GiB used; 1 attempt can't write" in lines
    assert any("map 1" in line for line in lines)
    assert not any("waits for memory" in line for line in picture(view, stream, now, facts(START + 6000)))
    view.end()


def test_that_redis_is_away_is_told_until_it_answers() -> None:
    view, stream, now = live()
    picture(view, stream, now, facts(running=(attempt(0),)))

    def told(seconds: float) -> str:
        stream.truncate(0)
        now.now += 1
        view.away(seconds)
        return stream.getvalue()

    assert "doesn't answer" not in told(1.9)
    assert "Redis doesn't answer, for 7 s now; waiting for it" in told(7.2)
    assert not any("answer" in line for line in picture(view, stream, now, facts(running=(attempt(0),))))
    view.end()


def test_the_final_picture_has_the_bars_only_and_gives_the_cursor_back() -> None:
    view, stream, now = live()
    picture(view, stream, now, facts(running=(attempt(0),)), events=(Event(START, "failed", "s0-m0001-a1", "boom"),))
    stream.seek(0)
    stream.truncate()
    view.end()
    text = stream.getvalue()
    assert "0/40" in text
    assert "w1" not in text
    assert "boom" not in text
    assert text.endswith("\x1b[?25h")
    view.end()
    assert stream.getvalue() == text


def test_a_view_that_never_began_can_end() -> None:
    view, stream, _ = live()
    view.end()
    assert stream.getvalue() == ""


def test_printed_lines_are_literal_and_without_control_characters() -> None:
    view, stream, now = live()
    view.begin(HEADER)
    now.now += 1
    view.printed("rqmr-1a2b-w1", "[red]x[/red] :smile: \x1b[2J\x00end\r" + "long " * 50)
    view.note("worker rqmr-1a2b-w3 died (signal 9) [b]")
    view.end()
    text = stream.getvalue()
    assert "w1 │ " in text
    assert "[red]x[/red] :smile: end" + "long " * 50 in text
    assert "worker w3 died (signal 9) [b]" in text
    assert "\x1b[2J" not in text


def test_lines_wait_for_the_next_picture_and_none_is_lost() -> None:
    view, stream, now = live()
    view.begin(HEADER)
    now.now += 1
    for number in range(1000):
        view.printed("w1", f"line {number};")
    assert stream.getvalue().count("\x1b[?25l") == 1
    view.end()
    assert all(f"line {number};" in stream.getvalue() for number in range(1000))


@pytest.mark.parametrize("width", [1, 10, 40, 60])
def test_a_narrow_terminal_gets_what_fits(width: int) -> None:
    view, stream, now = live(width)
    lines = picture(view, stream, now, facts(running=(attempt(0), attempt(1, number=2)), lost=1))
    view.end()
    assert all(cell_len(line) <= width for line in lines)
    assert width < 40 or "0/40" in "\n".join(lines)


def test_a_terminal_without_unicode_gets_ascii() -> None:
    view, stream, now = live(encoding="ascii")
    event = Event(START, "failed", "s0-m0001-a1", "Fehler: größer…" * 20)
    picture(view, stream, now, facts(running=tuple(attempt(index) for index in range(40))), events=(event,))
    view.printed("w1", "\u2603")
    view.end()
    assert stream.getvalue().isascii()
    assert "##" in stream.getvalue()


def test_two_hundred_pictures_cost_less_than_a_second() -> None:
    view, _, now = live(120, 40)
    view.begin(HEADER)
    began = time.process_time()
    for number in range(200):
        now.now += 1
        view.update(facts(START + 100 * number, running=tuple(attempt(index, number / 200) for index in range(8))), ())
    assert time.process_time() - began < 1
    view.end()


def test_pictures_are_limited_to_about_eight_a_second() -> None:
    view, stream, now = live()
    view.begin(HEADER)
    for _ in range(100):
        now.now += 0.01
        view.update(facts(), ())
    assert 6 <= stream.getvalue().count("queue rqmr") <= 10
    view.end()


# --- lines


def log() -> tuple[LogView, io.StringIO, Clock]:
    stream, now = io.StringIO(), Clock()
    return LogView(stream, now), stream, now


def test_a_log_tells_what_happens_without_escape_codes() -> None:
    view, stream, _ = log()
    view.begin(HEADER)
    noisy = [Event(START, "claimed", "s0-m0000-a1", ""), Event(START, "committed", "s0-m0000-a1", "")]
    view.update(facts(), [*noisy, Event(START, "failed", "s0-m0001-a1", "\x1b[31mboom\x1b[0m")])
    view.update(facts(), [Event(START, "paused", "run", "…"), Event(START, "went on", "run", "5.0 of 10.0 MiB used")])
    view.update(facts(START + 12_000, committed=40), [Event(START, "backed up", "s0-m0002-a1", "slow on rqmr-1a2b-w1")])
    view.printed("rqmr-1a2b-w1", "[red]x[/red]\x1b[31m")
    view.note("worker rqmr-1a2b-w1 died")
    view.end()
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in stream.getvalue().splitlines()]
    assert lines == [
        "wordcount-7k2pab on valkey at redis://db:6379/0, queue rqmr",
        "40 map tasks, 8 reduce tasks",
        "map 1 failed: boom",
        "map begins: 40 tasks",
        "run went on: 5.0 of 10.0 MiB used",
        "map 2 backed up: slow on w1",
        "map is done: 40 tasks in 0:12, 400,000 records, 40.0 MiB",
        "w1 | [red]x[/red]",
        "worker w1 died",
    ]


def test_a_log_tells_progress_ever_more_seldom_and_only_when_something_changed() -> None:
    view, stream, now = log()
    told = []
    for second in range(1, 200):
        now.now += 1
        before = stream.tell()
        view.update(facts(START + second * 1000, committed=min(second, 100), tasks=200), ())
        if stream.tell() > before:
            told.append(second)
    assert told == [1, 2, 6, 14, 30, 60, 90, 120]
    assert (
        stream.getvalue().splitlines()[2].endswith("194 pending, 60,000 records, 10k records/s, 1.0 MiB/s, 3:14 left")
    )


def test_a_log_tells_once_that_nobody_listens() -> None:
    view, stream, _ = log()
    view.begin(HEADER)
    for second in range(5):
        view.update(facts(START + second * 1000, workers=0), ())
    assert stream.getvalue().count("no worker listens on queue 'rqmr'") == 1


def test_a_log_tells_once_that_a_run_waits_for_memory() -> None:
    view, stream, _ = log()
    view.begin(HEADER)
    for used in range(90, 95):
        short = Memory(used << 20, 100 << 20)
        view.update(msgspec.structs.replace(facts(), memory=short, shortage=Shortage(START, 0, 0)), ())
    assert stream.getvalue().count("waits for memory on the server:  90.0 of 100.0 MiB used") == 1
    assert stream.getvalue().count("memory") == 1


def test_a_log_tells_once_that_redis_is_away_and_that_it_is_back() -> None:
    view, stream, _ = log()
    view.begin(HEADER)
    for second in range(5):
        view.away(second)
    view.update(facts(), ())
    view.update(facts(), ())
    assert stream.getvalue().splitlines()[2:4] == [
        "Redis doesn't answer, for 2 s now; waiting for it",
        "Redis answers again",
    ]
    assert stream.getvalue().count("answer") == 2


def test_quiet_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    view = choose_view(quiet=True)
    assert isinstance(view, Silent)
    view.begin(HEADER)
    view.update(facts(), [Event(START, "failed", "s0-m0001-a1", "boom")])
    view.printed("w1", "x")
    view.note("x")
    view.end()
    assert capfd.readouterr() == ("", "")


def test_the_view_fits_where_its_text_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(choose_view(quiet=False, stream=Terminal()), LiveView)
    assert isinstance(choose_view(quiet=False, stream=io.StringIO()), LogView)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(choose_view(quiet=False, stream=Terminal()), LogView)
