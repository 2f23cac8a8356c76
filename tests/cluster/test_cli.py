"""The command as its user meets it: exit codes, what is printed where, the exact output, and clear refusals."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import JOBS, wait_until

import rqmr as package
from rqmr.cli import main
from rqmr.meter import report

Done = subprocess.CompletedProcess[str]
Rqmr = Callable[..., Done]

TEXT = b"The cat and the dog\nand THE bird\n"
#: Pieces of a job's class.
MAPPER = "  def mapper(self, source, line):\n    yield {}\n"
REDUCER = "  def reducer(self, key, values):\n    yield {}\n"
SUM = "  reducer = Sum()\n"
BODY = MAPPER.format("line, 1")
COUNTS = {"and": 2, "bird": 1, "cat": 1, "dog": 1, "the": 3}


@pytest.fixture
def here(tmp_path: Path, rqmr: Rqmr) -> Path:
    """The directory in which the command runs, with an input."""
    (tmp_path / "cwd/in.txt").write_bytes(TEXT)
    return tmp_path / "cwd"


@pytest.fixture
def here_and_now(here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Rqmr]:
    """As `tidy`, but by the command's main function in this process, which is quicker."""
    mark = secrets.token_hex(8)
    tmp = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    monkeypatch.chdir(here)
    monkeypatch.setenv("RQMR_TEST_MARK", mark)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp))

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["rqmr", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        if sys.platform == "linux":
            wait_until(lambda: not marked(mark), timeout=2, what="all processes have ended")
        assert list(tmp.iterdir()) == []
        return subprocess.CompletedProcess(arguments, ended.value.code or 0, *capfd.readouterr())  # type: ignore[arg-type]

    yield run
    shutil.rmtree(tmp, ignore_errors=True)


@pytest.fixture
def tidy(rqmr: Rqmr, here: Path, here_and_now: Rqmr) -> Iterator[Rqmr]:
    """Run the command; after it no process and no temporary directory of it may be left. Inline runs stay in here."""
    mark = secrets.token_hex(8)
    tmp = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))  # short, for the socket in it
    environment = {**os.environ, "TMPDIR": str(tmp), "RQMR_TEST_MARK": mark}

    def run(*arguments: object, **options: Any) -> Done:
        if "--inline" in arguments and not options:
            return here_and_now(*arguments)
        done = rqmr(*arguments, env=environment | options.pop("env", {}), **options)
        if sys.platform == "linux":
            wait_until(lambda: not marked(mark), timeout=2, what="all processes have ended")
        assert list(tmp.iterdir()) == []
        return done

    yield run
    shutil.rmtree(tmp, ignore_errors=True)


def marked(mark: str) -> list[str]:
    """The processes that have the mark in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
    return found


def job(here: Path, body: str, name: str = "job") -> str:
    """Write a job whose class body is given; return its path."""
    path = here / f"{name}.py"
    path.write_text(f"from rqmr import *\n\nclass Mine(Job):\n{body}")
    return path.name


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


# --- what comes out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [[], ["--inline"]], ids=["embedded", "inline"])
def test_the_output_is_exactly_as_documented(rqmr: Rqmr, here: Path, how: list[str]) -> None:
    """A part for each reduce task, keys ascending in each, key<TAB>value, _SUCCESS, and nothing else."""
    done = rqmr("run", "wordcount", "in.txt", "-o", "out", "-r", 2, *how)
    assert done.returncode == 0, done.stderr
    found = content(here / "out")
    assert set(found) == {"_SUCCESS", "part-00000", "part-00001"}
    assert found.pop("_SUCCESS") == b""
    lines = [part.decode().splitlines() for part in found.values()]
    assert all(lines), "both reducers have some"
    assert all(part == sorted(part) for part in lines)
    assert sorted(sum(lines, [])) == [f"{word}\t{count}" for word, count in COUNTS.items()]  # noqa: RUF017
    assert done.stdout == "", "with -o nothing is shown on stdout"


def test_without_an_output_it_goes_to_a_directory_of_the_runs_name_and_is_shown(tidy: Rqmr, here: Path) -> None:
    """The first rows on stdout, where it is on stderr, and the name begins with the job's."""
    (here / "many.txt").write_text("\n".join(f"w{index:03}" for index in range(500)))
    done = tidy("run", "wordcount", "many.txt", "-r", 1)
    assert done.returncode == 0, done.stderr
    (directory,) = (here / "output").iterdir()
    assert re.fullmatch(r"wordcount-\w{4,}", directory.name)
    assert set(content(directory)) == {"_SUCCESS", "part-00000"}
    shown = done.stdout.splitlines()
    assert shown[:3] == ["w000\t1", "w001\t1", "w002\t1"]
    assert shown[-1] == "…", "there are more"
    assert len(shown) <= 25
    assert f"output/{directory.name}" in done.stderr
    again = tidy("run", "wordcount", "many.txt", "--inline")
    assert again.returncode == 0
    assert len(list((here / "output").iterdir())) == 2


def test_the_output_on_stdout_is_the_parts_in_order_and_nothing_else(tidy: Rqmr, here: Path) -> None:
    """To be piped: what the job prints and all that is told goes elsewhere. No directory is left."""
    name = job(here, MAPPER.format("line, print('noise') or 1") + SUM)
    expected = tidy("run", name, "in.txt", "-o", "out", "-r", 3)
    assert expected.returncode == 0
    parts = b"".join(data for file, data in content(here / "out").items() if file.startswith("part"))
    for how in ([], ["--inline"]):
        done = tidy("run", name, "in.txt", "-o", "-", "-r", 3, *how)
        assert done.returncode == 0, done.stderr
        assert done.stdout.encode() == parts
    assert not (here / "output").exists()


