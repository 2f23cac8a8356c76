"""Code travels: workers have nothing of the job; one that can't run it says what it lacks, and leaves it to others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import CUT, Run
from harness import Workers, wait_until
from msgspec.structs import replace

import rqmr
from rqmr.config import Config

#: So that a test has time to start another worker.
CUT_LONG = replace(CUT, lease_seconds=30)
JOB = """
from rqmr import Job, Sum
{imports}

class Words(Job):
    def mapper(self, key, line):
        {body}
        for word in line.split():
            yield word, {value}

    reducer = Sum()
"""


class Place:
    """A directory with inputs and jobs, and the runs of them."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.url = url
        self.inputs = directory / "inputs"
        self.inputs.mkdir()
        self.runs: list[Run] = []
        for number in range(4):
            (self.inputs / f"{number}.txt").write_text(f"a b{number} c\n" * 10)

    def write(self, path: str, text: str) -> Path:
        file = self.directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def job(self, imports: str = "", body: str = "pass", value: str = "1", name: str = "words") -> str:
        return str(self.write(f"jobs/{name}.py", JOB.format(imports=imports, body=body, value=value)))

    def start(self, job: str, config: Config = CUT, *include: Path) -> Run:
        run = Run(job, [self.inputs], self.directory / f"out{len(self.runs)}", self.url, config, {}, include)
        self.runs.append(run)
        return run

    def assert_right(self, run: Run, job: str, *include: Path) -> None:
        """The run's files are what --inline gives."""
        run.result()
        output = self.directory / f"oracle{len(self.runs)}"
        expected = rqmr.run(job, [self.inputs], config=CUT, output=output, include=include, inline=True)
        assert [path.read_bytes() for path in sorted(run.output.glob("part-*"))] == [
            path.read_bytes() for path in expected.paths
        ]


