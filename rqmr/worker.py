"""What an RQ worker executes: a ticket brings its work-horse to a run, and the horse claims task after task.

It runs inside other people's worker processes, as `checkup` and `preload` do: none of them imports typer or rich.
"""

from __future__ import annotations

import io
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Literal, NoReturn

import redis
from msgspec import structs
from rq import get_current_job

from rqmr.asks import ShippedFile
from rqmr.connection import clone
from rqmr.dispatch import Dispatch, is_told_to_stop
from rqmr.errors import (
    AttemptEnded,
    DamagedError,
    JobError,
    MixedKeysError,
    PhaseReopened,
    RecordError,
    RqmrError,
    SegmentLost,
    SignatureError,
    StoreError,
    WorkerUnfit,
)
from rqmr.failures import advised, shown_by_rq, unfit
from rqmr.files import open_here, opener
from rqmr.heartbeat import Heartbeat, give_back
from rqmr.included import NOTHING, Included
from rqmr.job import Job, new_job
from rqmr.keys import RunKeys
from rqmr.loader import decode_package, load, unload
from rqmr.model import AttemptId, Claim, Failure, Kind, Piece, Split
from rqmr.parcels import TravellingFile
from rqmr.records import Place
from rqmr.scheduler import is_complete
from rqmr.segments import RedisSegments, RedisSink
from rqmr.sight import Sight
from rqmr.state import State
from rqmr.tasks import Care, Task
from rqmr.teller import Teller
from rqmr.tick import fail_if_nobody_is_fit, tick

#: How long one work-horse goes on claiming before it returns to RQ: others' RQ jobs must get their turn.
_TURN_SECONDS = 3.0
#: How long a horse that stands by does so at least, though others' RQ jobs wait: two runs' horses would else take turns
#: as fast as RQ can fork.
_LEAST_STAND_SECONDS = 0.2
#: How far a run may fall behind the others, in seconds of normal priority: they wait for it when it comes back.
_BEHIND_SECONDS = 20.0
#: Seconds between two looks of a horse that stands by, at most: a tenth of what it has waited already.
_POLL_SECONDS = 0.2
#: Seconds after which a worker that can't run a run takes its next ticket.
_UNFIT_SECONDS = 2.0


def run_ticket(run: str, ticket: str, task: str) -> None:
    """Claim and run tasks of a run, first the one that the ticket names, until there are none or the turn is over.

    Raises:
        RqmrError: an attempt failed, so that RQ shows its traceback. The run knows already.
    """
    rq_job = get_current_job()
    assert rq_job is not None, "run_ticket is called by an RQ worker"
    client = clone(rq_job.connection, patient=True)
    worker = rq_job.worker_name or ticket
    try:
        state = State(client, run)
        _check_protocol(state, worker)
        if not _gives_way(state, ticket, worker):
            _Horse(state, ticket, worker=worker).work(task)
    except AttemptEnded:
        pass  # the run has ended, so the ticket has come too late
    except SignatureError as error:
        raise SignatureError(f"worker {worker} on {socket.gethostname()} refuses it: {error}") from None
    finally:
        unload()  # a worker that runs jobs in its own process has others' modules too
        client.close()
        sys.stdout.flush()  # RQ ends a work-horse with os._exit
        sys.stderr.flush()


def _gives_way(state: State, ticket: str, worker: str) -> bool:
    """Let another run have its turn, if it waits and has had less of the workers; return whether it does.

    The ticket is replaced by one behind those that wait.
    """
    dispatch = Dispatch(state.client, state.spec.queue)
    others = [RunKeys(run) for run in sorted(dispatch.runs() - {state.run})]
    behind = structs.replace(state.spec, priority="normal").cost_of(_BEHIND_SECONDS)
    try:
        if not others or state.scripts.give_way(others, worker, behind) != "GIVE WAY":
            return False
    except DamagedError:
        return False  # it is perhaps another run that is damaged; of this one it would be told elsewhere
    dispatch.enqueue(state.run, state.tickets.issue(1))
    state.tickets.forget([ticket])  # last: if this horse dies now, the run still has one
    return True


def _check_protocol(state: State, worker: str) -> None:
    try:
        _ = state.spec
    except (AttemptEnded, SignatureError):
        raise
    except RqmrError as error:
        raise WorkerUnfit(f"worker {worker} on {socket.gethostname()}: {error}") from None


