"""Inputs and jobs that other systems stumbled over: each result is worked out here by other means, or by --inline."""

from __future__ import annotations

import bz2
import gzip
import itertools
import json
import lzma
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rqmr.cli import app

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Rqmr = Callable[..., subprocess.CompletedProcess[str]]

#: Counts the lines, each as it is.
LINES = """
from rqmr import Job, Sum

class Lines(Job):
    def mapper(self, source, line):
        yield line, 1

    reducer = Sum()
"""

#: Gives every line with the file that it is from; no reduce phase.
MAP_ONLY = """
from rqmr import Job

class MapOnly(Job):
    def mapper(self, source, line):
        yield source, line
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The directory in which the command runs."""
    return tmp_path / "cwd"


@pytest.fixture
def inline(here: Path, rqmr: Rqmr, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[bytes]]:
    """Run a job with --inline, by the command line's own functions in this process; return its parts."""

    def run(job: str, *arguments: object) -> list[bytes]:
        monkeypatch.chdir(here)
        Path("job.py").write_text(job)
        options = [*map(str, arguments), "-o", "oracle", "--overwrite", "--quiet", "--inline"]
        app(["run", "job.py", *options], standalone_mode=False)
        return parts(here / "oracle")

    return run


@pytest.fixture
def both(rqmr: Rqmr, inline: Callable[..., list[bytes]], here: Path) -> Callable[..., list[bytes]]:
    """Run a job on the embedded server and inline; the parts, which have to be the same, byte for byte."""

    def run(job: str, *arguments: object) -> list[bytes]:
        (here / "job.py").write_text(job)
        done = rqmr("run", "job.py", *arguments, "-o", "out", "--overwrite", "--quiet")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        oracle = inline(job, *arguments)
        assert parts(here / "out") == oracle
        return oracle

    return run


def parts(directory: Path) -> list[bytes]:
    names = sorted(path.name for path in directory.iterdir())
    assert names == ["_SUCCESS", *(f"part-{index:05}" for index in range(len(names) - 1))]
    return [(directory / name).read_bytes() for name in names[1:]]


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def raw_lines(content: bytes) -> list[bytes]:
    r"""Cut at \n and nowhere else; a \r before it is part of the line's end."""
    lines = content.split(b"\n")
    last = lines.pop()
    return [line.removesuffix(b"\r") for line in lines] + ([last] if last else [])


def records(parts: list[bytes]) -> list[tuple[str, str]]:
    """Read TSV as a user's script does."""
    pairs = [line.decode().split("\t") for part in parts for line in part.split(b"\n")[:-1]]
    return [(unescape(key), unescape(value)) for key, value in pairs]


def unescape(text: str) -> str:
    marked = text.replace("\\\\", "\0\0\0")
    return marked.replace("\\t", "\t").replace("\\n", "\n").replace("\\r", "\r").replace("\0\0\0", "\\")


def counted(*contents: bytes) -> dict[str, str]:
    """The lines of some files and how often each occurs, as the output has it."""
    counts = Counter(line.decode("utf-8", "replace") for content in contents for line in raw_lines(content))
    return {line: str(count) for line, count in counts.items()}


def assert_ascending(parts: list[bytes]) -> None:
    for part in parts:
        keys = [key for key, _ in records([part])]
        assert keys == sorted(set(keys))


# --- lines -------------------------------------------------------------------------------------------------------

ODD_ENDS = {
    "no newline at the end": b"first\nlast",
    "crlf": b"one\r\ntwo\r\n\r\nthree",
    "cr inside": b"a\rb\nc\r\r\nd\r",
    "what splitlines cuts": "a\x0bb\nc\x0cd\ne\x1cf\ng\x85h\ni\u2028j\u2029k\n".encode(),
    "nul": b"a\0b\n\0\n",
    "blank": b"\n\n \n\t\n",
    "tabs and backslashes": b"a\tb\\n\n\\\t\\\nends in \\\n",
    "bom": b"\xef\xbb\xbfwith a signature\n",
    "empty": b"",
    "one newline": b"\n",
    "unicode": "größe ☃ 😀 \u0301 e\u0301\n中文\n".encode() + "😀".encode() * 20,
}


@pytest.mark.parametrize("split_size", ["1", "7", "1MiB"])
def test_a_line_ends_at_newline_and_nowhere_else(inline: Any, here: Path, split_size: str) -> None:
    r"""Whatever the ends of lines and files, and wherever they are split: also between \r and \n."""
    for name, content in ODD_ENDS.items():
        write(here / "in" / name, content)
    found = inline(LINES, "in", "--split-size", split_size, "-r", 3)
    assert dict(records(found)) == counted(*ODD_ENDS.values())
    assert_ascending(found)


