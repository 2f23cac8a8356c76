"""What a fault costs a run: the table of the MapReduce paper (OSDI 2004, section 5), measured here.

    python benchmarks/faults.py                        (three rounds: about ten minutes)
    python benchmarks/faults.py --wait --rounds 1 --rows none map
    python benchmarks/faults.py --help

Every run has a private server and real `rq worker`s of its own, and is the real command, `python -m rqmr run`; what is
killed gets a real SIGKILL. A run whose output isn't what --inline gives fails the benchmark. The rows of a round follow
each other, and each is compared with the run without a fault of its own round, so that a machine whose speed drifts
changes the ratios little. The table goes to stdout, in Markdown.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster import Cluster, started

from rqmr import __version__, registry
from rqmr.facts import Facts
from rqmr.local import default_workers
from rqmr.state import State

JOB = Path(__file__).resolve().with_name("toil.py")
RECORDS = 10  # of a map task, and keys of a reduce task
WORDS = 4  # of a record
LONGEST_SECONDS = 300


@dataclass(frozen=True)
class Load:
    """What every run of a table does."""

    workers: int
    tasks: int  # of each of the two phases
    seconds: float  # for a task, when all workers are at work
    lease: float
    cpu: bool

    @property
    def waves(self) -> float:
        """How many tasks each worker does in a phase."""
        return self.tasks / self.workers

    @property
    def work(self) -> dict[str, object]:
        """The job's parameters. If the tasks compute, those that run at a time share this machine's processors."""
        share = min(1.0, default_workers() / self.workers) if self.cpu else 1.0
        each = self.seconds * share / RECORDS
        return {"seconds": each, "reduce_seconds": each, "cpu": self.cpu}


# --- the faults ---------------------------------------------------------------------------------------------------

#: Looks at the run again and again, until it has done what it is for.
Fault = Callable[[Cluster, str, Facts], bool]


def killed_in(phase: int) -> Fault:
    """In the middle of a phase a worker is killed with its work-horse, and started again."""

    def strike(cluster: Cluster, run: str, facts: Facts) -> bool:
        if not _is_half_done(facts, phase):
            return False
        victim = min(facts.running, key=lambda each: each.started_ms, default=None)  # it has the most to lose
        if victim is None:
            return False
        cluster.kill(victim.worker)
        cluster.start_worker()
        return True

    return strike


def without_driver(cluster: Cluster, run: str, facts: Facts) -> bool:
    """In the middle of the map phase the command is killed, and `rqmr attach` takes its place."""
    if not _is_half_done(facts, 0):
        return False
    assert cluster.command is not None
    cluster.command.kill()
    cluster.command.wait()
    cluster.rqmr("attach", run)
    return True


def _is_half_done(facts: Facts, phase: int) -> bool:
    return facts.phase == phase and facts.phases[phase].committed * 2 >= facts.phases[phase].phase.tasks


@dataclass(frozen=True)
class Row:
    """One row of the table: a fault."""

    name: str
    title: str
    paper: str = ""
    options: tuple[str, ...] = ()
    straggler: int | None = None  # index of the map task whose first attempt is ten times slower
    fault: Fault | None = None


ROWS = (
    Row("none", "no fault"),
    Row("first", "a straggler in the first wave", straggler=0),
    Row("first-alone", "the same with `--no-backup`", straggler=0, options=("--no-backup",)),
    Row("last", "a straggler in the last wave", straggler=-1),
    Row("last-alone", "the same with `--no-backup`", "+44 %", straggler=-1, options=("--no-backup",)),
    Row("map", "a worker killed mid-map, started again", "+5 %", fault=killed_in(0)),
    Row("reduce", "a worker killed mid-reduce, started again", fault=killed_in(1)),
    Row("driver", "the driver killed mid-run, `rqmr attach`", fault=without_driver),
)


@dataclass
class Measure:
    """What one run took."""

    seconds: float
    events: Counter[str]


class Bench:
    """The input of a load, and what its output has to be."""

    def __init__(self, directory: Path, load: Load) -> None:
        self.load = load
        self._directory = directory
        self._inputs = [directory / f"{number:04}.txt" for number in range(load.tasks)]
        keys = load.tasks * RECORDS
        for number, path in enumerate(self._inputs):
            first = number * RECORDS * WORDS
            words = [str(word % keys) for word in range(first, first + RECORDS * WORDS)]
            path.write_text("".join(" ".join(words[at : at + WORDS]) + "\n" for at in range(0, len(words), WORDS)))
        self._plan = [str(JOB), *map(str, self._inputs), "--split-size", "4KiB", "-r", str(load.tasks)]
        oracle = directory / "oracle"
        subprocess.run(
            [sys.executable, "-m", "rqmr", "run", *self._plan, "--inline", "--quiet", "-o", str(oracle)], check=True
        )
        self._expected = _files(oracle)

    def measure(self, row: Row) -> Measure:
        """Do a run with a row's fault, from the command's start to its end. Ends the benchmark if it isn't right."""
        work, slow, output = self.load.work, self._directory / "slow", self._directory / "out"
        if row.straggler is not None:
            slow.touch()
            work |= {"slow": slow, "slow_source": self._inputs[row.straggler].name}
        parameters = [text for name, value in work.items() for text in ("-p", f"{name}={value}")]
        with started(self.load.workers) as cluster:
            began = time.monotonic()
            cluster.rqmr("run", *self._plan, *parameters, "--lease", self.load.lease, *row.options, "-o", output)
            events = _follow(cluster, row)
            seconds = time.monotonic() - began
        if _files(output) != self._expected:
            raise SystemExit(f"{row.name}: the output in {output} isn't what --inline gives")
        shutil.rmtree(output)
        return Measure(seconds, events)


