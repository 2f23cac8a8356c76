"""A job's code: found by its name, packed with what it imports from beside it, loaded as it is now."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rqmr.errors import JobError, RefusedError
from rqmr.job import Job
from rqmr.loader import Package, decode_package, find, hash_of, load, pack_file, user_traceback
from rqmr.plan import program

JOB = """
from rqmr import Job

class {name}(Job):
    def mapper(self, key, value):
        yield key, {value!r}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory to be in; modules imported meanwhile leave again."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if not name.startswith(("rqmr.", "msgspec", "redis")):
            del sys.modules[name]
    importlib.invalidate_caches()


def write(path: str, source: str = JOB.format(name="Count", value=1)) -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)
    return file


def loaded(name: str) -> type[Job]:
    """Find, pack, send, unpack and import a job."""
    package, class_name = find(name)
    return load(decode_package(package.encode(), package.content_hash), class_name)


def mapped(name: str) -> Any:
    """What the job of that name makes of a record."""
    return list(loaded(name)().mapper("k", "v"))


def refused(name: str) -> str:
    with pytest.raises(JobError) as caught:
        loaded(name)
    return str(caught.value)


# --- finding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["count.py", "sub/count.py", "./count.py", "with space/my count.py", "größe.py"])
def test_a_path_to_a_python_file_is_that_file(name: str) -> None:
    """Relative or absolute, whatever its name."""
    path = write(name)
    assert mapped(name) == [("k", 1)]
    assert mapped(str(path.absolute())) == [("k", 1)]


@pytest.mark.parametrize("name", ["count", "top_words", "json", "top-words", "2026"])
def test_a_name_is_the_file_of_that_name_in_jobs(name: str) -> None:
    """Before everything else of that name."""
    write(f"jobs/{name}.py")
    assert mapped(name) == [("k", 1)]


def test_a_job_here_comes_before_the_example_of_the_same_name() -> None:
    """An example is only the last place to look."""
    assert loaded("wordcount").__name__ == "WordCount"
    write("jobs/wordcount.py")
    assert loaded("wordcount").__name__ == "Count"


def test_a_dotted_module_is_found_from_here(here: Path) -> None:
    """As python -m finds it; a module on sys.path, a package, a module in one."""
    write("flat.py")
    write("pkg/__init__.py", "")
    write("pkg/sub/__init__.py", "")
    write("pkg/sub/count.py", JOB.format(name="Deep", value=3))
    assert mapped("flat") == [("k", 1)]
    assert mapped("pkg.sub.count") == [("k", 3)]


def test_a_package_can_be_a_job_itself() -> None:
    """Its __init__ has the class, perhaps imported relatively from one of its modules' helpers."""
    write("pkg/__init__.py", "from .words import VALUE\n" + JOB.format(name="Count", value=0).replace("0", "VALUE"))
    write("pkg/words.py", "VALUE = 7")
    assert mapped("pkg") == [("k", 7)]


def test_a_dotted_module_in_a_directory_without_init_is_found() -> None:
    """Python takes it for a namespace package: jobs.wordcount where there is jobs/wordcount.py."""
    write("jobs/tools.py", "VALUE = 5")
    write("jobs/count.py", JOB.format(name="Count", value=2))
    assert mapped("jobs.count") == [("k", 2)]


def test_looking_for_a_module_changes_nothing_for_the_process() -> None:
    """sys.path stays as it was."""
    before = list(sys.path)
    refused("nowhere.at.all")
    assert sys.path == before


@pytest.mark.parametrize("name", ["wordcuont", "word_count", "Wordcount", "wordcount2"])
def test_an_unknown_name_is_answered_with_the_near_ones(name: str) -> None:
    """A typo costs one more try."""
    message = refused(name)
    assert f"'{name}'" in message
    assert "did you mean wordcount" in message


def test_an_unknown_path_is_answered_with_the_near_ones() -> None:
    """Those in the directory that was named come first in one's mind."""
    write("jobs/hits_by_hour.py")
    assert "did you mean" in refused("hit_by_hours")
    assert "hits_by_hour" in refused("hit_by_hours")
    message = refused("jobs/hit_by_hour.py")
    assert "jobs/hit_by_hour.py" in message
    assert "hits_by_hour" in message


