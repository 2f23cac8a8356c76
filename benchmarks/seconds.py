"""Where the seconds of a run go: its processes are sampled by py-spy, and each sample is counted for what it was at."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from compare import environment
from measure import Watch, run
from msgspec import Struct
from targets import JOBS, RATIOS, RQMR, Bench

#: Samples a second.
RATE = 100
#: Lines that are told of a run.
HOTTEST = 12
PROFILED = ("words-books", "words-source", "batch-books", "index", "grep", "sort")

WAITING = "waiting"
SERVER = "the Redis server"
#: What a frame, "function (file:line)", tells. The innermost that tells something decides; what is in none of these
#: files is done for who called it.
_RULES = [
    (kind, re.compile(pattern))
    for kind, pattern in (
        # py-spy takes these for busy.
        (WAITING, r" \(threading\.py|_socket_can_read|wait_for_horse|Parent\.listen|is_readable|^select "),
        (WAITING, r"\(rqmr/(heartbeat|supervise)\.py|^Driver\.run \("),
        ("the user's reducer, and what is fused with it", r"^added \(|^\w+\.(reducer|combiner) \("),
        ("the user's mapper, and what is fused with it", r"\(functions\.py|^\w+\.(mapper|map_batch) \("),
        ("writing part files", r"\(rqmr/(parts|output|remote)\.py|Task\._write_part"),
        ("reading and decoding", r"\(rqmr/(readers|files|inputs|arrivals)\.py|^_read \("),
        ("the Redis client", r"\((redis|hiredis)/|\(rqmr/(segments|state|scripts|connection|tickets|parcels)\.py"),
        (
            "fetching and merging",
            r"\(rqmr/(merge|passes|fetch)\.py|SegmentReader|Aggregator\.merge|\w+\.merge(_all)? \(",
        ),
        ("folding", r"\(rqmr/aggregators\.py|Shuffler\.(consume|_group|_weigh\w*|take\w*)\b|^check_pair"),
        ("sorting, encoding and compressing", r"\(rqmr/(shuffle|spill\w*)\.py"),
        ("from record to record", r"Task\._mapped|^_mapped|\(rqmr/(tasks|records|blocks)\.py"),
        ("start-up and planning", r"^<module> \(|importlib|\(rqmr/(cli|commands|plan|loader|local|server|preload)\.py"),
        ("RQ", r"\(rq/|\(rqmr/(worker|dispatch)\.py"),
        ("driving", r"\(rqmr/(driver|tick|scheduler|facts|api|progress|view)\.py"),
    )
]
OTHER = "other"
_PROCESS = re.compile(r'process \d+:".*?"(?:;|$)')


class Profile(Struct):
    """Of one run: the seconds of all its processes, by what they were spent on, and at which lines the most."""

    name: str  # of the target
    title: str
    wall: float
    seconds: dict[str, float]
    lines: list[tuple[str, float]]


def profile(bench: Bench, names: Sequence[str]) -> Iterator[Profile]:
    """Yield where the seconds go, for the jobs of some targets."""
    spy = environment(bench.cache).with_name("py-spy")
    for target in (each for each in RATIOS if each.name in (names or PROFILED)):
        files, title = target.files(bench)
        raw, output = bench.work / "profile.raw", bench.work / "out"
        shutil.rmtree(output, ignore_errors=True)
        record = [spy, "record", "--output", raw, "--format", "raw", "--subprocesses", "--rate", RATE, "--"]
        with Watch() as watch:
            used = run([*record, RQMR, "run", JOBS / f"{target.job}.py", *files, "-o", output, "-w", 2, "--quiet"])
        samples = list(_samples(raw))
        seconds = {kind: count / RATE for kind, count in counted(samples).most_common() if kind != WAITING}
        seconds[SERVER] = sum(each.cpu for each in watch.seen if each.is_server)
        bench.say(f"{title}: {used.seconds:.1f} s, sampled")
        yield Profile(target.name, title, used.seconds, seconds, _hottest(samples))


def _hottest(samples: Iterable[tuple[Sequence[str], int]]) -> list[tuple[str, float]]:
    lines: Counter[str] = Counter()
    for frames, count in samples:
        if frames and kind_of(frames) != WAITING:
            lines[frames[-1]] += count
    return [(line, count / RATE) for line, count in lines.most_common(HOTTEST)]


def counted(samples: Iterable[tuple[Sequence[str], int]]) -> Counter[str]:
    """Count samples, each the frames from the outermost on and how often they were seen, by what they tell."""
    found: Counter[str] = Counter()
    for frames, count in samples:
        found[kind_of(frames)] += count
    return found


def kind_of(frames: Sequence[str]) -> str:
    """Return what a process was at, by its frames from the outermost on."""
    for frame in reversed(frames):
        for kind, pattern in _RULES:
            if pattern.search(frame):
                return kind
    return OTHER


def _samples(raw: Path) -> Iterator[tuple[Sequence[str], int]]:
    for line in raw.read_text(errors="replace").splitlines():
        stack, _, count = line.rpartition(" ")
        yield [frame for frame in _PROCESS.sub("", stack).split(";") if frame], int(count)


def told(profiles: Sequence[Profile]) -> Iterator[str]:
    """Yield the lines of the table."""
    kinds = [kind for kind, _ in _RULES if kind != WAITING] + [SERVER, OTHER]
    yield f"| seconds of all processes | {' | '.join(each.title for each in profiles)} |"
    yield f"|---|{'--:|' * len(profiles)}"
    for kind in dict.fromkeys(kinds):
        cells = [_cell(each.seconds.get(kind, 0), sum(each.seconds.values())) for each in profiles]
        yield f"| {kind} | {' | '.join(cells)} |"
    totals = [f"**{sum(each.seconds.values()):.1f}** in {each.wall:.1f} s" for each in profiles]
    yield f"| all | {' | '.join(totals)} |"


def told_lines(profiles: Sequence[Profile]) -> Iterator[str]:
    """Yield the lines of code that took the most."""
    for each in profiles:
        yield f"\n{each.title}, line by line:\n\n```"
        yield from (f"{seconds:8.2f} s  {line}" for line, seconds in each.lines)
        yield "```"


def _cell(seconds: float, total: float) -> str:
    return f"{seconds:.2f} ({seconds / total:.0%})"