def _follow(cluster: Cluster, row: Row) -> Counter[str]:
    """Wait for the run's end, and let the row's fault happen; return how many events of each kind there were."""
    state, position, seen, fault = None, "0", Counter[str](), row.fault
    deadline = time.monotonic() + LONGEST_SECONDS
    while (status := cluster.wait(0.05)) is None:
        if time.monotonic() > deadline:
            raise SystemExit(f"{row.name}: the run takes longer than {LONGEST_SECONDS} s")
        if state is None and (runs := registry.runs(cluster.client)):
            state = State(cluster.client, runs[0][0])
        if state is not None:
            position, events = state.events(position)
            seen.update(event.what for event in events)
            if fault is not None and (facts := state.facts()) and fault(cluster, state.run, facts):
                fault = None
    if status:
        raise SystemExit(f"{row.name}: the run failed:\n{(cluster.directory / 'rqmr.log').read_text()}")
    if fault is not None:
        raise SystemExit(f"{row.name}: the run was over before its fault; give it more --tasks or more --seconds")
    return seen


def _files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# --- the table ----------------------------------------------------------------------------------------------------


@dataclass
class Table:
    """All that was measured with one load."""

    load: Load
    rows: Sequence[Row]
    measures: dict[str, list[Measure]] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """The table in Markdown, and what is to be known about it."""
        yield f"### Tasks that {'compute' if self.load.cpu else 'wait'}"
        yield ""
        yield "| fault | seconds | more than no fault | the paper's | attempts | lost | backups |"
        yield "|---|--:|--:|--:|--:|--:|--:|"
        for row in self.rows:
            measures = self.measures[row.name]
            seconds = _spread([each.seconds for each in measures], "{:.2f}")
            more = _spread(self._ratios(row), "{:+.1%}") if row.name != "none" else ""
            counts = [
                _spread([each.events[what] for each in measures], "{:.0f}")
                for what in ("claimed", "lost", "backed up")
            ]  # fmt: skip
            yield f"| {' | '.join([row.title, seconds, more, row.paper, *counts])} |"
        yield ""
        yield from self._legend()

    def _ratios(self, row: Row) -> list[float]:
        """How much longer a row took than no fault in the same round: 0.05 for 5 %."""
        pairs = zip(self.measures[row.name], self.measures["none"], strict=True)
        return [one.seconds / usual.seconds - 1 for one, usual in pairs]

    def _legend(self) -> Iterator[str]:
        load, task = self.load, self.load.seconds
        usual = statistics.median(each.seconds for each in self.measures["none"])
        once = (task + 1) / load.workers

        def share(seconds: float) -> str:
            return f"{seconds / usual:+.1%}"

        yield (
            f"* {load.workers} stock `rq worker`s; {load.tasks} map and as many reduce tasks of about {task:g} s, "
            f"{load.waves:g} waves each; `--lease {load.lease:g}`, short as the run is (the default is 15 s)."
        )
        yield _CPU.format(cores=default_workers()) if load.cpu else _WAIT
        yield (
            "* A straggler is the first attempt of one map task; each of its records takes ten times as long. In the "
            f"first wave, alone, it makes its phase 10 tasks' time long at least, in place of {load.waves:g}: "
            f"{share(max(0, 10 - load.waves) * task)}. A backup is given when no task is pending, and by then such a "
            f"one is nearly done. In the last wave it makes its phase 9 tasks' time longer, {share(9 * task)}; with a "
            "backup, given to what is a second old and older than usual and by its progress will take four times the "
            f"usual time, {share(max(1.0, task))}."
        )
        yield (
            f"* A killed worker loses a task at most, and is back after about a second: {share(once)} of what "
            f"{load.workers} workers do. Its task is another's when its lease has run out: if all others are done by "
            f"then, its phase is longer by what is left of lease and task, {share(load.lease + task)} at most."
        )
        yield (
            "* Seconds are those of the command, from its start to its end; a ratio is that of two runs of one round: "
            "median [least … most]. Every output was what `--inline` gives, byte for byte."
        )