def test_an_unknown_name_like_no_other_is_answered_with_all_there_are() -> None:
    """So that one need not look into the documentation."""
    message = refused("zzzzzzzz")
    assert "wordcount" in message
    assert "jobs/zzzzzzzz.py" in message


@pytest.mark.parametrize("name", ["", ".", "..", "/", ":", ":Count", "a/b", "jobs/", "x.y.", "-", "a b", "pkg..mod"])
def test_a_name_that_makes_no_sense_is_an_unknown_job(name: str) -> None:
    """And no error of ours."""
    assert "there is no job" in refused(name)


def test_a_directory_is_no_job() -> None:
    """Also one that is named like a Python file."""
    Path("dir.py").mkdir()
    assert "dir.py" in refused("dir.py")


@pytest.mark.timeout(5)
@pytest.mark.parametrize("name", ["json", "statistics", "rqmr", "email.message", "itertools"])
def test_a_module_that_is_no_job_is_said_to_have_none(name: str) -> None:
    """A typo that hits Python's own library must not end in that library's import errors."""
    message = refused(name)
    assert "no job" in message
    assert "can't be imported" not in message


# --- which class -------------------------------------------------------------------------------------------------


def test_a_class_can_be_named_behind_a_colon() -> None:
    """By path, by name, by module."""
    two = JOB.format(name="One", value=1) + JOB.format(name="Two", value=2)
    write("jobs/both.py", two)
    write("both2.py", two)
    for name in ("jobs/both.py:Two", "both:Two", "both2:Two", "both2.py:Two"):
        assert mapped(name) == [("k", 2)]


def test_several_jobs_in_a_file_are_told_with_what_to_write() -> None:
    """Ready to be copied."""
    write("jobs/both.py", JOB.format(name="One", value=1) + JOB.format(name="Two", value=2))
    message = refused("both")
    assert "both.py:One" in message
    assert "both.py:Two" in message


def test_a_class_that_is_not_there_is_told_with_those_that_are() -> None:
    """A typo again."""
    write("jobs/count.py")
    message = refused("count:Cuont")
    assert "Cuont" in message
    assert "it has Count" in message


def test_a_file_without_a_job_is_told() -> None:
    """Also if it imports one: only its own classes count."""
    write("jobs/nothing.py", "import rqmr")
    assert "no job" in refused("nothing")
    write("jobs/base.py")
    write("jobs/imports_one.py", "from base import Count\nfrom rqmr import Job\n")
    assert "no job" in refused("imports_one")


def test_a_job_that_builds_on_an_imported_one_is_the_only_job() -> None:
    """A base class from beside it isn't a second job."""
    write("jobs/base.py")
    write("jobs/mine.py", "from base import Count\n\nclass Mine(Count):\n    pass\n")
    assert loaded("mine").__name__ == "Mine"
    assert mapped("mine") == [("k", 1)]


# --- errors in the user's code -----------------------------------------------------------------------------------


def test_a_job_that_raises_when_imported_shows_its_own_traceback() -> None:
    """Its file, line and source, and no frame of ours or of importlib's."""
    path = write("jobs/broken.py", "def helper():\n    return {}['missing key']\n\nVALUE = helper()\n")
    message = refused("broken")
    assert "KeyError: 'missing key'" in message
    assert f'File "{path.absolute()}", line 4' in message
    assert f'File "{path.absolute()}", line 2, in helper' in message
    assert "return {}['missing key']" in message
    assert "importlib" not in message
    assert "rqmr/loader.py" not in message


def test_an_error_in_what_a_job_imports_shows_both_files() -> None:
    """The way from one to the other."""
    write("jobs/helper.py", "1 / 0\n")
    write("jobs/broken.py", "import helper\n")
    message = refused("broken")
    assert "ZeroDivisionError" in message
    assert "jobs/broken.py" in message
    assert "jobs/helper.py" in message
    assert "importlib" not in message


def test_a_missing_import_is_told_by_name() -> None:
    """With the line that asks for it."""
    write("jobs/broken.py", "import pandas_of_the_future\n")
    message = refused("broken")
    assert "No module named 'pandas_of_the_future'" in message
    assert "line 1" in message


