"""Bad records: what raises twice is left out with all that it did, and careful attempts tell where they are."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import rqmr
import rqmr.codec
from rqmr import Config
from rqmr.errors import RecordError
from rqmr.inputs import expand
from rqmr.model import Kind, Outcome, RecordAt, TaskId
from rqmr.plan import plan, program
from rqmr.records import Place
from rqmr.tasks import Care, Task

#: Counts words, and what it counted, and raises at the end of each line that has the word "bad".
WORDS = """
    reducer = Sum()

    def mapper(self, source, line):
        for word in line.split():
            self.count("seen", "words")
            yield word, 1
        if "bad" in line:
            raise ValueError(f"what is {line!r}?")
"""


class Bench:
    """A job, its input, and runs of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.input = directory / "input.txt"
        self.runs = 0

    def job(self, body: str) -> str:
        path = self.directory / "job.py"
        path.write_text(f"import rqmr\nfrom rqmr import *\n\n\nclass Mine(Job):\n{body}\n")
        return str(path)

    def run(self, body: str, content: str | bytes, **config: Any) -> rqmr.Result:
        self.input.write_bytes(content.encode() if isinstance(content, str) else content)
        self.runs += 1
        given = {"workers": 1, "skip_bad": 3, "reducers": 1, **config}
        output = self.directory / f"out{self.runs}"
        return rqmr.run(self.job(body), self.input, output=output, inline=True, config=Config(**given))

    def task(self, body: str, lines: str, care: Care, *, skip_bad: int = 3, index: int = 0) -> Outcome:
        """Run one map task."""
        self.input.write_text(lines)
        made = plan(
            program(self.job(body), {}), expand([str(self.input)]), Config(skip_bad=skip_bad), workers=1,
            stage_in=self.directory / "stage",
        )  # fmt: skip
        Path(made.spec.stage).mkdir(parents=True)
        return Task(made.spec, made.program.new_job, TaskId(0, Kind.MAP, 0), Place(), Sink(), "a1", care).run(
            made.splits[index]
        )


class Sink:
    def write(self, partition: int, chunk: int, data: bytes) -> None:
        pass

    def discard(self) -> None:
        pass


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def skipped(result: rqmr.Result) -> list[dict[str, Any]]:
    path = result.output / "_skipped.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def messages(result: rqmr.Result) -> list[str]:
    return [each["message"] for each in skipped(result)]


# --- records that raise -------------------------------------------------------------------------------------------


def test_a_bad_record_leaves_nothing_behind_but_its_line_in_the_list(bench: Bench) -> None:
    """Neither the pairs that it yielded before it raised, nor what it counted."""
    result = bench.run(WORDS, "a b\na bad one\na c\n")
    clean = bench.run(WORDS, "a b\na c\n", skip_bad=0)

    assert list(result) == list(clean) == [("a", 2), ("b", 1), ("c", 1)]
    assert result.counters == clean.counters == {"seen": {"words": 4}}
    assert skipped(result) == [
        {"task": "s0-m0000", "source": str(bench.input), "offset": 4, "record": "'a bad one'",
         "message": "ValueError: what is 'a bad one'?"}
    ]  # fmt: skip
    assert (result.summary.skipped, result.summary.records_read) == (1, 3)


def test_without_bad_records_there_is_no_list_and_nothing_else_differs(bench: Bench) -> None:
    with_option, without = bench.run(WORDS, "a b\n"), bench.run(WORDS, "a b\n", skip_bad=0)

    assert [path.name for path in with_option.output.iterdir()] == [path.name for path in without.output.iterdir()]
    assert with_option.paths[0].read_bytes() == without.paths[0].read_bytes()
    assert with_option.summary.skipped == 0


def test_without_the_option_the_first_failing_record_is_in_the_error(bench: Bench) -> None:
    with pytest.raises(rqmr.RunFailed, match="what is 'bad 1'") as caught:
        bench.run(WORDS, "good\nbad 1\nbad 2\n", skip_bad=0)

    assert (caught.value.failure.offset, caught.value.failure.record) == (5, "'bad 1'")


