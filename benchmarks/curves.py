"""Time against the size of the input, and tasks a second against their number."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

from limits import task_rates
from msgspec import Struct
from plots import Axis, decades, draw, steps
from results import MIB, told_size
from targets import Bench, check_equal

#: By name: rqmr's job, or the pools' program.
PROGRAMS = {
    "rqmr": ("count_words", ""),
    "Pool(2) by hand": ("", "words"),
    "rqmr, batch mapper": ("count_words_by_batch", ""),
    "Pool(2), Counter by chunk": ("", "chunks"),
}


class Curves(Struct):
    """What was measured: medians of the rounds."""

    seconds: dict[str, list[tuple[int, float]]]  # by program: bytes of input, seconds
    rates: list[tuple[int, float]]  # tasks, tasks a second


def measure(bench: Bench, points: int) -> Curves:
    """Measure sizes from a sixteenth of the bench's on, each twice the one before; and numbers of tasks likewise."""
    sizes = [max(1, bench.size // 16) << power for power in range(points)]
    seconds: dict[str, list[tuple[int, float]]] = {name: [] for name in PROGRAMS}
    for size in sizes:
        for name, taken in _in_turn(bench, size).items():
            seconds[name].append((size, statistics.median(taken)))
    counts = [max(1, bench.tasks * share // 20) for share in (1, 2, 5, 10, 20, 50, 100)[:points]]
    return Curves(seconds, list(task_rates(bench, counts).items()))


def _in_turn(bench: Bench, size: int) -> dict[str, list[float]]:
    files = bench.files("books", size)
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(bench.rounds):
        outputs = []
        for name, (job, program) in PROGRAMS.items():
            used, output = bench.rqmr(job, files) if job else bench.pool(program, files)
            seconds[name].append(used.seconds)
            outputs.append(output)
            if len(outputs) == 2:  # what the first two wrote is overwritten by the others
                check_equal("curves", *outputs)
                outputs = []
    told = ", ".join(f"{name} {statistics.median(taken):.2f} s" for name, taken in seconds.items())
    bench.say(f"{told_size(size)}: {told}")
    return seconds


def draw_all(curves: Curves, directory: Path) -> Iterator[tuple[str, Path]]:
    """Draw both; yield the title of each, and its path."""
    sizes = [size for size, _ in next(iter(curves.seconds.values()))]
    taken = [seconds for points in curves.seconds.values() for _, seconds in points]
    by_size, by_tasks = directory / "time-by-size.svg", directory / "tasks-by-number.svg"
    x = Axis("input", [(size, _told(size)) for size in sizes], is_log=True)
    y = Axis("seconds, whole command", decades(min(taken), max(taken)), is_log=True)
    draw(by_size, "Word count: time against input, two workers", x, y, curves.seconds)
    yield "time against input size", by_size
    x = Axis("no-op map tasks in the run", [(count, f"{count:,}") for count, _ in curves.rates], is_log=True)
    y = Axis("tasks a second, whole command", steps(max(rate for _, rate in curves.rates)))
    draw(by_tasks, "Tasks a second: two stock RQ workers", x, y, {"rqmr": curves.rates})
    yield "tasks a second against tasks", by_tasks


def _told(size: int) -> str:
    return f"{size >> 30} GiB" if size >= 1024 * MIB else told_size(size)


def told(curves: Curves) -> Iterator[str]:
    """Yield the lines of the tables of what is drawn."""
    sizes = [size for size, _ in next(iter(curves.seconds.values()))]
    yield f"| seconds | {' | '.join(map(_told, sizes))} |"
    yield f"|---|{'--:|' * len(sizes)}"
    for name, points in curves.seconds.items():
        yield f"| {name} | {' | '.join(f'{seconds:.2f}' for _, seconds in points)} |"
    yield ""
    yield f"| tasks | {' | '.join(f'{count:,}' for count, _ in curves.rates)} |"
    yield f"|---|{'--:|' * len(curves.rates)}"
    yield f"| tasks/s | {' | '.join(f'{rate:,.0f}' for _, rate in curves.rates)} |"
