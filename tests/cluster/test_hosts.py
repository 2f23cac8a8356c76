"""Hosts that share nothing but Redis: inputs and outputs travel, and whatever happens the output is the oracle's."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest
from harness import wait_until
from hosts import Host, Network, need_namespaces, network

JOBS = Path(__file__).resolve().parent.parent / "jobs"


@pytest.fixture
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    need_namespaces()
    with network(tmp_path_factory.mktemp("net")) as made:
        yield made


@pytest.fixture
def driver(net: Network, books: list[Path]) -> Host:
    """A host with the inputs, and nobody who works."""
    host = net.add("driver")
    host.write({f"input/{book.name}": book.read_text() for book in books})
    return host


def workers_on(net: Network, count: int) -> list[tuple[Host, subprocess.Popen[bytes]]]:
    """Hosts with one stock worker each."""
    hosts = [net.add(f"node{number}") for number in range(1, count + 1)]
    started = [(host, host.work()) for host in hosts]
    net.wait_for_workers(count)
    return started


def same_as_inline(driver: Host, output: str, *arguments: str) -> None:
    """The output is what the oracle makes of the same plan."""
    parts = sum(name.startswith("part-") for name in driver.read(output))
    driver.rqmr("run", *arguments, "--inline", "-r", str(parts), "-o", "expected")
    assert driver.read(output) == driver.read("expected")


@pytest.mark.parametrize("job", ["wordcount", "inverted_index"])
def test_three_hosts_that_share_nothing_give_what_one_gives(job: str, net: Network, driver: Host) -> None:
    nodes = workers_on(net, 3)
    options = [job, "input", "--split-size", "64KiB"]
    driver.rqmr("run", *options, "-r", "3", "-o", "counts")
    same_as_inline(driver, "counts", *options)
    assert sum("Job OK" in log_of(host) for host, _ in nodes) > 1
    left = [path for host, _ in nodes for path in host.root.rglob("*") if path.suffix != ".log"]
    assert not left, "a worker leaves nothing on its host"


def log_of(host: Host) -> str:
    return "".join(path.read_text() for path in host.root.glob("*.log"))


def test_standard_input_travels(net: Network, driver: Host) -> None:
    workers_on(net, 1)
    text = "".join(path.decode() for path in driver.read("input").values())
    driver.write({"all.txt": text, "run.sh": f"{sys.executable} -m rqmr run wordcount - -o counts -r 2 < all.txt"})
    driver.finish(driver.begin("sh", "run.sh", RQMR_REDIS_URL=driver.url))
    driver.rqmr("run", "wordcount", "all.txt", "--inline", "-r", "2", "-o", "expected")
    assert driver.read("counts") == driver.read("expected")


def test_a_file_of_the_same_name_and_size_is_not_taken_for_the_input(net: Network, driver: Host) -> None:
    """It is looked into; names of paths and hosts tell nothing."""
    ((node, _),) = workers_on(net, 1)
    node.write({f"input/{name}": text.decode().swapcase()[::-1] for name, text in driver.read("input").items()})
    driver.rqmr("run", "wordcount", "input", "-r", "2", "-o", "counts")
    same_as_inline(driver, "counts", "wordcount", "input")


def slow(net: Network, driver: Host, seconds: float = 0.01) -> tuple[subprocess.Popen[bytes], str]:
    """Begin a run whose tasks take a while, in the middle of its map phase; return it and its id."""
    jobs = {name: (JOBS / name).read_text() for name in ("slow.py", "marks.py")}
    driver.write({**jobs, "input/z": "one two three four five\n" * 300})
    arguments = [
        "run",
        "slow.py",
        "input/z",
        "--split-size",
        "400",
        "-p",
        f"seconds={seconds}",
        "-r",
        "2",
        "--lease",
        "1",
    ]
    command = driver.begin_rqmr(*arguments, "-o", "counts")
    run = wait_until(lambda: net.client.zrange("rqmr:runs", 0, -1), timeout=20, what="the run begins")[0].decode()
    committed(net, run, 3)
    return command, run


def committed(net: Network, run: str, count: int) -> None:
    wait_until(lambda: net.client.hlen(f"rqmr:{run}:s0-m:winners") >= count, timeout=30, what=f"{count} are committed")


def assert_slow_is_right(driver: Host) -> None:
    driver.rqmr("run", "slow.py", "input/z", "--inline", "--split-size", "400", "-r", "2", "-o", "expected")
    assert driver.read("counts") == driver.read("expected")


def test_a_host_that_is_cut_off_and_comes_back_does_no_harm(net: Network, driver: Host) -> None:
    (node, _), _ = workers_on(net, 2)
    command, run = slow(net, driver, seconds=0.02)
    wait_until(lambda: _works(net, run, "node1"), timeout=20, what="it has just begun a task")
    net.cut(node)
    wait_until(lambda: net.client.hget(f"rqmr:{run}:s0-m:totals", "lost"), timeout=20, what="its attempt is lost")
    net.mend(node)
    driver.finish(command)
    assert_slow_is_right(driver)


def _works(net: Network, run: str, host: str) -> bool:
    """Whether a worker of a host has an attempt that will take a while yet."""
    for key in net.client.scan_iter(f"rqmr:{run}:lease:*"):
        of, records = net.client.hmget(key, "host", "records")
        if of == host.encode() and int(records or 0) < 5:
            return True
    return False


def test_a_host_that_is_killed_costs_a_lease(net: Network, driver: Host) -> None:
    (node, _), _ = workers_on(net, 2)
    command, _ = slow(net, driver)
    node.kill()
    driver.finish(command)
    assert_slow_is_right(driver)


def test_without_its_driver_a_run_waits_for_its_input_and_says_so(net: Network, driver: Host) -> None:
    """From where the input isn't, an attach names it; from where it is, it ships it, and the output is there."""
    workers_on(net, 1)
    command, run = slow(net, driver)
    command.send_signal(signal.SIGKILL)
    command.wait()
    elsewhere = net.add("elsewhere")
    asks = f"rqmr:{run}:asks"
    wait_until(lambda: net.client.zcard(asks), timeout=20, what="an attempt asks")
    told = wait_until(lambda: _waiting(elsewhere, run), timeout=10, what="status tells")
    assert told["waits_for"] == ["input/z"]
    watching = elsewhere.begin_rqmr("attach", run)
    assert watching.stderr
    line = wait_until(lambda: _line_with(watching, "waits for input/z"), timeout=20, what="it is named")
    assert "elsewhere" not in line
    driver.rqmr("attach", run)
    assert "succeeded" in elsewhere.finish(watching).stderr
    assert_slow_is_right(driver)
    assert not list(elsewhere.root.iterdir())