_WAIT = (
    "* Tasks wait at each record for as long as it takes, so that each worker does its share as if it had processors "
    "of its own, and one that is killed leaves a gap."
)
_CPU = (
    "* Tasks compute, and the workers share {cores} processors: what a killed one leaves the others take, and its "
    "start takes some from them. A straggler computes as much as the others, and waits for the rest of its time."
)


def _spread(values: Sequence[float], form: str) -> str:
    """The median, and the least and the most if they differ."""
    told = [form.format(value) for value in (statistics.median(values), min(values), max(values))]
    return told[0] if told[1] == told[2] else f"{told[0]} [{told[1]} … {told[2]}]"


def main() -> None:
    """Measure, and print the tables."""
    options = _options()
    kinds = [kind for kind in ("wait", "cpu") if getattr(options, kind)] or ["wait", "cpu"]
    rows = [row for row in ROWS if row.name in {"none", *options.rows}]
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="rqmr-faults-") as directory:
        benches = []
        for kind in kinds:
            load = Load(options.workers, options.tasks, options.seconds, options.lease, cpu=kind == "cpu")
            (Path(directory) / kind).mkdir()
            benches.append((Bench(Path(directory) / kind, load), Table(load, rows)))
        for number in range(options.rounds):
            for bench, table in benches:
                for row in rows:
                    measure = bench.measure(row)
                    table.measures.setdefault(row.name, []).append(measure)
                    told = f"round {number + 1}  {'cpu ' if bench.load.cpu else 'wait'}  {row.name:<11}"
                    print(f"{told} {measure.seconds:6.2f} s", file=sys.stderr, flush=True)
    print(
        f"rqmr {__version__}, Python {platform.python_version()}, {default_workers()} cores ({platform.machine()}), "
        f"load {load_before:.1f} before and {os.getloadavg()[0]:.1f} after, rounds: {options.rounds}. "
        "The paper's: 1,746 workers, 891 s; 200 of them killed."
    )
    for _, table in benches:
        print("\n".join(["", *table.lines()]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--wait", action="store_true", help="tasks that wait only")
    parser.add_argument("--cpu", action="store_true", help="tasks that compute only")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--tasks", type=int, default=64, help="of each of the two phases")
    parser.add_argument("--seconds", type=float, default=0.5, help="for a task")
    parser.add_argument("--lease", type=float, default=1.0, help="seconds")
    names = [row.name for row in ROWS]
    parser.add_argument("--rows", nargs="+", choices=names, default=names, metavar="ROW", help=", ".join(names))
    return parser.parse_args()


if __name__ == "__main__":
    main()
