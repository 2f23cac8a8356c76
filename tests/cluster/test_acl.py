"""The users of deploy/acl: each of them can do its work, and no more."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis as redis_py
from bench import files
from harness import JOBS, ROOT, RedisServer, Workers, wait_until

from rqmr.connection import connect
from rqmr.dispatch import Dispatch
from rqmr.scripts import NAMES, source

Rqmr = Callable[..., subprocess.CompletedProcess[str]]
ROLES = ("driver", "worker", "viewer")


class Guarded:
    """A server that has these users, made as the README there says, and one for the test."""

    def __init__(self, directory: Path) -> None:
        shutil.copytree(ROOT / "deploy" / "acl", directory, dirs_exist_ok=True)
        shell = re.findall(r"```sh\n(.*?)```", (directory / "README.md").read_text(), re.DOTALL)[0]
        commands, _, start = shell.rpartition("valkey-server ")
        assert start.startswith("--aclfile users.acl ")
        passwords = "".join(f"{role}-password\n" for role in ROLES)
        subprocess.run(["bash", "-eu", "-c", commands], cwd=directory, input=passwords, text=True, check=True)
        with (directory / "users.acl").open("a") as users:
            users.write(f"user admin on #{hashlib.sha256(b'admin-password').hexdigest()} ~* &* +@all\n")
        self._server = RedisServer(directory, ["--aclfile", str(directory / "users.acl")])
        self._server.start()
        self.admin = connect(self.url("admin"))
        wait_until(self._is_up, timeout=10, what="the server answers")

    @property
    def place(self) -> str:
        """The URL without a user."""
        return self._server.url

    def url(self, role: str) -> str:
        name = role if role == "admin" else f"rqmr-{role}"
        return self._server.url.replace("unix://", f"unix://{name}@") + f"&password={role}-password"

    def denied(self) -> list[str]:
        """What users tried and weren't allowed to."""
        return [f"{entry['username']}: {entry['reason']} {entry['object']}" for entry in self.admin.acl_log()]

    def close(self) -> None:
        self.admin.close()
        self._server.close()

    def _is_up(self) -> bool:
        try:
            return bool(self.admin.ping())
        except redis_py.ConnectionError:
            return False


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    server = Guarded(tmp_path_factory.mktemp("guarded"))
    yield server
    server.close()


@pytest.fixture
def acl_workers(guarded: Guarded, tmp_path: Path) -> Iterator[Workers]:
    guarded.admin.flushall()
    guarded.admin.acl_log_reset()
    directory = tmp_path / "workers"
    directory.mkdir()
    group = Workers(guarded.url("admin"), directory)  # who looks whether they listen
    yield group
    group.stop()


@pytest.fixture
def words(tmp_path: Path) -> Path:
    directory = tmp_path / "words"
    directory.mkdir()
    for number in range(6):
        (directory / f"{number}.txt").write_text("a word and another\n" * 40)
    return directory


#: What redis-py tries and does without.
_OPTIONAL = re.compile("client.maint_notifications", re.IGNORECASE)


def missing(guarded: Guarded) -> list[str]:
    return [each for each in guarded.denied() if not _OPTIONAL.search(each)]


def test_the_driver_may_ask_the_workers_how_they_are_and_a_viewer_is_told_that_it_may_not(
    guarded: Guarded, acl_workers: Workers, rqmr: Rqmr
) -> None:
    acl_workers.start(1)
    done = rqmr("doctor", "--redis-url", guarded.url("driver"))
    assert "worker-1: rqmr " in done.stdout
    assert (done.returncode, missing(guarded)) == (0, []), done.stdout
    done = rqmr("doctor", "--redis-url", guarded.url("viewer"))
    assert "this user may not ask the workers" in done.stdout
    assert "viewer-password" not in done.stdout


