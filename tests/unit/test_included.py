"""What is included travels with the job: modules are imported, other files are read, under the names they had."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rqmr
from rqmr import included
from rqmr.errors import JobError
from rqmr.included import Included
from rqmr.loader import pack_again
from rqmr.plan import program

JOB = """
from rqmr import Job
{imports}
class Keep(Job):
    def setup(self):
        self.stop = {stop}

    def mapper(self, key, line):
        yield from ((word, {value}) for word in line.split() if word not in self.stop)
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory to be in, and another one for what is temporary."""
    (tmp_path / "here").mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    before = set(sys.modules)
    yield tmp_path / "here"
    for name in set(sys.modules) - before:
        if not name.startswith(("rqmr.", "msgspec", "redis")):
            del sys.modules[name]


def write(path: str, text: str | bytes) -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def job(stop: str = "()", value: str = "1", imports: str = "") -> str:
    write("input.txt", "the cat and the hat\n")
    return str(write("jobs/keep.py", JOB.format(stop=stop, value=value, imports=imports)))


def words(name: str, *include: str) -> list[Any]:
    """What a run of the job gives."""
    with rqmr.run(name, "input.txt", include=include, inline=True) as result:
        return list(result)


def refused(*include: str) -> str:
    with pytest.raises(JobError) as caught:
        words(job(), *include)
    return str(caught.value)


def left() -> list[Path]:
    return [path for path in Path(tempfile.gettempdir()).iterdir() if path.name.startswith("rqmr-included-")]


# --- data ---------------------------------------------------------------------------------------------------------


def test_an_included_file_is_read_by_its_name() -> None:
    write("lists/stopwords.txt", "the\nand\n")
    name = job("set(self.included('stopwords.txt').read_text().split())")
    assert words(name, "lists/stopwords.txt") == [("cat", 1), ("hat", 1)]
    assert not left(), "it goes with the run"


def test_an_included_directory_keeps_its_names() -> None:
    write("lists/en/stop.txt", "the")
    write("lists/.hidden", "no")
    write("lists/__pycache__/x.pyc", "no")
    name = job("{each.name for each in self.included('lists').rglob('*')} | {self.included('lists/en/stop.txt').name}")
    assert words(name, "lists/") == words(name, str(Path("lists").absolute()))
    made = program(name, {}, ["lists"])
    assert set(made.package.files) == {"lists/en/stop.txt"}


def test_a_file_is_there_when_the_job_is_initialised() -> None:
    write("stop.txt", "the and")
    name = job()
    source = Path(name).read_text().replace("def setup(self):", "def __init__(self, **parameters):")
    Path(name).write_text(source.replace("self.stop = ()", "self.stop = self.included('stop.txt').read_text()"))
    assert words(name, "stop.txt") == [("cat", 1), ("hat", 1)]


def test_a_file_that_was_not_included_is_told_with_what_to_do() -> None:
    write("stop.txt", "")
    with pytest.raises(rqmr.RunFailed) as caught:
        words(job("self.included('stopwords.txt')"), "stop.txt")
    assert "--include PATH/stopwords.txt; there are stop.txt" in str(caught.value)


def test_a_job_class_has_its_included_files_too() -> None:
    """One that isn't named but given."""

    class Mine(rqmr.Job):
        def mapper(self, key: str, line: str) -> Iterator[tuple[str, int]]:
            yield self.included("x.txt").read_text(), 1

    write("x.txt", "seen")
    write("input.txt", "line\n")
    with rqmr.run(Mine, "input.txt", include="x.txt", inline=True) as result:
        assert list(result) == [("seen", 1)]


# --- modules ------------------------------------------------------------------------------------------------------


def test_an_included_module_is_imported_by_its_name_with_what_it_imports_from_beside_it() -> None:
    write("shared/weights.py", "from deeper import VALUE")
    write("shared/deeper.py", "VALUE = 5")
    name = job(imports="from weights import VALUE", value="VALUE")
    assert words(name, "shared/weights.py")[0] == ("the", 5)
    assert set(program(name, {}, ["shared/weights.py"]).package.modules) == {"rqmr_job_keep", "weights", "deeper"}


