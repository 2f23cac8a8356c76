"""Tell the names and sizes of files, in calls of which a third ends the process and a third sleeps.

With `marks`, each call throws a die of its own: what it shows depends on the seed, on what is mapped or reduced, and on
how often that was tried, and not on who does it or when. It leaves the name of the worker whose work-horse it ends.
Without marks nothing happens.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from marks import count, mark
from rq import get_current_job

from rqmr import Job, Whole


class Fates(Job):
    reader = Whole()
    marks: str = ""  # a directory
    seed: int = 0
    seconds: float = 0.0  # a sleep is no longer

    def mapper(self, source: str, text: str) -> Iterator[tuple[str, str]]:
        name = Path(source).name
        self.throw(name)
        yield "a", name
        yield "b", str(len(name))
        yield "c", str(len(text))
        yield "d", "xyzzy"

    def partitioner(self, key: str, partitions: int) -> int:
        return "abcd".index(key) % partitions

    def reducer(self, key: str, values: Iterable[str]) -> Iterator[tuple[str, str]]:
        self.throw(key)
        yield key, " ".join(sorted(values))

    def throw(self, name: str) -> None:
        if not self.marks:
            return
        die = random.Random(f"{self.seed} {name} {mark(self.marks, f'tried-{name}')}")
        fate = die.random()
        if fate < 1 / 3:
            if rq_job := get_current_job():
                count(self.marks, f"ended.{rq_job.worker_name}")
            os._exit(1)
        if fate < 2 / 3:
            time.sleep(die.uniform(0, self.seconds))
