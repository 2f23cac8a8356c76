"""mrjob's local runner: two processes, with files between them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator

import common
from functions import added, index, matching, parted, words
from mrjob.job import MRJob


def source() -> str:
    """The file that the mapper reads, as mrjob tells it."""
    return os.environ["mapreduce_map_input_file"].removeprefix("file://")  # noqa: SIM112 - Hadoop's name


class Words(MRJob):
    """Count words."""

    def mapper(self, _: None, line: str) -> Iterator[tuple[str, int]]:
        """Yield words."""
        return words("", line)

    def reducer(self, word: str, counts: Iterable[int]) -> Iterator[tuple[str, int]]:
        """Add up."""
        return added(word, counts)

    combiner = reducer


class Index(MRJob):
    """Index words."""

    def mapper(self, _: None, line: str) -> Iterator[tuple[str, str]]:
        """Yield words and the file."""
        return index(source(), line)

    def combiner(self, word: str, names: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Each name once."""
        return ((word, name) for name in set(names))

    def reducer(self, word: str, names: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
        """All names."""
        yield word, sorted(set(names))


class Grep(MRJob):
    """Find lines."""

    def mapper(self, _: None, line: str) -> Iterator[tuple[str, str]]:
        """Yield the line if it matches."""
        return matching(source(), line)


class Sort(MRJob):
    """Sort records: one reducer, as the local runner has no other way to an order of all."""

    def mapper(self, _: None, line: str) -> Iterator[tuple[str, str]]:
        """Yield the key and the rest."""
        return parted("", line)

    def reducer(self, key: str, rests: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Yield them as they come."""
        return ((key, rest) for rest in rests)


JOBS = {"words": Words, "index": Index, "grep": Grep, "sort": Sort}


def main(name: str, output: str, *paths: str) -> None:
    """Run one of them, and spell what it wrote as the others do."""
    os.environ["PEER_WORK"] = name  # for the processes that run its mapper, combiner and reducer
    options = ["-r", "local", "--num-cores", "2", *(["--jobconf", "mapreduce.job.reduces=1"] * (name == "sort"))]
    job = JOBS[name](args=[*options, *paths])
    with job.make_runner() as runner:
        runner.run()
        spelled = common.index_lines if name == "index" else common.pair_lines
        common.write(spelled(job.parse_output(runner.cat_output())), output)


if __name__ == "__main__":
    if set(sys.argv) & {"--mapper", "--combiner", "--reducer"}:
        JOBS[os.environ["PEER_WORK"]].run()
    else:
        main(*sys.argv[1:])