def test_an_included_directory_is_a_package_and_its_files_are_in_it() -> None:
    write("tools/weights.py", "from .more import VALUE")
    write("tools/more.py", "VALUE = 6")
    write("tools/stop.txt", "the and")
    name = job("self.included('tools/stop.txt').read_text()", "VALUE", "from tools.weights import VALUE")
    assert words(name, "tools") == [("cat", 6), ("hat", 6)]


def test_a_module_that_is_here_but_not_beside_the_job_is_told_with_what_to_do() -> None:
    write("helpers.py", "VALUE = 1")
    name = job(imports="import helpers")
    with pytest.raises(JobError) as caught:
        words(name)
    assert "No module named 'helpers'" in str(caught.value)
    assert "add --include helpers.py" in str(caught.value)
    assert words(name, "helpers.py")[0] == ("the", 1)


# --- what can't be included ---------------------------------------------------------------------------------------


def test_what_is_not_there_is_told() -> None:
    assert f"there is no file {Path('nowhere.txt').absolute()}" in refused("nowhere.txt")


def test_two_files_of_one_name_are_told() -> None:
    write("one/stop.txt", "1")
    write("two/stop.txt", "2")
    assert "there is another stop.txt" in refused("one/stop.txt", "two/stop.txt")


def test_two_modules_of_one_name_are_told() -> None:
    write("one/tool.py", "1")
    write("two/tool.py", "2")
    message = refused("one/tool.py", "two/tool.py")
    assert "one/tool.py" in message
    assert "two/tool.py" in message


@pytest.mark.parametrize("name", ["json.py", "my-tool.py", "rqmr.py"])
def test_a_module_of_a_name_that_cannot_be_its_own_is_told(name: str) -> None:
    write(name, "")
    assert "rename it" in refused(name)


def test_too_much_is_told_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rqmr.loader._LIMIT", 2 << 20)
    write("big.bin", "")
    os.truncate("big.bin", 1 << 40)
    assert "at most 2 MiB can travel" in refused("big.bin")


def test_several_files_that_are_too_much_together_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rqmr.loader._LIMIT", 2 << 20)
    write("one.bin", b"1" * (3 << 19))
    write("two.bin", b"2" * (3 << 19))
    assert "the job's code has 3 MiB" in refused("one.bin", "two.bin")


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", ".", "a//b", "a/./b", "a\0b"])
def test_a_package_from_redis_writes_nothing_outside_its_directory(name: str) -> None:
    """Whoever has made it."""
    files = Included({name: b"evil", "good": b""})
    with pytest.raises(JobError, match="no name for one"):
        files.path("good")
    assert not left()


# --- versions and remains -----------------------------------------------------------------------------------------


def test_another_content_is_another_package() -> None:
    write("stop.txt", "the")
    name = job()
    before = program(name, {}, ["stop.txt"]).package
    write("stop.txt", "and")
    assert program(name, {}, ["stop.txt"]).package.content_hash != before.content_hash


def test_a_job_that_is_packed_again_has_its_files_as_they_are_now() -> None:
    write("stop.txt", "the")
    package = program(job(), {}, ["stop.txt"]).package
    write("stop.txt", "and")
    again = pack_again(package)
    assert again
    assert again.files == {"stop.txt": b"and"}


def test_what_a_killed_process_has_left_goes_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys, time; from rqmr.included import Included; files = Included({'a': b'x'}); "
        "print(files.path('a'), flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": tempfile.gettempdir()},
    )  # fmt: skip
    assert process.stdout
    path = Path(process.stdout.readline().strip())
    monkeypatch.setattr(included, "_YOUNG_SECONDS", -1)
    Included({"b": b""}).path("b")
    assert path.read_bytes() == b"x", "it is in use"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    mine = Included({"b": b""})
    mine.path("b")
    assert not path.exists()
    mine.close()
    assert not left()


def test_a_young_directory_is_left_alone() -> None:
    """Its owner may be about to lock it."""
    young, old = (Path(tempfile.mkdtemp(prefix="rqmr-included-")) for _ in range(2))
    os.utime(old, (time.time() - 100, time.time() - 100))
    Included({"b": b""}).path("b")
    assert young.exists()
    assert not old.exists()
