"""Have a child of every line that is terminated; yield how it ended."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator

from rqmr import Collect, Job


class Children(Job):
    def mapper(self, source: str, line: str) -> Iterator[tuple[str, int]]:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        child.terminate()
        child.join(10)
        yield line, child.exitcode or 0

    reducer = Collect()
