"""Part files: each record can be read back from its line, and a directory is complete or it isn't the output."""

from __future__ import annotations

import datetime
import json
import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rqmr.errors import CarryError, OutputError
from rqmr.model import Kind, Part, Skipped, TaskId
from rqmr.output import LOG, SUCCESS, Output
from rqmr.parts import Columns, PartWriter, StagedFile, from_json, read_records, spell, to_json, tsv_field

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
#: Text full of what a TSV has to escape, and of what str.splitlines takes for the end of a line.
awkward = st.lists(
    st.sampled_from(
        ["\\", "\t", "\n", "\r", "\\t", "\\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\0", "a", "é", "😀"]
    ),
    max_size=8,
).map("".join)  # fmt: skip
words = text | awkward
zones = st.none() | st.sampled_from([datetime.UTC, datetime.timezone(datetime.timedelta(hours=-3.5))])
#: Without the fold of a clock that is set back, for which ISO 8601 has no word.
moments = st.datetimes(timezones=zones).map(lambda moment: moment.replace(fold=0))
scalars = (
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | words | st.binary(max_size=9)
    | st.decimals() | st.dates() | moments | moments.map(datetime.datetime.time)
)  # fmt: skip
dollars = st.sampled_from(["$bytes", "$dict", "$float", "$", "$date", "a"])
dict_keys = (
    words | dollars | st.integers() | st.binary(max_size=3) | st.none() | st.dates() | st.tuples(words, st.none())
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(dict_keys, inner, max_size=4)
        | st.dictionaries(dollars, inner, max_size=1)
    ),
    max_leaves=8,
)
keys = words | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none() | st.binary(max_size=5)
all_keys = keys | st.tuples(keys, keys) | st.tuples(words, st.tuples(st.none(), st.binary(max_size=2))) | st.just(())


def writer_in(stage: Path, name: str, form: str) -> PartWriter:
    return PartWriter(StagedFile(stage / name), name, form)


def same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)


def written(records: Sequence[tuple[Any, Any]] | Columns, form: str) -> tuple[bytes, list[tuple[Any, Any]]]:
    """Write a part; return its bytes and the records that are read from it."""
    with tempfile.TemporaryDirectory() as directory:
        stage = Path(directory)
        writer = writer_in(stage, "part", form)
        writer.write(records)
        part = writer.close()
        data = (stage / "part").read_bytes()
        assert (part.size, part.crc, writer.records) == (len(data), crc32(data), len(list(records)))
        return data, list(read_records([stage / "part"], form))


# --- TSV ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(words, words), max_size=20))
@settings(max_examples=70, deadline=None)
@example([("", "")])
@example([("\\", "\\\\"), ("\t\n\r", "\r\n"), ("a\\tb", "a\tb"), ("\x85", "\u2028"), ("ends in \\", "x")])
def test_tsv_is_lossless_as_text(records: list[tuple[str, str]]) -> None:
    """Whatever is in a str: it comes back as it was, one line for each record, one tab in each line."""
    data, back = written(records, "tsv")
    assert back == records
    assert data.count(b"\n") == len(records)
    assert all(line.count(b"\t") == 1 for line in data.split(b"\n")[:-1])


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("word", "word"), ("", ""), ("two words", "two words"), ("größe ☃", "größe ☃"), ('"quoted"', '"quoted"'),
        ("a\tb", r"a\tb"), ("a\nb", r"a\nb"), ("a\rb", r"a\rb"), ("a\\b", r"a\\b"), ("a\\tb", r"a\\tb"),
        ("\u2028", "\u2028"), ("\x0b", "\x0b"), ("null", "null"),
        (1, "1"), (-(2**63), "-9223372036854775808"), (1.0, "1.0"), (0.1, "0.1"), (1e300, "1e+300"), (True, "true"),
        (None, "null"), (["a\tb", 1], r'["a\tb",1]'), ({"a": [1, None]}, '{"a":[1,null]}'), (("a", 1), '["a",1]'),
        (["ü"], '["ü"]'), ([], "[]"), ({}, "{}"), ((), "[]"), (b"hi", '{"$bytes":"aGk="}'),
        (float("nan"), '{"$float":"nan"}'), (float("-inf"), '{"$float":"-inf"}'),
        (Decimal("1.10"), '{"$decimal":"1.10"}'),
        (datetime.date(2026, 11, 21), '{"$date":"2026-11-21"}'),
        (datetime.datetime(2026, 11, 21, 8, 30), '{"$datetime":"2026-11-21T08:30:00"}'),
        (datetime.time(8, 30), '{"$time":"08:30:00"}'), ({1: "a"}, '{"$dict":[[1,"a"]]}'),
        ({"$a": 1}, '{"$dict":[["$a",1]]}'),
    ],
    ids=repr,
)  # fmt: skip
def test_a_tsv_field_is_spelled_as_documented(value: Any, line: str) -> None:
    """Strings as they are but for four escapes; everything else as compact JSON."""
    assert tsv_field(value) == line
    assert "\t" not in line
    assert "\n" not in line
    assert spell("tsv")(value, 7) == f"{line}\t7\n"


