"""Measure rqmr: each of its targets against what it is measured by.    scripts/bench NAME … [--size 256MiB]

Without a name it lists them. All that a command takes counts, from its start to its end: server, workers, output.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import compare
import limits
from corpora import default_cache
from results import MIB, Result, machine, save, table
from targets import RATIOS, Bench

from rqmr.inputs import parse_size

TARGETS: dict[str, tuple[str, Callable[[Bench], list[Result]]]] = {
    **{each.name: (each.title, each.measure) for each in RATIOS},
    "tasks": ("no-op map tasks a second", limits.tasks),
    "tiny": ("a tiny job, whole command", limits.tiny),
    "scaling": ("two workers against one", limits.scaling),
    "wide": ("a task's cost among ten times as many, and the driver's", limits.wide),
    "memory": ("peak memory of a worker", limits.memory),
    "one-key": ("peak memory of a worker for one huge key, and for one huge partition", limits.one_key),
    "redis-memory": ("memory of Redis, against what is shuffled", limits.redis_memory),
}


def main() -> None:
    """Measure what the command line asks for."""
    given = _options()
    names = list(TARGETS) if given.all else given.names
    if given.peers:
        _peers(given)
        return
    if unknown := [name for name in names if name not in TARGETS]:
        raise SystemExit(f"{unknown[0]} is no target; scripts/bench lists them")
    if not names:
        _list()
        return
    found: list[Result] = []
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="rqmr-bench-", dir=given.outputs) as work:
        bench = Bench(given.rounds, given.size, given.tasks, given.work, Path(work), given.corpus)
        for name in names:
            results = TARGETS[name][1](bench)
            save(results, given.work / "results" / f"{name}.json")
            found += results
    print(f"{machine()} Load {load:.1f} before, {os.getloadavg()[0]:.1f} after; rounds: {given.rounds}.\n")
    print("\n".join(table(found)))


def _peers(given: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="rqmr-bench-", dir=given.outputs) as work:
        bench = Bench(given.rounds, given.size, given.tasks, given.work, Path(work), given.corpus)
        found = []
        for comparison in compare.compare(bench, given.names):
            found.append(comparison)
            save(comparison, given.work / "results" / f"peers-{comparison.work}.json")
    print(f"{machine()}\n")
    print("\n".join(compare.told(found)))


def _list() -> None:
    for name, (title, _) in TARGETS.items():
        print(f"{name:<16} {title}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of a target")
    parser.add_argument("--all", action="store_true", help="all targets")
    parser.add_argument("--peers", action="store_true", help="all works, or those named, by rqmr and its peers in turn")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--size", type=parse_size, default=256 * MIB, help="of the input; default: 256MiB")
    parser.add_argument("--tasks", type=int, default=2000, help="where they are counted; default: %(default)s")
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="read the files of DIR, not made ones")
    parser.add_argument("--work", type=Path, default=default_cache(), metavar="DIR", help="cache; default: %(default)s")
    parser.add_argument("--outputs", type=Path, metavar="DIR", help="where outputs go; default: with temporary files")
    return parser.parse_args()


if __name__ == "__main__":
    main()
