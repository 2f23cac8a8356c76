"""Everything rqmr raises on purpose. A message says what, which one, and what to do now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rqmr.model import Failure


class RqmrError(Exception):
    """The root of every error that rqmr raises on purpose."""


class RefusedError(RqmrError):
    """The run was refused before it began: nothing was started and nothing was changed."""


class JobError(RefusedError):
    """The job can't be found, imported, or isn't a valid job."""


class ParameterError(RefusedError):
    """A job's parameter is unknown, missing, or doesn't fit its annotation."""


class InputError(RefusedError):
    """An input matches nothing or can't be read."""


class OutputError(RefusedError):
    """The output directory can't take this run's output."""


class RedisError(RefusedError):
    """The Redis that was named can't be reached or can't serve rqmr."""


class SignatureError(RefusedError):
    """What would become code isn't signed with the secret that is in this process's environment."""


class DamagedError(RqmrError):
    """What Redis holds of a run can't be what rqmr wrote."""


class RunFailed(RqmrError):
    """The run ended without its output; `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure
        #: The last lines that workers printed, each with the worker's name.
        self.printed: list[str] = []
        #: What its user can do now, if anything.
        self.advice = ""


class RunLeft(RunFailed):
    """This command can't go on with the run, but another one can; `failure` says what came in its way."""


class RunCancelled(RqmrError):
    """The run was cancelled before it ended."""


class RecordError(RqmrError):
    """The job's own code raised, or yielded what can't be carried; `failure` has the place and the traceback."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class KeyFunctionError(RqmrError):
    """A combiner or partitioner raised for a key; the cause is what it raised."""

    def __init__(self, key: object) -> None:
        super().__init__(key)
        self.key = key


class CarryError(RqmrError):
    """A key or value has a type that the wire can't carry."""


class MixedKeysError(RqmrError):
    """Keys of one step have more than one type, so they have no order."""


class AttemptEnded(RqmrError):
    """This attempt's work isn't wanted any more: another one won, or the run has ended. Not an error of anyone."""


class StoreError(RqmrError):
    """Redis failed while a task wrote or read segments. The machine's fault, so it isn't charged to the code."""


class PhaseReopened(RqmrError):
    """The phase before has to run a task again first; this attempt gives its task back. Not an error of anyone."""


class WorkerUnfit(RqmrError):
    """This worker lacks what the run needs; another one may have it, so it isn't charged to the code."""


class SegmentLost(RqmrError):
    """Committed segments are missing or damaged: their tasks have to run again."""

    def __init__(self, producers: Sequence[int], reason: str) -> None:
        super().__init__(f"segment of task {', '.join(map(str, producers))} is {reason}")
        self.producers = producers
