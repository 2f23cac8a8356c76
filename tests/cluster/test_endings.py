"""However the command ends: the right exit status, and within six seconds no process, no directory, no half output."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import JOBS, Workers, wait_until

import rqmr

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")

#: All that a command started has ended within this time.
END_SECONDS = 6.0
#: The exit status of a signal: as `subprocess` tells it when the signal itself ends a process, and when it is caught.
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGKILL: -9}
MARK = "RQMR_TEST_MARK"
#: What is in a traceback of ours.
OUR_CODE = f"{Path(rqmr.__file__).parent}{os.sep}"


class Command:
    """One `rqmr run` in a session of its own, with a TMPDIR and a working directory that nobody else uses."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tmp = directory / "t"
        self.cwd = directory / "cwd"
        self.marks = directory / "marks"
        for each in (self.tmp, self.cwd, self.marks):
            each.mkdir(parents=True)
        self.input = directory / "input"
        self.input.mkdir()
        for number in range(4):
            (self.input / f"{number}.txt").write_text(f"some words {number}\nand more words\n" * 20)
        self.mark = secrets.token_hex(8)
        self.process: subprocess.Popen[bytes]

    def start(self, job: object, *arguments: object, program: str = "", **options: Any) -> Command:
        """Start it; a program that is given is run instead of `rqmr`, with the same arguments."""
        environment = {key: value for key, value in os.environ.items() if "REDIS_URL" not in key}
        command = [sys.executable, *(["-c", program] if program else ["-m", "rqmr"]), "run", job, *arguments]
        with (self.directory / "stdout").open("wb") as stdout, (self.directory / "stderr").open("wb") as stderr:
            options = {"stdin": subprocess.DEVNULL, "stdout": stdout, "stderr": stderr} | options
            self.process = subprocess.Popen(
                list(map(str, command)), cwd=self.cwd, start_new_session=True,
                env=environment | {"TMPDIR": str(self.tmp), MARK: self.mark}, **options,
            )  # fmt: skip
        return self

    def start_stuck(self, how: str, where: str, *arguments: object, **options: Any) -> Command:
        """Start a job, and wait until it is stuck in a map or a reduce."""
        parameters = ("-p", f"how={how}", "-p", f"where={where}", "-p", f"marks={self.marks}", "-w", 2)
        self.start(JOBS / "stuck.py", self.input, *parameters, "--split-size", "4KiB", *arguments, **options)
        wait_until(lambda: self.is_over or list(self.marks.glob("stuck.*")), timeout=15, what=f"the {where} is stuck")
        assert not self.is_over, self.stderr
        return self

    @property
    def is_over(self) -> bool:
        return self.process.poll() is not None

    @property
    def stderr(self) -> str:
        return (self.directory / "stderr").read_text(errors="replace")

    @property
    def stdout(self) -> str:
        return (self.directory / "stdout").read_text()

    def processes(self) -> dict[int, str]:
        """All living processes that come from it.

        By the environment that they inherit or, since the server has none, by the directory in their command line.
        """
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                environment = (path / "environ").read_bytes()
                if f"{MARK}={self.mark}".encode() in environment or f"{self.tmp}/" in command:
                    found[int(path.name)] = command
        return found

    def signal(self, number: signal.Signals) -> float:
        """Send a signal as it comes in life: Ctrl-C and a hang-up to the whole group, the others to the process."""
        if number in (signal.SIGINT, signal.SIGHUP):
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        return time.monotonic()

    def assert_ends(self, *statuses: int, began: float | None = None) -> None:
        """It ends with a status in time, and so does all that it started; nothing of the run is left."""
        began = time.monotonic() if began is None else began
        status = self.process.wait(30)
        took = time.monotonic() - began
        assert status in statuses, f"status {status}\n{self.stderr}"
        assert took < END_SECONDS, f"the command took {took:.1f} s to end"
        wait_until(
            lambda: not self.processes(), timeout=began + END_SECONDS - time.monotonic(), what="no process is left"
        )
        if status < 0:  # its supervisor cleans up
            with contextlib.suppress(pytest.fail.Exception):
                wait_until(lambda: not self.left(), timeout=began + END_SECONDS - time.monotonic(), what="all is gone")
        assert self.left() == []

    def left(self) -> list[str]:
        """What is in its TMPDIR and in its working directory."""
        return sorted(
            str(path.relative_to(self.directory)) for each in (self.tmp, self.cwd) for path in each.rglob("*")
        )

    def kill(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


Commands = Callable[[], Command]


@pytest.fixture
def commands() -> Iterator[Commands]:
    """Make commands, each in a directory with a short path: a socket's must be."""
    with tempfile.TemporaryDirectory(prefix="e-", dir="/tmp") as base:
        made: list[Command] = []

        def make() -> Command:
            made.append(Command(Path(base, str(len(made)))))
            return made[-1]

        yield make
        for command in made:
            if hasattr(command, "process"):
                command.kill()


@pytest.fixture
def command(commands: Commands) -> Command:
    return commands()


# --- it ends by itself --------------------------------------------------------------------------------------------


def test_a_success_is_complete_when_the_command_returns(command: Command) -> None:
    command.start(JOBS / "slow.py", command.input, "-o", "out", "-r", 3, "--split-size", "4KiB", "--json")
    assert command.process.wait(30) == 0, command.stderr
    assert sorted(path.name for path in (command.cwd / "out").iterdir()) == [
        "_SUCCESS", "part-00000", "part-00001", "part-00002",
    ]  # fmt: skip
    assert list(command.tmp.iterdir()) == []
    assert command.processes() == {}
    rows = [line for path in (command.cwd / "out").glob("part-*") for line in path.read_text().splitlines()]
    assert sorted(rows) == ["0\t20", "1\t20", "2\t20", "3\t20", "and\t80", "more\t80", "some\t80", "words\t160"]
    assert json.loads(command.stdout)["records_written"] == 8


def test_a_result_on_stdout_leaves_nothing_else(command: Command) -> None:
    command.start(JOBS / "slow.py", command.input, "-o", "-")
    command.assert_ends(0)
    assert len(command.stdout.splitlines()) == 8


@pytest.mark.parametrize(
    ("where", "arguments"),
    [("map", ()), ("reduce", ("-o", "-")), ("reduce", ("-o", "deep/er/out")), ("reduce", ("--inline",))],
)
def test_a_failure_of_the_users_code_leaves_nothing(where: str, arguments: tuple[str, ...], command: Command) -> None:
    (command.input / "crash.txt").write_text("crash\n")
    parameters = ("-p", f"marks={command.marks}", "-p", "times=9", "-p", "how=error", "-p", f"where={where}")
    command.start(JOBS / "crash.py", command.input, *parameters, *arguments)
    command.process.wait(30)
    command.assert_ends(1)
    assert "ValueError: this is the job's own error" in command.stderr
    assert command.stdout == ""


# --- a signal ends it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", STATUS)
def test_a_signal_ends_all_of_it(number: signal.Signals, commands: Commands) -> None:
    started = [commands().start_stuck("sleep", where, "-o", "out") for where in ("map", "reduce")]
    for command in started:
        assert len(command.processes()) >= 6, "the command, supervisor, server, two workers, a work-horse"
        command.assert_ends(STATUS[number], began=command.signal(number))
        if number != signal.SIGKILL:
            assert "Traceback" not in command.stderr
            assert "cancelled" in command.stderr


@pytest.mark.parametrize("how", ["child", "regex"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_mapper_that_does_not_hear_is_ended(number: signal.Signals, how: str, command: Command) -> None:
    """One waits for a process that it started, the other holds the interpreter in C code."""
    command.start_stuck(how, "map")
    if how == "child":
        wait_until(
            lambda: "sleep 100 " in command.processes().values(), timeout=5, what="the mapper's own process runs"
        )
    command.assert_ends(STATUS[number], began=command.signal(number))


def test_a_result_meant_for_stdout_is_not_left_in_tmp(command: Command) -> None:
    command.start_stuck("sleep", "reduce", "-o", "-")
    command.assert_ends(-9, began=command.signal(signal.SIGKILL))
    assert command.stdout == ""


@pytest.mark.parametrize("how", ["sleep", "regex"])
def test_ctrl_c_ends_an_inline_run(how: str, command: Command) -> None:
    command.start_stuck(how, "map", "--inline")
    command.assert_ends(130, began=command.signal(signal.SIGINT))
    assert "Traceback" not in command.stderr


def test_ctrl_c_while_stdin_is_awaited(command: Command) -> None:
    reading, writing = os.pipe()
    command.start(JOBS / "slow.py", "-", stdin=reading)
    os.close(reading)
    try:
        os.write(writing, b"some words\n")
        wait_until(lambda: list(command.cwd.rglob("stdin")), timeout=10, what="stdin is read")
        command.assert_ends(130, began=command.signal(signal.SIGINT))
    finally:
        os.close(writing)


def test_an_impatient_second_ctrl_c_leaves_no_more_than_the_first(command: Command) -> None:
    command.start_stuck("sleep", "map")
    began = command.signal(signal.SIGINT)
    while not command.is_over and time.monotonic() < began + END_SECONDS:
        command.signal(signal.SIGINT)
        time.sleep(0.02)
    command.assert_ends(130, began=began)


def test_an_earlier_output_survives_an_overwriting_run_that_is_interrupted(command: Command) -> None:
    out = command.cwd / "out"
    out.mkdir()
    before = {"part-00000": "old\t1\n", "part-00001": "older\t1\n", "_SUCCESS": ""}
    for name, text in before.items():
        (out / name).write_text(text)
    command.start_stuck("sleep", "reduce", "-o", "out", "--overwrite")
    command.signal(signal.SIGINT)
    assert command.process.wait(END_SECONDS) == 130
    assert {path.name: path.read_text() for path in out.iterdir()} == before


def test_only_the_log_of_what_was_printed_is_left_of_an_interrupted_run(command: Command) -> None:
    command.start_stuck("sleep", "map", "-o", "out", "-p", "prints=true")
    log = command.cwd / "out" / "_log"
    wait_until(lambda: log.exists() and log.read_text(), timeout=5, what="the first line is kept")
    command.signal(signal.SIGINT)
    assert command.process.wait(END_SECONDS) == 130
    assert command.left() == ["cwd/out", "cwd/out/_log"]
    assert "about to be stuck" in (command.cwd / "out" / "_log").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_at_any_moment_of_the_start_leaves_nothing(number: signal.Signals, commands: Commands) -> None:
    seed = int(os.environ.get("RQMR_TEST_SEED", time.time_ns() % 10**6))
    print(f"RQMR_TEST_SEED={seed}")
    chance = random.Random(seed)
    started = []
    for delay in sorted(chance.uniform(0, 0.8) for _ in range(4)):
        command = commands().start(JOBS / "slow.py", "../input", "-p", "seconds=0.5", "-o", "out")
        started.append((time.monotonic() + delay, delay, command))
    for due, delay, command in started:
        time.sleep(max(0.0, due - time.monotonic()))
        print(f"{number.name} after {delay:.3f} s")
        began = command.signal(number)
        # Before Python runs our code the signal itself ends it; shells tell both as the same status. And Python may
        # crash when it is interrupted while it loads extension modules, or its own first ones: before our code, too.
        command.process.wait(30)
        own = [-signal.SIGSEGV] if OUR_CODE in command.stderr else [-signal.SIGSEGV, 1]
        command.assert_ends(STATUS[number], -number, *own, began=began)


#: Is killed between the start of the supervisor and the order to it.
KILLED_AT_START = """
import os, signal
from rqmr import cli, local

class Popen(local.subprocess.Popen):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

local.subprocess.Popen = Popen
cli.main()
"""


def test_a_driver_that_is_killed_before_it_gave_its_order_leaves_nothing(command: Command) -> None:
    command.start(JOBS / "slow.py", command.input, "-o", "out", program=KILLED_AT_START)
    command.process.wait(10)
    command.assert_ends(-9)


#: Is interrupted once while a finalizer runs, as any library may have one: what is raised there goes nowhere.
INTERRUPTED_IN_A_FINALIZER = """
import os, signal
from rqmr import cli, driver

class Finalized:
    def __del__(self):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(100):  # here Python looks for signals
                pass
        finally:
            open(os.path.join(os.environ["MARKS"], "swallowed"), "x").close()

def tick(*arguments, ticking=driver.tick):
    if driver.tick is tick and os.path.exists(os.path.join(os.environ["MARKS"], "stuck.0")):
        driver.tick = ticking
        Finalized()
    return ticking(*arguments)

driver.tick = tick
cli.main()
"""


def test_an_interrupt_that_python_swallows_is_heard_all_the_same(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARKS", str(command.marks))
    command.start_stuck("sleep", "map", "-o", "out", program=INTERRUPTED_IN_A_FINALIZER)
    wait_until(lambda: (command.marks / "swallowed").exists(), timeout=5, what="it is swallowed")
    with contextlib.suppress(subprocess.TimeoutExpired):
        command.process.wait(END_SECONDS)
    assert command.is_over, "it is deaf to Ctrl-C"
    command.assert_ends(130)
    assert "Exception ignored" not in command.stderr


#: Crashes as Python ends.
CRASHING_AT_ITS_END = """
import os, signal, sys
import rqmr.__main__

class Crashing:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGSEGV):
        kill(pid, number)

sys.crashing = Crashing()
rqmr.__main__.main()
"""


def test_python_does_not_take_apart_what_a_signal_has_interrupted(command: Command) -> None:
    command.start_stuck("sleep", "map", "-o", "out", program=CRASHING_AT_ITS_END)
    command.assert_ends(130, began=command.signal(signal.SIGINT))
    assert "rqmr: ended by SIGINT" in command.stderr


#: Is interrupted in the first of two clean-ups, which Python then leaves for the second, and again in that.
INTERRUPTED_IN_CLEAN_UPS = """
import contextlib, os, signal
from rqmr import cli

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(100):  # here Python looks for signals
        pass

def clean_up():
    interrupt()
    print("cleaned up", flush=True)

def app():
    with contextlib.ExitStack() as stack:
        stack.callback(clean_up)
        stack.callback(interrupt)

cli.app = app
cli.main()
"""


def test_a_second_interrupt_does_not_disturb_what_cleans_up_after_the_first(command: Command) -> None:
    command.start(JOBS / "slow.py", program=INTERRUPTED_IN_CLEAN_UPS)
    command.assert_ends(130)
    assert command.stdout == "cleaned up\n"
    assert "Traceback" not in command.stderr


@pytest.mark.parametrize("seen", ["part-00000", "_SUCCESS"])
def test_a_signal_while_the_output_is_collected_leaves_all_of_it_or_nothing(seen: str, command: Command) -> None:
    command.start(JOBS / "slow.py", command.input, "-o", "out", "-r", 300)
    path = command.cwd / "out" / seen
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        pass  # the moment is short
    command.signal(signal.SIGINT)
    status = command.process.wait(END_SECONDS)
    files = {path.name for path in (command.cwd / "out").glob("*")}
    complete = {f"part-{number:05}" for number in range(300)} | {"_SUCCESS"}
    assert files in (set(), complete)
    assert status == 130 or (status == 0 and files), command.stderr
    assert "nothing of it is left" not in command.stderr or not files


# --- a terminal ---------------------------------------------------------------------------------------------------


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal; ours doesn't wait."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    yield ours, theirs
    for each in (ours, theirs):
        with contextlib.suppress(OSError):
            os.close(each)


def on_terminal(theirs: int) -> dict[str, Any]:
    """Options that make a process's session own a terminal."""
    return {
        "stdin": theirs,
        "stdout": theirs,
        "stderr": theirs,
        "preexec_fn": lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),
    }


def read(ours: int) -> str:
    text = b""
    with contextlib.suppress(BlockingIOError, OSError):
        while data := os.read(ours, 65536):
            text += data
    return text.decode(errors="replace")


def test_ctrl_c_in_a_terminal_gives_the_cursor_back(command: Command, terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    command.start_stuck("sleep", "map", **on_terminal(theirs))
    pieces: list[str] = []

    def shown() -> str:
        pieces.append(read(ours))
        return "".join(pieces)

    wait_until(lambda: "\x1b[?25l" in shown(), timeout=5, what="the live view hides the cursor")
    os.write(ours, b"\x03")
    command.assert_ends(130)
    assert shown().rindex("\x1b[?25h") > shown().rindex("\x1b[?25l")
    assert "Traceback" not in shown()


def test_a_terminal_that_is_closed_ends_all_of_it(command: Command, terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    command.start_stuck("sleep", "map", **on_terminal(theirs))
    os.close(theirs)
    os.close(ours)
    command.assert_ends(129)


# --- a named Redis ------------------------------------------------------------------------------------------------


def kept(redis: Any) -> list[bytes]:
    """What is kept in Redis, but the code, the index of runs, and how they ended."""
    all_keys = redis.scan_iter("rqmr:*")
    return [key for key in all_keys if not key.startswith((b"rqmr:code:", b"rqmr:runs")) and not key.endswith(b":end")]


def test_ctrl_c_leaves_nothing_of_a_run_that_nobody_can_go_on_with(
    command: Command, redis_url: str, redis: Any
) -> None:
    """Its output was for stdout."""
    command.start_stuck("sleep", "map", "--redis-url", redis_url, "-o", "-")
    run = next(key.decode().split(":")[1] for key in redis.scan_iter("rqmr:*:leases"))
    command.assert_ends(130, began=command.signal(signal.SIGINT))
    assert kept(redis) == []
    assert not redis.llen("rq:queue:rqmr")
    assert not redis.smembers("rq:workers")
    forever = [key for key in redis.scan_iter("rq:*") if run.encode() in key and redis.ttl(key) == -1]
    assert forever == []
    assert redis.ping()


def test_a_killed_driver_of_a_named_redis_leaves_no_local_workers(command: Command, redis_url: str, redis: Any) -> None:
    """What is left in Redis has a TTL (see the fixture): another driver may go on with it."""
    command.start_stuck("sleep", "map", "--redis-url", redis_url, "-o", "-")
    command.assert_ends(-9, began=command.signal(signal.SIGKILL))
    assert not redis.smembers("rq:workers")


def test_foreign_workers_are_free_soon_after_ctrl_c(command: Command, workers: Workers, redis: Any) -> None:
    """They are told with the next heartbeat, and leave at the next record."""
    workers.start(2)
    command.start(
        JOBS / "slow.py", command.input, "-p", "seconds=0.1", "--split-size", "4KiB", "-o", "-",
        "--redis-url", workers.url, "--lease", 1,
    )  # fmt: skip
    wait_until(lambda: list(redis.scan_iter("rqmr:*:lease:*")), timeout=10, what="a map runs")
    command.assert_ends(130, began=command.signal(signal.SIGINT))
    assert kept(redis) == []
    wait_until(lambda: not any(map(workers.horses_of, workers.processes)), timeout=2, what="no work-horse is left")
    wait_until(lambda: not redis.llen("rq:queue:rqmr"), timeout=2, what="no ticket is left")
    assert [worker.poll() for worker in workers.processes] == [None, None]
    assert kept(redis) == []