def test_odd_lines_come_through_redis_as_they_are(both: Any, here: Path) -> None:
    """The same on the embedded server, in many map tasks."""
    for name, content in ODD_ENDS.items():
        write(here / "in" / name, content)
    found = both(LINES, "in", "--split-size", "40", "-r", 3)
    assert dict(records(found)) == counted(*ODD_ENDS.values())


def test_a_split_boundary_may_lie_in_a_character(inline: Any, here: Path) -> None:
    """At every byte of every character, in text of two, three and four bytes each."""
    content = "äöü ☃☃☃ 😀😀😀\n漢字かな\n".encode() * 3 + "😀".encode() * 20
    write(here / "in.txt", content)
    found = inline(LINES, "in.txt", "--split-size", "5", "-r", 2)
    assert dict(records(found)) == counted(content)


def test_a_line_of_five_megabytes_is_a_line(inline: Any, here: Path) -> None:
    """As a key, as a value and across many splits; its neighbours aren't touched."""
    long = b"x" * 5_000_000
    content = b"before\n" + long + b"\nafter\n" + b"y" * 300_000 + b"\n" + b"z" * 1_000_000
    write(here / "in.txt", content)
    found = inline(LINES, "in.txt", "--split-size", "512KiB", "-r", 2)
    assert dict(records(found)) == counted(content)


def test_a_key_and_a_value_of_five_megabytes_are_carried(both: Any, here: Path) -> None:
    """Larger than any chunk."""
    job = """
from rqmr import Job

class Long(Job):
    def mapper(self, source, line):
        yield (len(line), line), line

    def reducer(self, key, values):
        for value in values:
            yield key[0], value
"""
    long = b"ab" * 2_500_000
    write(here / "in.txt", b"one\n" + long + b"\ntwo\n")
    assert both(job, "in.txt", "-r", 1, "--split-size", "1MiB") == [b"3\tone\n3\ttwo\n5000000\t" + long + b"\n"]


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reducers", [1, 3])
@pytest.mark.parametrize("job", [LINES, MAP_ONLY], ids=["reduced", "map only"])
def test_input_of_no_bytes_gives_empty_parts(inline: Any, here: Path, job: str, reducers: int) -> None:
    """It is no error: nothing in, nothing out."""
    for name in ("a", "b", "c"):
        write(here / "in" / name, b"")
    assert inline(job, "in", "-r", reducers) == [b""] * (1 if job is MAP_ONLY else reducers)


def test_input_of_no_bytes_gives_empty_parts_through_redis(both: Any, here: Path) -> None:
    """The map task has no segment at all."""
    write(here / "empty", b"")
    assert both(LINES, "empty", "-r", 3) == [b"", b"", b""]


def test_empty_files_between_others_are_nothing(inline: Any, here: Path) -> None:
    """In every place of a split."""
    for index in range(20):
        write(here / f"in/{index:02}", b"" if index % 3 else b"word\n" * index)
    found = inline(LINES, "in", "--split-size", "30", "-r", 1)
    assert found == [f"word\t{sum(index for index in range(20) if index % 3 == 0)}\n".encode()]


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd.compress,
}


def test_compressed_files_are_read_as_what_they_hold(inline: Any, here: Path) -> None:
    """Of four formats, of several members, and whatever their names say; never split, however small splits are."""
    generator = random.Random(7)
    contents = []
    for name, compress in COMPRESSORS.items():
        content = "".join(f"{generator.choice('äbcdef☃')}{generator.randrange(50)}\n" for _ in range(20_000)).encode()
        write(here / f"in/one.{name}", compress(content))
        write(here / f"in/members.{name}", compress(content) + compress(b"second member\n"))
        write(here / f"in/misnamed-{name}.txt", compress(content))
        contents += [content, content + b"second member\n", content]
    write(here / "in/plain.gz", b"no gzip at all\n")
    found = inline(LINES, "in", "--split-size", "20KiB", "-r", 2)
    assert dict(records(found)) == counted(*contents, b"no gzip at all\n")


