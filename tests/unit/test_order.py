"""`TotalOrder`: the part files, one after the other, are one sorted whole."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rqmr
from rqmr import Config, TotalOrder
from rqmr.errors import JobError
from rqmr.parts import read_records


def job(directory: Path, key: str, more: str = "") -> str:
    path = directory / "job.py"
    path.write_text(
        f"from rqmr import *\n\n\nclass Mine(Job):\n    partitioner = TotalOrder()\n"
        f"    def mapper(self, source, line):\n        yield {key}, 1\n{more or '    reducer = Collect()'}\n"
    )
    return str(path)


def parts(name: str, inputs: list[Path], **config: Any) -> list[list[tuple[Any, Any]]]:
    given: dict[str, Any] = {"reducers": 4, "split_bytes": 50_000, "format": "jsonl", **config}
    with rqmr.run(name, inputs, inline=True, config=Config(**given)) as result:
        return [list(read_records([path], "jsonl")) for path in result.paths]


@pytest.fixture
def numbers(tmp_path: Path) -> list[Path]:
    """Two files of numbers, of which the second has the greater ones, and small ones are far more frequent."""
    chance = random.Random(11)
    paths = []
    for file in range(2):
        paths.append(tmp_path / f"{file}.txt")
        paths[-1].write_text("".join(f"{int(chance.expovariate(1e-6)) + file * 10**6}\n" for _ in range(20_000)))
    return paths


@pytest.mark.parametrize("key", ["int(line)", "float(line)", "line", "(len(line), line)", "line.encode()"])
def test_the_parts_are_one_sorted_whole_and_about_equal(tmp_path: Path, numbers: list[Path], key: str) -> None:
    found = parts(job(tmp_path, key), numbers)
    keys = [tuple(key) if isinstance(key, list) else key for part in found for key, _ in part]
    sizes = [sum(len(values) for _, values in part) for part in found]

    assert all(first < second for first, second in pairwise(keys))
    assert sum(sizes) == 40_000
    assert max(sizes) < 2 * min(sizes), "of a hash that doesn't know their number, the least part is a fifth of it"


def test_what_is_folded_is_parted_by_keys_and_not_by_how_often_they_occur(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("".join(f"{'a' if number % 10 else f'w{number:06}'}\n" for number in range(40_000)))

    sizes = [len(part) for part in parts(job(tmp_path, "line", "    reducer = Sum()"), [path])]

    assert sum(sizes) == 4001
    assert max(sizes) < 2 * min(sizes)


def test_records_that_can_not_be_mapped_are_told_by_the_run_and_not_by_the_sample(tmp_path: Path) -> None:
    path = tmp_path / "numbers.txt"
    path.write_text("3\n1\nx\n2\n")

    with pytest.raises(rqmr.RunFailed, match="invalid literal") as caught:
        parts(job(tmp_path, "int(line)"), [path])
    assert caught.value.failure.record == "'x'"
    found = parts(job(tmp_path, "int(line)"), [path], skip_bad=1)
    assert [key for part in found for key, _ in part] == [1, 2, 3]


@pytest.mark.parametrize("problem", ["raise ValueError('no table')", "raise SystemExit('no table')"])
@pytest.mark.parametrize("where", ["setup(self)", "mapper(self, source, line)"])
def test_what_the_sample_stumbles_over_fails_the_run_and_not_the_plan(tmp_path: Path, where: str, problem: str) -> None:
    path = tmp_path / "numbers.txt"
    path.write_text("3\n1\n")

    with pytest.raises(rqmr.RunFailed, match="no table") as caught:
        parts(job(tmp_path, "line", f"    reducer = Collect()\n    def {where}:\n        {problem}"), [path])

    assert "job.py" in caught.value.failure.traceback


def test_an_input_without_a_key_has_empty_parts(tmp_path: Path) -> None:
    path = tmp_path / "blank.txt"
    path.write_text("\n\n")

    assert parts(job(tmp_path, "'never', 1\n        return\n        yield 0"), [path]) != []


def test_keys_of_two_types_have_no_order(tmp_path: Path) -> None:
    path = tmp_path / "mixed.txt"
    path.write_text("1\nx\n2\ny\n")

    with pytest.raises(JobError, match="Mine: keys of one step must have one type"):
        parts(job(tmp_path, "int(line) if line.isdigit() else line"), [path])


def test_a_later_step_needs_bounds_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("pear\nfig\napple\nplum\n")
    steps = "    def steps(self):\n        return [Step(self.mapper, Sum()), Step(reducer=Sum(), partitioner={})]"

    with pytest.raises(JobError, match=r"give step 1's TotalOrder its bounds"):
        parts(job(tmp_path, "line", steps.format("TotalOrder()")), [path])
    found = parts(job(tmp_path, "line", steps.format("TotalOrder(['b', 'pf'])")), [path], reducers=3)
    assert [[key for key, _ in part] for part in found] == [["apple"], ["fig", "pear"], ["plum"]]


def test_bounds_that_do_not_ascend_are_refused() -> None:
    with pytest.raises(ValueError, match="must ascend"):
        TotalOrder(["b", "a"])


@given(st.lists(st.integers(0, 30)), st.lists(st.integers(0, 30), max_size=6), st.integers(1, 9))
def test_keys_are_cut_as_each_of_them_is_parted(keys: list[int], bounds: list[int], partitions: int) -> None:
    order = TotalOrder(sorted(bounds))
    keys = sorted(set(keys))

    cut = dict(order.cut(keys, partitions))

    assert [(partition, key) for partition, some in cut.items() for key in some] == [
        (order(key, partitions), key) for key in keys
    ]
