"""A failed run goes on with what it has done, when the cause is mended; nothing wrong is ever resumed."""

from __future__ import annotations

import gzip
import re
import shutil
import signal
from pathlib import Path

import pytest
from harness import Workers
from terminals import Desk, files

from rqmr.errors import RefusedError
from rqmr.model import RunState
from rqmr.runs import resume
from rqmr.view import Silent
from rqmr.where import Where

WORDS = ("some words", "more words and others", "the bug", "other words", "the last words")
#: Every map and every reduce leaves a mark; `bug` is what happens at a word, in `where`.
JOB = """
import pathlib, time
from rqmr import Job, Lines, Sum, Whole

class Words(Job):
    marks: str = ""
    reader = {reader}

    def mapper(self, source, line):
        self.mark(f"map-{{pathlib.Path(source).stem}}")
        for word in line.split():
            self.meet(word, "map")
            yield {key}, 1

    {reducer}

    def mark(self, name):
        if self.marks:
            open(f"{{self.marks}}/{{name}}.{{time.time_ns()}}", "x").close()

    def meet(self, word, where):
        if word == "bug" and where == "{where}":
            {bug}
"""
REDUCER = """def reducer(self, key, values):
        self.meet(key, "reduce")
        self.mark(f"reduce-{key}")
        yield key, sum(values)"""
BUG, MENDED = 'raise ValueError("a bug")', "pass"


def write_job(desk: Desk, bug: str = MENDED, **told: str) -> Path:
    path = desk.directory / "words.py"
    told = {"where": "map", "key": "word", "reducer": REDUCER, "reader": "Lines()"} | told
    path.write_text(JOB.format(bug=bug, **told))
    return path


def fail(desk: Desk, *options: object, **told: str) -> tuple[Path, str]:
    """Write a job with a bug and run it until it has failed; return its file and the run."""
    job = write_job(desk, BUG, **told)
    command, run = desk.begin(job, *options)
    assert f"go on with what is done:  rqmr resume {run}\n" in command.ends(1).stderr
    return job, run


def made(desk: Desk, kind: str = "*") -> dict[str, int]:
    """How often each file was mapped, and each word reduced."""
    names = [path.name.partition(".")[0] for path in desk.marks.glob(f"{kind}-*")]
    return {name: names.count(name) for name in sorted(set(names))}


def done(task: str) -> str:
    """What a task leaves a mark of; of a reduce task the first word, as there are few."""
    return f"map-{int(task[-4:])}" if "-m" in task else "reduce-and"


def refused(desk: Desk, run: str, *, fresh: bool = False) -> str:
    with pytest.raises(RefusedError) as error:
        resume(run, Where(desk.url), Silent(), fresh=fresh)
    return str(error.value)


@pytest.mark.parametrize("where", ["map", "reduce"])
def test_what_is_done_is_not_done_again(where: str, desk: Desk, workers: Workers) -> None:
    """Nor again when the first mending isn't good enough; and what keeps the old code is told."""
    workers.start(1)
    desk.write(*WORDS)
    job, run = fail(desk, where=where)
    write_job(desk, 'raise KeyError("another bug")', where=where)
    assert "another bug" in desk.do("resume", run, status=1, cwd=desk.elsewhere).stderr
    kept, before = desk.committed(run), made(desk)
    write_job(desk, where=where)
    resumed = desk.do("resume", run, cwd=desk.elsewhere)
    told = re.search(
        r"committed and with the old code: \d map tasks?( and 1 reduce task)? \((.*)\); --fresh", resumed.stderr
    )
    assert told
    assert told[2].split(", ") == kept
    desk.assert_right(run, job)
    again = {name for name, count in made(desk).items() if count > before.get(name, 0)}
    assert not again & {done(task) for task in kept}
    assert {"map-2"} <= again if where == "map" else {"reduce-bug"} <= again
    assert not list(desk.elsewhere.iterdir())


def test_fresh_does_all_again(desk: Desk, workers: Workers) -> None:
    """So it may change what is shuffled, which can't be merged with what is committed."""
    workers.start(1)
    desk.write(*WORDS)
    job, run = fail(desk)
    before = made(desk)
    write_job(desk, reducer="reducer = Sum()")
    assert "what the job shuffles has changed" in refused(desk, run)
    assert f"rqmr resume {run} --fresh runs all tasks again" in refused(desk, run)
    resumed = desk.do("resume", run, "--fresh")
    assert "old code" not in resumed.stderr
    desk.assert_right(run, job)
    assert made(desk) == {f"map-{number}": before.get(f"map-{number}", 0) + 1 for number in range(5)}


def test_a_run_is_resumed_without_its_jobs_file_when_the_machine_was_the_cause(desk: Desk, workers: Workers) -> None:
    workers.start(1)
    desk.write(*WORDS)
    job = write_job(desk, 'open(self.marks + "/needed").close()')
    command, run = desk.begin(job)
    command.ends(1)
    (desk.marks / "needed").touch()
    job.rename(desk.elsewhere / "words.py")
    resumed = desk.do("resume", run)
    assert "words.py isn't here (any more): the run goes on with the code that it has" in resumed.stderr
    desk.assert_right(run, write_job(desk))


