"""The oracle: a whole run in this process, without Redis, workers or leases.

The same plan through the same readers, codec, shuffle and part files as everywhere else, so its output is byte for
byte what any other run of the plan has to give. Also the place for pdb and for users' own tests: mappers run as they
are written.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from msgspec import structs

from rqmr.errors import RecordError, RunFailed
from rqmr.facts import Summary
from rqmr.failures import too_many_bad
from rqmr.model import Failure, Kind, Outcome, Split, TaskId
from rqmr.output import Output
from rqmr.plan import Plan, parts_of, skipped_of, summarize
from rqmr.records import Place
from rqmr.tasks import Task


def run_inline(plan: Plan, output: Output) -> Summary:
    """Run a plan, task by task.

    Raises:
        RunFailed: the job's code raised, or yielded what can't be carried.
    """
    began = time.monotonic()
    outcomes: list[list[Outcome]] = []
    skipped = 0
    shuffled = _Memory()
    for number in range(len(plan.spec.phases)):
        written = _Memory()
        outcomes.append([])
        for task in plan.spec.tasks(number):
            outcome = _run_task(plan, task, shuffled, written)
            outcomes[-1].append(outcome)
            skipped += len(outcome.skipped)
            if outcome.skipped and skipped > plan.spec.skip_bad:
                raise RunFailed(too_many_bad(plan.spec.skip_bad, outcome.skipped[-1], task=task))
        _check_keys(plan.spec.job_class, outcomes[-1])
        shuffled = written
    paths = output.collect(parts_of(outcomes[-1]), skipped_of(plan.spec, outcomes))
    return summarize(plan.spec, outcomes, paths, time.monotonic() - began)


def _run_task(plan: Plan, task: TaskId, shuffled: _Memory, written: _Memory) -> Outcome:
    source: Split | _Segments
    source = plan.splits[task.index] if task.kind == Kind.MAP else _Segments(shuffled, task.index)
    sink = _Sink(written, task.index)
    try:
        return Task(plan.spec, plan.program.new_job, task, Place(), sink, f"{task}-a1", fuses=False).run(source)
    except RecordError as error:
        raise RunFailed(structs.replace(error.failure, task=str(task))) from error.__cause__


def _check_keys(job: str, outcomes: list[Outcome]) -> None:
    examples = {outcome.key_type: outcome.key_example for outcome in outcomes if outcome.key_type}
    if len(examples) > 1:
        told = " and ".join(f"{kind} (such as {example})" for kind, example in sorted(examples.items()))
        raise RunFailed(Failure(f"{job}: keys of one step must have one type, and not {told}"))


class _Memory:
    """What a phase has shuffled: partition -> producer -> number of the chunk -> chunk."""

    def __init__(self) -> None:
        self.partitions: dict[int, dict[int, dict[int, bytes]]] = {}


class _Sink:
    def __init__(self, memory: _Memory, producer: int) -> None:
        self._memory = memory
        self._producer = producer

    def write(self, partition: int, chunk: int, data: bytes) -> None:
        self._memory.partitions.setdefault(partition, {}).setdefault(self._producer, {})[chunk] = data

    def discard(self) -> None:
        for producers in self._memory.partitions.values():
            producers.pop(self._producer, None)


class _Segments:
    def __init__(self, memory: _Memory, reducer: int) -> None:
        self._segments = memory.partitions.get(reducer, {})

    def producers(self) -> list[int]:
        return sorted(self._segments)

    def chunks(self, wanted: Sequence[tuple[int, int]]) -> list[bytes | None]:
        return [self._segments[producer].get(number) for producer, number in wanted]
