"""A checkup: asks every worker of a queue what it is, what it can import, and what it sees; for `rqmr doctor`.

An RQ job reaches one worker, nobody knows which. So as many are put into the queue as workers listen, and each holds
its worker until all have answered, or for some seconds: meanwhile the others take the others.
"""

from __future__ import annotations

import getpass
import importlib.util
import os
import platform
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
from msgspec import Struct
from rq import Queue, Worker, get_current_job
from rq.job import Job as RQJob
from rq.suspension import WORKERS_SUSPENDED

from rqmr import __version__, keys, signing, urls
from rqmr.connection import IN_ENVIRONMENT, Client, check_server, clone, join
from rqmr.damage import as_words, unpacked
from rqmr.dispatch import Dispatch
from rqmr.errors import DamagedError, RqmrError, SignatureError
from rqmr.inputs import InputMark, is_as_marked, path_of
from rqmr.model import PROTOCOL

#: How long an answer is waited for: of one that RQ calls busy, a horse's turn and a little; of any other until it
#: should have taken a question, and if it has, as long as importing rqmr may take on a machine with much to do.
_BUSY_SECONDS, _IDLE_SECONDS, _TAKEN_SECONDS = 3.5, 5.0, 15.0
#: How long a worker is held at most, if nobody lets go of it.
_HOLD_SECONDS = 16.0
_POLL_SECONDS = 0.03
#: Seconds that what is asked and answered is kept.
_KEEP = 60
#: Times that a worker may fail one question, for each that listens: it comes back for the others' at once.
_TRIES = 10
_PINGS = 9
_FIELDS = ("hostname", "pid", "state", "last_heartbeat", "shutdown_requested_date")


class Question(Struct, frozen=True):
    """What every worker is asked."""

    modules: tuple[str, ...] = ()  # top-level names: can it import them?
    inputs: tuple[tuple[bytes, InputMark], ...] = ()  # does it see them, as they are here?
    urls: tuple[str, ...] = ()  # of inputs: can it read them?
    servers: tuple[str, ...] = ()  # URLs of servers for a share of the shuffle: can it use them?
    stage: str = ""  # an empty directory: does it see it, and may it write there? A URL: has it what that takes?


class Answer(Struct, frozen=True):
    """What one worker has answered."""

    worker: str
    host: str
    user: str
    python: str  # "3.13.1"
    executable: str  # that interpreter
    rqmr: str
    protocol: int
    rq: str
    latency_ms: float  # to Redis and back
    has_secret: bool
    missing: tuple[str, ...] = ()  # modules that it can't import
    inputs: tuple[str, ...] = ()  # of each: "seen", "absent", "other" (of the same name), or why it can't be read
    urls: tuple[str, ...] = ()  # of each: "" or why it can't be read
    servers: tuple[str, ...] = ()  # of each: "" or why it can't be used
    stage: str = ""  # "seen", "absent", "reached" (a URL), or why it can't be written to; "" if not asked
    refusal: str = ""  # why it looked at nothing: the question wasn't signed with its secret


class Listed(Struct, frozen=True):
    """A worker as RQ lists it."""

    name: str
    host: str
    pid: str
    state: str  # "idle", "busy", "suspended"; "" if it is listed, but gone
    heartbeat: str  # when it was last heard of, by its clock
    is_leaving: bool  # whether it was told to stop


class Checkup(Struct, frozen=True):
    """What came of asking."""

    listed: tuple[Listed, ...] = ()
    answers: tuple[Answer, ...] = ()
    refusals: tuple[tuple[str, str], ...] = ()  # worker, and the last line of the traceback
    waiting: int = 0  # RQ jobs in the queue before
    is_suspended: bool = False  # by `rq suspend`


def tell(checkup: str, asked: bytes) -> None:
    """Answer a question; called by an RQ worker. It holds the worker until all have answered."""
    rq_job = get_current_job()
    assert rq_job is not None, "tell is called by an RQ worker"
    with closing(clone(rq_job.connection, patient=False)) as client:
        key = keys.checkup(checkup)
        if not client.exists(key):
            return  # nobody waits any more
        try:
            question, refusal = unpacked(signing.verified("checkup", checkup, "", asked), Question, "a question"), ""
        except SignatureError as error:
            question, refusal = Question(), str(error)
        worker = rq_job.worker_name or rq_job.id
        answer = msgspec.msgpack.encode(_answer(client, worker, checkup, question, refusal))
        pipe = client.pipeline()
        pipe.hset(key, worker, answer)
        pipe.expire(key, _KEEP)
        pipe.execute()
        end = time.monotonic() + _HOLD_SECONDS
        while time.monotonic() < end and client.exists(key):
            time.sleep(_POLL_SECONDS)


def _answer(client: Client, worker: str, checkup: str, question: Question, refusal: str) -> Answer:
    return Answer(
        worker=worker,
        host=socket.gethostname(),
        user=_user(),
        python=platform.python_version(),
        executable=sys.executable,
        rqmr=__version__,
        protocol=PROTOCOL,
        rq=_version_of("rq"),
        latency_ms=round_trip_ms(client)[0],
        has_secret=bool(os.environ.get(signing.VARIABLE)),
        missing=tuple(name for name in question.modules if not can_import(name)),
        inputs=tuple(_look_at(path, mark) for path, mark in question.inputs),
        urls=tuple(_trouble_with(url) for url in question.urls),
        servers=tuple(_trouble_at(url, client) for url in question.servers),
        stage=_try_to_write(question.stage, f"{checkup}-{worker}") if question.stage else "",
        refusal=refusal,
    )


