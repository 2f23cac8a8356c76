"""Measure rqmr: each of its targets against what it is measured by.    scripts/bench NAME … [--size 256MiB]

Without arguments it lists the targets. All that a command takes counts, from its start to its end: server, workers,
output. What was measured is kept in the cache, and `--write FILE` puts all that is kept into FILE's tables.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import compare
import curves
import limits
import seconds
import simulate
from corpora import default_cache
from results import MIB, Result, keep, kept, machine, table
from targets import RATIOS, Bench

from rqmr.inputs import parse_size

TARGETS: dict[str, tuple[str, Callable[[Bench], list[Result]]]] = {
    **{each.name: (each.title, each.measure) for each in RATIOS},
    "tasks": ("no-op map tasks a second", limits.tasks),
    "tiny": ("a tiny job, whole command", limits.tiny),
    "scaling": ("two workers against one", limits.scaling),
    "wide": ("a task's cost among ten times as many, and the driver's", limits.wide),
    "memory": ("peak memory of a worker", limits.memory),
    "redis-memory": ("memory of Redis, against what is shuffled", limits.redis_memory),
    "one-key": (
        "peak memory of a worker for one key, and one partition, of 2 GiB (eight times --size)",
        limits.one_key,
    ),
}
#: For these one asks by name: they take long, and as much room on the disk.
NOT_OF_ALL = {"one-key"}


def main() -> None:
    """Measure what the command line asks for."""
    parser = _parser()
    given = parser.parse_args()
    does_more = given.peers or given.curves or given.profile or given.simulate
    names = [name for name in TARGETS if name not in NOT_OF_ALL] if given.all else given.names
    known = {work.name for work in compare.WORKS} if given.peers else set(TARGETS)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"{unknown[0]} is none of: {', '.join(sorted(known))}")
    if not (names or does_more or given.write):
        print("\n".join(f"{name:<16} {title}" for name, (title, _) in TARGETS.items()))
        return
    with tempfile.TemporaryDirectory(prefix="rqmr-bench-", dir=given.outputs) as work:
        bench = Bench(given.rounds, given.size, given.tasks, given.work, Path(work), given.corpus)
        if given.peers:
            _peers(bench, names)
        elif names and not given.profile:
            _targets(bench, names)
        if given.curves:
            _keep(bench, "curves", [curves.measure(bench, given.points)])
        if given.profile:
            found = []
            for profile in seconds.profile(bench, names):
                _keep(bench, f"profile-{profile.name}", [profile])
                found.append(profile)
            print("\n".join([*seconds.told(found), *seconds.told_lines(found)]))
        if given.simulate:
            lines = list(simulate.table(simulate.Plan()))
            _keep(bench, "simulate", lines)
            print("\n".join(lines))
    if given.write:
        _write(given.write, given.work / "results")


def _targets(bench: Bench, names: list[str]) -> None:
    found = []
    for name in names:
        results = TARGETS[name][1](bench)
        _keep(bench, f"target-{name}", results)
        found += results
    print(_about(bench) + "\n")
    print("\n".join(table(found)))


def _peers(bench: Bench, names: list[str]) -> None:
    found = []
    for comparison in compare.compare(bench, names):
        _keep(bench, f"peers-{comparison.work}", [comparison])
        found.append(comparison)
    print(_about(bench) + "\n")
    print("\n".join(compare.told(found)))


def _keep(bench: Bench, name: str, found: Sequence[object]) -> None:
    keep(bench.cache / "results", name, _about(bench), found)


def _about(bench: Bench) -> str:
    corpus = "a corpus of the user's" if bench.directory else "made corpora"
    return f"{machine()} Rounds: {bench.rounds}, {corpus}."


# --- the page -----------------------------------------------------------------------------------------------------


def _write(page: Path, directory: Path) -> None:
    """Put what is kept between the page's marks, `<!-- targets -->` and `<!-- /targets -->` and so on."""
    text = page.read_text(encoding="utf-8")
    for name, lines in _sections(page, directory):
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not (begin and end):
            raise SystemExit(
                f"{page} has no place for {name}: <!-- {name} --> and <!-- /{name} --> on lines of their own"
            )
        text = before + begin + "\n".join(["", *lines, "", ""]) + end + after
    page.write_text(text, encoding="utf-8")


def _sections(page: Path, directory: Path) -> Iterator[tuple[str, list[str]]]:
    about, results = kept(directory, [f"target-{name}" for name in TARGETS], Result)
    if results:
        yield "targets", [*table(results), "", *about]
    about, comparisons = kept(directory, [f"peers-{work.name}" for work in compare.WORKS], compare.Comparison)
    if comparisons:
        yield "peers", [*compare.told(comparisons), "", *about]
    about, drawn = kept(directory, ["curves"], curves.Curves)
    for each in drawn:
        yield "curves", [*_drawings(each, page), "", *about]
    about, profiles = kept(directory, [f"profile-{name}" for name in seconds.PROFILED], seconds.Profile)
    if profiles:
        yield "profile", [*seconds.told(profiles), "", *about, *seconds.told_lines(profiles)]
    about, lines = kept(directory, ["simulate"], str)
    if lines:
        yield "simulate", [*lines, "", *about]


def _drawings(found: curves.Curves, page: Path) -> Iterator[str]:
    place = page.parent / page.stem
    place.mkdir(exist_ok=True)
    for title, path in curves.draw_all(found, place):
        yield f"![{title}]({place.name}/{path.name})"
        yield ""
    yield from curves.told(found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of a target; with --peers, of a work")
    parser.add_argument("--all", action="store_true", help="all targets but one-key (20 minutes)")
    parser.add_argument("--peers", action="store_true", help="all works, or those named, by rqmr and its peers in turn")
    parser.add_argument("--curves", action="store_true", help="time against input size, tasks/s against their number")
    parser.add_argument("--points", type=int, default=7, help="of a curve; default: %(default)s")
    parser.add_argument("--profile", action="store_true", help="where the seconds of a target's job go, by py-spy")
    parser.add_argument("--simulate", action="store_true", help="the scheduler alone: 1,000 workers, 100,000 tasks")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put all that was measured into a page's tables")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--size", type=parse_size, default=256 * MIB, help="of the input; default: 256MiB")
    parser.add_argument("--tasks", type=int, default=2000, help="where they are counted; default: %(default)s")
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="read the files of DIR, not made ones")
    parser.add_argument("--work", type=Path, default=default_cache(), metavar="DIR", help="cache; default: %(default)s")
    parser.add_argument("--outputs", type=Path, metavar="DIR", help="where outputs go; default: with temporary files")
    return parser


if __name__ == "__main__":
    main()