def test_the_list_is_in_the_order_of_the_input(bench: Bench) -> None:
    content = "".join(f"{'bad' if number % 10 == 7 else 'good'} {number}\n" for number in range(40))

    result = bench.run(WORDS, content, split_bytes=len(content) // 4 + 1, skip_bad=4)

    assert result.summary.map_tasks == 4
    assert [each["record"] for each in skipped(result)] == ["'bad 7'", "'bad 17'", "'bad 27'", "'bad 37'"]
    for each in skipped(result):
        assert content[each["offset"] :].startswith(each["record"].strip("'"))


@pytest.mark.parametrize("splits", [1, 3])
def test_more_bad_records_than_allowed_fail_the_run_and_the_last_one_is_shown(bench: Bench, splits: int) -> None:
    """Wherever they are: in one task, or in several."""
    content = "bad 1\ngood\nbad 2\ngood\nbad 3\ngood\n"

    with pytest.raises(rqmr.RunFailed, match=r"more than 2 records are bad \(--skip-bad 2\).*'bad 3'") as caught:
        bench.run(WORDS, content, split_bytes=len(content) // splits + 1, skip_bad=2)

    failure = caught.value.failure
    assert (failure.source, failure.offset, failure.record) == (str(bench.input), 22, "'bad 3'")
    assert failure.task == ("s0-m0000" if splits == 1 else "s0-m0002")
    assert not list((bench.directory / "out1").glob("*"))


def test_a_record_that_raises_only_once_is_no_bad_one(bench: Bench) -> None:
    """It is tried again, and counts once."""
    flaky = """
    reducer = Sum()
    failed = False

    def mapper(self, source, line):
        self.count("seen", "lines")
        yield line, 1
        if line == "b" and not Mine.failed:
            Mine.failed = True
            raise OSError("it happens")
"""
    result = bench.run(flaky, "a\nb\nc\n")

    assert list(result) == [("a", 1), ("b", 1), ("c", 1)]
    assert result.counters == {"seen": {"lines": 3}}
    assert result.summary.skipped == 0


def test_a_record_that_is_tried_again_is_what_it_was(bench: Bench) -> None:
    """What failed may have changed it; a second try on that would give something else."""
    greedy = """
    reader = JsonLines()
    tries = 0

    def mapper(self, source, row):
        tags = [row["tags"].pop() for _ in list(row["tags"])]
        Mine.tries += "b" in tags
        if Mine.tries in (1, 2) and "b" in tags:
            raise ValueError("not yet")
        yield row.pop("id"), tags
"""
    result = bench.run(greedy, '{"id": 1, "tags": ["a"]}\n{"id": 2, "tags": ["b", "c"]}\n')

    assert list(result) == [(1, ["a"]), (2, ["c", "b"])]
    assert result.summary.skipped == 0


def test_a_task_that_starts_over_does_so_with_another_job(bench: Bench) -> None:
    """What the first one kept on itself isn't seen twice."""
    numbered = """
    reducer = Collect()

    def setup(self):
        self.number = 0

    def mapper(self, source, line):
        self.number += 1
        yield "numbers", self.number
        if line == "bad":
            raise ValueError
"""
    assert list(bench.run(numbered, "a\nb\nbad\n")) == [("numbers", [1, 2])]


def test_a_record_that_cannot_be_copied_is_told_as_that(bench: Bench) -> None:
    """It couldn't be tried again as it was."""
    body = """
    class Mine(Lines):
        def blocks(self, piece, settings):
            for block in super().blocks(piece, settings):
                block.records = [iter(line) for line in block.records]
                yield block

    reader = Mine()

    def mapper(self, source, letters):
        yield from [(letter, {"a": 1}[letter]) for letter in letters]
"""
    assert list(bench.run(body, "a\na\n")) == [("a", 1), ("a", 1)]
    generators = body.replace("iter(line)", "(letter for letter in line)")
    with pytest.raises(rqmr.RunFailed, match="--skip-bad has to copy records, and can't copy <generator"):
        bench.run(generators, "a\nb\n")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("    reducer = Sum()\n    def mapper(self, s, x): yield x, 'one' if x == 'bad' else 1", "TypeError"),
        ("    reducer = Sum()\n    def mapper(self, s, x): yield ([x] if x == 'bad' else x), 1", "unhashable"),
        ("    reducer = Collect()\n    def mapper(self, s, x): yield ([x] if x == 'bad' else x), 1", "unhashable"),
        ("    def reducer(self, k, v): yield k, 1\n    def mapper(self, s, x): yield ([x] if x == 'bad' else x), 1",
         "unhashable"),
        ("    reducer = Sum()\n    def mapper(self, s, x): yield (x, 1) if x != 'bad' else (x, 1, 1)", "unpack"),
        ("    reducer = Sum()\n    def mapper(self, s, x): yield (x, 1) if x != 'bad' else 'ab'", "pairs"),
        ("    def mapper(self, s, x): yield (x, 1) if x != 'bad' else None", "NoneType"),
        ("    def mapper(self, s, x): return [(x, 1)] if x != 'bad' else 7", "not iterable"),
        ("    def mapper(self, s, x): return [(x, 1)] if x != 'bad' else exit('no')", "SystemExit: no"),
        ("    def mapper(self, s, x): return [(x, 1)] if x != 'bad' else [bytearray(1 << 60)]", "MemoryError"),
        ("    def mapper(self, s, x): return [(x, 1)] if x != 'bad' else [next(iter(()))]", "StopIteration"),
    ],
)  # fmt: skip
def test_what_a_record_yields_can_be_bad_as_well(bench: Bench, body: str, told: str) -> None:
    """Values that the aggregator can't take, keys without a hash, things that are no pairs."""
    result = bench.run(body, "a\nbad\nb\n")

    assert [key for key, _ in result] == ["a", "b"]
    assert len(messages(result)) == 1
    assert told in messages(result)[0]