@pytest.mark.parametrize("where", ["jobs/broken.py", "jobs/helper.py"])
def test_a_syntax_error_names_file_and_line(where: str) -> None:
    """In the job or in what it imports."""
    write("jobs/broken.py", "import helper\n")
    path = write(where, "import os\n\ndef mapper(self:\n    pass\n")
    message = refused("broken")
    assert f'File "{path.absolute()}", line 3' in message
    assert "def mapper(self:" in message
    assert "SyntaxError" in message


@pytest.mark.parametrize("source", [b"x = '\xff'\n", b"\0\0", b"# coding: nonsense\n"])
def test_a_file_that_is_no_source_is_told(source: bytes) -> None:
    """Binary, or in an encoding that nobody knows."""
    path = write("jobs/broken.py", "")
    path.write_bytes(source)
    assert "broken.py" in refused("broken")


def test_an_encoding_that_the_file_declares_is_heeded() -> None:
    """As Python does."""
    path = write("jobs/latin.py", "")
    path.write_bytes(("# coding: latin-1\n" + JOB.format(name="Latin", value="größe")).encode("latin-1"))
    assert mapped("latin") == [("k", "größe")]


@pytest.mark.parametrize("leave", ["raise SystemExit(0)", "import sys; sys.exit()", "exit('bye')"])
def test_a_file_that_leaves_when_imported_is_an_error(leave: str) -> None:
    """A script without a main guard must not end the command as if all were well."""
    write("jobs/script.py", f"{leave}\n")
    message = refused("script")
    assert "SystemExit" in message
    assert "script.py" in message


def test_a_package_that_raises_when_imported_shows_its_own_traceback() -> None:
    """Also when Python imports it only to find the module in it."""
    write("pkg/__init__.py", "{}['missing key']\n")
    write("pkg/count.py")
    message = refused("pkg.count")
    assert "KeyError: 'missing key'" in message
    assert "importlib" not in message


def test_an_error_does_not_keep_the_job_from_being_loaded_when_it_is_mended() -> None:
    """In the same process."""
    write("jobs/count.py", "1 / 0")
    refused("count")
    write("jobs/count.py")
    assert mapped("count") == [("k", 1)]


def test_a_traceback_has_the_users_frames_only() -> None:
    """With the causes of an exception, and theirs."""
    write("jobs/raises.py", JOB.format(name="Raises", value=1).replace("yield", "self.fail(); yield"))
    job = loaded("raises")
    job.fail = lambda self: 1 / 0  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError) as caught:
        list(job().mapper("k", "v"))
    told = user_traceback(caught.value)
    assert told.startswith("Traceback (most recent call last):")
    assert "raises.py" in told
    assert told.endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize(("needs", "message"), [("steps", "steps"), ("__init__", "argument")])
def test_a_job_that_cannot_be_set_up_shows_its_own_traceback(needs: str, message: str) -> None:
    """Before anything runs."""
    write(
        "jobs/odd.py",
        JOB.format(name="Odd", value=1) + f"\n    def {needs}(self, *args):\n        raise ValueError('{message}')\n",
    )
    with pytest.raises(RefusedError) as caught:
        program("odd", {})
    assert f"ValueError: {message}" in str(caught.value)
    assert "odd.py" in str(caught.value)
    assert "rqmr/plan.py" not in str(caught.value)


# --- what travels ------------------------------------------------------------------------------------------------


