"""`map_batch`: gives what the mapper gives record by record, in fewer calls."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import rqmr
from rqmr import Config
from rqmr.errors import JobError

RECORDS = """
    def mapper(self, source, line):
        for word in line.split():
            yield word, len(source)
"""
FORMS = {
    "pairs of lines": "    def map_batch(self, source, lines):\n"
    "        return [(word, len(source)) for line in lines for word in line.split()]",
    "a generator": "    def map_batch(self, source, lines):\n"
    "        for line in lines:\n            for word in line.split():\n                yield word, len(source)",
    "a dict": "    def map_batch(self, source, lines: list[str]):\n"
    "        words = ' '.join(lines).split()\n"
    "        return {word: len(source) * words.count(word) for word in set(words)}",
    "a text": "    def map_batch(self, source, text: str):\n"
    "        return ((word, len(source)) for word in text.split())",
    "one text in all": "    def map_batch(self, source: str, text: str):\n"
    "        return Counter(word for word in text.split() for _ in source)",
}


def job(directory: Path, body: str) -> str:
    path = directory / "job.py"
    path.write_text(f"from collections import Counter\n\nfrom rqmr import *\n\n\nclass Mine(Job):\n{body}\n")
    return str(path)


@pytest.fixture
def books(tmp_path: Path) -> list[Path]:
    r"""Files of several blocks, with \r\n, empty lines, bytes that aren't text, and without a newline at the end."""
    chance = random.Random(8)
    paths = []
    for number in range(3):
        lines = [" ".join(chance.choices(["a", "bb", "ccc", "é"], k=chance.randrange(12))) for _ in range(30_000)]
        text = chance.choice(["\n", "\r\n"]).join(lines).encode()
        paths.append(tmp_path / f"{number}.txt")
        paths[-1].write_bytes(text if number else text + b"\xff \xfe")
    return paths


def records(directory: Path, body: str, inputs: list[Path], **config: object) -> list[object]:
    with rqmr.run(job(directory, body), inputs, inline=True, config=Config(**{"reducers": 2, **config})) as result:
        return [*result, result.counters, result.summary.records_read, result.summary.bytes_read]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("alone", [False, True], ids=["beside a mapper", "alone"])
def test_a_batch_gives_what_its_records_give(tmp_path: Path, books: list[Path], form: str, alone: bool) -> None:
    expected = records(tmp_path, f"{RECORDS}\n    reducer = Sum()", books, split_bytes=100_000)
    assert records(
        tmp_path, f"{form}\n    reducer = Sum()\n{'' if alone else RECORDS}", books, split_bytes=100_000
    ) == (expected)


@pytest.mark.parametrize("reducer", ["Count()", "Sum()", "staticmethod(lambda key, ones: [(key, sum(ones))])"])
@pytest.mark.parametrize("keys", ["text.split()", "map(len, text.split())", "set(text.split())"])
@pytest.mark.parametrize("memory", [1 << 12, 64 << 20])
def test_keys_once_each_are_counted_as_their_pairs_are(
    tmp_path: Path, books: list[Path], keys: str, reducer: str, memory: int
) -> None:
    body = "    def map_batch(self, source, text: str):\n        return {}\n    reducer = {}"
    expected = records(tmp_path, body.format(f"((key, 1) for key in {keys})", reducer), books)
    assert records(tmp_path, body.format(f"Ones({keys})", reducer), books, memory=memory) == expected


def test_who_counts_otherwise_than_count_does_so_with_keys_once_each(tmp_path: Path, books: list[Path]) -> None:
    body = "    class Twice(Count):\n        def add(self, accumulator, value):\n            return accumulator + 2\n"
    body += "    reducer = Twice()\n    def map_batch(self, source, text: str):\n        return {}"
    pairs, ones = (body.format(made) for made in ("((word, 1) for word in text.split())", "Ones(text.split())"))
    assert records(tmp_path, ones, books) == records(tmp_path, pairs, books)


def test_a_text_is_no_list_of_keys() -> None:
    with pytest.raises(TypeError, match="'some text' is one"):
        rqmr.Ones("some text")


@pytest.mark.parametrize("keys", ["[1, True]", "['a', 1]", "[1, 1.0]"])
def test_keys_once_each_are_of_one_type(tmp_path: Path, keys: str) -> None:
    (tmp_path / "text.txt").write_text("a\n")
    body = f"    reducer = Count()\n    def map_batch(self, source, text: str):\n        return Ones({keys})"
    with pytest.raises(rqmr.RunFailed, match="keys of one step must have one type"):
        records(tmp_path, body, [tmp_path / "text.txt"])


def test_where_records_may_be_left_out_they_are_mapped_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "numbers.txt"
    path.write_text("1\n2\nthree\n4\n")
    body = "    def map_batch(self, source, lines):\n        return [('sum', int(line)) for line in lines]\n"

    with rqmr.run(job(tmp_path, f"{body}    reducer = Sum()"), path, inline=True, config=Config(skip_bad=1)) as result:
        assert (list(result), result.summary.skipped) == ([("sum", 7)], 1)


def test_a_batch_that_raises_is_told_by_where_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "numbers.txt"
    path.write_text("1\n2\nthree\n4\n")
    body = "    def map_batch(self, source, lines):\n        return [('sum', int(line)) for line in lines]\n"

    with pytest.raises(rqmr.RunFailed, match="three") as caught:
        rqmr.run(job(tmp_path, body), path, inline=True)

    assert (caught.value.failure.offset, caught.value.failure.record) == (0, "'1'")


def test_parsed_records_come_as_a_list(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text('{"n": 1}\n\n{"n": 41}\n')
    body = "    reader = JsonLines()\n    reducer = Sum()\n    def map_batch(self, source, {}):\n        {}"

    assert records(tmp_path, body.format("found", "return {'n': sum(each['n'] for each in found)}"), [path])[0] == (
        "n",
        42,
    )
    with pytest.raises(rqmr.RunFailed, match="map_batch takes text, but the reader's records are of type dict"):
        records(tmp_path, body.format("found: str", "return {}"), [path])


def test_only_the_first_step_has_blocks(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("a\n")
    steps = "[Step(self.m, self.r), Step(self.m, self.r, map_batch=self.m)]"
    body = f"    m = r = staticmethod(lambda key, value: [(key, 1)])\n    def steps(self):\n        return {steps}"

    with pytest.raises(JobError, match="only the first step of a job reads blocks, so step 1 can't have map_batch"):
        rqmr.run(job(tmp_path, body), path, inline=True)


def test_a_mapper_that_lets_a_stop_iteration_out_ends_nothing_in_silence(tmp_path: Path) -> None:
    """What pulls records at C speed would take it for their end."""
    path = tmp_path / "text.txt"
    path.write_text("a\nb\nc\n")
    body = "    def mapper(self, source, line):\n        return [(line, 1)] if line != 'b' else [next(iter(()))]"

    with pytest.raises(rqmr.RunFailed, match="StopIteration") as caught:
        rqmr.run(job(tmp_path, body), path, inline=True)

    assert caught.value.failure.record == "'b'"
