"""One run of the storm: the commands that drive it, what its events tell, and whether it came out right."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
from machines import Agenda, Broken, Server, start
from plan import LEASE, Plan
from workloads import Workload

from rqmr import registry
from rqmr.errors import AttemptEnded
from rqmr.facts import Event
from rqmr.keys import RunKeys
from rqmr.model import Phase
from rqmr.state import State

_ATTACH_AGAIN_SECONDS = 1.0
#: What one in sixty-one calls of user code takes, so that each phase takes some seconds and the faults find it at work.
_PAUSE_SECONDS = 0.006
_DAWDLE_SECONDS = 7.0
_MARGIN_SECONDS = 0.3


class Command:
    """`rqmr run` or `rqmr attach`: one that drives or watches."""

    def __init__(self, arguments: list[str], directory: Path, number: int) -> None:
        self.stdout = directory / f"stdout-{number}"
        self.stderr = directory / f"stderr-{number}"
        self.is_killed = False
        command = [sys.executable, "-m", "rqmr", *arguments]
        self.process: subprocess.Popen[bytes] = start(command, self.stderr, stdout=self.stdout, cwd=directory)

    @property
    def is_alive(self) -> bool:
        """Whether its process runs, or is stopped."""
        return self.process.poll() is None

    @property
    def was_refused(self) -> bool:
        """Whether it has ended at once, since its Redis was away."""
        return self.process.returncode == 2 and "no Redis answers at" in self.stderr.read_text()

    @property
    def has_given_up(self) -> bool:
        """Whether it has ended, since its Redis was away for too long."""
        return self.process.returncode == 1 and "Redis doesn't answer any more" in self.stderr.read_text()

    def kill(self) -> None:
        """Kill it, as a machine that goes down does."""
        self.is_killed = True
        self.process.kill()
        self.process.wait()


class Run:
    """One run of a workload."""

    def __init__(
        self, workload: Workload, plan: Plan, directory: Path, server: Server, agenda: Agenda, *, seed: int
    ) -> None:
        self.workload = workload
        self.directory = directory
        self.output = directory / "out"
        self.marks = directory / "marks"
        self.marks.mkdir(parents=True)
        self.id = ""
        self.is_complete = False  # all tasks are committed, and what is left is the collecting
        self.events: list[Event] = []
        self._server = server
        self._agenda = agenda
        self._position = "0"
        self._begun_at = self._over_at = 0.0
        self._last_phase: Phase | None = None  # once it is known
        self._to_come = 0  # commands that are on the agenda
        self._number = 0
        parameters: dict[str, Any] = {
            "marks": self.marks,
            "seed": seed,
            "raises": plan.raises,
            "dawdles": plan.dawdles,
            "dawdle_seconds": _DAWDLE_SECONDS,
            "pause_seconds": _PAUSE_SECONDS,
        }
        given = [text for name, value in parameters.items() for text in ("-p", f"{name}={value}")]
        options = ["--lease", str(LEASE), "--json", "-o", str(self.output)]
        self.commands: list[Command] = []
        self._arguments = ["run", *workload.arguments, *given, *options]
        self._start(*self._arguments)

    @property
    def has_begun(self) -> bool:
        """Whether Redis knows the run, so that it outlives its command. Raises Broken if that ended before."""
        if self.commands[0].was_refused:  # on a machine so busy that the server didn't answer in time
            self.commands.clear()
            self._start(*self._arguments)
        self.id = self.id or next((path.name.removeprefix(".rqmr-") for path in self.output.glob(".rqmr-*")), "")
        if not self.commands[0].is_alive and not self.id:
            raise Broken(f"rqmr run ended before the run began: {self.commands[0].stderr.read_text()}")
        if self.id and not self._last_phase:
            with contextlib.suppress(AttemptEnded, redis.RedisError):
                self._last_phase = State(self._server.client, self.id).spec.phases[-1]
                self._begun_at = time.monotonic()
        return self._last_phase is not None

    def may_be_set_back(self, seconds: float) -> bool:
        """Whether neither its beginning nor its end can be forgotten: a run that has ended would be there again."""
        since = time.monotonic() - (self._over_at or self._begun_at)
        lives = self._over_at or (self._server.client.exists(RunKeys(self.id).run) and not self._has_all_outputs())
        return bool(lives and since > seconds + _MARGIN_SECONDS)

    @property
    def is_over(self) -> bool:
        """Whether a command has said so."""
        return self._over_at > 0

    @property
    def drivers(self) -> list[Command]:
        """The commands that live."""
        return [command for command in self.commands if command.is_alive]

    @property
    def ended_early(self) -> dict[str, int]:
        """How many of its commands ended since Redis was away: another one went on."""
        over = [command for command in self.commands if not command.is_alive]
        return {
            "refused at once": sum(command.was_refused for command in over),
            "gave up": sum(command.has_given_up for command in over),
        }

    @property
    def faults_in_code(self) -> dict[str, int]:
        """How often its code raised and dawdled."""
        names = [path.name for path in self.marks.iterdir()]
        kinds = {"raised": "code raised", "dawdled": "code dawdled"}
        return {kind: sum(name.startswith(start) for name in names) for start, kind in kinds.items()}

    def attach(self) -> None:
        """Start another command for it."""
        if not self.is_over:
            self._start("attach", self.id)

    def attach_later(self, seconds: float, count: int = 1) -> None:
        """Start so many commands for it, in a while."""
        self._to_come += count
        for _ in range(count):
            self._agenda.add(seconds, self._attach_as_said)

    def keep(self) -> None:
        """See which commands have ended and how, and see to it that there is always one, sooner or later."""
        for command in self.commands:
            if command.is_alive or (command.is_killed and command.process.returncode == -signal.SIGKILL):
                continue
            if command.process.returncode == 0:
                self._over_at = self._over_at or time.monotonic()
            elif not (command.was_refused or command.has_given_up):
                status = command.process.returncode
                raise Broken(f"a command of run {self.id} ended with status {status}: {command.stderr.read_text()}")
        if not self.is_over and not self.drivers and not self._to_come:
            self.attach_later(_ATTACH_AGAIN_SECONDS)

    def listen(self) -> bool:
        """Read the new events; return whether there are some."""
        self._position, events = State(self._server.client, self.id).events(self._position)
        self.events += events
        self.is_complete |= any(event.what == "committed" for event in events) and self._has_all_outputs()
        return bool(events)

    def differences(self) -> list[str]:
        """Tell what isn't right of a run that is over."""
        end = registry.read_end(self._server.patient, self.id)
        wrong = self.workload.differences(self.output, end.summary if end else None)
        # The command that began it may have lived to tell.
        if self.commands[0].process.returncode == 0 and end and end.summary:
            printed = json.loads(self.commands[0].stdout.read_text())
            wrong += ["--json tells other counters"] * (printed["counters"] != end.summary.counters)
        keys = {key.decode() for key in self._server.patient.scan_iter(f"rqmr:{self.id}*", count=10_000)}
        wrong += [f"{key} is left in Redis" for key in sorted(keys - {RunKeys(self.id).end})]
        return wrong

    def report(self) -> Iterator[str]:
        """Tell all that is known of it."""
        yield f"run {self.id} of {self.workload.name}, in {self.directory}"
        status = [sys.executable, "-m", "rqmr", "status", self.id, "--redis-url", self._server.url]
        told = subprocess.run(status, capture_output=True, text=True, timeout=60, check=False)
        yield f"rqmr status: {told.stdout}{told.stderr}"
        for command in self.commands:
            state = "lives" if command.is_alive else f"ended with status {command.process.returncode}"
            words = command.stderr.read_text()[-2000:]
            yield f"command {' '.join(map(str, command.process.args[3:5]))} {state}: {words}"  # type: ignore[index]
        yield "the events that were seen:"
        yield from (f"{event.at_ms} {event.what} {event.subject} {event.note}" for event in self.events[-200:])

    def _has_all_outputs(self) -> bool:
        assert self._last_phase
        winners = RunKeys(self.id).winners(self._last_phase)
        return int(self._server.client.hlen(winners)) == self._last_phase.tasks

    def _attach_as_said(self) -> None:
        self._to_come -= 1
        self.attach()

    def _start(self, *arguments: str) -> None:
        self._number += 1
        options = ["--redis-url", self._server.url]
        self.commands.append(Command([*arguments, *options], self.directory, self._number))
