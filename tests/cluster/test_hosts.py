"""Hosts that share nothing but Redis: inputs and outputs travel, and whatever happens the output is the oracle's."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
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