def can_import(name: str) -> bool:
    """Whether there is such a top-level module; it isn't imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def round_trip_ms(client: Client) -> tuple[float, float]:
    """Return how long it takes to Redis and back: usually, and at worst."""
    took = []
    for _ in range(_PINGS):
        began = time.perf_counter()
        client.ping()
        took.append((time.perf_counter() - began) * 1000)
    took.sort()
    return took[len(took) // 2], took[-1]


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user that has no name
        return str(os.getuid())


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _look_at(path: bytes, mark: InputMark) -> str:
    try:
        path_of(path).open("rb").close()
    except (FileNotFoundError, NotADirectoryError):
        return "absent"
    except OSError as error:
        return error.strerror or type(error).__name__
    return "seen" if is_as_marked(path, mark) else "other"


def _trouble_with(url: str) -> str:
    try:
        urls.find(url)
    except (RqmrError, OSError) as error:
        return str(error)
    return ""


def _trouble_at(url: str, client: Client) -> str:
    try:
        with closing(join(url, client, patient=False)) as server:
            check_server(server, url, login=IN_ENVIRONMENT)
    except RqmrError as error:
        return str(error)
    return ""


def _try_to_write(stage: str, name: str) -> str:
    try:
        if urls.is_url(stage):
            urls.file_system(stage)
            return "reached"
        if not Path(stage).is_dir():
            return "absent"
        with suppress(FileNotFoundError):
            Path(stage, name).write_bytes(b"")
            Path(stage, name).unlink()
    except RqmrError as error:
        return str(error)
    except OSError as error:
        return error.strerror or type(error).__name__
    return "seen"


def ask(client: Client, queue: str, question: Question) -> Checkup:
    """Ask all workers that listen on a queue, and return what they have told within some seconds.

    Raises:
        redis.RedisError: Redis can't be reached, or this user may put nothing into the queue.
        SignatureError: the secret is too short.
    """
    listed = _listed(client, queue)
    waiting = client.llen(Queue.redis_queue_namespace_prefix + queue)
    is_suspended = bool(client.exists(WORKERS_SUSPENDED))
    with _Round(client, queue, question) as asking:
        if not is_suspended:
            asking.until_answered({each.name: each.state for each in listed})
        return Checkup(listed, tuple(asking.answers()), tuple(asking.refusals.items()), waiting, is_suspended)


def _listed(client: Client, queue: str) -> tuple[Listed, ...]:
    prefix = Worker.redis_worker_namespace_prefix
    names = sorted(Dispatch(client, queue).listening())
    pipe = client.pipeline(transaction=False)
    for name in names:
        pipe.hmget(prefix + name, *_FIELDS)
    told = []
    for name, fields in zip(names, pipe.execute(), strict=True):
        host, pid, state, heartbeat, leaves = (as_words(field or b"") for field in fields)
        told.append(Listed(name, host, pid, state, heartbeat, bool(leaves)))
    return tuple(told)


class _Round:
    """One round of asking; nothing of it stays in Redis."""

    def __init__(self, client: Client, queue: str, question: Question) -> None:
        self._client = client
        self._queue = Queue(queue, connection=client)
        self._dispatch = Dispatch(client, queue)
        self._id = secrets.token_hex(6)
        self._key = keys.checkup(self._id)
        self._asked = signing.sign("checkup", self._id, "", msgspec.msgpack.encode(question))
        self._tickets: list[str] = []
        self.refusals: dict[str, str] = {}

    def __enter__(self) -> _Round:
        self._client.hset(self._key, "asked", b"")
        self._client.expire(self._key, _KEEP)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.unlink(self._key)  # which lets go of the workers
        self._dispatch.drop(self._tickets)  # RQ forgets those that failed after a minute

    def until_answered(self, states: dict[str, str]) -> None:
        """Wait until all have answered that are likely to."""
        began = time.monotonic()
        idle = {name for name, state in states.items() if state == "idle"}
        while unheard := set(states) - self._heard():
            held = self._held(unheard)
            took = time.monotonic() - began
            if took > (_TAKEN_SECONDS if held else _IDLE_SECONDS if unheard & idle else _BUSY_SECONDS):
                return
            in_queue = len(self._tickets) - len(self._dispatch.missing(self._tickets))
            if len(self._tickets) < len(states) * _TRIES:
                self._enqueue(len(unheard) - in_queue - held)
            time.sleep(_POLL_SECONDS)

    def _held(self, unheard: set[str]) -> int:
        """How many tickets are with workers that have yet to answer: taken, and not told of."""
        taken = self._dispatch.missing(self._tickets)
        pipe = self._client.pipeline(transaction=False)
        for ticket in taken:
            pipe.hget(RQJob.key_for(ticket), "worker_name")
        return sum(as_words(name) in unheard for name in pipe.execute() if name)

    def answers(self) -> Iterator[Answer]:
        """Yield what was answered so far."""
        for name, told in self._client.hgetall(self._key).items():
            if name != b"asked":
                with suppress(DamagedError):
                    yield unpacked(told, Answer, "a worker's answer")

    def _heard(self) -> set[str]:
        self.refusals |= self._dispatch.refusals(self._tickets)
        return {as_words(name) for name in self._client.hkeys(self._key)} | set(self.refusals)

    def _enqueue(self, count: int) -> None:
        new = [f"rqmr-checkup-{self._id}-{len(self._tickets) + number}" for number in range(1, count + 1)]
        self._tickets += new
        self._queue.enqueue_many(
            [
                Queue.prepare_data(
                    "rqmr.checkup.tell",
                    (self._id, self._asked),
                    job_id=ticket,
                    description="rqmr doctor",
                    timeout=int(_HOLD_SECONDS * 2),
                    ttl=_KEEP,
                    result_ttl=0,
                    failure_ttl=_KEEP,
                    at_front=True,  # what waits may take hours
                )
                for ticket in new
            ]
        )