@pytest.mark.parametrize("bad", ["([x], 1)", "(x, 1, 1)", "7"])
def test_a_pair_that_cannot_be_held_is_told_of_its_own_record(bench: Bench, bad: str) -> None:
    """Not of one that is mapped when somebody looks at what is held, whether the keys differ or not."""
    for name in ("str(n)", "'same'"):
        body = f"""
    def reducer(self, key, values): yield key, len(list(values))

    def mapper(self, source, x):
        n = int(x)
        yield {bad} if n == 3210 else ({name}, 1)
"""
        with pytest.raises(rqmr.RunFailed) as caught:
            bench.run(body, "".join(f"{number:05}\n" for number in range(5000)), skip_bad=0)
        assert caught.value.failure.record == "'03210'"


def test_an_aggregator_takes_each_pair_once(bench: Bench) -> None:
    """Also one whose accumulator is the first value itself: trying whether it takes them must change nothing."""
    joined = """
    class Join(rqmr.Aggregator):
        def zero(self): return None
        def add(self, accumulator, value):
            if accumulator is None: return value
            accumulator.extend(value)
            return accumulator
        def merge(self, accumulator, other): return self.add(accumulator, other)

    reducer = Join()

    def mapper(self, source, line):
        if line == "bad": raise ValueError
        yield "all", [line]
        yield "all", [line.upper()]
"""
    assert list(bench.run(joined, "a\nbad\nb\n")) == [("all", ["a", "A", "b", "B"])]


def test_a_value_counts_as_it_was_when_it_was_yielded(bench: Bench) -> None:
    """A mapper may use one list for all that it yields, if the aggregator looks at each at once."""
    reusing = """
    class Longest(rqmr.Aggregator):
        def zero(self): return 0
        def add(self, accumulator, value): return max(accumulator, len(value))
        def merge(self, accumulator, other): return max(accumulator, other)

    reducer = Longest()

    def mapper(self, source, line):
        if line == "bad": raise ValueError
        letters = list(line)
        while letters:
            yield len(letters), letters
            letters.pop()
"""
    assert list(bench.run(reusing, "abc\nbad\n")) == [(1, 1), (2, 2), (3, 3)]


