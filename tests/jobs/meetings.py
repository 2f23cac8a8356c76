"""Count words, and meet: the first calls of the mapper, or of the reducer, wait for each other on as many workers.

A call says first that it is there, then counts those who are. So of those that meet, the last one to come finds all,
whatever the clock says, and two that were made one after the other never meet.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from marks import first, wait_for_marks
from rq import get_current_job

from rqmr import Job, Whole


class Meetings(Job):
    reader = Whole()
    marks: str = ""  # a directory
    where: str = "map"  # or reduce
    workers: int = 0

    def mapper(self, source: str, text: str) -> Iterator[tuple[str, int]]:
        if self.where == "map":
            self.meet()
        for word in text.split():
            yield word, 1

    def reducer(self, word: str, counts: Iterable[int]) -> Iterator[tuple[str, int]]:
        if self.where == "reduce":
            self.meet()
        yield word, sum(counts)

    def meet(self) -> None:
        rq_job = get_current_job()
        if rq_job is None or not self.marks:
            return
        inside = Path(self.marks, f"inside.{rq_job.worker_name}.{os.getpid()}")  # a worker forks for each ticket
        inside.touch()
        present = len(list(inside.parent.glob("inside.*")))
        first(self.marks, f"came.{rq_job.worker_name}", 1)
        met = wait_for_marks(self.marks, "came", self.workers)
        inside.unlink()
        self.count("meetings", f"{present} at a time")
        self.count("meetings", f"{rq_job.worker_name} met the others" if met else "waited in vain")