@pytest.fixture
def place(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    made = Place(tmp_path, redis_url)
    yield made
    for run in made.runs:
        run.end()


@pytest.fixture
def only_here(place: Place, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where modules are that the driver has, and workers don't."""
    directory = place.write("site-packages/thirdparty.py", "VALUE = 2\n").parent
    monkeypatch.syspath_prepend(str(directory))
    monkeypatch.delitem(sys.modules, "thirdparty", raising=False)
    return directory


def refusal(run: Run) -> str:
    """What the first worker says that refuses it."""
    run.wait_for("refused")
    return next(event.note for event in run.seen if event.what == "refused")


def test_modules_and_files_are_on_workers_that_have_nothing_of_the_job(place: Place, workers: Workers) -> None:
    include = [place.write("lists/stop.txt", "a"), place.write("shared/weights.py", "VALUE = 3")]
    job = place.job(
        "from weights import VALUE", "line = line.replace(self.included('stop.txt').read_text(), 'x')", "VALUE"
    )
    workers.start(2, TMPDIR=str(place.write("tmp/.keep", "").parent))
    run = place.start(job, CUT, *include)
    place.assert_right(run, job, *include)
    temporary = place.directory / "tmp"
    wait_until(lambda: [path.name for path in temporary.iterdir()] == [".keep"], timeout=5, what="nothing is left")


def test_two_versions_of_a_job_run_side_by_side_in_one_process(place: Place, workers: Workers) -> None:
    """In a worker that runs jobs in its own process, each with its own helper and its own file."""
    workers.start(1, "-w", "rq.SimpleWorker")
    runs = []
    for number in (1, 2):
        helper = place.write("jobs/helper.py", f"VALUE = {number}")
        file = place.write("x.txt", "c" * number)
        body = "import time; time.sleep(0.05); line += ' ' + self.included('x.txt').read_text()"
        job = place.job("import helper", body, "helper.VALUE")
        runs.append((place.start(job, CUT, file), number))
        runs[-1][0].wait_for("claimed")
        helper.unlink()
    for run, number in runs:
        counts = dict(run.result())
        assert counts["a"] == 40 * number
        assert "cc" in counts or number == 1


def test_a_worker_without_a_module_leaves_the_run_to_one_that_has_it(
    place: Place, only_here: Path, workers: Workers
) -> None:
    """It uses up no attempt, and says what it lacks."""
    job = place.job("from thirdparty import VALUE", value="VALUE")
    workers.start(1)
    run = place.start(job, CUT_LONG)
    told = refusal(run)
    assert "has no module thirdparty: install it there or, if it is the job's own, let it travel with --include" in told
    assert "worker worker-1 on " in told
    workers.start(1, PYTHONPATH=str(only_here))
    place.assert_right(run, job)
    assert not run.events("failed")
    assert not run.events("lost")


def test_a_run_that_no_worker_can_load_fails_and_says_why(place: Place, only_here: Path, workers: Workers) -> None:
    """After a while in which another one could have come: a lease."""
    workers.start(2)
    run = place.start(place.job("from thirdparty import VALUE"), CUT)
    with pytest.raises(rqmr.RunFailed) as caught:
        run.result()
    told = str(caught.value)
    assert told.startswith("no worker that listens can run it: worker worker-")
    assert "has no module thirdparty" in told


def test_a_python_that_is_too_old_for_the_job_is_told_with_both_versions(place: Place, workers: Workers) -> None:
    """Which can't be had twice on one machine, so the worker says that it is another one."""
    old = place.write(
        "old/sitecustomize.py",
        "import platform, rqmr.loader\n"
        "platform.python_version = lambda: '3.9.1'\n"
        "def too_old(self, fullname):\n"
        "    raise SyntaxError('invalid syntax', (self.package.modules[fullname].path, 7, 1, 'match x:'))\n"
        "rqmr.loader._Importer.get_code = too_old\n",
    )
    workers.start(1, PYTHONPATH=str(old.parent))
    job = place.job()
    told = refusal(place.start(job, CUT))
    assert f"it can't read {job}, line 7: invalid syntax (it runs Python 3.9.1, the run was planned with 3." in told
    assert "worker worker-1 on " in told


def test_a_worker_of_another_protocol_is_told_by_name_and_host(place: Place, workers: Workers) -> None:
    other = place.write("other/sitecustomize.py", "import rqmr.model\nrqmr.model.PROTOCOL = 99\n")
    workers.start(1, PYTHONPATH=str(other.parent))
    told = refusal(place.start(place.job(), CUT))
    assert told.startswith("worker worker-1 on ")
    assert "speaks protocol" in told
    assert "this worker 99" in told


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("import thirdparty", "has no module thirdparty: install it there"),
        ("open('/nowhere/stop.txt')", "let it travel with --include, and read self.included(NAME)"),
    ],
)
def test_what_is_missing_when_a_record_asks_for_it_is_told_with_worker_and_host(
    body: str, told: str, place: Place, only_here: Path, workers: Workers
) -> None:
    workers.start(1)
    with pytest.raises(rqmr.RunFailed) as caught:
        place.start(place.job(body=body), CUT).result()
    failure = caught.value.failure
    assert told in failure.message
    assert failure.host in failure.message
    assert (failure.worker, bool(failure.host)) == ("worker-1", True)


def test_a_command_that_is_killed_leaves_no_included_file(place: Place) -> None:
    """Nor anything else of its private server's."""
    file, told = place.write("x.txt", "x"), place.directory / "told"
    body = f"""path = self.included("x.txt")
        import pathlib, time
        pathlib.Path({str(told)!r}).write_text(str(path))
        time.sleep(60)"""
    clean = {name: value for name, value in os.environ.items() if not name.endswith("REDIS_URL")}
    command = [sys.executable, "-m", "rqmr", "run", place.job(body=body), str(place.inputs), "--include", str(file)]
    process = subprocess.Popen([*command, "-o", str(place.directory / "out"), "--quiet", "-w", "1"], env=clean)
    path = Path(wait_until(lambda: told.exists() and told.read_text(), timeout=20, what="the file is there"))
    assert path.read_text() == "x"
    process.kill()
    process.wait()
    wait_until(lambda: not path.parent.exists(), timeout=10, what="it goes")