def test_ten_thousand_tiny_files_are_few_tasks_and_quick(rqmr: Rqmr, here: Path) -> None:
    """A task for each file would take minutes."""
    (here / "in").mkdir()
    for index in range(10_000):
        (here / f"in/{index:05}.txt").write_bytes(b"word %d\n" % (index % 10))
    (here / "job.py").write_text(LINES)
    began = time.monotonic()
    done = rqmr("run", "job.py", "in", "-r", 2, "--json", "--quiet")
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["records_read"] == 10_000
    assert 1 < summary["map_tasks"] <= 50
    output = [Path(summary["output"], part).read_bytes() for part in summary["parts"]]
    assert dict(records(output)) == {f"word {digit}": "1000" for digit in range(10)}
    assert seconds < 10


def test_paths_may_have_spaces_and_more(rqmr: Rqmr, here: Path) -> None:
    """Of the inputs, the job and the output; the mapper sees the input's name as it was given."""
    names = ["in put/a b.txt", "in put/größe ☃.txt", 'in put/it\'s "quoted".txt', "in put/tab\there.txt", "-dash.txt"]
    for name in names:
        write(here / name, f"line of {name}\n".encode())
    write(here / "my jobs/my job.py", MAP_ONLY.encode())
    done = rqmr("run", "my jobs/my job.py", "in put", "./-dash.txt", "-o", "out put/größe", "--quiet")
    assert done.returncode == 0, done.stderr
    found = records([path.read_bytes() for path in sorted((here / "out put/größe").glob("part-*"))])
    given = [*sorted(names[:-1]), "./-dash.txt"]
    assert [source for source, _ in found] == given
    assert [line for _, line in found] == [f"line of {name.removeprefix('./')}" for name in given]


def test_a_file_name_that_is_not_utf_8_is_read(both: Any, here: Path) -> None:
    """Linux allows any bytes; what isn't text in the name is replaced."""
    directory = here / "in"
    directory.mkdir()
    Path(str(directory).encode().decode() + "/bad \udcff name.txt").write_bytes(b"line\n")
    assert both(MAP_ONLY, "in") == ["in/bad � name.txt\tline\n".encode()]


# --- keys --------------------------------------------------------------------------------------------------------

