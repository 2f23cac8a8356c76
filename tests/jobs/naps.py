"""Count how often files were mapped: each call leaves a mark, then naps; the reducer counts the marks.

Without marks it counts the files. That is the same if no file is mapped twice.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from marks import count, marked

from rqmr import Job, Whole


class Naps(Job):
    reader = Whole()
    marks: str = ""  # a directory
    seed: int = 0

    def mapper(self, source: str, text: str) -> Iterator[tuple[str, int]]:
        if self.marks:
            count(self.marks, "mapped")
            time.sleep(random.Random(f"{self.seed} {Path(source).name}").uniform(2, 5))
        yield "a", 1

    def reducer(self, key: str, files: Iterable[int]) -> Iterator[tuple[str, int]]:
        yield key, marked(self.marks, "mapped") if self.marks else sum(files)