@pytest.mark.parametrize(
    "body",
    [
        "    reducer = Collect()\n    def mapper(self, s, x): yield x, lambda: 1",
        "    reducer = Collect()\n    def mapper(self, s, x): yield (1 if x == 'bad' else x), 1",
        "    def mapper(self, s, x): yield x, 1\n    def combiner(self, k, v): 1 / 0\n    reducer = combiner",
    ],
)
def test_what_is_no_records_fault_fails_as_ever(bench: Bench, body: str) -> None:
    """Values that can't be carried, keys of two types, and a combiner that raises."""
    with pytest.raises(rqmr.RunFailed) as without:
        bench.run(body, "a\nbad\nb\n", skip_bad=0)
    with pytest.raises(rqmr.RunFailed) as caught:
        bench.run(body, "a\nbad\nb\n")

    messages = [re.sub("0x[0-9a-f]+", "", each.value.failure.message) for each in (caught, without)]
    assert messages[0] == messages[1]


# --- records that can't be read -----------------------------------------------------------------------------------


def test_lines_that_are_no_json_are_left_out(bench: Bench) -> None:
    body = "    reader = JsonLines()\n    def mapper(self, s, row): yield row['id'], 1"

    result = bench.run(body, '{"id": 1}\n\n{"id": \n{"id": 2}\n{"ID": 3}\n{"id": 4}')

    assert list(result) == [(1, 1), (2, 1), (4, 1)]
    assert [(each["offset"], each["record"]) for each in skipped(result)] == [
        (11, "'{\"id\": '"),
        (29, "'{\"ID\": 3}'"),
    ]
    assert messages(result)[0].startswith("it isn't JSON")
    assert messages(result)[1] == "KeyError: 'id'"


@pytest.mark.parametrize("reader", ["Lines", "JsonLines", "Csv"])
def test_lines_that_are_no_text_are_left_out(bench: Bench, reader: str) -> None:
    """Under --decode-errors strict; all others of their block are read."""
    lines = [b"1,2"] + [b"3,\xff" if number in (3, 20) else b"%d,4" % number for number in range(30)]
    if reader == "JsonLines":
        lines = [b"[%s]" % line if b"\xff" not in line else line for line in lines]
    body = f"    reader = {reader}()\n    def mapper(self, s, record): yield str(record), 1"

    result = bench.run(body, b"\r\n".join(lines), decode_errors="strict")

    assert len(list(result)) == 29 - (reader == "Csv")
    assert [each["offset"] for each in skipped(result)] == [
        sum(len(line) + 2 for line in lines[:number]) for number in (4, 21)
    ]
    assert all("it isn't utf-8" in message for message in messages(result))
    assert all("\ufffd" in each["record"] for each in skipped(result))


def test_a_whole_file_that_is_no_text_is_left_out(bench: Bench) -> None:
    result = bench.run(
        "    reader = Whole()\n    def mapper(self, s, text): yield text, 1", b"\xff", decode_errors="strict"
    )

    assert (list(result), len(skipped(result))) == ([], 1)


def test_rows_that_do_not_fit_their_header_are_left_out(bench: Bench) -> None:
    """And those that are no CSV, if they are one line; the rest is read."""
    body = "    reader = Csv()\n    def mapper(self, s, row): yield row['id'], row['name']"

    result = bench.run(body, 'id,name\n1,a\n2\n3,"b"c\n\n4,"d\nd"\n5,e,f\n6,g\n')

    assert list(result) == [("1", "a"), ("4", "d\nd"), ("6", "g")]
    assert [(each["offset"], each["message"]) for each in skipped(result)] == [
        (12, "1 fields under 2 names"),
        (14, "it isn't CSV: ',' expected after '\"'"),
        (30, "3 fields under 2 names"),
    ]


