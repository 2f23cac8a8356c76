"""The embedded server and the local workers: they serve, they are private, and nothing of them is ever left."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import redis
import rq
from harness import alive, family, read_line, running

from rqmr import ahead
from rqmr.errors import RedisError
from rqmr.local import Local
from rqmr.sessions import members, processes
from rqmr.sockets import socket_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")

T = TypeVar("T")

#: All that was started ends within this time, however its parent ends.
END_SECONDS = 6.0

#: A program that has a work-horse whose own child sleeps. Arguments: directories to remove should it die.
PARENT = """
import os, pathlib, sys, time
import redis, rq
from rqmr.local import Local

local = Local(workers=2, queue="q", preload=[])
local.start()
with redis.Redis.from_url(local.wait_ready()) as client:
    rq.Queue("q", connection=client).enqueue("subprocess.call", ["sleep", "60"])
    for path in sys.argv[1:]:
        local.remove_on_death(pathlib.Path(path))
    print(client.connection_pool.connection_kwargs["path"], flush=True)
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        print(client.ping(), flush=True)
        {at_interrupt}
"""

#: A program whose child holds everything open that its parent had.
FORKING_PARENT = """
import os, time
from rqmr.local import Local

local = Local(workers=1, queue="q", preload=[])
local.start()
url = local.wait_ready()
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(60)
"""


def wait_until(predicate: Callable[[], T], timeout: float, what: str) -> T:
    """Return the first true value of *predicate*; fail with *what* when there is none in time."""
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        assert time.monotonic() < deadline, f"not in {timeout:g} s: {what}"
        time.sleep(0.01)
    return value


def parent_of(pid: int) -> int:
    return next(parent for process, parent, _ in processes() if process == pid)


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


def family_at_work(process: subprocess.Popen[str]) -> set[int]:
    """The whole family of PARENT, once the youngest sleeps."""
    wait_until(lambda: "sleep 60" in map(command, family(process.pid)), 10, "the job's own child runs")
    found = family(process.pid)
    assert len(found) >= 6, "supervisor, server, two workers, a work-horse and its child"
    return found


def gone_in_time(pids: set[int], directory: Path) -> None:
    wait_until(lambda: not alive(pids), END_SECONDS, "all processes have ended")
    wait_until(lambda: not directory.exists(), END_SECONDS, "the directory is removed")


def registered(client: redis.Redis, count: int) -> list[rq.Worker]:
    """The workers on the queue, once there are *count* of them."""

    def workers() -> list[rq.Worker]:
        found = rq.Worker.all(queue=rq.Queue("q", connection=client))
        return found if len(found) == count else []

    return wait_until(workers, 10, f"{count} workers are registered")


def test_the_server_can_be_reached_by_this_user_alone():
    with Local(workers=0, queue="q") as local, redis.Redis.from_url(local.wait_ready()) as client:
        assert client.ping()
        directory = socket_of(local.wait_ready()).parent
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert client.config_get("port") == {"port": "0"}
        assert not tcp_sockets_of(client.info("server")["process_id"])


def tcp_sockets_of(pid: int) -> set[str]:
    """The inodes of a process's TCP sockets."""
    links = (link.readlink().name for link in Path(f"/proc/{pid}/fd").iterdir())
    own = {link.removeprefix("socket:[").removesuffix("]") for link in links if link.startswith("socket:")}
    tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    return own & {line.split()[9] for table in tables for line in table}


def test_the_server_never_drops_data_for_want_of_memory_and_keeps_none_on_disk():
    with Local(workers=0, queue="q") as local, redis.Redis.from_url(local.wait_ready()) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("save") == {"save": ""}
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert 0 < int(client.config_get("maxmemory")["maxmemory"]) <= memory // 2


def test_the_server_in_use_is_named_with_its_version():
    with Local(workers=0, queue="q") as local:
        local.wait_ready()


def test_workers_register_under_the_queue_and_run_its_jobs():
    with Local(workers=2, queue="q", preload=[]) as local, redis.Redis.from_url(local.wait_ready()) as client:
        names = {worker.name for worker in registered(client, 2)}
        assert names == {event["worker"] for event in local.events() if "worker" in event}
        job = rq.Queue("q", connection=client).enqueue("operator.add", 2, 3)
        wait_until(lambda: job.is_finished, 10, "the job is done")
        assert job.return_value() == 5


def test_what_a_job_prints_comes_with_its_workers_name():
    with Local(workers=1, queue="q", preload=[]) as local, redis.Redis.from_url(local.wait_ready()) as client:
        queue = rq.Queue("q", connection=client)
        queue.enqueue("builtins.print", "grüße\r\nfrom", "a job")
        lines = wait_until(local.new_lines, 10, "the job printed")
        assert lines == [("w1", "grüße"), ("w1", "from a job")]


