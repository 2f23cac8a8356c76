"""Rate homes from A to G by the energy they use, and tell how much the homes of each class use.

    scripts/make-telemetry | rqmr run telemetry -

Steps are chained: the first makes a rating of each home's readings, the second statistics of the ratings; with
`-p per_home=true` the job ends after the first. Annotations restore types: because the mapper says that it yields a
`Usage`, the reducer, on another machine, gets a `Usage`.
"""

from bisect import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rqmr import Job, JsonLines, Step

LIMITS = (0.10, 0.15, 0.20, 0.25, 0.35, 0.50)  # mean kWh of a reading: below the first is class A, and so on


@dataclass
class Usage:
    kwh: float = 0.0
    readings: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.kwh + other.kwh, self.readings + other.readings)


class Telemetry(Job):
    reader = JsonLines()
    per_home: bool = False

    def steps(self) -> list[Step]:
        rate = Step(self.read, self.rating, combiner=self.total)
        compare = Step(self.by_class, self.statistics)
        return [rate] if self.per_home else [rate, compare]

    def read(self, source: str, reading: dict[str, Any]) -> Iterator[tuple[str, Usage]]:
        kwh = reading.get("kwh")
        if kwh is None or kwh < 0:
            self.count("telemetry", "bad readings")
        else:
            yield reading["home"], Usage(kwh, 1)

    def total(self, home: str, usages: Iterable[Usage]) -> Iterator[tuple[str, Usage]]:
        yield home, sum(usages, Usage())

    def rating(self, home: str, usages: Iterable[Usage]) -> Iterator[tuple[str, tuple[str, float]]]:
        usage = sum(usages, Usage())
        mean = round(usage.kwh / usage.readings, 3)
        yield home, ("ABCDEFG"[bisect(LIMITS, mean)], mean)

    def by_class(self, home: str, rating: tuple[str, float]) -> Iterator[tuple[str, float]]:
        yield rating

    def statistics(self, letter: str, means: Iterable[float]) -> Iterator[tuple[str, dict[str, float]]]:
        kwh = sorted(means)
        yield letter, {"homes": len(kwh), "least": kwh[0], "mean": round(fmean(kwh), 3), "greatest": kwh[-1]}
