"""Count words, and leave a mark where the code is imported, and where it is imported altered."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from rqmr import Job, Sum

if "RQMR_TEST_IMPORTS" in os.environ:
    Path(os.environ["RQMR_TEST_IMPORTS"], "mark").touch()


class Words(Job):
    marks: str = ""

    def mapper(self, source: str, line: str) -> Iterator[tuple[str, int]]:
        for word in line.split():
            yield word, 1

    reducer = Sum()