def travelled(name: str, command: str = "print(list(load(package, class_name)().mapper('k', 'v')))") -> str:
    """Load a job as another machine does: from its package only, in a directory without its files."""
    package, class_name = find(name)
    Path("package").write_bytes(package.encode())
    for path in Path.cwd().iterdir():
        if path.name != "package":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    code = (
        "import pathlib; from rqmr.loader import decode_package, load; "
        f"package = decode_package(pathlib.Path('package').read_bytes(), {package.content_hash!r}); "
        f"class_name = {class_name!r}; {command}"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_a_job_imports_from_beside_it_travels() -> None:
    """Directly, by way of another, and inside a function only."""
    write("jobs/helper.py", "import deeper\ndef value(): return deeper.VALUE")
    write("jobs/deeper.py", "VALUE = 41")
    write("jobs/lazy.py", "ONE = 1")
    write(
        "jobs/count.py",
        """
from __future__ import annotations
import json, os.path
from helper import value
from rqmr import Job

class Count(Job):
    def mapper(self, key, text):
        from lazy import ONE
        yield key, value() + ONE
""",
    )
    package, _ = find("count")
    assert set(package.modules) == {"rqmr_job_count", "helper", "deeper", "lazy"}
    assert travelled("count") == "[('k', 42)]"


@pytest.mark.parametrize("init", [True, False])
def test_a_package_beside_a_job_travels_whole(init: bool) -> None:
    """With what it imports relatively, whether or not it has an __init__.py."""
    if init:
        write("jobs/tools/__init__.py", "")
    write("jobs/tools/words.py", "from .more import VALUE\n")
    write("jobs/tools/more.py", "VALUE = 9")
    write("jobs/count.py", "from tools.words import VALUE\n" + JOB.format(name="Count", value=0).replace("0", "VALUE"))
    assert travelled("count") == "[('k', 9)]"


def test_a_dotted_job_travels_with_its_whole_package() -> None:
    """Relative imports, up and down, lazy ones too."""
    write("pkg/__init__.py", "BASE = 100")
    write("pkg/jobs/__init__.py", "")
    write("pkg/lib/__init__.py", "from .. import BASE")
    write("pkg/lib/words.py", "VALUE = 11")
    write(
        "pkg/jobs/count.py",
        """
from rqmr import Job
from ..lib.words import VALUE
from ..lib import BASE

class Count(Job):
    def mapper(self, key, text):
        from . import helper
        yield key, VALUE + BASE + helper.ONE
""",
    )
    write("pkg/jobs/helper.py", "ONE = 1")
    assert travelled("pkg.jobs.count") == "[('k', 112)]"


def test_a_traceback_on_another_machine_shows_the_users_path_and_source() -> None:
    """Although the file isn't there."""
    path = write("jobs/count.py", JOB.format(name="Count", value=1).replace("yield", "1 / 0; yield")).absolute()
    command = (
        "\nfrom rqmr.loader import user_traceback"
        "\ntry: list(load(package, class_name)().mapper('k', 'v'))"
        "\nexcept Exception as error: print(user_traceback(error))"
    )
    told = travelled("count", command)
    assert f'File "{path}", line 6, in mapper' in told
    assert "1 / 0; yield" in told


def test_what_does_not_belong_to_the_job_stays_at_home() -> None:
    """Neither the neighbours that it doesn't import, nor what is installed."""
    write("jobs/other.py")
    write("jobs/count.py", "import json, redis\n" + JOB.format(name="Count", value=1))
    package, _ = find("count")
    assert set(package.modules) == {"rqmr_job_count"}


def test_a_job_too_large_to_travel_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its size and the limit."""
    monkeypatch.setattr("rqmr.loader._LIMIT", 3 << 20)
    write("jobs/big.py", "# " + "x" * (5 << 20))
    assert "5 MiB" in refused("big")
    assert "3 MiB" in refused("big")


# --- names that others have --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["json", "queue", "redis", "rqmr", "typing", "job"])
def test_a_job_may_have_the_name_of_any_module(name: str) -> None:
    """And doesn't stand in for it: neither for rqmr nor for what the job itself imports."""
    write(f"jobs/{name}.py", JOB.format(name="Mine", value=1) + "\nimport json\nassert json.dumps([1]) == '[1]'\n")
    original = importlib.import_module(name if name != "job" else "rqmr.job")
    assert mapped(f"jobs/{name}.py") == [("k", 1)]
    assert importlib.import_module(original.__name__) is original
    import json

    assert json.loads("[1]") == [1]


def test_a_module_beside_a_job_does_not_stay_when_another_job_comes() -> None:
    """Two jobs, each with a helper of its own of the same name."""
    for where in ("one", "two"):
        write(f"{where}/helper.py", f"VALUE = {where!r}")
        write(f"{where}/count.py", "import helper\n" + JOB.format(name="Count", value=0).replace("0", "helper.VALUE"))
    assert mapped("one/count.py") == [("k", "one")]
    assert mapped("two/count.py") == [("k", "two")]
    assert mapped("one/count.py") == [("k", "one")]


# --- versions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["count", "count.py", "pkg.count", "pkg"])
def test_two_versions_of_a_job_can_follow_each_other_in_one_process(name: str) -> None:
    """Never stale code: neither of the job nor of what it imports, even where time and size don't tell them apart."""
    for version in (1, 2, 1):
        body = JOB.format(name="Count", value=0)
        write("jobs/helper.py", f"VALUE = {version}")
        write("jobs/count.py", "from helper import VALUE\n" + body.replace("0", f"({version}, VALUE)"))
        write("helper.py", f"VALUE = {version}")
        write("count.py", "from helper import VALUE\n" + body.replace("0", f"({version}, VALUE)"))
        write("pkg/__init__.py", f"VALUE = {version}\n" + body.replace("0", "(VALUE, VALUE)"))
        write("pkg/count.py", "from . import VALUE\n" + body.replace("0", f"({version}, VALUE)"))
        importlib.invalidate_caches()
        assert mapped(name) == [("k", (version, version))]


def test_a_hash_stands_for_the_code_and_for_nothing_else(here: Path) -> None:
    """The same code has the same hash, other code another, and a helper's code is code too."""
    write("jobs/helper.py", "A = 1")
    path = write("jobs/count.py", "import helper\n" + JOB.format(name="Count", value=1))
    first = pack_file(path).content_hash
    assert pack_file(path).content_hash == first
    assert decode_package(pack_file(path).encode(), first).content_hash == first
    write("jobs/neighbour.py", "B = 1")
    assert pack_file(path).content_hash == first
    write("jobs/helper.py", "A = 2")
    second = pack_file(path).content_hash
    assert second != first
    write("jobs/helper.py", "A = 1")
    assert pack_file(path).content_hash == first


def test_a_hash_is_the_same_in_every_process(here: Path) -> None:
    """Whatever PYTHONHASHSEED is."""
    write("jobs/a.py", "A = 1")
    write("jobs/b.py", "B = 1")
    path = write("jobs/count.py", "import a, b\n" + JOB.format(name="Count", value=1))
    code = f"import pathlib, rqmr.loader as l; print(l.pack_file(pathlib.Path({str(path)!r})).content_hash)"
    command = [sys.executable, "-c", code]
    for seed in ("1", "2"):
        done = subprocess.run(command, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == pack_file(path).content_hash


# --- from Python -------------------------------------------------------------------------------------------------


def test_a_job_class_travels_with_the_file_that_it_is_in() -> None:
    """rqmr.run(WordCount, …) from a script."""
    path = write("script_with_job.py")
    spec = importlib.util.spec_from_file_location("script_with_job", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["script_with_job"] = module
    spec.loader.exec_module(module)
    made = program(module.Count, {})
    assert made.short_name == "script_with_job"
    assert load(made.package, "Count").__name__ == "Count"


def test_a_job_class_without_a_file_is_refused() -> None:
    """Typed into an interpreter, it can't travel; the message says what to do."""
    scope: dict[str, Any] = {"__name__": "typed_in"}
    exec("from rqmr import Job\nclass Typed(Job):\n    def mapper(self, k, v): yield k, v\n", scope)
    with pytest.raises(JobError, match="file"):
        program(scope["Typed"], {})


def test_code_that_is_not_what_its_name_says_is_refused(here: Path) -> None:
    """Before anything of it is imported: in Redis others may have written under its hash."""
    package = pack_file(write("jobs/count.py", JOB.format(name="Count", value=1)))
    other = pack_file(write("jobs/count.py", "import sys; sys.exit('imported')\n" + JOB.format(name="Count", value=2)))

    with pytest.raises(JobError, match=rf"was altered.*remove the key rqmr:code:{package.content_hash}"):
        decode_package(other.encode(), package.content_hash)
    with pytest.raises(JobError, match="no job's package"):
        decode_package(b"\x93\x01", hash_of(b"\x93\x01"))
    nowhere = Package("elsewhere", package.modules)
    with pytest.raises(JobError, match="has no module elsewhere"):
        decode_package(nowhere.encode(), nowhere.content_hash)
