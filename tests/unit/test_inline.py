"""The oracle itself, and what a task does with a job."""

from __future__ import annotations

from pathlib import Path

import pytest

import rqmr
from rqmr import Config
from rqmr.errors import JobError


def job(tmp_path: Path, body: str) -> str:
    path = tmp_path / "job.py"
    path.write_text(f"from rqmr import Collect, Job, Sum\n\n\nclass Mine(Job):\n{body}\n")
    return str(path)


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"{number}\n" for number in range(20)))
    return path


def test_a_first_pair_that_is_none_is_an_error_and_not_the_end(tmp_path: Path, lines: Path) -> None:
    """A generator that yields None first has more to say: nothing is dropped in silence."""
    mine = job(tmp_path, "    def mapper(self, source, line):\n        yield (line, 1) if line != '0' else None")

    with pytest.raises(rqmr.RunFailed, match="NoneType") as caught:
        rqmr.run(mine, lines, inline=True)

    assert (caught.value.failure.offset, caught.value.failure.record) == (0, "'0'")


def test_each_task_has_a_job_of_its_own(tmp_path: Path, lines: Path) -> None:
    """What a mapper keeps on itself ends with its task, inline as on a worker."""
    mapper = "    def mapper(self, source, line):\n        self.n += 1\n        yield 'n', self.n"
    body = f"    n = 0\n    reducer = Collect()\n\n{mapper}"

    with rqmr.run(job(tmp_path, body), lines, inline=True, config=Config(split_bytes=10)) as result:
        [(_, numbers)] = list(result)

    assert numbers.count(1) == result.summary.map_tasks > 2


def test_a_file_that_runs_itself_when_imported_is_told_to_guard_that(tmp_path: Path, lines: Path) -> None:
    """Else each worker that loads the job would start a run, whose workers would."""
    mine = Path(job(tmp_path, "    def mapper(self, source, line):\n        yield line, 1"))
    mine.write_text(f"{mine.read_text()}\n\nimport rqmr\n\nrqmr.run(Mine, [{str(lines)!r}], inline=True)\n")

    with pytest.raises(JobError, match=r"(?s)job\.py.*if __name__ == '__main__'"):
        rqmr.run(str(mine), lines, inline=True)


def test_a_mapper_holds_little_more_than_it_may(tmp_path: Path) -> None:
    """Values of 100 KB spill one by one, and not a batch of thousands at a time."""
    path = tmp_path / "long.txt"
    path.write_text(("x" * 100_000 + "\n") * 50)
    mapper = "    def mapper(self, source, line):\n        yield len(line), line"
    reducer = "    def reducer(self, key, values):\n        yield key, sum(map(len, values))"
    mine = job(tmp_path, f"{mapper}\n\n{reducer}")

    with rqmr.run(mine, path, inline=True, config=Config(memory=1 << 20, split_bytes=1 << 30)) as result:
        assert list(result) == [(100_000, 5_000_000)]
