"""Run rqmr under faults for some minutes, and compare each run with what is right.

    scripts/chaos [minutes] [seed] [number of the first run]

Real workers, a real server and real commands; work-horses, workers, drivers and the server are killed, stopped and
started again, code raises and dawdles, segments and tickets vanish. What goes wrong, where and when comes from the seed
alone. The first run that isn't right, or doesn't end, ends the storm; its logs are kept.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import redis
from faults import Faults
from machines import QUEUE, Agenda, Broken, Server, Workers, adopt_orphans, descendants, end_all, wait_until
from plan import KINDS, Fault, Plan, plan
from runs import Run
from workloads import Workload, workloads

from rqmr.keys import RUNS

_WORKERS = 3
#: No new event for so long, or a run that takes so long, is a run that hangs.
_SILENCE_SECONDS = 120.0
_MOST_SECONDS = 300.0
#: What is told of attempts, in this order.
_TOLD = ("claimed", "committed", "lost", "revived", "failed", "backed up", "reopened")
_IN_CODE = ("code raised", "code dawdled")


class Storm:
    """The machines, and what has happened so far."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.seed = seed
        self.server = Server(directory)
        self.workers = Workers(self.server, directory)
        self.agenda = Agenda()
        self.faults = Faults(self.server, self.workers, self.agenda)
        self.workloads: list[Workload] = []
        self.runs: list[Run] = []
        self.injected: collections.Counter[str] = collections.Counter()
        self.ended_early: collections.Counter[str] = collections.Counter()
        self.wrong = 0

    def begin(self) -> None:
        """Prepare what runs need."""
        self.workloads = workloads(self.directory, self.seed)
        self.server.begin()
        wait_until(self.server.answers, seconds=20, what="the server answers")
        self.workers.add(_WORKERS)
        self.workers.keep()

    def round(self, number: int) -> None:
        """Run what the plan has for this number, under its faults. Raises Broken if it doesn't come out right."""
        planned = plan(self.seed, number, len(self.workloads))
        began = time.monotonic()
        runs = self._start(planned)
        struck = self._blow(planned, runs)
        self.agenda.work(all_of_it=True)
        self._calm_down(runs)
        seconds = time.monotonic() - began
        for kind, count in itertools.chain.from_iterable(run.faults_in_code.items() for run in runs):
            struck[kind] += count
        self.injected.update(struck)
        for run in runs:
            wrong = run.differences()
            verdict = "WRONG" if wrong else "right"
            print(f"{number:3}  {run.workload.name:9} {seconds:6.1f} s  {verdict}  {_listed(struck)}")
            if wrong:
                raise Broken("\n".join(wrong))
            self.ended_early.update(run.ended_early)
            shutil.rmtree(run.directory)

    def end(self) -> None:
        """See that nothing is left. Raises Broken if something is."""
        self.workers.end()
        left = {key.decode() for key in self.server.patient.scan_iter("rqmr:*", count=10_000)}
        kept = {key for key in left if key == RUNS or key.startswith("rqmr:code:") or key.endswith(":end")}
        if left - kept:
            raise Broken(f"keys are left in Redis: {sorted(left - kept)}")
        if forever := sorted(key for key in left if self.server.patient.ttl(key) == -1):
            raise Broken(f"keys have no time to live: {forever}")
        if tickets := self.server.patient.llen(f"rq:queue:{QUEUE}"):
            raise Broken(f"{tickets} tickets are left in the queue")
        self.server.end(signal.SIGTERM)
        if processes := descendants():
            raise Broken(f"processes are left: {processes}")

    def report(self) -> Iterable[str]:
        """Tell all that is known of the runs of now."""
        self.agenda.work(all_of_it=True)
        with contextlib.suppress(Broken):
            wait_until(self.server.answers, seconds=20, what="the server answers")
        for run in self.runs[-2:]:
            if run.directory.exists():
                yield from run.report()
        for log in sorted(self.directory.glob("w*-*.log"), key=lambda path: path.stat().st_mtime)[-2 * _WORKERS :]:
            yield f"{log.name}: … {log.read_text(errors='replace')[-1500:]}"

    def summary(self) -> Iterable[str]:
        """Tell the storm in numbers."""
        told = collections.Counter(event.what for run in self.runs for event in run.events)
        yield f"runs {len(self.runs)}, wrong {self.wrong}"
        yield "faults: " + ", ".join(f"{kind} {self.injected[kind]}" for kind in (*KINDS, *_IN_CODE))
        yield "attempts: " + ", ".join(f"{what} {told[what]}" for what in _TOLD)
        early = ", ".join(f"{how} {count}" for how, count in self.ended_early.items()) or "none"
        yield f"commands that ended early as Redis was away: {early}"
        yield f"workers started: {sum(worker.starts for worker in self.workers.all)} for {_WORKERS} places"

    def _start(self, planned: Plan) -> list[Run]:
        runs = []
        for place, chosen in enumerate(planned.workloads):
            directory = self.directory / f"run-{planned.number}-{place}"
            runs.append(
                Run(
                    self.workloads[chosen],
                    planned,
                    directory,
                    self.server,
                    self.agenda,
                    seed=self.seed + planned.number,
                )
            )
        self.runs += runs
        wait_until(lambda: all(run.has_begun for run in runs), seconds=60, what="the runs begin")
        return runs

    def _blow(self, planned: Plan, runs: list[Run]) -> collections.Counter[str]:
        """Let the faults come until all of the runs are over; return how often each has struck."""
        struck: collections.Counter[str] = collections.Counter()
        to_come = collections.deque(planned.faults)
        ending: list[Run] = []
        began = heard = time.monotonic()

        def strike(fault: Fault, runs: list[Run]) -> None:
            struck[fault.kind] += self.faults.strike(fault, runs)

        while not all(run.is_over for run in runs):
            now = time.monotonic()
            self.agenda.work()
            while to_come and now - began >= to_come[0].at:
                strike(to_come.popleft(), runs)
            self.workers.keep()
            self.server.check()
            self.server.look()
            for run in runs:
                run.keep()
            if self._hear(runs):
                heard = now
            for run in runs:
                if run.is_complete and run not in ending:
                    ending.append(run)
                    for fault in planned.at_the_end:
                        self.agenda.add(fault.at, partial(strike, fault, [run]))
            if now - heard > _SILENCE_SECONDS:
                raise Broken(f"nothing has happened for {_SILENCE_SECONDS:g} s")
            if now - began > _MOST_SECONDS:
                raise Broken(f"not over after {_MOST_SECONDS:g} s")
            time.sleep(0.02)
        return struck

    def _hear(self, runs: list[Run]) -> bool:
        if not self.server.is_there:
            return False
        try:
            return sum(run.listen() for run in runs) > 0  # all of them
        except redis.RedisError:
            return False

    def _calm_down(self, runs: list[Run]) -> None:
        """Wait until nothing works on the runs any more."""

        def is_calm() -> bool:
            self.workers.keep()
            for run in runs:
                run.keep()
            with contextlib.suppress(redis.RedisError):
                idle = not any(run.drivers for run in runs) and not self.workers.horses()
                return idle and not self.server.client.llen(f"rq:queue:{QUEUE}")
            return False

        wait_until(is_calm, seconds=90, what="all commands and work-horses of the runs that are over have ended")
        self.server.compact()


def _listed(counts: collections.Counter[str]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in counts.items() if count) or "no fault"


def main() -> int:
    """Run the storm that the command line asks for."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() % 10**6
    first = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, lambda number, _: sys.exit(128 + number))
    adopt_orphans()
    directory = Path(tempfile.mkdtemp(prefix="rqmr-chaos-"))
    storm = Storm(directory, seed)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    print(f"a storm of seed {seed}, with its logs in {directory}; again: scripts/chaos {minutes:g} {seed}")
    number = first
    try:
        storm.begin()
        end = time.monotonic() + minutes * 60
        while number == first or time.monotonic() < end:
            storm.round(number)
            number += 1
        storm.end()
    except Exception as error:
        storm.wrong += 1
        told = str(error) if isinstance(error, Broken) else traceback.format_exc()
        print(f"\nWRONG in round {number}: {told}\n", *storm.report(), sep="\n")
        print(f"\nagain: scripts/chaos {minutes:g} {seed} {number}; the logs are kept in {directory}\n")
    finally:
        end_all()
        if not storm.wrong:
            shutil.rmtree(directory)
        print(*storm.summary(), sep="\n")
    return 1 if storm.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