class _Horse:
    """One turn of a work-horse on one run."""

    def __init__(self, state: State, ticket: str, *, worker: str) -> None:
        self._state = state
        self._ticket = ticket
        self._worker = worker
        self._host = socket.gethostname()
        self._sight = Sight(state)
        self._dispatch = Dispatch(state.client, state.spec.queue)
        # RQ sets this in the process that it forks for a job, and not where jobs run in the worker itself.
        own_process = "RQ_WORKER_ID" in os.environ
        self._heartbeat = Heartbeat(state, worker=worker, own_process=own_process, is_told_to_stop=is_told_to_stop)
        # A ticket that was enqueued twice by a repeated command is two horses, and they are told apart.
        self._token = f"{ticket}.{secrets.token_hex(4)}"
        self._sequence = 0
        self._stood_since = 0.0
        self._drives = False
        self._job_class: type[Job] | None = None
        self._included = NOTHING

    def work(self, named: str) -> None:
        """Claim task after task; when there is none and nobody stands by, wait for one, and for the driver's end."""
        end = time.monotonic() + _TURN_SECONDS
        try:
            self._check_stores()
            claim = self._claim(named)
            while isinstance(claim, Claim) or (claim == "STAND BY" and self._stand_by()):
                if isinstance(claim, Claim):
                    self._stood_since = 0.0
                    self._attempt(claim)
                if self._heartbeat.leaves or time.monotonic() > end:
                    break
                claim = self._claim()
        finally:
            self._heartbeat.close()
            self._included.close()
            self._leave()

    def _check_stores(self) -> None:
        """Refuse the run, before a task is taken, if its segments are on servers that can't be used from here."""
        try:
            self._state.stores.check()
        except WorkerUnfit as lack:
            self._refuse(lack)

    def _claim(self, named: str = "") -> Claim | Literal["STAND BY", "NOTHING"]:
        self._sequence += 1
        return self._state.claim(
            token=self._token, sequence=self._sequence, ticket=self._ticket, named=self._sight.prefer(named),
            worker=self._worker, host=self._host,
        )  # fmt: skip

    def _stand_by(self) -> bool:
        """Do what a driver does if there is none, and wait a little; return whether to stay."""
        self._stood_since = self._stood_since or time.monotonic()
        if not self._state.spec.ends_with_driver and not self._drive():
            return False
        stood = time.monotonic() - self._stood_since
        if stood > _LEAST_STAND_SECONDS and self._dispatch.is_wanted():
            return False
        time.sleep(min(_POLL_SECONDS, max(0.01, stood / 10)))
        return True

    def _drive(self) -> bool:
        """Tick if nobody else does; return whether there is anything left to wait for."""
        if self._state.drive(self._token, lease_ms=self._state.spec.lease_ms) is None:
            return True
        self._drives = True
        facts = tick(self._state, self._dispatch)
        return facts is not None and not is_complete(facts)  # what is left then is the collecting, which is a driver's

    def _leave(self) -> None:
        """Let another one stand by and drive, fill the window, and see that a run without a driver doesn't expire."""
        if self._stood_since:
            self._state.stand_down()
        if self._drives:
            self._state.resign(self._token)
        self._state.touch(in_time=True)
        tick(self._state, self._dispatch)

    def _attempt(self, claim: Claim) -> None:
        """Run one attempt to its end, which is one of these.

        committed           it has won
        not wanted          another attempt won, the run has ended, or a phase was opened again: released
        worker leaves       it was told to stop: released
        segment lost        the tasks that wrote what is missing are reopened; this one is released
        worker unfit        another one may be able to: released, told, and raised for RQ to show
        Redis failed        nobody is charged: the lease runs out, and the task is another's
        anything else       the job's fault: charged, and raised for RQ to show
        """
        state, place = self._state, Place()
        attempt, task = claim.attempt, claim.attempt.task
        sink = RedisSink(state, attempt, place)
        try:
            source = state.split_of(claim) if task.kind == Kind.MAP else RedisSegments(state, task)
            opened = self._opener(source, attempt, place) if isinstance(source, Split) else None
            open_part = None if self._sight.sees_stage() else partial(TravellingFile, sink)
            with self._heartbeat.beating(claim, place), _care(state, claim) as care, _opening(opened):
                # A server that lost its last second gives the same number to another attempt.
                part = f"{attempt}-{secrets.token_hex(3)}"
                # What has failed is tried again as it is written; where that can't be, it isn't fused at all.
                fuses = attempt.number == 1 and state.spec.max_failed > 1
                work = Task(state.spec, self._job, task, place, sink, part, care, open_part, fuses=fuses)
                outcome = work.run(source)
                sink.flush()
                if state.commit(claim, outcome):
                    state.advance(state.spec.phase_of(task))
                sink.sweep()
        except (AttemptEnded, PhaseReopened):
            sink.discard()
            if self._heartbeat.leaves:
                give_back(state, attempt, self._worker)
            else:
                state.release(attempt)
        except SegmentLost as lost:
            assert isinstance(source, RedisSegments)
            sink.discard()
            for producer in lost.producers:
                state.reopen(*source.winners[producer], task)
            state.release(attempt)
        except WorkerUnfit as lack:
            sink.discard()
            state.release(attempt)
            self._refuse(lack)
        except (redis.RedisError, StoreError):
            raise
        except BaseException as error:  # user code may raise KeyboardInterrupt, too
            sink.discard()
            failure = self._failure(claim, place, error)
            if state.fail(attempt, failure) in ("FAILED", "RUN FAILED"):
                if failure.traceback:
                    raise RqmrError(shown_by_rq(state.run, attempt, failure)) from None
                raise

    def _refuse(self, lack: WorkerUnfit) -> NoReturn:
        """Tell what this worker lacks, and raise it for RQ to show."""
        told = f"worker {self._worker} on {self._host}: {lack}"
        self._state.tell("refused", self._worker, told)
        self._linger()
        raise WorkerUnfit(told) from lack

    def _linger(self) -> None:
        """Leave the run's tickets to workers that can run it, unless RQ jobs of others wait; fail it if none can."""
        end = time.monotonic() + _UNFIT_SECONDS
        while time.monotonic() < end and not self._dispatch.is_wanted_by_others(self._state.run):
            time.sleep(_POLL_SECONDS)
        fail_if_nobody_is_fit(self._state, self._dispatch)

    def _opener(self, split: Split, attempt: AttemptId, place: Place) -> Callable[[Piece], io.BufferedReader] | None:
        """Return how to open the files of a split, if not all of them are here."""
        if self._sight.sees(split):
            return None

        def opened(piece: Piece) -> io.BufferedReader:
            if self._sight.sees_file(piece.path):
                return open_here(piece)
            shipped = ShippedFile(self._state, attempt, piece, place, worker=self._worker, host=self._host)
            return io.BufferedReader(shipped)

        return opened

    def _job(self) -> Job:
        spec = self._state.spec
        if self._job_class is None:
            package = decode_package(self._state.package(), spec.code)
            try:
                self._job_class = load(package, spec.job_class)
            except JobError as error:
                raise WorkerUnfit(unfit(error, spec)) from error
            self._included = Included(package.files)
        return new_job(self._job_class, spec.params, self._included)

    def _failure(self, claim: Claim, place: Place, error: BaseException) -> Failure:
        task = str(claim.attempt.task)
        if not isinstance(error, Exception):
            error = RecordError(place.failure(error))
        if isinstance(error, RecordError):
            failure = structs.replace(error.failure, task=task, worker=self._worker, host=self._host)
            return advised(failure, error.__cause__, self._state.spec)
        who, is_final = self._state.spec.job_class, isinstance(error, (JobError, MixedKeysError))
        told = f"{who if isinstance(error, RqmrError) else type(error).__name__}: {error}"
        return Failure(told, task, self._worker, self._host, final=is_final)


@contextmanager
def _opening(opened: Callable[[Piece], io.BufferedReader] | None) -> Iterator[None]:
    """Let the readers open files in this way, if one is given."""
    if opened is None:
        yield
        return
    token = opener.set(opened)
    try:
        yield
    finally:
        opener.reset(token)


@contextmanager
def _care(state: State, claim: Claim) -> Iterator[Care]:
    """Yield what an attempt has to take care of, since others of its task died."""
    if not claim.careful:
        yield Care()
        return
    with closing(Teller(state, claim.attempt)) as teller:
        yield Care(teller.tell, claim.bad)
