"""What rqmr reads of RQ's own keys: data, and never code."""

from __future__ import annotations

import base64
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

from rqmr.dispatch import Dispatch

TICKET = "wordcount-7k2p9x-t1"


class Bomb:
    """Makes a directory where it is unpickled."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.directory),)


def fail_ticket(redis: Any, told: str, **fields: bytes) -> None:
    """Write what RQ writes of a job that failed."""
    job = {"status": "failed", "worker_name": "w1", "data": b"", "origin": "rqmr", **fields}
    redis.hset(f"rq:job:{TICKET}", mapping=job)
    packed = base64.b64encode(zlib.compress(told.encode()))
    redis.xadd(f"rq:results:{TICKET}", {"type": 2, "exc_string": packed, "return_value": base64.b64encode(b"?")})


def test_nothing_that_rq_keeps_of_a_ticket_is_unpickled(redis: Any, tmp_path: Path) -> None:
    """RQ's own means would do so, and whoever can write to Redis would run code in the driver."""
    bomb = pickle.dumps(Bomb(tmp_path / "unpickled"))
    fail_ticket(redis, "Traceback …\nImportError: no rqmr", meta=bomb, data=bomb, result=bomb)
    redis.xadd(
        f"rq:results:{TICKET}",
        {
            "type": 2,
            "return_value": base64.b64encode(bomb),
            "exc_string": base64.b64encode(zlib.compress(b"Traceback\nE")),
        },
    )
    dispatch = Dispatch(redis, "rqmr")

    assert dispatch.refusals([TICKET]) == [("w1", "E")]
    assert dispatch.over([TICKET]) == {TICKET: ""}
    dispatch.stop(TICKET)

    assert not (tmp_path / "unpickled").exists()


def test_what_rq_tells_of_a_failed_ticket_is_read(redis: Any) -> None:
    fail_ticket(redis, "Traceback (most recent call last):\n  …\nImportError: no rqmr\n")
    dispatch = Dispatch(redis, "rqmr")

    assert dispatch.refusals([TICKET, "wordcount-7k2p9x-t2"]) == [("w1", "ImportError: no rqmr")]
    fail_ticket(redis, "Work-horse terminated unexpectedly; waitpid returned 9")
    assert dispatch.refusals([TICKET]) == []
    assert dispatch.over([TICKET]) == {TICKET: "SIGKILL"}


def test_a_worker_that_refuses_a_run_is_told_in_its_own_words(redis: Any) -> None:
    fail_ticket(redis, "Traceback (most recent call last):\n  …\nrqmr.errors.SignatureError: worker w1 on h refuses it")
    assert Dispatch(redis, "rqmr").refusals([TICKET]) == [("w1", "worker w1 on h refuses it")]


def test_a_traceback_that_is_none_or_unpacks_to_too_much_is_not_waited_for(redis: Any) -> None:
    dispatch = Dispatch(redis, "rqmr")
    fail_ticket(redis, "Traceback\nlast")
    packer = zlib.compressobj()
    bomb = b"".join(packer.compress(b"Traceback " + bytes(1 << 20)) for _ in range(64)) + packer.flush()
    for packed in (b"not base64!", base64.b64encode(b"not zlib"), base64.b64encode(bomb), b"\xff\xfe"):
        redis.xadd(f"rq:results:{TICKET}", {"type": 2, "exc_string": packed})
        told = dispatch.refusals([TICKET])
        assert len(told) <= 1
        assert sum(len(line) for _, line in told) <= 1000