@given(values)
@settings(max_examples=60, deadline=None)
def test_what_is_not_text_can_be_read_from_a_tsv_field_too(value: Any) -> None:
    """Everything but a str is JSON there, and JSON has no raw tab or newline."""
    if not isinstance(value, str):
        assert same(from_json(tsv_field(value)), value)
        assert not set("\t\n\r") & set(tsv_field(value))


# --- jsonl -------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(all_keys, values), max_size=8))
@settings(max_examples=100, deadline=None)
@example([((1, ("a", None)), {"$bytes": "aGk="}), ("$bytes", {"$dict": [[1, 2]]}), ("k", {"$dict": 1, "b": {}})])
@example([("k", {"a": math.nan, (1, "b"): [math.inf, -0.0]})])
def test_jsonl_is_lossless_with_types(records: list[tuple[Any, Any]]) -> None:
    """Bytes, Decimals, NaN, dates, dicts with any keys, dicts that look like one of our own spellings."""
    data, back = written(records, "jsonl")
    assert same(back, records)
    assert data.count(b"\n") == len(records)


@given(all_keys, values)
@settings(max_examples=50, deadline=None)
def test_a_jsonl_line_is_one_that_any_json_reader_takes(key: Any, value: Any) -> None:
    """[key,value], without NaN and Infinity, which aren't JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    line = spell("jsonl")(key, value)
    read = json.loads(line, parse_constant=refuse)
    assert isinstance(read, list)
    assert len(read) == 2


def test_jsonl_is_compact_and_its_text_is_not_escaped() -> None:
    """People read it too."""
    assert spell("jsonl")("größe", ["☃", 1, 2.5, True, None]) == '["größe",["☃",1,2.5,true,null]]\n'


def test_tuples_become_lists_in_values_and_stay_tuples_in_keys() -> None:
    """That is documented: JSON has arrays only."""
    _, back = written([(("a", (1, 2)), ("x", (1,)))], "jsonl")
    assert back == [(("a", (1, 2)), ["x", [1]])]


def test_integers_of_any_size_are_written() -> None:
    """A reducer may sum beyond 64 bits: the output isn't the wire."""
    for form in ("tsv", "jsonl"):
        _, back = written([("k", 2**200)], form)
        assert int(back[0][1]) == 2**200


# --- what has no spelling ----------------------------------------------------------------------------------------


class Opaque:
    def __repr__(self) -> str:
        return "Opaque()"


@dataclass
class Reading:
    home: str
    watts: Decimal
    raw: bytes
    at: float


@given(st.lists(st.text()))
def test_lists_of_text_are_spelled_as_json_spells_them(texts: list[str]) -> None:
    assert to_json(texts) == json.dumps(texts, ensure_ascii=False, separators=(",", ":"))