@pytest.mark.parametrize("content", ['id,name\n1,"a\n2,b\n3,"c\n4,d\n', 'id,name\n1,"a\n2,b\n'])
def test_a_stray_quote_is_no_bad_record(bench: Bench, content: str) -> None:
    """It joins any number of rows, and none of them may be lost in silence."""
    with pytest.raises(rqmr.RunFailed, match="byte 8"):
        bench.run("    reader = Csv()\n    def mapper(self, s, row): yield row['id'], 1", content)


def test_a_bad_header_is_no_bad_record(bench: Bench) -> None:
    with pytest.raises(rqmr.RunFailed, match="byte 0: it isn't CSV"):
        bench.run("    reader = Csv()\n    def mapper(self, s, row): yield row['id'], 1", '"id"x,name\n1,a\n')


def test_damage_that_ends_a_file_is_no_bad_record(bench: Bench) -> None:
    """What comes after it can't be read, so it would be lost in silence."""
    with pytest.raises(rqmr.RunFailed, match="can't be decompressed"):
        bench.run(WORDS, b"\x1f\x8b\x08" + b"damaged" * 10)


def test_a_reader_that_cannot_go_on_is_not_asked_to(bench: Bench) -> None:
    """A generator has nothing more after it has raised: the rest of its block would be lost in silence."""
    body = """
    class Mine(Lines):
        def blocks(self, piece, settings):
            for block in super().blocks(piece, settings):
                block.records = self.parsed(block.records)
                yield block

        def parsed(self, lines):
            for line in lines:
                if line == "bad":
                    raise rqmr.readers.UnreadableRecord("input", 2, "it is bad")
                yield line

    reader = Mine()

    def mapper(self, source, line):
        yield line, 1
"""
    with pytest.raises(rqmr.RunFailed, match="it is bad"):
        bench.run(body, "a\nbad\nb\n")


# --- reducers -----------------------------------------------------------------------------------------------------

REDUCER = """
    def mapper(self, source, line):
        yield line, 1

    def reducer(self, word, counts):
        self.count("seen", "keys")
        yield word, 0
        counts = list(counts)
        if word == "bad":
            raise ValueError(f"{len(counts)} values")
        yield word, sum(counts)
"""


def test_a_key_whose_reducer_raises_is_a_bad_record(bench: Bench) -> None:
    """It sees all of its values again at the second try."""
    result = bench.run(REDUCER, "a\nbad\nb\nbad\na\n")

    assert list(result) == [("a", 0), ("a", 2), ("b", 0), ("b", 1)]
    assert result.counters == {"seen": {"keys": 2}}
    assert skipped(result) == [
        {"task": "s0-r0000", "source": "", "offset": -1, "record": "key 'bad'", "message": "ValueError: 2 values"}
    ]


def test_records_and_keys_count_together(bench: Bench) -> None:
    both = REDUCER.replace("yield line, 1", "yield line, {'worse': 1 // 0}[line] if line == 'worse' else 1")

    assert len(skipped(bench.run(both, "worse\nbad\n", skip_bad=2))) == 2
    with pytest.raises(
        rqmr.RunFailed, match=r"more than 1 record is bad.*2 values|more than 1 record is bad.*1 values"
    ):
        bench.run(both, "worse\nbad\n", skip_bad=1)


def test_a_key_whose_values_are_streamed_is_not_left_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may not fit into memory, so they can't be kept for a second try."""
    monkeypatch.setattr(rqmr.codec, "_CHUNK_TARGET", 10)
    monkeypatch.setattr(rqmr.codec, "_CHUNK_LIMIT", 20)
    with pytest.raises(rqmr.RunFailed, match="ValueError: 9000 values"):
        bench.run(REDUCER, "bad\n" * 9000, memory=1 << 30)


