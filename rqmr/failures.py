"""Why a run fails that no exception of the job's code has ended, in words for its user."""

from __future__ import annotations

from msgspec import structs

from rqmr.codec import as_text
from rqmr.model import AttemptId, Failure, Kind, RecordAt, Skipped, Spec, TaskId


def lost_too_often(task: TaskId, spec: Spec) -> Failure:
    """Return the failure of a task whose attempts were lost."""
    message = (
        f"task {task} was lost {spec.max_lost} times: each time its worker died or was silent for "
        f"{spec.lease_ms / 1000:g} s; does it run out of memory, or end its process?"
    )
    return Failure(message, task=str(task))


def died_too_often(task: TaskId, at: RecordAt, deaths: int, how: str) -> Failure:
    """Return the failure of a task whose processes died at one of its records."""
    what = "key" if task.kind == Kind.REDUCE else "record"
    message = f"a process died at this {what} {deaths} times ({how}); does it crash, or run out of memory?"
    return Failure(message, task=str(task), source=at.source, offset=at.offset, record=at.record)


def reopened_too_often(task: TaskId, spec: Spec) -> Failure:
    """Return the failure of a task whose segments vanished."""
    message = f"the segments of task {task} were lost {spec.max_lost} times; does Redis evict keys?"
    return Failure(message, task=str(task))


def too_many_bad(limit: int, last: Skipped, *, task: TaskId | None = None, traceback: str = "") -> Failure:
    """Return the failure of a run that would have to leave out more records than it may."""
    told = f"more than {limit} {'record is' if limit == 1 else 'records are'} bad (--skip-bad {limit})"
    return Failure(
        f"{told}; the last: {last.message}",
        task=str(task or ""),
        source=last.source,
        offset=last.offset,
        record=last.record,
        traceback=traceback,
        final=True,
    )


def shown_by_rq(run: str, attempt: AttemptId, failure: Failure) -> str:
    """Return what `rq info` and dashboards show of a failed attempt: which, at what, and the user's own traceback."""
    told = spelled(failure)
    lines = [f"{run}-{attempt} failed"]
    if told.source:
        lines.append(f"  input   {told.source}" + (f", byte {told.offset}" if told.offset >= 0 else ""))
    if told.record:
        lines.append(f"  record  {told.record}")
    return "\n".join([*lines, "", told.traceback])


def spelled(failure: Failure) -> Failure:
    """Spell what isn't text, which user code may have put into its exceptions."""
    told = {name: value for name, value in structs.asdict(failure).items() if isinstance(value, str)}
    return structs.replace(failure, **{name: as_text(text) for name, text in told.items()})