def test_driver_and_worker_may_do_all_that_a_run_takes(
    guarded: Guarded, acl_workers: Workers, rqmr: Rqmr, words: Path, tmp_path: Path
) -> None:
    """A run that succeeds, one that fails and is resumed, one that is cancelled, and what is asked of RQ meanwhile."""
    acl_workers.start(2, RQ_REDIS_URL=guarded.url("worker"))
    url = ("--redis-url", guarded.url("driver"))
    done = rqmr("run", "wordcount", words, *url, "-o", tmp_path / "out", "-r", 2, "--split-size", "200")
    assert done.returncode == 0, done.stderr
    rqmr("run", "wordcount", words, "--inline", "-o", tmp_path / "oracle", "-r", 2, "--split-size", "200")
    assert files(tmp_path / "out") == files(tmp_path / "oracle")

    (tmp_path / "bad.txt").write_text("error\nfine\n")
    failed = rqmr("run", JOBS / "bad.py", tmp_path / "bad.txt", *url, "-o", tmp_path / "failed")
    run = re.search(r"rqmr resume (\S+)", failed.stderr)
    assert run, failed.stderr
    for command in (["status", run[1]], ["resume", run[1], "--skip-bad", 1]):
        told = rqmr(*command, *url)
        assert told.returncode == 0, told.stderr
    detached = rqmr("run", JOBS / "slow.py", words, "-p", "seconds=0.05", *url, "-o", tmp_path / "slow", "--detach")
    assert rqmr("cancel", detached.stdout.strip(), *url).returncode == 0
    for role in ("driver", "worker"):
        ask_rq_of_its_tickets(guarded.url(role), detached.stdout.strip())
    assert missing(guarded) == []


def test_the_same_users_are_enough_on_a_server_that_has_a_share_of_the_shuffle(
    guarded: Guarded, acl_workers: Workers, rqmr: Rqmr, words: Path, tmp_path: Path
) -> None:
    """Driver and workers log in there as on the run's own; the limit makes them look at its memory."""
    (tmp_path / "other").mkdir()
    other = Guarded(tmp_path / "other")
    try:
        other.admin.config_set("maxmemory", "100mb")
        acl_workers.start(1, RQ_REDIS_URL=guarded.url("worker"))
        done = rqmr(
            "run", "wordcount", words, "--redis-url", guarded.url("driver"), "--shuffle-url", other.place,
            "--split-size", "200", "-o", tmp_path / "out", "-r", 3,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        rqmr("run", "wordcount", words, "--inline", "-o", tmp_path / "oracle", "-r", 3, "--split-size", "200")
        assert files(tmp_path / "out") == files(tmp_path / "oracle")
        assert other.admin.info("commandstats")["cmdstat_evalsha"]["calls"] > 6
        assert not other.admin.dbsize()
        assert missing(guarded) == missing(other) == []
    finally:
        other.close()


def test_a_driver_is_told_which_workers_refuse_it(guarded: Guarded, acl_workers: Workers, rqmr: Rqmr) -> None:
    """What RQ keeps of a refused ticket goes, too."""
    acl_workers.start(1, RQ_REDIS_URL=guarded.url("worker"), RQMR_SECRET="s" * 32)
    checked = rqmr("doctor", "--redis-url", guarded.url("driver"))
    assert "worker-1 refuses this command" in checked.stdout, checked.stdout
    assert missing(guarded) == []


def ask_rq_of_its_tickets(url: str, run: str) -> None:
    """What a tick does when something died; each is a matter of seconds in a whole run."""
    client = connect(url)
    dispatch, ticket = Dispatch(client, "rqmr"), f"{run}-t1"
    dispatch.over([ticket])
    dispatch.refusals([ticket])
    dispatch.stop(ticket)
    dispatch.drop([ticket])
    client.memory_usage(f"rqmr:{run}")
    client.close()


def test_a_viewer_sees_runs_and_may_neither_end_nor_drive_nor_start_one(
    guarded: Guarded, acl_workers: Workers, rqmr: Rqmr, words: Path, tmp_path: Path
) -> None:
    driver, viewer = (("--redis-url", guarded.url(role)) for role in ("driver", "viewer"))
    detached = rqmr("run", JOBS / "slow.py", words, "-p", "seconds=0.001", *driver, "-o", tmp_path / "out", "--detach")
    run = detached.stdout.strip()
    assert run in rqmr("ps", *viewer).stdout
    assert json.loads(rqmr("status", run, "--json", *viewer).stdout)["run"] == run
    for command in (["cancel", run], ["run", "wordcount", words, "-o", tmp_path / "other"]):
        refused = rqmr(*command, *viewer)
        assert refused.returncode == 2, refused.stderr
        assert "permissions" in refused.stderr
    assert not (tmp_path / "other").exists()

    with subprocess.Popen(_command("attach", run, *viewer), stderr=subprocess.PIPE, text=True) as watching:
        acl_workers.start(1, RQ_REDIS_URL=guarded.url("worker"))
        collected = rqmr("attach", run, *driver)
        assert collected.returncode == 0, collected.stderr
        _, told = watching.communicate(timeout=20)
    assert watching.returncode == 0, told
    assert f"{run} succeeded" in told


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "rqmr", *map(str, arguments)]