def test_a_later_steps_mapper_makes_the_key_bad_that_its_pair_came_from(bench: Bench) -> None:
    two_steps = """
    def steps(self):
        return [Step(self.mapper, Sum()), Step(self.second, Sum())]

    def mapper(self, source, line):
        yield line, 1

    def second(self, word, count):
        yield count, 1
        if word == "bad":
            raise ValueError
"""
    result = bench.run(two_steps, "a\na\nb\nbad\nc\n")

    assert list(result) == [(1, 2), (2, 1)]
    assert [each["record"] for each in skipped(result)] == ["key 'bad'"]


# --- records that end their process -------------------------------------------------------------------------------


def test_a_careful_attempt_tells_each_record_before_the_mapper_sees_it(bench: Bench) -> None:
    """And that none is under way when its pairs are taken: what dies then dies of something else."""
    told: list[RecordAt | None] = []
    tells = "    def mapper(self, s, x):\n        self.count(x, 'seen')\n        yield x, 1\n    reducer = Sum()"

    bench.task(tells, "a\nbb\nc\n", Care(told.append))

    source = str(bench.input)
    begun = [RecordAt(0, source, 0, "'a'"), RecordAt(1, source, 2, "'bb'"), RecordAt(2, source, 5, "'c'")]
    assert [each for each in told if each] == begun
    assert told == [begun[0], None, begun[1], None, begun[2], None, None]


def test_a_careful_attempt_without_the_option_holds_no_more_than_another(bench: Bench) -> None:
    """The pairs of a record pass one by one, however many they are; the first failing record is in the error."""
    told: list[RecordAt | None] = []
    with pytest.raises(RecordError, match="what is 'a bad one'") as caught:
        bench.task(WORDS, "a\na bad one\nb\n", Care(told.append), skip_bad=0)

    assert [each and each.index for each in told] == [0, 1]
    assert (caught.value.failure.offset, caught.value.failure.record) == (2, "'a bad one'")


def test_a_record_that_processes_died_at_is_not_given_to_the_mapper(bench: Bench) -> None:
    deadly = "    def mapper(self, s, x):\n        assert x != 'deadly'\n        yield x, 1\n    reducer = Sum()"

    outcome = bench.task(deadly, "a\nb\ndeadly\nc\n", Care(lambda at: None, {2: "SIGSEGV"}))

    (left_out,) = outcome.skipped
    assert (left_out.index, left_out.offset, left_out.record) == (2, 4, "'deadly'")
    assert left_out.message == "its process died twice (SIGSEGV)"
    assert outcome.records == 4


def test_more_deadly_records_than_may_be_left_out_fail_the_task_for_good(bench: Bench) -> None:
    with pytest.raises(RecordError, match=r"more than 1 record is bad.*SIGKILL") as caught:
        bench.task(WORDS, "a\nb\nc\n", Care(lambda at: None, {0: "SIGSEGV", 2: "SIGKILL"}), skip_bad=1)

    assert caught.value.failure.final


@pytest.mark.parametrize(
    ("reader", "content", "places"),
    [
        ("Lines", "a\r\nbé\n\nc", [(0, "'a'"), (3, "'bé'"), (7, "''"), (8, "'c'")]),
        ("JsonLines", '1\n\n \n"é"\n2', [(0, "'1'"), (5, "'\"é\"'"), (10, "'2'")]),
        ("Csv", 'a,b\n1,2\n"x\ny",3\n', [(4, "'1,2'"), (8, "'\"x'")]),
        ("Whole", "a\nb\n", [(0, "'a'")]),
    ],
)
def test_what_is_told_is_where_a_record_begins(
    bench: Bench, reader: str, content: str, places: Sequence[tuple[int, str]]
) -> None:
    told: list[RecordAt | None] = []

    bench.task(f"    reader = {reader}()\n    def mapper(self, s, x): yield str(x), 1", content, Care(told.append))

    assert [(each.offset, each.record) for each in told if each] == places
    assert [each.index for each in told if each] == list(range(len(places)))
