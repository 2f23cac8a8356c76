"""What doctor makes of what it finds: each trouble is told with what to do about it, and what is well isn't one."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from rqmr.checkup import Answer, Checkup, Listed, Question
from rqmr.diagnosis import (
    Finding,
    Here,
    of_access,
    of_disk,
    of_memory,
    of_queue,
    of_server,
    of_workers,
    summary,
)
from rqmr.facts import Memory
from rqmr.inputs import InputMark

URL = "redis://cache:6379/0"
HERE = Here("1.2.3", 4, "3.12.1", has_secret=False)
WELL = Answer("w1", "node1", "rq", "3.12.1", "/venv/bin/python", "1.2.3", 4, "2.12.0", 0.3, has_secret=False)
QUESTION = Question(
    ("numpy",), tuple((name.encode(), InputMark(name, 1, 2, 3)) for name in ("/a", "/b")), stage="/out/.x"
)
SEES_ALL = structs.replace(WELL, inputs=("seen", "seen"), stage="seen")


def listed(name: str = "w1", state: str = "idle", **more: Any) -> Listed:
    return structs.replace(Listed(name, "node1", "17", state, "2026-11-21T12:34:56.7Z", is_leaving=False), **more)


def worker(answer: Answer, here: Here = HERE) -> list[Finding]:
    return list(of_workers(Checkup((listed(),), (answer,)), QUESTION, here))


def levels(findings: list[Finding]) -> list[str]:
    return [each.level for each in findings]


@pytest.mark.parametrize(
    ("info", "latency", "level", "words"),
    [
        ({"role": "master"}, (0.3, 1.0), "ok", "0.3 ms away"),
        ({"role": "slave"}, (0.3, 1.0), "problem", "a replica"),
        ({"cluster_enabled": 1}, (0.3, 1.0), "problem", "part of a cluster"),
        ({"loading": 1}, (0.3, 1.0), "problem", "loads its data"),
        ({}, (50.0, 60.0), "warning", "50.0 ms away"),
        ({}, (0.3, 400.0), "warning", "400 ms at worst"),
    ],
)
def test_a_server_is_judged_by_its_role_and_by_how_far_it_is(
    info: dict[str, Any], latency: tuple[float, float], level: str, words: str
) -> None:
    (found,) = of_server("Valkey 9", URL, latency, info)
    assert (found.level, bool(found.todo)) == (level, level != "ok")
    assert words in found.told


def test_connections_that_are_nearly_used_up_are_told() -> None:
    _, found = of_server("Valkey 9", URL, (0.1, 0.1), {"connected_clients": 90, "maxclients": 100})
    assert (found.level, found.about) == ("warning", "clients")
    assert "redis-cli -h cache CONFIG SET maxclients 200" in found.todo


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (URL, ["no password"]),
        ("redis://:s3cret@cache/0", ["no TLS"]),
        ("rediss://:s3cret@cache/0", []),
        ("redis://cache/0?password=s3cret", ["no TLS"]),
        ("redis://localhost:6379", []),
        ("unix:///tmp/r.sock", []),
    ],
)
def test_who_else_can_reach_it_is_told_without_the_password(url: str, words: list[str]) -> None:
    found = list(of_access(url))
    assert [each.told.partition(":")[0] for each in found] == words
    assert "s3cret" not in str(found)


@pytest.mark.parametrize(
    ("memory", "policy", "level", "todo"),
    [
        (Memory(1 << 20, 1 << 30), "noeviction", "ok", ""),
        (Memory(int(0.75 * (1 << 30)), 1 << 30), "noeviction", "warning", "rqmr rm"),
        (Memory(int(0.9 * (1 << 30)), 1 << 30), "noeviction", "problem", "maxmemory"),
        (Memory(1 << 20, 0), "noeviction", "warning", "CONFIG SET maxmemory 4gb"),
        (Memory(1 << 20, 0), "allkeys-lru", "problem", "maxmemory-policy noeviction"),
    ],
)
def test_memory_has_a_limit_and_room_and_keeps_what_is_in_it(
    memory: Memory, policy: str, level: str, todo: str
) -> None:
    (found,) = of_memory(memory, policy, 7, URL)
    assert found.level == level
    assert todo in found.todo


@pytest.mark.parametrize(
    ("info", "level", "words"),
    [
        ({"aof_enabled": 1, "aof_last_write_status": "ok"}, "ok", "survive"),
        ({"aof_enabled": 1, "aof_last_write_status": "err"}, "problem", "append-only file failed"),
        ({"aof_enabled": 0, "rdb_last_bgsave_status": "ok"}, "ok", "runs end when the server restarts"),
        ({"aof_enabled": 0, "rdb_last_bgsave_status": "err"}, "problem", "refuses writes"),
    ],
)
def test_what_survives_a_restart_is_told(info: dict[str, Any], level: str, words: str) -> None:
    (found,) = of_disk(info, URL)
    assert found.level == level
    assert words in found.told


def test_a_queue_that_nobody_listens_on_is_a_problem_with_the_command_that_mends_it() -> None:
    (found,) = of_queue(Checkup(waiting=3), "rqmr", " --redis-url redis://cache")
    assert found.level == "problem"
    assert "3 RQ jobs wait" in found.told
    assert "rqmr worker --redis-url redis://cache" in found.todo


def test_suspended_workers_are_a_problem_and_not_called_dead() -> None:
    checkup = Checkup((listed(state="suspended"),), is_suspended=True)
    (found,) = of_queue(checkup, "rqmr", "")
    assert (found.level, "rq resume" in found.todo) == ("problem", True)
    assert not list(of_workers(checkup, QUESTION, HERE))


def test_a_worker_that_has_all_is_one_line() -> None:
    (found,) = worker(SEES_ALL)
    assert (found.level, found.about, found.workers) == ("ok", "node1", ("w1",))
    assert "imports numpy; sees all 2 inputs, writes to the output directory" in found.told


def test_workers_of_one_host_that_tell_the_same_are_told_together() -> None:
    answers = [structs.replace(WELL, worker=name, latency_ms=float(name[1])) for name in ("w3", "w1", "w2")]
    answers.append(structs.replace(WELL, worker="w4", host="node2"))
    found = list(of_workers(Checkup(answers=tuple(answers)), Question(), HERE))
    assert [each.workers for each in found] == [("w1", "w2", "w3"), ("w4",)]


def test_inputs_and_outputs_that_a_worker_does_not_see_travel_and_are_no_trouble() -> None:
    (found,) = worker(structs.replace(WELL, inputs=("absent", "absent"), stage="absent"))
    assert found.level == "ok"
    assert "sees no input: they travel" in found.told
    assert "its parts travel" in found.told


@pytest.mark.parametrize(
    ("change", "level", "told", "todo"),
    [
        ({"missing": ("numpy",)}, "problem", "can't import numpy", "on node1:  /venv/bin/python -m pip install numpy"),
        ({"protocol": 3, "rqmr": "1.1.0"}, "problem", "speaks protocol 3", "pip install rq-mapreduce==1.2.3"),
        ({"rqmr": "1.2.2"}, "warning", "rqmr 1.2.2, and 1.2.3 here", "pip install rq-mapreduce==1.2.3"),
        ({"python": "3.9.1"}, "warning", "Python 3.9.1, and 3.12.1 here", "test jobs"),
        ({"inputs": ("seen", "other")}, "warning", "another file called /b", "mount the same directory"),
        ({"inputs": ("seen", "Permission denied")}, "warning", "can't read /b (Permission denied)", "user rq"),
        ({"stage": "Permission denied"}, "problem", "can't write to it as user rq (Permission denied)", "a directory"),
        ({"refusal": "not signed"}, "problem", "refuses this command: not signed", "RQMR_SECRET"),
    ],
)
def test_what_a_worker_lacks_is_told_with_what_to_do(change: dict[str, Any], level: str, told: str, todo: str) -> None:
    trouble, base = worker(structs.replace(SEES_ALL, **change))
    assert (trouble.level, base.level) == (level, "ok")
    assert told in trouble.told
    assert todo in trouble.todo


def test_what_lies_at_urls_has_to_be_read_by_each_worker() -> None:
    question = Question(urls=("s3://logs/1.gz", "https://host/x?token=s3cret"), stage="s3://out/hits")
    told = structs.replace(WELL, urls=("", "it has no aiohttp"), stage="it has no s3fs")
    read, write, base = of_workers(Checkup((listed(),), (told,)), question, HERE)
    assert (read.level, write.level, base.level) == ("problem", "problem", "ok")
    assert "can't read https://host/x?token=" in read.told
    assert "s3cret" not in read.told
    assert "can't write to s3://out/hits: it has no s3fs" in write.told
    assert "reads s3://logs/1.gz" in base.told


def test_a_newer_python_on_a_worker_is_no_trouble() -> None:
    assert levels(worker(structs.replace(SEES_ALL, python="3.14.0"))) == ["ok"]


def test_a_worker_without_the_secret_that_is_set_here_is_warned_of() -> None:
    here = structs.replace(HERE, has_secret=True)
    assert levels(worker(SEES_ALL, here)) == ["warning", "ok"]
    assert levels(worker(structs.replace(SEES_ALL, has_secret=True), here)) == ["ok"]


@pytest.mark.parametrize(
    ("state", "leaves", "level", "words"),
    [
        ("idle", False, "warning", "(pid 17) is listed but doesn't answer; last heard of at 12:34:56"),
        ("", False, "warning", "doesn't answer"),
        ("busy", False, "ok", "is busy with an RQ job"),
        ("busy", True, "ok", "was told to stop"),
    ],
)
def test_those_that_do_not_answer_are_told_by_what_rq_knows(state: str, leaves: bool, level: str, words: str) -> None:
    checkup = Checkup((listed(state=state, is_leaving=leaves),))
    (found,) = of_workers(checkup, Question(), HERE)
    assert found.level == level
    assert words in found.told


def test_a_worker_that_cannot_run_rqmr_is_told_with_the_end_of_its_traceback() -> None:
    checkup = Checkup((listed(),), refusals=(("w1", "ValueError: Invalid attribute name: tell"),))
    (found,) = of_workers(checkup, Question(), HERE)
    assert (found.level, found.about) == ("problem", "node1")
    assert "an older release (ValueError: Invalid" in found.told
    assert "pip install rq-mapreduce==1.2.3" in found.todo


def test_the_last_line_counts() -> None:
    ok, warning, problem = (Finding(level, "", "") for level in ("ok", "warning", "problem"))  # type: ignore[arg-type]
    assert summary([ok]) == "all is well"
    assert summary([ok, warning, problem, warning]) == "1 problem and 2 warnings"
