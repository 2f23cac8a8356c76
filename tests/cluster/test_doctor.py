"""`rqmr doctor` on real workers: each one is asked, whatever is wrong with it is told, and nothing is left behind."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import rq
from harness import RedisServer, Workers, wait_until
from hosts import need_namespaces, network
from stores import Web

from rqmr import checkup
from rqmr.diagnosis import Finding
from rqmr.doctor import examine
from rqmr.where import Where

Rqmr = Callable[..., subprocess.CompletedProcess[str]]


def found(findings: list[Finding], level: str) -> list[str]:
    return [each.told for each in findings if each.level == level]


def answered(findings: list[Finding]) -> set[str]:
    """The workers that have told how they are."""
    return {name for each in findings if each.level == "ok" and "rqmr 0" in each.told for name in each.workers}


def test_every_worker_is_asked_once_and_nothing_is_left(
    workers: Workers, redis: Any, rqmr: Rqmr, tmp_path: Path
) -> None:
    workers.start(3)
    (tmp_path / "cwd" / "in.txt").write_text("a b\n")
    before = set(redis.keys())

    done = rqmr("doctor", "in.txt", "-o", "out", "--job", "wordcount", "--json", "--redis-url", workers.url)

    told = json.loads(done.stdout)
    assert (done.returncode, told["problems"]) == (0, 0), done.stdout
    of_workers = [each for each in told["findings"] if each["workers"]]
    assert [each["workers"] for each in of_workers] == [["worker-1", "worker-2", "worker-3"]]
    assert "sees the input, writes to the output directory" in of_workers[0]["told"]
    assert [path.name for path in (tmp_path / "cwd").iterdir()] == ["in.txt"]
    # A work-horse may be about to leave.
    wait_until(
        lambda: not set(redis.keys()) - before - {b"rq:queues", b"rq:clean_registries:rqmr"},
        timeout=5,
        what="nothing is left",
    )


def test_a_worker_without_rqmr_is_told_and_does_not_keep_the_others_from_answering(
    workers: Workers, redis: Any, tmp_path: Path
) -> None:
    (tmp_path / "old" / "rqmr").mkdir(parents=True)
    (tmp_path / "old" / "rqmr" / "__init__.py").write_text("")
    workers.start(1, PYTHONPATH=str(tmp_path / "old"))
    workers.start(2)

    findings = examine(Where(workers.url), "rqmr")

    (problem,) = found(findings, "problem")
    assert problem.startswith("worker-1 can't run rqmr: it isn't there, or is an older release")
    assert answered(findings) == {"worker-2", "worker-3"}
    assert not redis.keys("rqmr:*")
    # What the worker has failed meanwhile goes within a minute.
    wait_until(lambda: -1 not in map(redis.ttl, redis.keys("rq:job:*")), timeout=5, what="no RQ job stays")


def test_a_hung_worker_and_a_busy_one_are_told_apart(
    workers: Workers, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkup, "_IDLE_SECONDS", 1.0)
    monkeypatch.setattr(checkup, "_BUSY_SECONDS", 0.5)
    workers.start(2)
    rq.Queue("rqmr", connection=redis).enqueue("time.sleep", 60, result_ttl=0)
    states = {f"worker-{number}": f"rq:worker:worker-{number}" for number in (1, 2)}
    wait_until(lambda: b"busy" in [redis.hget(key, "state") for key in states.values()], timeout=5, what="one is busy")
    (busy,) = [name for name, key in states.items() if redis.hget(key, "state") == b"busy"]
    (idle,) = set(states) - {busy}
    os.kill(workers.processes[int(idle[-1]) - 1].pid, signal.SIGSTOP)
    workers.start(1)

    findings = examine(Where(workers.url), "rqmr")

    (hung,) = found(findings, "warning")[-1:]
    assert hung.startswith(f"{idle} (pid ")
    assert [told for told in found(findings, "ok") if told.startswith(busy) and "is busy" in told]
    assert answered(findings) == {"worker-3"}


def test_workers_with_another_secret_refuse_and_look_at_nothing(
    workers: Workers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text("secrets\n")
    workers.start(1, RQMR_SECRET="x" * 32)
    workers.start(1, RQMR_SECRET="y" * 32)
    monkeypatch.setenv("RQMR_SECRET", "y" * 32)

    findings = examine(Where(workers.url), "rqmr", inputs=[str(tmp_path / "in.txt")])

    (problem,) = found(findings, "problem")
    assert problem.startswith("worker-1 refuses this command: the checkup")
    (seeing,) = [each.workers for each in findings if "sees the input" in each.told]
    assert seeing == ("worker-2",)


def test_inputs_at_urls_are_tried_by_the_workers(workers: Workers) -> None:
    with closing(Web()) as web:
        url = web.put("in.txt", b"a b\n")
        workers.start(1)
        findings = examine(Where(workers.url), "rqmr", inputs=[url], output="memory://bucket/out")
    assert not found(findings, "problem")
    assert f"reads {url}, has what the output's URL takes" in found(findings, "ok")[-1]


def test_suspended_workers_are_not_waited_for(workers: Workers, redis: Any) -> None:
    workers.start(1)
    redis.set("rq:suspended", 1)
    began = time.monotonic()
    findings = examine(Where(workers.url), "rqmr")
    assert time.monotonic() - began < 2
    assert "suspended" in found(findings, "problem")[0]


def test_on_another_host_what_it_does_not_see_travels_and_what_is_not_the_same_is_told(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    need_namespaces()
    with network(tmp_path_factory.mktemp("net")) as net:
        driver, node = net.add("driver"), net.add("node1")
        driver.write({"input/a": "one\n", "input/b": "two\n"})
        node.write({"input/b": "owt\n"})
        node.work()
        net.wait_for_workers(1)
        told = json.loads(driver.rqmr("doctor", "input", "-o", "out", "--json", "--redis-url", driver.url).stdout)
        of_node = [each for each in told["findings"] if each["about"] == "node1"]
        assert [each["level"] for each in of_node] == ["warning", "ok"]
        assert "has another file called input/b" in of_node[0]["told"]
        assert "sees 0 of 2 inputs" in of_node[1]["told"]
        assert "doesn't see the output directory" in of_node[1]["told"]
        assert [each["told"] for each in told["findings"] if each["about"] == "access"]
        assert not list((driver.root).glob("out*"))


def test_a_server_that_is_not_there_is_a_problem_and_its_password_is_not_told(rqmr: Rqmr) -> None:
    done = rqmr("doctor", "--redis-url", "redis://:hunter22@127.0.0.1:1/0")
    assert done.returncode == 1
    assert "no Redis answers at redis://:***@127.0.0.1:1/0" in done.stdout
    assert "hunter22" not in done.stdout + done.stderr
    assert done.stderr == "1 problem\n"


def test_without_a_redis_this_host_is_looked_at(rqmr: Rqmr, tmp_path: Path) -> None:
    done = rqmr("doctor", "nothing-here*.txt", "-o", "out")
    assert done.returncode == 1
    lines = {line.split()[1]: line.split()[0] for line in done.stdout.splitlines() if line[0] != " "}
    assert lines == {"input": "problem", "output": "ok", "here": "ok"}


def test_servers_for_a_share_of_the_shuffle_are_tried_from_here_and_by_the_workers(
    workers: Workers, tmp_path: Path
) -> None:
    """One that some can't log in at, or nobody can reach, is a problem."""
    password = "hunter2-of-the-doctor"
    hashed = hashlib.sha256(password.encode()).hexdigest()
    (tmp_path / "users.acl").write_text(f"user default on #{hashed} ~* &* +@all\n")
    server = RedisServer(tmp_path, ["--aclfile", str(tmp_path / "users.acl")])
    server.start()
    login = {"RQMR_SHUFFLE_LOGIN": f":{password}"}
    try:
        workers.start(1, **login)
        workers.start(1)
        asked = ["doctor", "--redis-url", workers.url, "--shuffle-url", server.url]
        done = subprocess.run(
            [sys.executable, "-m", "rqmr", *asked, "--shuffle-url", "unix:///nowhere.sock", "--json"],
            env=os.environ | login, capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        server.close()
    assert done.returncode == 1, done.stderr
    assert password not in done.stdout + done.stderr
    told = [(each["level"], each["told"]) for each in json.loads(done.stdout)["findings"]]
    problems = [text for level, text in told if level == "problem"]
    assert any(text.startswith("no Redis answers at unix:///nowhere.sock") for text in problems)
    assert any(f"worker-2 can't use the shuffle server {server.url}: " in text for text in problems)
    assert not any(f"worker-1 can't use the shuffle server {server.url}" in text for text in problems)
    assert any(level == "ok" and f"at {server.url}, for a share of the shuffle" in text for level, text in told)
    assert any(f"reaches {server.url}" in text for level, text in told if level == "ok")
