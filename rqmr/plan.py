"""Turn a job, its inputs and a config into a run that can be executed: spec, splits, package."""

from __future__ import annotations

import inspect
import os
import platform
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from rqmr.config import Config
from rqmr.errors import InputError, JobError, ParameterError, RefusedError
from rqmr.facts import Summary
from rqmr.included import NOTHING, Included
from rqmr.inputs import InputMark, Source, choose_reducers, cut, cut_for
from rqmr.job import Job, Step, new_job, steps_of
from rqmr.loader import Package, find, include, load, pack_file, user_traceback
from rqmr.model import Kind, Outcome, Part, Phase, Settings, Skipped, Spec, Split, TaskId
from rqmr.order import bounds_of
from rqmr.readers import check_encoding
from rqmr.remote import path_at
from rqmr.skew import skew

_MOST_MAPS = 200_000
#: Letters and digits that can't be mistaken for each other when read aloud.
_ID_ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"


def new_run_id(job_name: str) -> str:
    """Return a new run's id: the job's name, with "-" for what an RQ id can't hold, and six signs of its own."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", job_name).strip("-") or "job"
    return f"{stem[:60]}-{''.join(secrets.choice(_ID_ALPHABET) for _ in range(6))}"


@dataclass(frozen=True)
class Program:
    """A job that was found, loaded and given its parameters."""

    name: str  # as the user gave it
    job: Job
    parameters: dict[str, Any]
    package: Package
    included: Included = NOTHING

    def new_job(self) -> Job:
        """Return another instance, as each task has one of its own."""
        return new_job(type(self.job), self.parameters, self.included)

    @property
    def short_name(self) -> str:
        """The name without directories and ending: ``jobs/wordcount.py`` is ``wordcount``."""
        stem = self.name.partition(":")[0].removesuffix(".py")
        return Path(stem).name


@dataclass(frozen=True)
class Plan:
    """A run that hasn't begun."""

    spec: Spec
    splits: list[Split]
    program: Program
    inputs: Mapping[bytes, InputMark]  # how each file is now, by its path, if the run may be resumed


def program(
    job: str | type[Job], parameters: Mapping[str, Any], includes: Sequence[str | os.PathLike[str]] = ()
) -> Program:
    """Find and load a job, and give it its parameters. `includes`: files that travel with it.

    Raises:
        JobError: it can't be found, imported or run, or a file can't be included.
        ParameterError: a parameter is unknown, missing or ill-typed.
    """
    if isinstance(job, str):
        package, class_name = find(job)
        package = include(package, includes)
        loaded, name = load(package, class_name), job
    else:
        package, loaded, name = include(_package_of(job), includes), job, job.__module__.rpartition(".")[2]
        name = Path(package.modules[package.entry].path).stem if name == "__main__" else name
    included = Included(package.files)
    instance = _instance(loaded, parameters, included)
    try:
        plain = msgspec.to_builtins(dict(parameters))
    except (TypeError, ValueError) as error:
        raise ParameterError(f"a parameter of {loaded.__name__} can't travel to the workers: {error}") from None
    return Program(name, instance, plain, package, included)


def program_of(spec: Spec, package: Package) -> Program:
    """Return a run's program from a package of its job.

    Raises:
        JobError: the package can't be imported, or has no such job any more.
    """
    loaded = load(package, spec.job_class)
    included = Included(package.files)
    return Program(spec.job, _instance(loaded, spec.params, included), spec.params, package, included)


def _instance(job: type[Job], parameters: Mapping[str, Any], included: Included) -> Job:
    try:
        instance = new_job(job, parameters, included)
        steps_of(instance)
    except RefusedError:
        raise
    except Exception as error:
        raise JobError(f"{job.__name__} can't be set up with these parameters:\n{user_traceback(error)}") from error
    return instance


def refit(spec: Spec, program: Program) -> Spec:
    """Return a planned run's spec for another version of its program.

    Raises:
        JobError: it would have to be planned in another way.
    """
    steps = steps_of(program.job)
    if spec.is_cut and not program.job.reader.splittable:
        raise JobError(f"{spec.job} reads whole files now, and the run's input is cut: run the job anew")
    if _phases(steps, spec.phases[0].tasks, spec.phases[-1].tasks) != spec.phases:
        raise JobError(f"{spec.job} has other steps now than the run: run the job anew")
    return structs.replace(
        spec,
        code=program.package.content_hash,
        job_class=type(program.job).__name__,
        shapes=tuple(step.shape for step in steps),
    )