@pytest.mark.parametrize("form", ["tsv", "jsonl"])
@pytest.mark.parametrize(
    "value", [Opaque(), 1j, len, [Opaque()], ["a", Opaque()], {"a": {"b": Opaque()}}, {Opaque(): 1}]
)
@pytest.mark.parametrize("in_columns", [False, True])
def test_a_value_without_a_spelling_is_told_with_its_key_and_type(
    form: str, value: Any, in_columns: bool, tmp_path: Path
) -> None:
    """Never its repr, which nothing could read again."""
    culprit = "Opaque" if "Opaque" in repr(value) else type(value).__qualname__
    writer = writer_in(tmp_path, "a", form)
    with pytest.raises(CarryError) as caught:
        writer.write(Columns(["some key"], [value]) if in_columns else [("some key", value)])
    writer.discard()
    assert "'some key'" in str(caught.value)
    assert culprit in str(caught.value)


def test_dataclasses_are_objects_and_sets_are_sorted_arrays() -> None:
    """A result may be richer than what JSON knows; it is spelled the same way each time."""
    reading = Reading("h", Decimal("1.50"), b"x", math.inf)
    assert to_json(reading) == '{"home":"h","watts":{"$decimal":"1.50"},"raw":{"$bytes":"eA=="},"at":{"$float":"inf"}}'
    assert to_json([reading, {"a": reading}]).count('"$decimal"') == 2
    assert to_json({"c", "a", "b"}) == '["a","b","c"]'


@pytest.mark.parametrize("form", ["tsv", "jsonl"])
def test_text_with_a_lone_surrogate_is_told_with_its_key(form: str, tmp_path: Path) -> None:
    """It can't be written as UTF-8; a part isn't left half-written either."""

    def write(bad: Iterable[tuple[Any, Any]]) -> None:
        writer = writer_in(tmp_path, "a", form)
        try:
            writer.write(bad)
            writer.close()
        finally:
            writer.discard()

    columns = Columns(["a key", "the key", "z"], ["b", "bad \udc80 text", "\ud800"])
    lists = Columns(["a key", "the key", "z"], [["b"], ["a", "bad \udc80 text"], ["\ud800"]])
    for bad in (columns, list(columns), lists, list(lists)):
        with pytest.raises(CarryError, match="'the key'"):
            write(bad)
        assert list(tmp_path.iterdir()) == []


def test_a_number_that_python_will_not_print_is_told_as_an_error_about_its_key(tmp_path: Path) -> None:
    """Python refuses to print integers of more than 4300 digits."""
    writer = writer_in(tmp_path, "a", "tsv")
    with pytest.raises((CarryError, ValueError)):
        writer.write([("k", 10**5000)])
    writer.discard()


# --- the part writer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["tsv", "jsonl"])
@given(
    st.lists(st.tuples(words, words | st.integers() | st.booleans()), max_size=9)
    | st.lists(st.tuples(words, st.integers()), max_size=9)
    | st.lists(st.tuples(st.integers(), words), max_size=9)
    | st.lists(st.tuples(words, st.lists(words | st.integers() | st.booleans(), max_size=4)), max_size=4)
    | st.lists(st.tuples(words, st.lists(words, max_size=4)), max_size=4)
    | st.lists(st.tuples(all_keys, values), max_size=9)
)
def test_columns_are_written_as_their_pairs_are(form: str, records: list[tuple[Any, Any]]) -> None:
    columns = Columns([key for key, _ in records], [value for _, value in records])
    assert written(columns, form)[0] == written(records, form)[0]


def test_columns_are_flushed_as_they_grow(tmp_path: Path) -> None:
    """Many small ones make a few large writes, and a large one several: each of them may travel by itself."""
    for size in (10, 100_000):
        sizes: list[int] = []
        file = StagedFile(tmp_path / f"{size}")
        file.write = lambda data, sizes=sizes: sizes.append(len(data)) or len(data)
        writer = PartWriter(file, "a", "tsv")
        for start in range(0, 200_000, size):
            writer.write(Columns(range(start, start + size), ["ü"] * size))
        part = writer.close()
        assert (sum(sizes), writer.records) == (part.size, 200_000)
        assert all(200_000 < each < 400_000 for each in sizes[:-1])