def test_a_closed_pipe_ends_the_command_quietly(here: Path, rqmr: Rqmr) -> None:
    """`rqmr … -o - | head -1` is no reason for a traceback."""
    (here / "many.txt").write_text("\n".join(f"w{index}" for index in range(200_000)))
    command = f"'{sys.executable}' -m rqmr run wordcount many.txt -o - --inline --quiet | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=here, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("options", [[], ["-r", "3", "--split-size", "10"], ["--inline"]])
def test_a_plan_is_explained_and_is_that_of_the_run(tidy: Rqmr, here: Path, options: list[str]) -> None:
    explained = tidy("run", "wordcount", "in.txt", "--explain", *options)

    told = dict(line.split(maxsplit=1) for line in explained.stdout.splitlines())
    assert (explained.returncode, explained.stderr) == (0, "")
    assert list(here.iterdir()) == [here / "in.txt"], "nothing was run"
    result = json.loads(tidy("run", "wordcount", "in.txt", "--json", "-o", "out", *options).stdout)
    for topic, tasks in ("map", result["map_tasks"]), ("reduce", result["reducers"]):
        assert told[topic].startswith(f"{tasks} task"), topic
    assert told["workers"].startswith("none" if "--inline" in options else f"{package.local.default_workers()} local")
    assert "folded by Count" in told["shuffle"]
    assert "as asked for" in told["reduce"] or "-r" not in options


def test_json_is_one_object_on_stdout(tidy: Rqmr, here: Path) -> None:
    """Complete, parseable, with the counters; the same with and without Redis."""
    name = job(here, MAPPER.format("line, print('noise') or self.count('lines', 'read') or 1") + SUM)
    for how in ([], ["--inline"]):
        done = tidy("run", f"./{name}", "in.txt", "--json", "-r", 2, *how)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["state"] == "succeeded"
        assert told["run"].startswith("job-")
        assert told["counters"] == {"lines": {"read": 2}}
        assert (told["records_read"], told["records_written"], told["reducers"]) == (2, 2, 2)
        assert told["bytes_read"] == len(TEXT)
        assert told["parts"] == ["part-00000", "part-00001"]
        assert Path(told["output"], "_SUCCESS").exists()


def test_json_tells_a_failure_too(tidy: Rqmr, here: Path) -> None:
    """On stdout for programs, on stderr for people."""
    name = job(here, "  def mapper(self, s, line):\n    raise KeyError(line)\n")
    done = tidy("run", name, "in.txt", "--json", "--inline")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["state"] == "failed"
    assert told["failure"]["source"] == "in.txt"
    assert told["failure"]["offset"] == 0
    assert "KeyError" in told["failure"]["message"]
    assert "KeyError" in done.stderr


def test_quiet_says_nothing_unless_it_fails(tidy: Rqmr, here: Path) -> None:
    """Not even the first rows."""
    for how in ([], ["--inline"]):
        done = tidy("run", "wordcount", "in.txt", "--quiet", *how)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = tidy("run", "wordcount", "nothing", "--quiet")
    assert (done.returncode, done.stdout) == (2, "")
    assert "nothing" in done.stderr


def test_jsonl_has_types(tidy: Rqmr, here: Path) -> None:
    """[key,value] a line; a word 1 and a number 1 don't look alike."""
    name = job(here, MAPPER.format("('1', 2), [1, '1', None, b'x']") + REDUCER.format("key, list(values)[0]"))
    done = tidy("run", name, "in.txt", "-o", "-", "-r", 1, "--format", "jsonl", "--inline")
    assert done.stdout == '[["1",2],[1,"1",null,{"$bytes":"eA=="}]]\n'


@pytest.mark.parametrize("format_", ["tsv", "jsonl"])
def test_api_and_command_give_the_same_bytes(tidy: Rqmr, here: Path, format_: str) -> None:
    """The Python door is the same door."""
    done = tidy("run", "wordcount", "in.txt", "-o", "out", "-r", 2, "--format", format_, "--inline")
    assert done.returncode == 0
    config = package.Config(format=format_, reducers=2)
    package.run("wordcount", [here / "in.txt"], output=here / "api", config=config, inline=True)
    assert content(here / "api") == content(here / "out")


def test_a_plan_is_told_in_one_line(tidy: Rqmr, here: Path) -> None:
    """How many map and reduce tasks there will be, and of what: the choice that was made for the user, or by them."""
    (here / "big.txt").write_bytes(b"word\n" * 2000)
    done = tidy("run", "wordcount", "big.txt", "in.txt", "--split-size", "1KiB", "-r", 5, "-o", "out", "--inline")
    assert done.returncode == 0
    (line,) = [line for line in done.stderr.splitlines() if "map task" in line and "reduce task" in line]
    assert "11 map tasks" in line
    assert "5 reduce tasks" in line
    assert "2 files" in line
    assert len(content(here / "out")) == 6