def test_a_line_without_an_end_is_seen_when_the_rest_is_drained():
    with Local(workers=1, queue="q", preload=[]) as local, redis.Redis.from_url(local.wait_ready()) as client:
        job = rq.Queue("q", connection=client).enqueue("os.write", 1, b"whole\nhalf")
        wait_until(lambda: job.is_finished, 10, "the job is done")
        assert local.new_lines() == [("w1", "whole")]
        assert local.new_lines() == []
        assert local.drain() == [("w1", "half")]


def test_a_module_of_the_users_cannot_stand_in_for_one_of_pythons(tmp_path, monkeypatch):
    (tmp_path / "queue.py").write_text("raise SystemExit('this is a MapReduce job')")
    monkeypatch.chdir(tmp_path)
    with Local(workers=1, queue="q", preload=[]) as local, redis.Redis.from_url(local.wait_ready()) as client:
        registered(client, 1)


def test_close_ends_everything_and_removes_the_directory(tmp_path):
    registered_path = tmp_path / "stage"
    registered_path.mkdir()
    before = family(os.getpid())
    with Local(workers=2, queue="q", preload=[]) as local:
        url = local.wait_ready()
        local.remove_on_death(registered_path)
        with redis.Redis.from_url(url) as client:
            rq.Queue("q", connection=client).enqueue("subprocess.call", ["sleep", "60"])
        started = wait_until(
            lambda: "sleep 60" in map(command, family(os.getpid())) and family(os.getpid()) - before,
            10,
            "the job's own child runs",
        )
        closing = time.monotonic()
        local.close()
        assert time.monotonic() - closing < END_SECONDS
        assert not alive(started)
        assert not socket_of(url).parent.exists()
        assert registered_path.exists(), "a clean end leaves the output's stage to the driver"
    local.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_everything_ends_with_its_parent(number):
    with running(PARENT.format(at_interrupt="")) as parent:
        directory = Path(read_line(parent)).parent
        started = family_at_work(parent)
        parent.send_signal(number)
        gone_in_time(started, directory)


def test_everything_ends_though_a_fork_of_the_parent_lives_on():
    with running(FORKING_PARENT) as parent:
        child = int(read_line(parent))
        try:
            started = family(parent.pid) - {child}
            parent.kill()
            wait_until(lambda: not alive(started), END_SECONDS, "all processes have ended")
            assert alive({child})
        finally:
            os.kill(child, signal.SIGKILL)


def test_no_server_worker_or_work_horse_outlives_the_supervisor():
    before = family(os.getpid())
    with Local(workers=2, queue="q", preload=[]) as local:
        directory = socket_of(local.wait_ready()).parent
        with redis.Redis.from_url(local.wait_ready()) as client:
            (supervisor,) = {parent_of(worker.pid) for worker in registered(client, 2)}
            job = rq.Queue("q", connection=client).enqueue("time.sleep", 60)
            wait_until(lambda: job.is_started, 10, "the job runs")
        started = family(os.getpid()) - before
        assert len(started) == 5, "supervisor, server, two workers and a work-horse"
        os.kill(supervisor, signal.SIGKILL)
        wait_until(lambda: not alive(started), END_SECONDS, "all processes have ended")
        assert local.events()[-1] == {"supervisor_died": -signal.SIGKILL}
        assert local.events() == [], "which is told once"
    assert not directory.exists()


def test_ctrl_c_leaves_the_server_to_the_parent():
    with running(PARENT.format(at_interrupt="local.close()")) as parent:
        directory = Path(read_line(parent)).parent
        started = family_at_work(parent)
        os.killpg(parent.pid, signal.SIGINT)
        assert read_line(parent) == "True", "the server answers PING after Ctrl-C"
        gone_in_time(started, directory)


def test_the_stage_is_removed_when_the_parent_is_killed(tmp_path):
    stage = tmp_path / "out" / ".rqmr-run"
    stage.mkdir(parents=True)
    (stage / "part").write_text("half")
    with running(PARENT.format(at_interrupt=""), stage) as parent:
        read_line(parent)
        parent.kill()
        wait_until(lambda: not stage.exists(), END_SECONDS, "the stage is removed")
        assert stage.parent.exists()


def test_a_supervisor_that_was_started_ahead_is_the_first_locals():
    before = family(os.getpid())
    ahead.start_waiting()
    (waiting,) = family(os.getpid()) - before
    for takes_it in (True, False):
        with Local(workers=1, queue="q", preload=[]) as local, redis.Redis.from_url(local.wait_ready()) as client:
            (worker,) = registered(client, 1)
            assert (parent_of(worker.pid) == waiting) == takes_it
    assert not alive({waiting})
    ahead.end_waiting()  # there is none


