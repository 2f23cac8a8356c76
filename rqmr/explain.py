"""What a run would do, and why, without doing it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from rqmr.access import reach
from rqmr.codec import shorten
from rqmr.errors import InputError
from rqmr.inputs import LARGEST_SPLIT, LEAST_SPLIT, LEAST_TO_PART, MOST_OF_A_PART, Source, expand
from rqmr.job import Step, steps_of
from rqmr.local import default_workers
from rqmr.model import Spec
from rqmr.order import TotalOrder
from rqmr.plan import Program, counted, plan, program, sized
from rqmr.request import Request
from rqmr.spool import STDIN, Text

_SHOWN_BOUNDS = 5


def explain(request: Request) -> list[tuple[str, str]]:
    """Return the plan of what is asked for: topics, and what is planned and why. Starts, writes and enqueues nothing.

    Raises:
        RefusedError: the run would be refused, too; or an input can be read only once.
    """
    named = [each for each in request.inputs if not isinstance(each, Text) and each != STDIN]
    if len(named) < len(request.inputs):
        raise InputError("standard input can be read only once, so a plan for it can't be told without the run")
    made = program(request.job, request.params, request.includes)
    sources = expand(named)
    where, listening = _workers(request)
    workers = request.local_workers or listening or default_workers()
    spec = plan(
        made, sources, request.config, workers=workers, stage_in=Path("output"), is_spread=request.is_spread
    ).spec
    modules, parts = len(made.package.modules), spec.phases[-1].tasks
    output = request.output.replace("{run}", "RUN")
    return [
        ("job", f"{spec.job_class} of {made.name}, {counted(modules, 'module')} with the code {spec.code[:8]}"),
        ("input", _input(made, sources)),
        ("workers", where),
        ("map", _map(spec, request.config.split_bytes, sources, workers)),
        *((f"shuffle {number}" if number else "shuffle", _shuffle(step)) for number, step in _shuffles(made)),
        ("reduce", _reduce(spec, request.config.reducers, workers)),
        ("order", _order(spec, made)),
        (
            "memory",
            f"a task holds up to {sized(spec.settings.memory)} of keys and values, and then writes them",
        ),
        ("output", f"{counted(parts, 'part file')} ({spec.settings.format}) in {output}"),
    ]


def _workers(request: Request) -> tuple[str, int]:
    """Return who would run it, and how many workers listen already."""
    if request.inline:
        return "none: all of it in this process, one task after the other", 0
    local = counted(request.local_workers, "local worker")
    if not request.is_spread:
        return f"{local}, with a server of their own", 0
    with ExitStack() as stack:
        server = reach(request.where, None, stack)
        listening, queue = server.listening(request.config.queue), request.config.queue
        there = f"{counted(listening, 'worker')} on the queue '{queue}' of {server.description}"
    return f"{there}, and {local}" if request.local_workers else there, listening


def _input(made: Program, sources: Sequence[Source]) -> str:
    told = f"{sized(sum(source.size for source in sources))} in {counted(len(sources), 'file')}"
    if len(sources) > 1:
        largest = max(sources, key=lambda source: source.size)
        told += f", the largest {sized(largest.size)} ({largest.name})"
    if whole := sum(1 for source in sources if source.compression):
        told += f"; {whole} compressed, each of which one task reads whole"
    if not made.job.reader.splittable:
        told += f"; {type(made.job.reader).__name__} reads files whole"
    return told


def _map(spec: Spec, split_bytes: int | None, sources: Sequence[Source], workers: int) -> str:
    tasks = spec.phases[0].tasks
    mean = spec.input_bytes / tasks
    if split_bytes:
        why = f"splits of at most {sized(split_bytes)}, as asked for"
    elif not spec.is_cut or any(source.compression for source in sources):
        why = "what can't be cut is one task's"
    elif tasks < 3 * workers:
        why = f"of no less than {sized(LEAST_SPLIT)}, as a smaller one isn't worth its costs"
    else:
        larger = tasks > 3 * workers
        why = f"none of more than {sized(LARGEST_SPLIT)}" if larger else "so that none waits long for the slowest"
        why = f"{tasks // workers} for each of {counted(workers, 'worker')}, {why}"
    return f"{counted(tasks, 'task')} of about {sized(mean)}: {why}"


def _shuffles(made: Program) -> Iterator[tuple[int, Step]]:
    return ((number, step) for number, step in enumerate(steps_of(made.job)) if step.reducer is not None)


def _shuffle(step: Step) -> str:
    """Tell what becomes of pairs before they travel."""
    how = "in batches" if step.batch else "record by record"
    if step.fold:
        return f"mapped {how}, folded by {type(step.fold).__name__}: a key travels once for each task"
    if step.combiner:
        return f"mapped {how}, combined: what the combiner leaves travels"
    return f"mapped {how}: every value travels; an aggregator or a combiner would spare most of that"


def _reduce(spec: Spec, reducers: int | None, workers: int) -> str:
    if len(spec.phases) == 1:
        return "none: the job has no reducer, so what is mapped is the output"
    tasks = counted(spec.phases[-1].tasks, "task")
    if reducers:
        return f"{tasks}, as asked for"
    if spec.input_bytes < LEAST_TO_PART:
        return f"{tasks}: below {sized(LEAST_TO_PART)} one part file is handier"
    if spec.phases[-1].tasks <= workers:
        return f"{tasks}: one for each worker"
    each = spec.phases[-1].tasks // workers
    return f"{tasks}: {each} for each worker, as each shall take {sized(MOST_OF_A_PART)} of input, but at most four"


def _order(spec: Spec, made: Program) -> str:
    partitioner = steps_of(made.job)[-1].partitioner
    if len(spec.phases) == 1:
        return "that of the input"
    if spec.phases[-1].tasks == 1:
        return "keys ascend in the one part"
    if isinstance(partitioner, TotalOrder):
        bounds = partitioner.bounds or spec.bounds
        shown = ", ".join(shorten(bound, 40) for bound in bounds[:_SHOWN_BOUNDS])
        return f"keys ascend over all parts, which are cut at {shown}{' …' if len(bounds) > _SHOWN_BOUNDS else ''}"
    who = "the partitioner of the job" if partitioner else "a hash of the key"
    return f"keys ascend within each part; {who} says which part has them"