def test_which_server_is_used_is_told_in_one_line(rqmr: Rqmr, here: Path, redis_url: str) -> None:
    """A private one, or the one that is named."""
    told = [
        rqmr("run", "wordcount", "in.txt", "-o", f"out{number}", *arguments).stderr.splitlines()[0]
        for number, arguments in enumerate(([], ["--redis-url", redis_url, "-w", 1]))
    ]
    assert "private Valkey" in told[0]
    assert "Valkey" in told[1]
    assert redis_url in told[1]
    assert "private" not in told[1]


# --- what goes in ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [[], ["--inline"]], ids=["embedded", "inline"])
def test_stdin_is_an_input(tidy: Rqmr, here: Path, how: list[str]) -> None:
    """Named - in messages and for the mapper; together with files, in their order; split as files are."""
    name = job(here, "  def mapper(self, source, line):\n    yield source, line\n")
    done = tidy("run", name, "in.txt", "-", "in.txt", "-o", "-", "--split-size", "20", *how, input="from stdin\nlast")
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    text = TEXT.decode().splitlines()
    assert lines == [["in.txt", line] for line in text] + [["-", "from stdin"], ["-", "last"]] + [
        ["in.txt", line] for line in text
    ]


@pytest.mark.parametrize(
    ("arguments", "closed"), [(["-", "-o", "out"], "<&-"), (["in.txt", "-o", "-"], ">&-")], ids=["stdin", "stdout"]
)
def test_a_stream_that_is_closed_is_no_reason_for_a_traceback(here: Path, arguments: list[str], closed: str) -> None:
    """As it is for some daemons and cron jobs: told as any other mistake, or taken as empty."""
    command = f"'{sys.executable}' -m rqmr run wordcount {' '.join(arguments)} --inline --quiet {closed}"
    done = subprocess.run(["bash", "-c", command], cwd=here, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode in (0, 1, 2)
    assert "Traceback" not in done.stderr
    assert bool(done.stderr) == bool(done.returncode)


def test_a_directory_and_a_quoted_glob_are_inputs(tidy: Rqmr, here: Path) -> None:
    """Recursive and sorted, without names in . and _; as often as they are given."""
    for path in ("d/b.txt", "d/a.txt", "d/sub/c.txt", "d/.hidden", "d/_SUCCESS", "d/sub/x.csv"):
        (here / path).parent.mkdir(parents=True, exist_ok=True)
        (here / path).write_text("line\n")
    name = job(here, "  def mapper(self, source, line):\n    yield source, 1\n")
    for given, expected in (
        (["d"], ["d/a.txt", "d/b.txt", "d/sub/c.txt", "d/sub/x.csv"]),
        (["d/**/*.txt"], ["d/a.txt", "d/b.txt", "d/sub/c.txt"]),
        (["d/?.txt", "d/b.txt"], ["d/a.txt", "d/b.txt", "d/b.txt"]),
    ):
        done = tidy("run", name, *given, "-o", "-", "--inline")
        assert [line.partition("\t")[0] for line in done.stdout.splitlines()] == expected


def test_parameters_are_given_by_name(tidy: Rqmr, here: Path) -> None:
    """Typed, with = in them, with - for _, several times for a list."""
    body = """
  word: str
  at_least: int = 0
  words: list[str] = []
  def mapper(self, source, line):
    yield self.word, [self.at_least, self.words]
"""
    name = job(here, body)
    given = [each for text in ("word=a=b c", "at-least=3", "words=x", "words=y") for each in ("-p", text)]
    done = tidy("run", name, "in.txt", "-o", "-", "--inline", *given)
    assert done.stdout.splitlines()[0] == 'a=b c\t[3,["x","y"]]', done.stderr


def test_bytes_that_are_not_text_are_replaced_and_counted(tidy: Rqmr, here: Path) -> None:
    """In the summary, so that nobody believes that all was well."""
    (here / "junk.txt").write_bytes(b"a\xffb\n\xfe\xfe\nfine\n")
    for how in ([], ["--inline"]):
        done = tidy("run", "wordcount", "junk.txt", "-o", "-", "-r", 1, *how)
        assert done.stdout == "a�b\t1\nfine\t1\n��\t1\n"
        assert re.search(r"undecodable.*\b3\b", done.stderr)


def test_another_encoding_can_be_named(tidy: Rqmr, here: Path) -> None:
    """Then nothing is replaced."""
    (here / "latin.txt").write_bytes("größe\n".encode("latin-1"))
    done = tidy("run", "wordcount", "latin.txt", "-o", "-", "--encoding", "latin-1", "--inline")
    assert done.stdout == "größe\t1\n"
    assert "undecodable" not in done.stderr


@pytest.mark.parametrize("how", [[], ["--inline"]], ids=["embedded", "inline"])
def test_strict_decoding_fails_with_the_place(tidy: Rqmr, here: Path, how: list[str]) -> None:
    """Of the first line that isn't text, in the file that has it, at once and not after four attempts."""
    (here / "junk.txt").write_bytes("größe\nfine\n".encode() + b"bad \xff line\n")
    done = tidy("run", "wordcount", "in.txt", "junk.txt", "-o", "out", "--decode-errors", "strict", *how)
    assert done.returncode == 1
    assert "junk.txt, byte 13" in done.stderr
    assert "utf-8" in done.stderr
    assert "in.txt" not in done.stderr.partition("the run failed")[2]
    assert "Traceback" not in done.stderr
    assert not (here / "out").exists()


# --- overwriting -------------------------------------------------------------------------------------------------


def test_overwrite_replaces_an_output_and_only_that(tidy: Rqmr, here: Path) -> None:
    """A run that fails keeps the old one; files of the user's are never touched."""
    assert tidy("run", "wordcount", "in.txt", "-o", "out", "-r", 3, "--inline").returncode == 0
    old = content(here / "out")
    done = tidy("run", "wordcount", "in.txt", "-o", "out", "--inline")
    assert done.returncode == 2
    assert "not empty" in done.stderr
    assert "--overwrite" in done.stderr
    failing = job(here, "  def mapper(self, s, line):\n    raise ValueError\n")
    assert tidy("run", failing, "in.txt", "-o", "out", "--overwrite", "--inline").returncode == 1
    assert content(here / "out") == old
    assert tidy("run", "wordcount", "in.txt", "-o", "out", "-r", 1, "--overwrite").returncode == 0
    assert set(content(here / "out")) == {"_SUCCESS", "part-00000"}
    (here / "out/mine.txt").write_text("kept")
    done = tidy("run", "wordcount", "in.txt", "-o", "out", "--overwrite", "--inline")
    assert done.returncode == 2
    assert "mine.txt" in done.stderr
    assert (here / "out/mine.txt").read_text() == "kept"


# --- help --------------------------------------------------------------------------------------------------------


def test_the_version_can_be_asked_for(rqmr: Rqmr) -> None:
    """By those who report a bug."""
    done = rqmr("--version")
    assert (done.returncode, done.stdout) == (0, f"rqmr {package.__version__}\n")


def test_help_has_examples_and_every_option(rqmr: Rqmr) -> None:
    """It is the first thing that people read."""
    done = rqmr("run", "--help", env={**os.environ, "COLUMNS": "100"})
    assert done.returncode == 0
    for option in (
        "-o", "--output", "-r", "--reducers", "-w", "--workers", "--redis-url", "--queue", "--split-size",
        "-p", "--param", "--format", "--encoding", "--decode-errors", "--inline", "--overwrite", "--quiet", "--json",
    ):  # fmt: skip
        assert re.search(rf"(?<![\w-]){option}\b", done.stdout), option
    assert "Examples" in done.stdout
    assert "rqmr run wordcount input/*.txt" in done.stdout
    assert "16MiB" in done.stdout
    assert "Traceback" not in done.stderr
    assert "run" in rqmr("--help").stdout


# --- refused before anything runs --------------------------------------------------------------------------------

UNREACHABLE = "redis://someone:open-sesame@127.0.0.1:1/0"
REFUSALS: dict[str, tuple[list[object], list[str]]] = {
    "an unknown job": (["wordcuont", "in.txt"], ["wordcuont", "did you mean wordcount"]),
    "an unknown job file": (["jobs/none.py", "in.txt"], ["jobs/none.py"]),
    "a job that raises on import": (["raises.py", "in.txt"], ["KeyError: 'no such thing'", "raises.py", "line 3"]),
    "a job with a syntax error": (["syntax.py", "in.txt"], ["SyntaxError", "syntax.py", "line 3"]),
    "a job that ends the process on import": (["leaves.py", "in.txt"], ["leaves.py", "SystemExit"]),
    "a file without a job": (["empty.py", "in.txt"], ["empty.py", "no job"]),
    "a job without mapper": (["nomapper.py", "in.txt"], ["Mine", "no mapper"]),
    "an unknown parameter": (["params.py", "in.txt", "-p", "patern=x"], ["patern", "it has pattern, n"]),
    "an ill-typed parameter": (["params.py", "in.txt", "-p", "pattern=x", "-p", "n=many"], ["'n'", "int", "'many'"]),
    "a missing parameter": (["params.py", "in.txt"], ["'pattern'", "-p pattern="]),
    "a parameter without =": (["params.py", "in.txt", "-p", "pattern"], ["-p pattern", "NAME=VALUE"]),
    "no input": (["wordcount"], ["no input given"]),
    "an input that is not there": (["wordcount", "in.txt", "nothing.txt"], ["nothing.txt"]),
    "a glob that matches nothing": (["wordcount", "nothing*"], ["nothing*"]),
    "an empty directory": (["wordcount", "void"], ["void"]),
    "an unreadable file": (["wordcount", "dangling"], ["dangling", "can't be read"]),
    "a full output directory": (["wordcount", "in.txt", "-o", "full"], ["full", "not empty", "--overwrite"]),
    "an output that is a file": (["wordcount", "in.txt", "-o", "in.txt"], ["in.txt", "is a file"]),
    "an output below a file": (["wordcount", "in.txt", "-o", "in.txt/out"], ["in.txt/out", "can't be made"]),
    "two results on stdout": (["wordcount", "in.txt", "-o", "-", "--json"], ["-o -", "--json"]),
    "an unreachable Redis": (
        ["wordcount", "in.txt", "--redis-url", UNREACHABLE], ["no Redis answers", "***@127.0.0.1:1"],
    ),
    "an unreachable Redis with local workers": (
        ["wordcount", "in.txt", "--redis-url", UNREACHABLE, "-w", 1], ["no Redis answers", "***@127.0.0.1:1"],
    ),
    "a URL of something else": (
        ["wordcount", "in.txt", "--redis-url", "http://a:open-sesame@b"], ["http://a:***@b", "redis://host:6379/0"],
    ),
    "an empty URL": (["wordcount", "in.txt", "--redis-url", ""], ["--redis-url"]),
    "a format that there is none of": (["wordcount", "in.txt", "--format", "xml"], ["xml", "tsv or jsonl"]),
    "no reducers": (["wordcount", "in.txt", "-r", 0], ["reducers", "0"]),
    "no number": (["wordcount", "in.txt", "-r", "many"], ["--reducers", "many"]),
    "no workers": (["wordcount", "in.txt", "-w", 0], ["0 workers"]),
    "a split size that is none": (["wordcount", "in.txt", "--split-size", "big"], ["--split-size", "big"]),
    "an unknown encoding": (["wordcount", "in.txt", "--encoding", "klingon"], ["klingon"]),
    "an encoding without lines": (["wordcount", "in.txt", "--encoding", "utf-16"], ["utf-16", "iconv"]),
    "an unknown way to decode": (["wordcount", "in.txt", "--decode-errors", "ignore"], ["ignore", "strict"]),
    "an unknown option": (["wordcount", "in.txt", "--redcers", 3], ["--redcers"]),
}  # fmt: skip


@pytest.fixture
def bad(here: Path) -> Path:
    """Jobs and files that can't be used."""
    (here / "raises.py").write_text("import json\n\n{}['no such thing']\n")
    (here / "syntax.py").write_text("import json\n\ndef mapper(:\n")
    (here / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    (here / "empty.py").write_text("import rqmr\n")
    job(here, "  reducer = Sum()\n", "nomapper")
    job(here, f"  pattern: str\n  n: int = 1\n{BODY}", "params")
    (here / "void").mkdir()
    (here / "full").mkdir()
    (here / "full/file").write_text("kept")
    (here / "dangling").symlink_to("nothing")
    return here


@pytest.mark.parametrize("case", REFUSALS)
def test_a_run_is_refused_clearly_and_leaves_nothing(here_and_now: Rqmr, bad: Path, case: str) -> None:
    """Exit status 2, what and which and what now on stderr, no traceback of ours, no file, directory or process."""
    arguments, told = REFUSALS[case]
    needs_redis = {"--redis-url", "-w"} & set(map(str, arguments))
    assert_refused(here_and_now, bad, arguments if needs_redis else [*arguments, "--inline"], told)


@pytest.mark.parametrize(
    "case", ["an unknown job", "a job that raises on import", "an output below a file", "an unreadable file"]
)
def test_a_command_that_is_refused_leaves_nothing(tidy: Rqmr, bad: Path, case: str) -> None:
    """The same with the real command, whose private server is being started already when the mistake is found."""
    arguments, told = REFUSALS[case]
    assert_refused(tidy, bad, arguments, told)


def assert_refused(run: Rqmr, bad: Path, arguments: list[object], told: list[str]) -> None:
    before = sorted(bad.rglob("*"))
    began = time.monotonic()
    done = run("run", *arguments)
    seconds = time.monotonic() - began
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    message = " ".join(done.stderr.replace("│", " ").split())
    for each in told:
        assert each in message
    assert "rqmr/" not in done.stderr.replace(str(bad), "")
    assert "importlib" not in done.stderr
    assert "open-sesame" not in done.stderr
    assert sorted(path for path in bad.rglob("*") if "__pycache__" not in str(path)) == before
    assert seconds < 10


def test_a_url_in_the_environment_is_as_good_as_an_option(tidy: Rqmr, here: Path) -> None:
    """RQMR_REDIS_URL before REDIS_URL; unreachable is an error and never a reason for another server."""
    done = tidy(
        "run", "wordcount", "in.txt", env={"RQMR_REDIS_URL": "redis://127.0.0.1:1", "REDIS_URL": "redis://127.0.0.1:2"}
    )
    assert done.returncode == 2
    assert "127.0.0.1:1" in done.stderr
    done = tidy("run", "wordcount", "in.txt", env={"REDIS_URL": "redis://127.0.0.1:2"})
    assert done.returncode == 2
    assert "127.0.0.1:2" in done.stderr
    assert tidy("run", "wordcount", "in.txt", "--inline", env={"REDIS_URL": "redis://127.0.0.1:2"}).returncode == 0


class FakeServer:
    """Answers every command of a Redis client with what it is told to, or not at all."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer = answer
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._talk, args=self.listener.accept()[:1], daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            while data := client.recv(65536):
                for command in re.findall(rb"\*\d+\r\n\$\d+\r\n(\w+)", data):
                    if self.answer is not None:
                        client.sendall(self._reply(command.upper()))

    def _reply(self, command: bytes) -> bytes:
        if command == b"INFO" or self.answer.startswith(b"-"):  # type: ignore[union-attr]
            return self.answer  # type: ignore[return-value]
        return {b"HELLO": b"%1\r\n+proto\r\n:3\r\n", b"PING": b"+PONG\r\n"}.get(command, b"+OK\r\n")


def info(text: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(text), text)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (info(b"redis_version:6.2.14\r\n"), ["Redis 6.2.14", "Redis 7.0 or Valkey 7.2"]),
        (info(b"redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:7.1.0\r\n"), ["Valkey 7.1.0", "7.2"]),
        (b"-NOAUTH Authentication required.\r\n", ["wants a password"]),
        (b"-NOPERM this user has no permissions to run the 'info' command\r\n", ["info"]),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ["no Redis answers"]),
        (None, ["no Redis answers"]),
    ],
    ids=["old Redis", "old Valkey", "password", "no permission", "no Redis", "silent"],
)
def test_a_server_that_will_not_do_is_refused(
    here_and_now: Rqmr, here: Path, answer: bytes | None, told: list[str]
) -> None:
    """Too old, closed to us, not a Redis at all, or silent: soon, and with what is wrong."""
    server = FakeServer(answer)
    began = time.monotonic()
    done = here_and_now("run", "wordcount", "in.txt", "--redis-url", server.url)
    server.listener.close()
    assert done.returncode == 2, done.stderr
    for each in told:
        assert each in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 10


def test_a_server_that_may_evict_keys_is_warned_of(rqmr: Rqmr, here: Path, redis: Any, redis_url: str) -> None:
    """With the command that mends it; the run goes on."""
    redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        done = rqmr("run", "wordcount", "in.txt", "-o", "-", "-r", 1, "--redis-url", redis_url, "-w", 1)
    finally:
        redis.config_set("maxmemory-policy", "noeviction")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(f"{word}\t{count}\n" for word, count in COUNTS.items())
    assert re.search(r"warning.*allkeys-lru", done.stderr)
    assert "maxmemory-policy noeviction" in done.stderr


# --- failures in the job's own code ------------------------------------------------------------------------------


def test_a_job_that_raises_fails_after_four_attempts(tidy: Rqmr, here: Path) -> None:
    """With its own traceback, the file, the record and where it begins: enough to mend it."""
    name = job(here, """
  def mapper(self, source, line):
    if "BAD" in line:
      with open(TRIES, "a") as tries:
        tries.write("x")
      self.helper(line)
    yield line, 1

  def helper(self, line):
    raise ValueError("can't digest " + line.split()[0])

  reducer = Sum()
""".replace("TRIES", repr(str(here / "tries"))))  # fmt: skip
    data = "größe\r\n☃\n".encode() + b"x" * 300_000 + b"\n\xff junk\n\nBAD record here\nmore\n"
    (here / "bad.txt").write_bytes(data)
    done = tidy("run", name, "in.txt", "bad.txt", "-o", "out", "--split-size", "70KiB")
    assert done.returncode == 1
    assert done.stdout == ""
    assert (here / "tries").read_text() == "xxxx"
    assert f"bad.txt, byte {data.index(b'BAD')}" in done.stderr
    assert "'BAD record here'" in done.stderr
    assert "ValueError: can't digest BAD" in done.stderr
    assert f'File "{here}/job.py", line 9, in mapper' in done.stderr
    assert f'File "{here}/job.py", line 13, in helper' in done.stderr
    assert "rqmr/" not in done.stderr.partition("the run failed")[2].replace(str(here), "")
    assert not (here / "out").exists()
    (here / "tries").unlink()
    again = tidy("run", name, "in.txt", "bad.txt", "-o", "out", "--split-size", "70KiB", "--inline")
    assert again.returncode == 1
    for line in done.stderr.partition("the run failed")[2].partition("nothing can be resumed")[0].splitlines():
        if "task" not in line:
            assert line in again.stderr, "inline says the same"


@pytest.mark.parametrize("split_size", ["50", "1MiB"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_the_byte_offset_of_a_record_is_exact(
    here: Path, encoding: str, packed: bool, split_size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind multi-byte characters, CRLF, blank lines, replaced bytes, blocks; in split and in compressed files."""
    for lines_before in (0, 1, 3, 40):
        noise = "größe\r\n\n \x85é\n{}\n".encode(encoding) * lines_before + (b"\xff\n" if encoding == "utf-8" else b"")
        noise += b"y" * (300_000 if lines_before == 40 and split_size == "1MiB" else 3) + b"\r\n"
        data = noise + b"BAD one\r\nlast"
        (here / "data").write_bytes(gzip.compress(data) if packed else data)
        name = job(
            here, "  def mapper(self, s, line):\n    if line.startswith('BAD'): raise ValueError\n    yield line, 1\n"
        )
        config = package.Config(encoding=encoding, split_bytes=50 if split_size == "50" else 1 << 20)
        monkeypatch.chdir(here)
        with pytest.raises(package.RunFailed) as caught:
            package.run(name, "data", config=config, inline=True)
        failure = caught.value.failure
        assert (failure.source, failure.offset, failure.record) == ("data", data.index(b"BAD"), "'BAD one'")


def test_the_place_of_a_bad_json_line_or_csv_row_is_exact(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blank lines and quoted newlines before it don't mislead."""
    monkeypatch.chdir(here)
    json_lines = '{"a": "größe"}\n\n   \n{"a": 1}\r\n{"a": \n'.encode()
    rows = 'a,b\r\n"zwei\r\nZeilen ü",2\r\n\r\n1,2,3\r\n'.encode()
    for reader, data, bad_record in (("JsonLines", json_lines, b'{"a": \n'), ("Csv", rows, b"1,2,3")):
        (here / "data").write_bytes(data)
        (here / "fine").write_bytes(data[: data.index(bad_record)])
        name = job(here, f"  reader = {reader}()\n{BODY.replace('line, 1', 'str(line), 1')}")
        with pytest.raises(package.RunFailed) as caught:
            package.run(name, ["fine", "data"], inline=True)
        failure = caught.value.failure
        assert (failure.source, failure.offset) == ("data", data.index(bad_record))
        assert f"data, byte {failure.offset}" in failure.message


FAILURES: dict[str, tuple[str, list[str]]] = {
    "keys of mixed types": (
        MAPPER.format("(line if 'bird' in line else 7), 1") + SUM,
        ["Mine", "7 is int", "'and THE bird' is str"],
    ),
    "True and 1 as keys": (
        MAPPER.format("(True if 'bird' in line else 1), 1") + SUM,
        ["Mine", "1 is int", "True is bool"],
    ),
    "NaN as a key": (MAPPER.format("float('nan'), 1") + SUM, ["Mine", "NaN can't be a key"]),
    "a key that is a list": (MAPPER.format("[line], 1") + SUM, ["Mine", "list", "tuples"]),
    "a key that is a complex": (MAPPER.format("1j, 1") + SUM, ["Mine", "key 1j", "complex"]),
    "a key of more than 64 bits": (MAPPER.format("2**70, 1") + SUM, ["Mine", "1180591620717411303424", "64"]),
    "a value that is not carried": (
        MAPPER.format("line, {1, 2}") + REDUCER.format("key, 1"),
        ["Mine", "key 'and THE bird'", "set"],
    ),
    "an output without a spelling": (
        MAPPER.format("line, 1") + REDUCER.format("key, object()"),
        ["Mine", "key 'and THE bird'", "object"],
    ),
    "a mapper that yields no pairs": (
        MAPPER.format("line") + SUM,
        ["pairs", "in.txt, byte 0", "'The cat and the dog'"],
    ),
    "a mapper that yields numbers": (MAPPER.format("5") + SUM, ["pairs", "in.txt, byte 0"]),
    "a reducer that raises": (
        MAPPER.format("line, 1") + REDUCER.format("{}['in the reducer']"),
        ["KeyError: 'in the reducer'", "job.py", "key 'and THE bird'"],
    ),
    "a partitioner that gives no partition": (
        BODY + SUM + "  def partitioner(self, key, n):\n    return n\n",
        ["Mine", "partitioner", "0 <= p < 2"],
    ),
    "a setup that opens a file that is not there": (
        BODY + "  def setup(self):\n    open('/no/such/list')\n",
        ["/no/such/list", "job.py", "in setup"],
    ),
    "a job that calls sys.exit": (MAPPER.format("__import__('sys').exit(0)"), ["SystemExit", "job.py"]),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_run_that_fails_says_why_and_leaves_nothing(here: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job, the key and the type, or the place and the traceback: what the command prints of it."""
    body, told = FAILURES[case]
    monkeypatch.chdir(here)
    with pytest.raises(package.RunFailed) as caught:
        package.run(job(here, body), "in.txt", output="out", config=package.Config(reducers=2), inline=True)
    message = report(caught.value.failure, [])
    for each in told:
        assert each in message
    assert not (here / "out").exists()
    assert "rqmr/" not in message.replace(str(here), "")


def test_an_input_that_vanishes_meanwhile_is_told_by_its_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record that was mapped before, of another file, has nothing to do with it, nor has the job."""
    monkeypatch.chdir(here)
    (here / "gone.txt").write_text("line")
    name = job(here, MAPPER.format("line, __import__('pathlib').Path('gone.txt').unlink(missing_ok=True)"))
    with pytest.raises(package.RunFailed) as caught:
        package.run(name, ["in.txt", "gone.txt"], inline=True)
    message = report(caught.value.failure, [])
    assert "gone.txt" in message
    assert "can't be read" in message
    assert "The cat and the dog" not in message
    assert "Traceback" not in message


def test_keys_of_mixed_types_from_different_tasks_are_told_with_the_job(tidy: Rqmr, here: Path) -> None:
    """Each map task has keys of one type, and the types differ."""
    (here / "a.txt").write_text("text\n" * 20)
    (here / "b.txt").write_text("7\n" * 20)
    name = job(
        here, "  def mapper(self, s, line):\n    yield (int(line) if line.isdigit() else line), 1\n  reducer = Sum()\n"
    )
    for how in ([], ["--inline"]):
        done = tidy("run", name, "a.txt", "b.txt", "-o", "out", "--split-size", "50", "--quiet", *how)
        assert done.returncode == 1
        for each in ("Mine", "int", "str"):
            assert each in done.stderr
        assert not (here / "out").exists()


def test_a_combiner_that_raises_is_told_with_its_key_and_no_wrong_record(tidy: Rqmr, here: Path) -> None:
    """It runs when the records have been read; the first one of the last block has nothing to do with it."""
    name = job(here, """
  def mapper(self, source, line):
    for word in line.split():
      yield word, 1
  def combiner(self, word, counts):
    if word == "bird":
      raise ValueError("no birds")
    yield word, sum(counts)
  def reducer(self, word, counts):
    yield word, sum(counts)
""")  # fmt: skip
    done = tidy("run", name, "in.txt", "-o", "out", "--inline", "--quiet")
    assert done.returncode == 1
    assert "ValueError: no birds" in done.stderr
    assert "in combiner" in done.stderr
    assert "The cat and the dog" not in done.stderr


def test_an_error_whose_message_is_no_text_fails_the_run_as_any_other(tidy: Rqmr, here: Path) -> None:
    """A file name with a stray byte in the message: the worker must not be lost over telling it."""
    name = job(here, "  def mapper(self, s, line):\n    raise ValueError('no file named a\\udc80b')\n")
    done = tidy("run", name, "in.txt", "-o", "out", "--quiet", "--lease", 1, timeout=10)
    assert done.returncode == 1
    assert "ValueError: no file named a" in done.stderr


def test_counters_that_only_inline_would_take_do_not_break_a_run(tidy: Rqmr, here: Path) -> None:
    """`self.count("status", 404)`: both ways give the same, or the same error that names the counter."""
    name = job(
        here, "  def mapper(self, s, line):\n    self.count('status', 404)\n    yield line, 1\n  reducer = Sum()\n"
    )
    spread, oracle = (tidy("run", name, "in.txt", "--json", "--quiet", *how) for how in ([], ["--inline"]))
    assert spread.returncode == oracle.returncode
    if spread.returncode == 0:
        assert json.loads(spread.stdout)["counters"] == json.loads(oracle.stdout)["counters"] == {"status": {"404": 2}}
    else:
        assert "count" in spread.stderr
        assert "404" in spread.stderr


# --- print -------------------------------------------------------------------------------------------------------


def test_what_a_job_prints_is_shown_with_the_worker_and_found_again(tidy: Rqmr, here: Path) -> None:
    """In the order of each worker, from both streams, in _log beside the output."""
    done = tidy("run", JOBS / "prints.py", "in.txt", "-o", "out", "-w", 1, "-r", 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    expected = [f"mapped {line}" for line in TEXT.decode().splitlines()]
    expected += [f"reduced {word}" for word in sorted(set(TEXT.decode().split()))]
    shown = [line for line in done.stderr.splitlines() if line.startswith("w1 | ")]
    assert shown == [f"w1 | {line}" for line in expected]
    assert (here / "out/_log").read_text().splitlines() == shown
    assert set(content(here / "out")) == {"_SUCCESS", "_log", "part-00000"}


def test_what_was_printed_last_is_part_of_a_failure(tidy: Rqmr, here: Path) -> None:
    """It is what one would look for first; and the log is kept."""
    name = job(here, "  def mapper(self, s, line):\n    print('looking at', line)\n    raise ValueError('no')\n")
    done = tidy("run", name, "in.txt", "-o", "out", "-w", 1, "--quiet")
    assert done.returncode == 1
    assert "w1 | looking at The cat and the dog" in done.stderr
    assert "w1 | looking at The cat and the dog" in (here / "out/_log").read_text()
    again = tidy("run", "wordcount", "in.txt", "-o", "out", "--inline")
    assert again.returncode == 0, "the log doesn't stand in the way of the next try"
    assert "_log" not in content(here / "out")


def test_escape_codes_that_a_job_prints_do_not_reach_the_terminal(tidy: Rqmr, here: Path) -> None:
    """The view stays as it is; the log has what was printed."""
    name = job(here, "  def mapper(self, s, line):\n    print('\\x1b[2J\\x1b[31mred', line)\n    yield line, 1\n")
    done = tidy("run", name, "in.txt", "-o", "out", "-w", 1)
    assert done.returncode == 0
    assert "\x1b" not in done.stderr
    assert "red The cat" in done.stderr


# --- names that others have --------------------------------------------------------------------------------------


def test_a_job_may_be_named_like_a_module_of_python_or_of_rqmr(here: Path) -> None:
    """And stand in the directory where the command runs: neither it nor the workers take it for the real one."""
    for name in ("queue", "json", "redis", "rqmr", "typing"):
        job(here, BODY + SUM, name)
    command = [str(Path(sys.executable).with_name("rqmr")), "run", "queue.py", "in.txt", "-o", "out", "--quiet"]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = subprocess.run([*command[:2], "rqmr.py", *command[3:], "--overwrite"], cwd=here, check=False)
    assert done.returncode == 0


# --- the whole ---------------------------------------------------------------------------------------------------


def test_a_tiny_job_takes_less_than_four_seconds_on_a_busy_machine(tidy: Rqmr, here: Path) -> None:
    """Server, workers and all: the best of three; on a quiet one it takes less than one."""
    took = []
    for number in range(3):
        began = time.monotonic()
        assert tidy("run", "wordcount", "in.txt", "-o", f"out{number}").returncode == 0
        took.append(time.monotonic() - began)
        if took[-1] < 4:
            return
    pytest.fail(f"took {took}")


def test_the_books_are_counted_as_inline_and_as_python_counts_them(tidy: Rqmr, here: Path, books: list[Path]) -> None:
    """Byte for byte, in several splits and parts."""
    for name, how in (("spread", []), ("oracle", ["--inline"])):
        done = tidy("run", "wordcount", *books, "-o", name, "-r", 3, "--split-size", "100KiB", "--quiet", *how)
        assert done.returncode == 0, done.stderr
    spread = content(here / "spread")
    assert spread == content(here / "oracle")
    counts: Counter[str] = Counter()
    for book in books:
        for line in book.read_bytes().decode("utf-8", "replace").split("\n"):
            counts.update(line.lower().split())
    lines = [line for name, data in spread.items() if name != "_SUCCESS" for line in data.decode().split("\n")[:-1]]
    assert sorted(lines) == sorted(f"{word}\t{count}" for word, count in counts.items())