# --- what is in the way ---------------------------------------------------------------------------------------------


def test_an_input_that_changed_is_named_and_one_that_grew_is_read_to_its_planned_end(
    desk: Desk, workers: Workers
) -> None:
    workers.start(1)
    desk.write(*WORDS)
    with gzip.open(desk.inputs / "5.gz", "wb") as file:
        file.write(b"packed words\n")
    texts = {path: path.read_bytes() for path in sorted(desk.inputs.iterdir())}
    job, run = fail(desk)
    write_job(desk)
    path = desk.inputs / "2.txt"
    for change in (b"the hug\n", b"the", b""):
        path.write_bytes(change)
        assert re.search(r"2\.txt has changed since the run was planned", refused(desk, run))
    path.unlink()
    assert re.search(r"2\.txt can't be read any more: No such file", refused(desk, run))
    for each, text in texts.items():
        each.write_bytes(text + (b"more\n" if each.suffix == ".txt" else gzip.compress(b"more\n")))
    desk.do("resume", run, "--fresh")
    for each, text in texts.items():
        each.write_bytes(text)
    desk.assert_right(run, job)


def test_a_plan_that_does_not_fit_the_job_any_more_is_not_resumed(desk: Desk, workers: Workers) -> None:
    """Not even fresh: the input was cut for another reader, or the phases are those of other steps."""
    workers.start(1)
    desk.write(*WORDS)
    _, run = fail(desk)
    write_job(desk, reader="Whole()")
    assert "reads whole files now, and the run's input is cut" in refused(desk, run, fresh=True)
    write_job(desk, reducer="")
    assert "has other steps now" in refused(desk, run, fresh=True)
    write_job(desk, key=")")
    assert "SyntaxError" in refused(desk, run)
    write_job(desk, reducer="def __init__(self, **given):\n        raise KeyError('not set up')")
    assert "not set up" in refused(desk, run)
    assert desk.state_of(run) == RunState.FAILED


def test_a_run_that_has_not_failed_is_not_resumed_and_each_is_told_why(desk: Desk, workers: Workers) -> None:
    workers.start(1)
    desk.write(*WORDS)
    done, succeeded = desk.begin("slow", output="first")
    done.ends(0)
    _, running = desk.begin("slow", gate="words")
    told = f"hasn't failed, it is still running: rqmr attach {running} shows it"
    assert told in desk.do("resume", running, status=2).stderr
    desk.do("cancel", running)
    assert "has succeeded already: there is nothing to resume" in refused(desk, succeeded)
    assert "was cancelled already: there is nothing to resume" in refused(desk, running)
    assert "nothing is known of a run words-234567" in refused(desk, "words-234567")


def test_a_failed_run_without_its_output_directory_is_not_resumed_into_another_ones(
    desk: Desk, workers: Workers
) -> None:
    workers.start(1)
    desk.write(*WORDS)
    job, run = fail(desk)
    write_job(desk)
    shutil.rmtree(desk.output)
    other, _ = desk.begin(job)
    other.ends(0)
    before = files(desk.output)
    assert "has another output by now" in refused(desk, run)
    assert files(desk.output) == before


# --- what was lost meanwhile ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["stage", "part"])
def test_parts_that_are_gone_are_made_again(lost: str, desk: Desk, workers: Workers) -> None:
    """The whole stage, or the part of a reduce that is committed."""
    workers.start(1)
    desk.write(*WORDS)
    job, run = fail(desk, where="reduce")
    (stage,) = desk.output.iterdir()
    (part,) = stage.iterdir()
    shutil.rmtree(desk.output) if lost == "stage" else part.unlink()
    write_job(desk)
    desk.do("resume", run)
    desk.assert_right(run, job)
    assert made(desk, "map") == {f"map-{number}": 1 for number in range(5)}


def test_parts_that_are_gone_when_they_are_to_be_collected_fail_the_run_and_are_made_again(
    desk: Desk, workers: Workers
) -> None:
    workers.start(1)
    desk.write(*WORDS)
    job = write_job(desk)
    driver, run = desk.begin(job, struck="pathlib Path.replace 2 SIGKILL")
    driver.ends(-signal.SIGKILL)
    (stage,) = (path for path in desk.output.iterdir() if path.is_dir())
    shutil.rmtree(stage)
    told = desk.do("attach", run, status=1).stderr
    assert "is gone before it was collected" in told
    assert f"rqmr resume {run}" in told
    desk.do("resume", run)
    desk.assert_right(run, job)


def test_two_who_resume_at_once_do_no_harm(desk: Desk, workers: Workers) -> None:
    workers.start(2)
    desk.write(*WORDS)
    job, run = fail(desk)
    write_job(desk)
    for terminal in [desk.open("resume", run) for _ in range(3)]:
        terminal.ends(0, 2)
    desk.do("attach", run)
    desk.assert_right(run, job)