def _waiting(host: Host, run: str) -> dict[str, Any] | None:
    told: dict[str, Any] = json.loads(host.rqmr("status", run, "--json").stdout)
    return told if told["state"] == "waiting" else None


def _line_with(process: subprocess.Popen[bytes], text: str) -> str:
    assert process.stderr
    line = process.stderr.readline().decode()
    return line if text in line else ""


def test_who_sees_an_input_takes_its_task_first(net: Network, driver: Host) -> None:
    """Two hosts have half of the files each, at the same place: next to nothing is shipped."""
    nodes = workers_on(net, 2)
    names = [f"input/part-{number}.txt" for number in range(16)]
    texts = {name: f"{name} and some words\n" * 2_000 for name in names}
    driver.write(texts)
    for number, (node, _) in enumerate(nodes):
        node.write({name: texts[name] for name in names[number::2]})
    options = ["wordcount", *names, "--split-size", "4KiB", "-r", "2"]
    command = driver.begin_rqmr("run", *options, "-o", "counts")
    run = wait_until(lambda: net.client.zrange("rqmr:runs", 0, -1), timeout=20, what="the run begins")[0].decode()
    shipped = 0
    while command.poll() is None:
        shipped = int(net.client.hget(f"rqmr:{run}", "shipped") or 0) or shipped
    driver.finish(command)
    assert shipped < sum(map(len, texts.values())) / 3
    same_as_inline(driver, "counts", *options[:-2])


def test_a_clock_that_is_an_hour_wrong_changes_nothing(net: Network, driver: Host) -> None:
    """All times are the server's."""
    node = net.add("node1")
    package = find_spec("libfaketime")
    assert package
    assert package.origin
    library = next(Path(package.origin).parent.rglob("libfaketime.so.1"))
    node.work(LD_PRELOAD=str(library), FAKETIME="+1h", DONT_FAKE_MONOTONIC="1")
    net.wait_for_workers(1)
    command, run = slow(net, driver)
    driver.finish(command)
    assert_slow_is_right(driver)
    end = msgspec.msgpack.decode(net.client.get(f"rqmr:{run}:end"))
    assert end["state"] == "succeeded"
    ahead = [line for line in log_of(node).splitlines() if "Job OK" in line]
    assert ahead


def test_a_package_and_an_included_file_travel(net: Network, driver: Host) -> None:
    workers_on(net, 2)
    driver.write(
        {
            "shop/__init__.py": "",
            "shop/words.py": "def clean(word):\n    return word.strip('.,!').lower()\n",
            "shop/count.py": _WITH_PACKAGE,
            "lists/stop.txt": "the\nand\n",
        }
    )
    options = ["shop.count", "input", "--include", "lists/stop.txt"]
    driver.rqmr("run", *options, "-r", "2", "-o", "counts")
    same_as_inline(driver, "counts", *options)
    words = {line.split(b"\t")[0] for part in driver.read("counts").values() for line in part.splitlines()}
    assert b"of" in words
    assert not words & {b"the", b"and"}


_WITH_PACKAGE = """
from rqmr import Job, Sum
from shop.words import clean


class Count(Job):
    def setup(self):
        self.stop = set(self.included("stop.txt").read_text().split())

    def mapper(self, source, line):
        for word in map(clean, line.split()):
            if word not in self.stop:
                yield word, 1

    reducer = Sum()
"""