#: Makes keys of whatever JSON is in the lines; lists become tuples.
JSON_KEYS = """
from rqmr import Job, JsonLines

def hashable(key):
    return tuple(map(hashable, key)) if isinstance(key, list) else key

class Keys(Job):
    reader = JsonLines()

    def mapper(self, source, record):
        yield hashable(record), 1

    def reducer(self, key, values):
        yield key, sum(values)
"""
KEYS: dict[str, list[Any]] = {
    "text": ["", " ", "a b", "a\tb", "a\nb", "a\r\nb", "\\", "\\n", "\u2028", "größe", "☃", "😀", "é", "e\u0301", "\0"],
    "integers": [0, -1, 1, 10, 9, -(2**63), 2**64 - 1, 255, 256],
    "floats": [0.5, -0.5, 1e300, -1e300, 1.0, 1e-9],
    "none": [None],
    "booleans": [True, False],
    "pairs": [["a", 1], ["a", -1], ["b", 0], ["", 5]],
    "pairs with none": [[None, ["a", 1]], [None, ["a", 0]], [None, ["", 7]]],
    "no elements": [[]],
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_every_type_are_sorted_and_counted(inline: Any, here: Path, kind: str) -> None:
    """Each key in one part only, and ascending in it, as Python orders it; read back with its type from jsonl."""
    keys = KEYS[kind]
    lines = [json.dumps(key) for key in keys * 3]
    random.Random(3).shuffle(lines)
    write(here / "in.jsonl", "\n".join(lines).encode())
    found = inline(JSON_KEYS, "in.jsonl", "--format", "jsonl", "-r", 3, "--split-size", "20")
    read = [[json.loads(line) for line in part.decode().split("\n")[:-1]] for part in found]
    assert sorted(map(repr, itertools.chain(*read))) == sorted(repr([key, 3]) for key in keys)
    for part in read:
        assert len(part) < 2 or [key for key, _ in part] == sorted(key for key, _ in part)


def test_keys_of_every_type_come_through_redis(both: Any, here: Path) -> None:
    """Text with spaces, tabs and newlines; None, which has no order even to itself, and tuples that hold it."""
    write(here / "in.jsonl", "\n".join(json.dumps(key) for key in KEYS["text"] * 3).encode())
    found = both(JSON_KEYS, "in.jsonl", "-r", 2, "--split-size", "20")
    assert dict(records(found)) == dict.fromkeys(KEYS["text"], "3")
    write(here / "in.jsonl", b"null\n" * 50)
    assert b"".join(both(JSON_KEYS, "in.jsonl", "-r", 2, "--split-size", "60")) == b"null\t50\n"
    write(here / "in.jsonl", b'[null,["a",1]]\n[null,["a",0]]\n' * 20)
    found = both(JSON_KEYS, "in.jsonl", "-r", 1, "--split-size", "100")
    assert found == [b'[null,["a",0]]\t20\n[null,["a",1]]\t20\n']


def test_more_reducers_than_keys_leave_empty_parts(both: Any, here: Path) -> None:
    """As many parts as were asked for, each key in one."""
    write(here / "in.txt", b"one\ntwo\none\n")
    found = both(LINES, "in.txt", "-r", 25)
    assert len(found) == 25
    assert dict(records(found)) == {"one": "2", "two": "1"}
    assert found.count(b"") >= 23


def test_one_key_may_have_all_the_values(both: Any, here: Path) -> None:
    """200,000 values of one key reach its reducer in the order of the input."""
    job = """
from zlib import crc32
from rqmr import Job

class Hot(Job):
    def mapper(self, source, line):
        yield "hot", line

    def reducer(self, key, values):
        first, last, crc, count = None, None, 0, 0
        for last in values:
            first = first or last
            crc = crc32(last.encode(), crc)
            count += 1
        yield key, [count, first, last, crc]
"""
    lines = [f"value number {index}" for index in range(200_000)]
    write(here / "in.txt", "\n".join(lines).encode())
    from zlib import crc32

    crc = crc32("".join(lines).encode())
    found = both(job, "in.txt", "-r", 2, "--split-size", "500KiB")
    assert b"".join(found) == f'hot\t[200000,"{lines[0]}","{lines[-1]}",{crc}]\n'.encode()


def test_a_reducer_may_leave_values_unread(inline: Any, here: Path) -> None:
    """Some, or all of them; the next key has its own."""
    job = """
from itertools import islice
from rqmr import Job

class First(Job):
    def mapper(self, source, line):
        key, value = line.split()
        yield key, int(value)

    def reducer(self, key, values):
        yield key, list(islice(values, 0 if key == "k1" else 2))
"""
    write(here / "in.txt", b"".join(b"k%d %d\n" % (index % 3, index) for index in range(30_000)))
    found = inline(job, "in.txt", "-r", 1, "--split-size", "100KiB")
    assert found == [b"k0\t[0,3]\nk1\t[]\nk2\t[2,5]\n"]


# --- sums, steps, readers ----------------------------------------------------------------------------------------


def test_sums_of_floats_are_the_same_wherever_they_are_added(both: Any, here: Path) -> None:
    """Byte for byte, over several splits, by a reducer, an aggregator and a combiner."""
    generator = random.Random(11)
    values = [generator.uniform(-1, 1) * 10 ** generator.randrange(-8, 9) for _ in range(30_000)]
    write(here / "in.txt", "".join(f"{index % 7} {value!r}\n" for index, value in enumerate(values)).encode())
    job = """
from rqmr import Job, Mean, Sum

def total(key, values):
    yield key, sum(values)

class Sums(Job):
    def mapper(self, source, line):
        key, value = line.split()
        yield int(key), float(value)

    reducer = {}
    combiner = {}
"""
    both(job.format("Sum()", None), "in.txt", "-r", 2, "--split-size", "50KiB")
    both(job.format("staticmethod(total)", "staticmethod(total)"), "in.txt", "-r", 2, "--split-size", "50KiB")


def test_a_map_only_job_keeps_the_order_of_its_input(both: Any, here: Path) -> None:
    """A part for each split, in their order; nothing is sorted."""
    content = b"".join(b"line %d\n" % (index * 7919 % 1000) for index in range(1000))
    write(here / "in.txt", content)
    found = both(MAP_ONLY, "in.txt", "--split-size", "3KiB")
    assert len(found) > 2
    assert b"".join(found) == b"".join(b"in.txt\t" + line + b"\n" for line in raw_lines(content))


def test_keys_of_a_map_only_job_may_be_of_any_types(inline: Any, here: Path) -> None:
    """They aren't sorted, so they need no order."""
    job = """
from rqmr import Job

class Mixed(Job):
    def mapper(self, source, line):
        yield len(line), line
        yield line, None
        yield [1, 2], {"a": 1}
"""
    write(here / "in.txt", b"ab\n")
    assert inline(job, "in.txt") == [b'2\tab\nab\tnull\n[1,2]\t{"a":1}\n']


def test_a_job_of_several_steps_gives_what_inline_gives(both: Any, here: Path) -> None:
    """Words, then how many words are how frequent, then a map-only end."""
    job = """
from rqmr import Count, Job, Step, Sum

class Steps(Job):
    def words(self, source, line):
        for word in line.split():
            yield word, 1

    def by_count(self, word, count):
        yield count, word

    def collect(self, count, words):
        yield count, sorted(words)

    def flat(self, count, words):
        yield words[0], [count, len(words)]

    def steps(self):
        return [Step(self.words, Sum()), Step(self.by_count, self.collect), Step(self.flat)]
"""
    generator = random.Random(5)
    words = [f"w{int(generator.paretovariate(0.7))}" for _ in range(20_000)]
    write(here / "in.txt", "\n".join(words).encode())
    found = both(job, "in.txt", "-r", 3, "--split-size", "30KiB")
    by_count: dict[int, list[str]] = {}
    for word, count in Counter(words).items():
        by_count.setdefault(count, []).append(word)
    expected = {min(group): [count, len(group)] for count, group in by_count.items()}
    assert {key: json.loads(value) for key, value in records(found)} == expected


def test_annotated_values_and_rich_outputs_come_through_redis(both: Any, here: Path) -> None:
    """A dataclass with a Decimal, a datetime and an optional field, restored for the reducer."""
    job = """
from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

from rqmr import Csv, Job

@dataclass
class Reading:
    at: datetime.datetime
    watts: Decimal
    note: str | None

class Telemetry(Job):
    reader = Csv()

    def mapper(self, source, row) -> Iterator[tuple[tuple[str, int], Reading]]:
        at = datetime.datetime.fromisoformat(row["at"])
        yield (row["home"], at.hour), Reading(at, Decimal(row["watts"]), row["note"] or None)

    def reducer(self, key, readings):
        readings = list(readings)
        assert all(type(reading) is Reading for reading in readings)
        yield key, [sum(reading.watts for reading in readings), max(reading.at for reading in readings), readings[0]]
"""
    write(
        here / "in.csv",
        b"home,at,watts,note\r\n"
        b'h1,2026-11-21T08:30:00,1.10,"two\r\nlines, and a ""quote"""\r\n'
        b"h2,2026-11-21T09:00:00,2.00,\r\n"
        b"h1,2026-11-21T08:45:00,0.20,x\r\n",
    )
    (found,) = both(job, "in.csv", "-r", 1, "--format", "jsonl")
    first, second = map(json.loads, found.decode().splitlines())
    assert first == [
        ["h1", 8],
        [
            {"$decimal": "1.30"},
            {"$datetime": "2026-11-21T08:45:00"},
            {
                "at": {"$datetime": "2026-11-21T08:30:00"},
                "watts": {"$decimal": "1.10"},
                "note": 'two\r\nlines, and a "quote"',
            },
        ],
    ]
    assert second[1][2]["note"] is None


def test_whole_files_are_one_record_each(inline: Any, here: Path) -> None:
    """Empty ones too, and compressed ones."""
    job = """
from rqmr import Job, Whole

class Sizes(Job):
    reader = Whole()

    def mapper(self, source, text):
        yield source, [len(text), text[:3], text[-3:]]

    def reducer(self, key, values):
        yield key, list(values)
"""
    write(here / "in/a.txt", "größe\r\nend".encode())
    write(here / "in/b.txt", b"")
    write(here / "in/c.gz", gzip.compress(b"xyz" * 400_000))
    (found,) = inline(job, "in", "-r", 1, "--split-size", "5")
    assert found.decode() == 'in/a.txt\t[[10,"grö","end"]]\nin/b.txt\t[[0,"",""]]\nin/c.gz\t[[1200000,"xyz","xyz"]]\n'


def test_counters_are_exact_and_the_same_inline(rqmr: Rqmr, here: Path) -> None:
    """Whatever the number of tasks."""
    job = LINES.replace(
        "yield line, 1", 'self.count("lines", "all"); self.count("lines", "bytes", len(line)); yield line, 1'
    )
    (here / "job.py").write_text(job)
    write(here / "in.txt", b"line\n" * 5000)
    told = []
    for arguments in ([], ["--inline"]):
        done = rqmr("run", "job.py", "in.txt", "--split-size", "3KiB", "-r", 2, "--json", "--quiet", *arguments)
        assert done.returncode == 0, done.stderr
        told.append(json.loads(done.stdout))
    spread, oracle = told
    assert spread["counters"] == oracle["counters"] == {"lines": {"all": 5000, "bytes": 20_000}}
    for name in ("map_tasks", "reducers", "records_read", "bytes_read", "records_written", "job"):
        assert spread[name] == oracle[name], name
