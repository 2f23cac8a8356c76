"""Clients: what they open they close."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from harness import ROOT, wait_until

from rqmr.connection import clone


def test_a_client_that_is_closed_has_no_connection_left(redis: Any) -> None:
    client = clone(redis, patient=False, name="a-clone")
    client.ping()
    assert "a-clone" in names(redis)
    client.close()
    wait_until(lambda: "a-clone" not in names(redis), timeout=5, what="the server sees it go")
    assert client.ping(), "it is still there to be asked"
    client.close()


#: Interrupts a command of so many numbers that it is nearly always spelling them.
INTERRUPTED = """
import signal, sys
from rqmr.connection import connect

class Interrupted(Exception):
    pass

def interrupt(number, frame):
    raise Interrupted

connection = connect(sys.argv[1]).connection_pool.get_connection()
numbers = range(100_000)
interrupted = 0
signal.signal(signal.SIGALRM, interrupt)
while interrupted < 50:
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01 + interrupted * 0.001)
        while True:
            connection.pack_command("RPUSH", "key", *numbers)
    except Interrupted:
        interrupted += 1
print(interrupted)
"""


def test_a_command_can_be_interrupted_while_it_spells_its_numbers(redis_url: str) -> None:
    """Hiredis alone ends the process then, by a segmentation fault."""
    command = [sys.executable, "-c", INTERRUPTED, redis_url]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "50\n", "")


def test_numbers_arrive_as_python_spells_them(redis: Any) -> None:
    redis.rpush("key", 0, -7, 10**30, 0.1, 1e300, "text", b"\xff")
    assert redis.lrange("key", 0, -1) == [b"0", b"-7", b"1" + b"0" * 30, b"0.1", b"1e+300", b"text", b"\xff"]
    redis.unlink("key")


def names(redis: Any) -> list[str]:
    return [each["name"] for each in redis.client_list()]