#: Scripts that only work-horses run.
_OF_WORKERS = frozenset(["ask", "charge", "claim", "commit", "give_way", "place", "release", "renew", "write"])


@pytest.mark.parametrize("name", NAMES)
def test_who_runs_a_script_may_do_all_that_it_does(name: str) -> None:
    """A server asks for each command of a script whether the user may run it."""
    called = {word.lower() for word in re.findall(r"redis\.p?call\('(\w+)'", source(name))}
    for role in ("worker",) if name in _OF_WORKERS else ("worker", "driver"):
        text = (ROOT / "deploy" / "acl" / f"{role}.acl").read_text()
        assert not called - set(re.findall(r"\+(\w+)(?= |$)", text)), role


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "command",
    [
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("CONFIG", "GET", "*"),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("ACL", "LIST"),
        ("MONITOR",),
        ("SHUTDOWN", "NOSAVE"),
        ("REPLICAOF", "host", "1"),
        ("MODULE", "LIST"),
        ("FUNCTION", "LIST"),
        ("CLIENT", "KILL", "ID", "0"),
        ("GET", "others"),
        ("SET", "others", "x"),
        ("DEL", "others"),
        ("PUBLISH", "others", "x"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_no_user_may_do_what_is_not_its_work(role: str, command: tuple[str, ...], guarded: Guarded) -> None:
    client = connect(guarded.url(role))
    try:
        with pytest.raises(redis_py.exceptions.NoPermissionError):
            client.execute_command(*command)
    finally:
        client.close()


RUN = "rqmr:wordcount-7k2p9x"


@pytest.mark.parametrize(
    ("role", "command"),
    [
        ("viewer", ("HSET", RUN, "state", "cancelled")),
        ("viewer", ("DEL", RUN)),
        ("viewer", ("EVAL", "return 1", "0")),
        ("viewer", ("EXPIRE", RUN, "1")),
        ("viewer", ("RPUSH", "rq:queue:rqmr", "x")),
        ("viewer", ("HGETALL", f"{RUN}:s0:shuffle:0")),
        ("viewer", ("HGETALL", f"{RUN}:splits")),
        ("viewer", ("GET", "rqmr:code:" + "0" * 32)),
        ("viewer", ("HGETALL", "rq:job:x")),
        ("driver", ("SUBSCRIBE", "rq:pubsub:w1")),
        ("driver", ("EVAL", "return 1", "0")),
        ("driver", ("SADD", "rq:workers:rqmr", "rq:worker:false")),
        ("driver", ("HSET", "rq:worker:w1", "state", "idle")),
        ("driver", ("BLMOVE", "rq:queue:rqmr", "rq:queue:other", "LEFT", "RIGHT", "1")),
        ("worker", ("SUBSCRIBE", "others")),
        ("worker", ("SWAPDB", "0", "1")),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:2]),
)
def test_a_user_may_not_do_anothers_work(role: str, command: tuple[str, ...], guarded: Guarded) -> None:
    client = connect(guarded.url(role))
    try:
        with pytest.raises(redis_py.exceptions.NoPermissionError):
            client.execute_command(*command)
    finally:
        client.close()


def test_a_file_whose_password_was_not_filled_in_starts_no_server(tmp_path: Path) -> None:
    (tmp_path / "users.acl").write_text((ROOT / "deploy" / "acl" / "viewer.acl").read_text())
    server = RedisServer(tmp_path, ["--aclfile", str(tmp_path / "users.acl")])
    server.start()
    assert server.process
    try:
        assert server.process.wait(10) != 0
    finally:
        server.close()