@pytest.mark.parametrize("text", ["a\tb", "a\nb", "a\\b", "a\rb", "\t", ""])
@pytest.mark.parametrize("place", [0, 4000, 9999])
def test_text_that_has_to_be_escaped_may_come_late(text: str, place: int, tmp_path: Path) -> None:
    """Many lines are looked at together, and among them may be what has no text, or backslashes of its own."""
    records: list[tuple[Any, Any]] = [(f"key {number}", "x" * (number % 60)) for number in range(10_000)]
    records[place] = (text, text)
    records[place - 1] = ("lists", ["a\nb", 1])
    records[place // 2] = (5, {"a": "\t"})

    writer = writer_in(tmp_path, "a", "tsv")
    writer.write(iter(records))
    part = writer.close()

    lines = "".join(f"{tsv_field(key)}\t{tsv_field(value)}\n" for key, value in records)
    assert (tmp_path / "a").read_bytes() == lines.encode()
    assert (part.size, part.crc) == (len(lines), crc32(lines.encode()))
    assert writer.records == len(records)


def test_a_pair_that_is_yielded_may_be_changed_later(tmp_path: Path) -> None:
    """A reducer may use one list for all its pairs, also where some text has to be escaped."""
    pair: list[Any] = ["", ""]

    def pairs() -> Iterable[Any]:
        for pair[0], pair[1] in [("a", "1"), ("b", "2\t"), ("c", "3")]:
            yield pair

    writer = writer_in(tmp_path, "a", "tsv")
    writer.write(pairs())
    writer.close()
    assert (tmp_path / "a").read_text() == "a\t1\nb\t2\\t\nc\t3\n"


@pytest.mark.parametrize("value", [["x" * 100] * 500, "x" * 50_000], ids=["lists", "texts"])
def test_large_values_are_written_a_few_at_a_time(tmp_path: Path, value: object) -> None:
    """However many there are of them in the columns: what is spelled of them has to fit into memory."""
    sizes: list[int] = []
    file = StagedFile(tmp_path / "a")
    file.write = lambda data: sizes.append(len(data)) or len(data)
    writer = PartWriter(file, "a", "tsv")
    writer.write(Columns(range(10_000), ["x"] * 10_000))
    writer.write(Columns(range(3000), [value] * 3000))
    assert writer.close().size == sum(sizes)
    # The first of them are taken for being as small as those before.
    assert sorted(sizes)[-2] < 1 << 20


def test_a_part_is_flushed_as_it_grows_and_its_sum_is_that_of_the_file(tmp_path: Path) -> None:
    """Its size and checksum are what collecting trusts."""
    writer = writer_in(tmp_path, "a", "tsv")
    for number in range(100_000):
        writer.write([(f"key {number}", "ü")])
    assert (tmp_path / "a").stat().st_size > 1 << 20, "not all is held in memory"
    part = writer.close()
    data = (tmp_path / "a").read_bytes()
    assert part == Part("a", len(data), crc32(data))
    assert data.count(b"\n") == writer.records == 100_000


def test_an_empty_part_is_a_file(tmp_path: Path) -> None:
    """A reducer without keys has an output: none."""
    assert writer_in(tmp_path, "a", "tsv").close() == Part("a", 0, 0)
    assert (tmp_path / "a").read_bytes() == b""


def test_a_writer_never_creates_the_stage(tmp_path: Path) -> None:
    """A stage that is gone means that the run has ended."""
    with pytest.raises(FileNotFoundError):
        writer_in(tmp_path / "gone", "a", "tsv")
    assert list(tmp_path.iterdir()) == []


def test_discarding_removes_what_was_written(tmp_path: Path) -> None:
    """Also what was flushed already, and a file that somebody removed first."""
    for also_gone in (False, True):
        writer = writer_in(tmp_path, "a", "tsv")
        for _ in range(30_000):
            writer.write([("key", "value")])
        if also_gone:
            (tmp_path / "a").unlink()
        writer.discard()
        assert list(tmp_path.iterdir()) == []


# --- collecting --------------------------------------------------------------------------------------------------


def prepared(directory: Path, *, overwrite: bool = False, run: str = "count-abc") -> Output:
    output = Output(directory, run)
    output.prepare(overwrite=overwrite)
    return output


def staged(output: Output, *contents: bytes) -> list[Part]:
    """Write parts into the stage as attempts do; some are losers'."""
    (output.stage / "s0-r0000-a9").write_bytes(b"a loser's")
    parts = []
    for index, data in enumerate(contents):
        name = f"s0-r{index:04}-a1"
        (output.stage / name).write_bytes(data)
        parts.append(Part(name, len(data), crc32(data)))
    return parts


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_collecting_gives_the_parts_their_names_and_removes_the_stage(tmp_path: Path) -> None:
    """What the issue promises of a directory: parts, _SUCCESS, nothing else."""
    output = prepared(tmp_path / "out")
    paths = output.collect(staged(output, b"one", b"", b"three"))
    assert paths == [tmp_path / "out" / f"part-0000{number}" for number in range(3)]
    assert content(tmp_path / "out") == {
        "_SUCCESS": b"",
        "part-00000": b"one",
        "part-00001": b"",
        "part-00002": b"three",
    }


def test_collecting_again_changes_nothing(tmp_path: Path) -> None:
    """A second driver may do it after the first one."""
    output = prepared(tmp_path / "out")
    parts = staged(output, b"one", b"two")
    output.collect(parts)
    before = content(tmp_path / "out")
    assert output.collect(parts) == [tmp_path / "out/part-00000", tmp_path / "out/part-00001"]
    assert Output(tmp_path / "out", "count-abc").collect(parts)
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize("renamed", [0, 1, 2, 3])
def test_collecting_goes_on_where_a_crash_ended_it(tmp_path: Path, renamed: int) -> None:
    """Some parts are in their places, some still in the stage, with or without _SUCCESS."""
    output = prepared(tmp_path / "out")
    parts = staged(output, b"one", b"two", b"three")
    for index in range(renamed):
        (output.stage / parts[index].file).rename(tmp_path / f"out/part-0000{index}")
    Output(tmp_path / "out", "count-abc").collect(parts)
    assert content(tmp_path / "out") == {
        "_SUCCESS": b"", "part-00000": b"one", "part-00001": b"two", "part-00002": b"three",
    }  # fmt: skip


def test_what_was_skipped_is_listed_however_often_it_is_collected(tmp_path: Path) -> None:
    """One JSON object a line; a later output of the same directory doesn't inherit it."""
    output = prepared(tmp_path / "out")
    parts = staged(output, b"one")
    task = TaskId(0, Kind.MAP, 3)
    skipped = [(task, Skipped(7, "é.txt", 70, "'a\\tb'", "ValueError: no")), (task, Skipped(9, "b", 90, "''", "…"))]
    for _ in range(2):
        output.collect(parts, skipped)
        assert (tmp_path / "out/_skipped.jsonl").read_text().splitlines() == [
            '{"task":"s0-m0003","source":"é.txt","offset":70,"record":"\'a\\\\tb\'","message":"ValueError: no"}',
            '{"task":"s0-m0003","source":"b","offset":90,"record":"\'\'","message":"…"}',
        ]
    again = prepared(tmp_path / "out", overwrite=True)
    again.collect(staged(again, b"two"))
    assert sorted(content(tmp_path / "out")) == ["_SUCCESS", "part-00000"]


@pytest.mark.parametrize("found", [None, b"other", b"tw0"])
def test_a_part_that_is_nowhere_is_an_error_and_no_success(tmp_path: Path, found: bytes | None) -> None:
    """Neither in the stage nor in its place with the size and checksum that were recorded."""
    output = prepared(tmp_path / "out")
    parts = staged(output, b"one", b"two")
    (output.stage / parts[1].file).unlink()
    if found is not None:
        (tmp_path / "out/part-00001").write_bytes(found)
    with pytest.raises(OutputError, match="gone before it was collected"):
        output.collect(parts)
    assert not (tmp_path / "out" / SUCCESS).exists()


def test_success_is_not_there_while_parts_of_two_runs_are_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old _SUCCESS goes first, the new one comes last."""
    out = tmp_path / "out"
    first = prepared(out, run="count-1")
    first.collect(staged(first, b"old", b"old"))
    second = prepared(out, overwrite=True, run="count-2")
    parts = staged(second, b"new", b"new")
    seen = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        if Path(target).name.startswith("part-"):
            seen.append((out / SUCCESS).exists())
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    second.collect(parts)
    assert seen == [False, False]
    assert content(out) == {"_SUCCESS": b"", "part-00000": b"new", "part-00001": b"new"}


# --- preparing ---------------------------------------------------------------------------------------------------


def test_preparing_makes_the_directory_with_its_parents_and_the_stage(tmp_path: Path) -> None:
    """The stage is inside, so that a rename is never a copy."""
    output = prepared(tmp_path / "a/b/out")
    assert output.stage == tmp_path / "a/b/out/.rqmr-count-abc"
    assert output.stage.is_dir()
    assert output.made == [tmp_path / "a/b/out", tmp_path / "a/b", tmp_path / "a"]


def test_an_empty_directory_that_is_there_is_taken(tmp_path: Path) -> None:
    """Somebody made it for us; it isn't ours to remove."""
    (tmp_path / "out").mkdir()
    output = prepared(tmp_path / "out")
    assert output.made == []
    output.discard()
    assert (tmp_path / "out").is_dir()


@pytest.mark.parametrize("name", ["part-00000", "_SUCCESS", "notes.txt", ".hidden", "sub/file"])
def test_a_directory_that_is_not_empty_is_refused(tmp_path: Path, name: str) -> None:
    """Whatever is in it, nothing of it is changed; the message says what to do."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("kept")
    with pytest.raises(OutputError, match=r"not empty.*-o.*--overwrite"):
        prepared(tmp_path)
    assert (tmp_path / name).read_text() == "kept"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["notes.txt", "part-1", "part-00000.bak", "part-x", "parts", "sub/x", "part-0000²"])
def test_overwrite_refuses_a_directory_with_what_no_run_wrote(tmp_path: Path, name: str) -> None:
    """Also next to an output of ours; the file is named."""
    first = prepared(tmp_path)
    first.collect(staged(first, b"old"))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("kept")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(OutputError, match=name.partition("/")[0].replace("²", ".")):
        prepared(tmp_path, overwrite=True)
    assert (tmp_path / name).read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_overwrite_refuses_a_directory_that_is_named_like_a_part(tmp_path: Path) -> None:
    """No run makes one, and replacing it would fail only after all the work is done."""
    (tmp_path / "part-00000").mkdir()
    (tmp_path / "part-00000/mine").write_text("kept")
    with pytest.raises(OutputError, match="part-00000"):
        prepared(tmp_path, overwrite=True)


def test_overwrite_keeps_the_old_output_until_the_new_one_is_there(tmp_path: Path) -> None:
    """A run that fails costs nobody the last good output."""
    first = prepared(tmp_path, run="count-1")
    first.collect(staged(first, b"1", b"2", b"3"))
    before = content(tmp_path)
    second = prepared(tmp_path, overwrite=True, run="count-2")
    staged(second, b"new")
    second.close()
    second.discard()
    assert content(tmp_path) == before


def test_overwrite_replaces_every_file_of_the_old_output(tmp_path: Path) -> None:
    """Fewer parts than before: no old one stays beside them; nor what else the old run left."""
    first = prepared(tmp_path, run="count-1")
    first.log("w1 | old")
    first.close()
    first.collect(staged(first, b"1", b"2", b"3"))
    (tmp_path / "_skipped.jsonl").write_text("{}\n")
    second = prepared(tmp_path, overwrite=True, run="count-2")
    second.collect(staged(second, b"new"))
    assert content(tmp_path) == {"_SUCCESS": b"", "part-00000": b"new"}


def test_overwrite_takes_a_directory_that_is_empty_or_missing(tmp_path: Path) -> None:
    """There is nothing to overwrite then."""
    prepared(tmp_path / "missing", overwrite=True)
    (tmp_path / "empty").mkdir()
    prepared(tmp_path / "empty", overwrite=True)


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """And the file stays."""
    (tmp_path / "out").write_text("kept")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="is a file"):
            prepared(tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out").read_text() == "kept"


@pytest.mark.parametrize("path", ["file/out", "file/a/b/out", "a/b/" + "n" * 300, "dangling/out", "loop/out"])
def test_a_directory_that_cannot_be_made_is_refused_and_nothing_of_it_stays(tmp_path: Path, path: str) -> None:
    """A parent that is a file, a name too long, a link to nothing: told with the path, and no parents left behind."""
    (tmp_path / "file").write_text("kept")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing/there")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(OutputError, match="can't be made"):
        prepared(tmp_path / path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_is_refused(tmp_path: Path) -> None:
    """With the system's own words."""
    (tmp_path / "closed").mkdir(mode=0o500)
    for path in ("closed", "closed/out"):
        with pytest.raises(OutputError, match="Permission denied"):
            prepared(tmp_path / path)


def test_two_runs_do_not_share_a_directory(tmp_path: Path) -> None:
    """The second one sees the first one's stage and is refused, with or without --overwrite."""
    prepared(tmp_path / "out", run="count-1")
    for overwrite in (False, True):
        with pytest.raises(OutputError):
            prepared(tmp_path / "out", overwrite=overwrite, run="count-2")


# --- discarding and the log --------------------------------------------------------------------------------------


def test_discarding_leaves_nothing_that_was_made(tmp_path: Path) -> None:
    """Neither the stage, nor the directory, nor its parents."""
    output = prepared(tmp_path / "a/b/out")
    staged(output, b"one")
    output.discard()
    output.discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_there", [True, False])
def test_a_signal_at_success_leaves_all_of_the_output_or_nothing(
    is_there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may come when the file is there, and nobody has heard yet that it is."""
    output = prepared(tmp_path / "out")
    parts = staged(output, b"one", b"two")
    touch = Path.touch

    def interrupted(path: Path) -> None:
        if is_there:
            touch(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "touch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        output.collect(parts)
    output.discard()

    whole = {"part-00000", "part-00001", SUCCESS}
    assert {path.name for path in (tmp_path / "out").glob("*")} == (whole if is_there else set())


def test_discarding_keeps_what_somebody_put_beside_it_meanwhile(tmp_path: Path) -> None:
    """A directory that isn't empty is somebody's."""
    output = prepared(tmp_path / "a/b/out")
    (tmp_path / "a/note.txt").write_text("kept")
    output.discard()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["note.txt"]


def test_discarding_after_the_collecting_keeps_the_output(tmp_path: Path) -> None:
    """It is called at the end of every run."""
    output = prepared(tmp_path / "a/out")
    output.collect(staged(output, b"one"))
    output.discard()
    assert set(content(tmp_path / "a/out")) == {"part-00000", "_SUCCESS"}


def test_what_was_printed_is_in_the_log_and_stays_there(tmp_path: Path) -> None:
    """Of a run that succeeded as of one that failed; text that can't be encoded is no reason to lose it."""
    output = prepared(tmp_path / "out")
    assert output.log_path is None
    output.log("w1 | größe ☃")
    output.log("w2 | bad \udc80")
    assert (tmp_path / "out" / LOG).read_text().splitlines() == ["w1 | größe ☃", "w2 | bad \\udc80"]
    output.collect(staged(output, b"one"))
    output.close()
    output.discard()
    assert set(content(tmp_path / "out")) == {"part-00000", "_SUCCESS", LOG}


def test_the_log_of_a_failed_run_does_not_stand_in_the_way_of_the_next(tmp_path: Path) -> None:
    """The same command can be given again; a next run that prints nothing leaves no old log."""
    failed = prepared(tmp_path / "out", run="count-1")
    failed.log("w1 | before it failed")
    failed.close()
    failed.discard()
    assert set(content(tmp_path / "out")) == {LOG}
    again = prepared(tmp_path / "out", run="count-2")
    again.collect(staged(again, b"one"))
    assert set(content(tmp_path / "out")) == {"part-00000", "_SUCCESS"}


def test_the_records_of_several_parts_come_in_their_order(tmp_path: Path) -> None:
    """Part after part, line after line."""
    (tmp_path / "a").write_bytes(b"b\t1\nc\t2\n")
    (tmp_path / "b").write_bytes(b"")
    (tmp_path / "c").write_bytes(b"a\\tb\t3\n")
    assert list(read_records([tmp_path / name for name in "abc"], "tsv")) == [("b", "1"), ("c", "2"), ("a\tb", "3")]