def plan(
    program: Program,
    sources: Sequence[Source],
    config: Config,
    *,
    workers: int,
    stage_in: Path,
    run: str | None = None,
    inputs: Mapping[bytes, InputMark] | None = None,
    is_spread: bool = False,
    ends_with_driver: bool = True,
) -> Plan:
    """Cut the inputs and lay out the phases.

    `workers` is how many the plan is made for; `stage_in` is the output directory; `ends_with_driver`: nobody can go
    on with the run without this command; `is_spread`: workers may be on other hosts.

    The same arguments give the same plan, and the same plan gives the same output, wherever it runs.

    Raises:
        InputError: the encoding can't be read by lines.
    """
    settings = Settings(config.encoding, config.decode_errors, config.format or "tsv", config.memory)
    check_encoding(settings)
    total = sum(source.size for source in sources)
    is_cut = program.job.reader.splittable
    splits = cut(sources, config.split_bytes, is_cut) if config.split_bytes else cut_for(workers, sources, is_cut)
    if len(splits) > _MOST_MAPS:
        raise InputError(
            f"that would be {len(splits):,} map tasks; more than {_MOST_MAPS:,} aren't of use: use larger splits"
        )
    reducers = config.reducers or choose_reducers(total, workers)
    run = run or new_run_id(program.short_name)
    phases = _phases(steps_of(program.job), len(splits), reducers)
    bounds = bounds_of(program.new_job(), splits, settings, reducers)
    spec = Spec(
        run=run,
        job=program.name,
        code=program.package.content_hash,
        job_class=type(program.job).__name__,
        params=program.parameters,
        phases=phases,
        stage=str(stage_in.absolute() / f".rqmr-{run}"),
        settings=settings,
        lease_ms=int(config.lease_seconds * 1000),
        keep_ms=int(config.keep_seconds * 1000),
        max_failed=config.max_failed,
        max_lost=config.max_lost,
        queue=config.queue,
        python=platform.python_version(),
        backups=config.backups,
        stall_ms=int(config.stall_seconds * 1000),
        task_ms=int(config.task_seconds * 1000),
        skip_bad=config.skip_bad,
        is_spread=is_spread,
        priority=config.priority,
        bounds=bounds,
        shuffle=config.shuffle_urls if is_spread else (),
        spill=place_of(config.spill) if config.spill else "",
        ends_with_driver=ends_with_driver,
        shapes=tuple(step.shape for step in steps_of(program.job)),
        is_cut=is_cut,
        input_bytes=total,
        plan=_described(phases, total, len(sources), workers),
    )
    return Plan(spec, splits, program, inputs or {})


def place_of(directory: str) -> str:
    """Return a directory's absolute path, or its URL."""
    return str(path_at(directory).absolute())


def _described(phases: tuple[Phase, ...], total: int, files: int, workers: int) -> str:
    maps = phases[0].tasks
    reduces = " + ".join(counted(phase.tasks, "reduce task") for phase in phases[1:]) or "no reduce task"
    told = f"{counted(maps, 'map task')} of {sized(total / maps)}, {reduces}"
    return f"{told} ({sized(total)} in {counted(files, 'file')}, for {counted(workers, 'worker')})"


def _phases(steps: Sequence[Step], maps: int, reducers: int) -> tuple[Phase, ...]:
    reducing = [number for number, step in enumerate(steps) if step.reducer is not None]
    return (Phase(0, Kind.MAP, maps), *(Phase(number, Kind.REDUCE, reducers) for number in reducing))


def _package_of(job: type[Job]) -> Package:
    try:
        path = Path(inspect.getfile(job))
    except (OSError, TypeError):
        raise JobError(f"{job.__name__} is in no file, so it can't travel to workers; write it into one") from None
    return pack_file(path)


def sized(count: float) -> str:
    """Return bytes in words: ``12.5 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def counted(number: int, noun: str) -> str:
    """Return a number of things in words: ``1,250 files``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def summarize(spec: Spec, outcomes: Sequence[Sequence[Outcome]], paths: Sequence[Path], seconds: float) -> Summary:
    """Tell a run that succeeded in numbers. `outcomes` are the winners' of each phase, in the order of the tasks."""
    counters: dict[str, dict[str, int]] = {}
    for outcome in (outcome for phase in outcomes for outcome in phase):
        for group, members in outcome.counters.items():
            totals = counters.setdefault(group, {})
            for name, amount in members.items():
                totals[name] = totals.get(name, 0) + amount
    return Summary(
        run=spec.run,
        job=spec.job,
        output=str(paths[0].parent),
        parts=tuple(path.name for path in paths),
        seconds=round(seconds, 3),
        map_tasks=spec.phases[0].tasks,
        reducers=spec.phases[-1].tasks if len(spec.phases) > 1 else 0,
        records_read=sum(outcome.records for outcome in outcomes[0]),
        bytes_read=sum(outcome.size for outcome in outcomes[0]),
        records_written=sum(outcome.written for outcome in outcomes[-1]),
        counters={group: dict(sorted(members.items())) for group, members in sorted(counters.items())},
        skipped=sum(len(outcome.skipped) for phase in outcomes for outcome in phase),
        skew=skew(spec, outcomes),
    )


def parts_of(outcomes: Sequence[Outcome]) -> list[Part]:
    """Return the parts that the last phase's winners left in the stage."""
    return [outcome.part for outcome in outcomes if outcome.part is not None]


def skipped_of(spec: Spec, outcomes: Sequence[Sequence[Outcome]]) -> list[tuple[TaskId, Skipped]]:
    """Return the records that the winners left out, in the order of phases, tasks and records. As for `summarize`."""
    return [
        (task, skipped)
        for number, of_phase in enumerate(outcomes)
        for task, outcome in zip(spec.tasks(number), of_phase, strict=True)
        for skipped in outcome.skipped
    ]