def test_a_supervisor_that_nobody_takes_is_ended():
    before = family(os.getpid())
    ahead.start_waiting()
    (waiting,) = family(os.getpid()) - before

    ahead.end_waiting()

    assert not alive({waiting})


def test_a_supervisor_that_waits_for_its_order_ends_with_its_parent():
    program = "import time; from rqmr import ahead; ahead.start_waiting(); print(flush=True); time.sleep(60)"
    with running(program) as parent:
        read_line(parent)
        started = family(parent.pid)
        assert len(started) == 1
        parent.kill()
        wait_until(lambda: not alive(started), END_SECONDS, "it has ended")


def test_a_command_that_is_refused_leaves_no_supervisor(tmp_path):
    """It may have one that was started ahead."""
    done = subprocess.run(
        [sys.executable, "-m", "rqmr", "run", "wordcount", str(tmp_path / "nothing here")],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        check=False,
    )
    assert (done.returncode, list(tmp_path.iterdir())) == (2, []), done.stderr


def test_a_killed_worker_is_replaced_and_its_place_takes_jobs():
    with Local(workers=1, queue="q", preload=[]) as local, redis.Redis.from_url(local.wait_ready()) as client:
        (worker,) = registered(client, 1)
        os.kill(worker.pid, signal.SIGKILL)
        events: list[dict[str, object]] = []

        def replaced() -> bool:
            events.extend(local.events())
            return events[-1].get("worker") == f"{worker.name}-2"

        wait_until(replaced, 10, "another worker is started")
        assert {"worker_died": worker.name, "pid": worker.pid, "status": -signal.SIGKILL} in events
        queue = rq.Queue("q", connection=client)
        queue.enqueue("builtins.print", "hello")
        assert wait_until(local.new_lines, 10, "the new worker's job printed") == [("w1-2", "hello")]


def test_the_death_of_the_server_is_told_and_ends_the_workers():
    with Local(workers=1, queue="q", preload=[]) as local:
        with redis.Redis.from_url(local.wait_ready()) as client:
            (worker,) = registered(client, 1)
            os.kill(client.info("server")["process_id"], signal.SIGKILL)
        events: list[dict[str, object]] = []
        wait_until(lambda: events.extend(local.events()) or not alive({worker.pid}), 10, "the worker has ended")
        wait_until(lambda: events.extend(local.events()) or "supervisor_died" in events[-1], 10, "the end is told")
        (death,) = [event for event in events if "server_died" in event]
        assert death["server_died"] == -signal.SIGKILL
        assert "Ready to accept connections" in str(death["log"])


def test_a_server_that_does_not_start_is_an_error_that_helps_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("RQMR_REDIS_SERVER", "/bin/false")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = family(os.getpid())
    with (
        pytest.raises(RedisError, match=r"/bin/false ended at once with status 1\n.*RQMR_REDIS_SERVER=.*--redis-url"),
        Local(workers=1, queue="q", preload=[]) as local,
    ):
        local.wait_ready()
    assert not family(os.getpid()) - before
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_no_program_is_refused_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("RQMR_REDIS_SERVER", str(tmp_path))
    with pytest.raises(RedisError, match="is not a program"):
        Local(workers=1, queue="q").start()


@pytest.fixture
def named_redis():
    """The URL of a Redis that asks for a password."""
    with Local(workers=0, queue="q") as server:
        url = server.wait_ready()
        with redis.Redis.from_url(url) as client:
            client.config_set("requirepass", "open-sesame")
        yield f"unix://:open-sesame@{socket_of(url)}?db=0"


def test_the_password_of_a_named_redis_is_in_no_command_line(named_redis):
    with Local(workers=2, queue="q", url=named_redis, preload=[]) as local:
        assert local.wait_ready() == named_redis
        with redis.Redis.from_url(named_redis) as client:
            registered(client, 2)
        assert not [line for line in map(command, family(os.getpid())) if "sesame" in line]


def test_workers_sign_off_from_a_named_redis_even_in_the_middle_of_a_job(named_redis):
    with redis.Redis.from_url(named_redis) as client:
        with Local(workers=2, queue="q", url=named_redis, preload=[]) as local:
            local.wait_ready()
            workers = {worker.pid for worker in registered(client, 2)}
            job = rq.Queue("q", connection=client).enqueue("time.sleep", 60)
            wait_until(lambda: job.is_started, 10, "the job runs")
            started = members(workers)
            assert len(started) == 3
            closing = time.monotonic()
        assert time.monotonic() - closing < END_SECONDS
        assert not alive(started)
        assert not rq.Worker.all(connection=client)
        assert client.ping(), "a Redis that was named isn't ended"
