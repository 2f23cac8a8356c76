"""Why a run fails that no exception of the job's code has ended, in words for its user."""

from __future__ import annotations

import platform
from collections.abc import Sequence, Set

from msgspec import structs

from rqmr.codec import as_text
from rqmr.facts import Event
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


def unfit(error: BaseException, spec: Spec) -> str:
    """Return why this worker can't load a run's code, in one line."""
    cause = error.__cause__ or error
    here, there = platform.python_version(), spec.python
    differ = f" (it runs Python {here}, the run was planned with {there})" if _minor(here) != _minor(there) else ""
    if isinstance(cause, ModuleNotFoundError) and cause.name:
        return f"it has no module {cause.name}{differ}: {_ADVICE}"
    if isinstance(cause, SyntaxError):
        where = f"{cause.filename}, line {cause.lineno}"
        return f"it can't read {where}: {cause.msg}{differ or f' (it runs Python {here})'}"
    told = " ".join(str(cause).split()) or "no message"
    return f"it can't load {spec.job}{differ}: {type(cause).__name__}: {told}"


#: How the failure of an attempt begins whose input isn't there.
INPUT_UNREADABLE = "an input can't be read"

_ADVICE = "install it there or, if it is the job's own, let it travel with --include"


def advised(failure: Failure, error: BaseException | None, spec: Spec) -> Failure:
    """Add what to do if an attempt's error says that something isn't on the worker's host."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        told = f"worker {failure.worker} on {failure.host} has no module {error.name}: {_ADVICE}"
    elif failure.message.startswith(INPUT_UNREADABLE):
        return failure  # inputs travel by themselves
    elif isinstance(error, FileNotFoundError) and spec.is_spread:
        told = f"it isn't on {failure.host}; let it travel with --include, and read self.included(NAME)"
    else:
        return failure
    return structs.replace(failure, message=f"{failure.message} ({told})")


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


#: A refusal, and what makes those before it be of no account.
_REFUSED, _FORGIVEN = "refused", frozenset({"committed", "resumed"})


def nobody_is_fit(events: Sequence[Event], listening: Set[str], *, now_ms: int, patience_ms: int) -> Failure | None:
    """Return the failure of a run that every worker which listens has refused; None if one may be able to run it.

    That is so when some time has passed since the first of those who refused it, and since then nothing was committed,
    nor was the run resumed.
    """
    refused: dict[str, Event] = {}
    for event in events:
        if event.what in _FORGIVEN:
            refused.clear()
        elif event.what == _REFUSED:
            refused.setdefault(event.subject, event)
    if not refused or not listening or not listening <= refused.keys():
        return None
    if now_ms - min(event.at_ms for event in refused.values()) < patience_ms:
        return None
    problems = list(dict.fromkeys(refused[worker].note for worker in sorted(listening)))
    more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
    return Failure(f"no worker that listens can run it: {problems[0]}{more}")


def spelled(failure: Failure) -> Failure:
    """Spell what isn't text, which user code may have put into its exceptions."""
    told = {name: value for name, value in structs.asdict(failure).items() if isinstance(value, str)}
    return structs.replace(failure, **{name: as_text(text) for name, text in told.items()})
