"""Count words of letters by their list of ones, which all travel: nothing is folded where it is mapped.

No map task begins before `together` workers have one, so none of them can say that the others did it all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from marks import first, wait_for_marks
from rq import get_current_job

from rqmr import Job

WORD = re.compile(r"[^\W\d_]+")


class Letters(Job):
    marks: str = ""  # a directory
    together: int = 0

    def setup(self) -> None:
        if self.marks and (rq_job := get_current_job()):
            first(self.marks, f"at-work.{rq_job.worker_name}", 1)
            assert wait_for_marks(self.marks, "at-work", self.together), "the others don't come"

    def mapper(self, source: str, line: str) -> Iterator[tuple[str, str]]:
        for word in WORD.findall(line):
            yield word, "1"

    def reducer(self, word: str, ones: Iterable[str]) -> Iterator[tuple[str, int]]:
        yield word, len(list(ones))
