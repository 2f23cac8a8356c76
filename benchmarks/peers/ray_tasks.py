"""Ray: a task for each piece, with the work of the hand-written pools; put together in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import common
import pools
import ray


def run(work: Callable[[Any], Any], join: Callable[[Iterable[Any]], Iterator[str]]) -> Callable[[list[str]], Any]:
    """Return what does a work of the pools' with Ray."""

    def do(paths: list[str]) -> Iterator[str]:
        task = ray.remote(work)
        pending = [task.remote(piece) for piece in common.pieces(paths)]

        def results() -> Iterator[Any]:
            waited = pending
            while waited:
                done, waited = ray.wait(waited)
                yield from ray.get(done)

        return join(results())

    return do


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    common.main({name: run(*pools.PROGRAMS[name]) for name in ("words", "chunks", "index", "grep", "sort")})
    ray.shutdown()
