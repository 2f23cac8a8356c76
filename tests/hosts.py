"""Hosts that share nothing but a network: network and mount namespaces of this machine.

Each host has an address and a directory tree of its own, which it sees at the same place as the others see theirs, and
nothing of theirs. All traffic stays between them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
from harness import ROOT, signal_all, wait_until

from rqmr.server import find_server
from rqmr.sessions import end_sessions

PORT = 6379
#: What a command does first on its host: its tree is home, the others' trees are out of sight, and it has a name.
_ENTER = """
mount --bind "$0" "$1"
mount -t tmpfs none "$2"
echo "$3" > /proc/sys/kernel/hostname
cd "$1"
shift 3
exec "$@"
"""


def need_namespaces() -> None:
    """Skip a test where namespaces aren't allowed; with CI=true that is an error."""
    name = f"rqmr-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True) if _has_ip() else None
    if tried and not tried.returncode:
        subprocess.run(["ip", "netns", "delete", name], check=True)
        if not subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
            return
    message = f"network namespaces aren't allowed here: {tried.stderr.strip() if tried else 'iproute2 is missing'}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def _has_ip() -> bool:
    return any((Path(place) / "ip").exists() for place in ("/sbin", "/usr/sbin", "/bin", "/usr/bin"))


@dataclass
class Host:
    """One host."""

    name: str
    address: str
    namespace: str
    root: Path  # where its tree really is
    home: Path  # where it sees it, as all hosts do
    url: str
    processes: list[subprocess.Popen[Any]] = field(default_factory=list)

    def command(self, *arguments: str) -> list[str]:
        """A command that runs on this host, in its home."""
        unshared = ["unshare", "--uts", "--mount", "--propagation", "private", "sh", "-ec", _ENTER]
        where = [str(self.root), str(self.home), str(self.root.parent), self.name]
        return ["ip", "netns", "exec", self.namespace, *unshared, *where, *arguments]

    def begin(self, *arguments: str, log: str = "", **environment: str) -> subprocess.Popen[bytes]:
        """Start a command; it ends with the test."""
        clean = {name: value for name, value in os.environ.items() if not name.endswith("REDIS_URL")}
        out = (self.root / log).open("wb") if log else None
        process = subprocess.Popen(
            self.command(*arguments),
            env={**clean, **environment},
            stdout=out or subprocess.PIPE,
            stderr=out or subprocess.PIPE,
            start_new_session=True,
        )
        if out:
            out.close()
        self.processes.append(process)
        return process

    def work(self, *, queue: str = "rqmr", **environment: str) -> subprocess.Popen[bytes]:
        """Start a stock RQ worker."""
        name = f"{self.name}-w{len(self.processes) + 1}"
        python = [sys.executable, "-m", "rq.cli"]
        return self.begin(
            *python, "worker", "--name", name, queue, log=f"{name}.log", RQ_REDIS_URL=self.url, **environment
        )

    def rqmr(self, *arguments: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command of rqmr's to its end."""
        process = self.begin_rqmr(*arguments, **environment)
        return self.finish(process, status=status)

    def begin_rqmr(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a command of rqmr's."""
        return self.begin(sys.executable, "-m", "rqmr", *arguments, RQMR_REDIS_URL=self.url, **environment)

    def finish(self, process: subprocess.Popen[bytes], *, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Wait for a command that was begun."""
        out, err = process.communicate(timeout=60)
        assert process.returncode == status, err.decode()
        return subprocess.CompletedProcess(process.args, process.returncode, out.decode(), err.decode())

    def write(self, files: Mapping[str, str]) -> None:
        """Write files into its tree."""
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def read(self, directory: str) -> dict[str, bytes]:
        """The files of a directory of its tree."""
        return {path.name: path.read_bytes() for path in sorted((self.root / directory).iterdir()) if path.is_file()}

    def kill(self) -> None:
        """Kill all that runs on it, as a power cut does."""
        end_sessions({process.pid for process in self.processes})
        for process in self.processes:
            process.wait()
            for pipe in filter(None, (process.stdout, process.stderr)):
                pipe.close()


class Network:
    """Some hosts, the first of which has the Redis server."""

    def __init__(self, directory: Path) -> None:
        self._trees = directory / "trees"
        self._trees.mkdir()
        self._socket = directory / "r.sock"  # through which the tests themselves look
        self._tag = f"rq{os.getpid() % 10_000:04}{secrets.token_hex(1)}"
        self._bridge = f"{self._tag}-hub"
        self._home = directory / "home"
        self._home.mkdir()
        self.hosts: list[Host] = []
        _ip("netns", "add", self._bridge)
        _ip("-n", self._bridge, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._bridge, "link", "set", "bridge", "up")
        self.server = self.add("server")
        self.client = self._serve()

    def add(self, name: str) -> Host:
        """Make another host."""
        number = len(self.hosts) + 1
        namespace, address = f"{self._tag}-{number}", f"10.213.7.{number}"
        root = self._trees / name
        root.mkdir()
        _ip("netns", "add", namespace)
        _ip("-n", self._bridge, "link", "add", f"v{number}", "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("-n", self._bridge, "link", "set", f"v{number}", "master", "bridge", "up")
        _ip("-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "eth0", "up")
        _ip("-n", namespace, "link", "set", "lo", "up")
        host = Host(name, address, namespace, root, self._home, f"redis://10.213.7.1:{PORT}/0")
        self.hosts.append(host)
        return host

    def cut(self, host: Host) -> None:
        """Pull a host's plug."""
        _ip("-n", self._bridge, "link", "set", f"v{self.hosts.index(host) + 1}", "down")

    def mend(self, host: Host) -> None:
        """Plug it in again."""
        _ip("-n", self._bridge, "link", "set", f"v{self.hosts.index(host) + 1}", "up")

    def _serve(self) -> redis.Redis:
        self.server.begin(
            str(find_server()), "--port", str(PORT), "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "",
            "--unixsocket", str(self._socket), log="server.log",
        )  # fmt: skip
        wait_until(self._socket.exists, timeout=10, what="the server is there")
        return redis.Redis(unix_socket_path=str(self._socket))

    def wait_for_workers(self, count: int, queue: str = "rqmr") -> None:
        """Wait until as many listen."""
        wait_until(
            lambda: self.client.scard(f"rq:workers:{queue}") >= count, timeout=30, what=f"{count} workers listen"
        )

    def close(self) -> None:
        """End all that runs, and remove the namespaces."""
        for host in self.hosts:
            signal_all([process.pid for process in host.processes], signal.SIGCONT)
            host.kill()
        for namespace in [*(host.namespace for host in self.hosts), self._bridge]:
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", namespace)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextlib.contextmanager
def network(directory: Path) -> Iterator[Network]:
    """Make a network for one test, or for some."""
    made = None
    try:
        made = Network(directory)
        yield made
    finally:
        if made:
            made.close()


def main(nodes: int) -> int:
    """Show a word count over hosts that share nothing: one has the server, one the input, and `nodes` have a worker."""
    with tempfile.TemporaryDirectory(prefix="rqmr-cluster-") as name, network(Path(name)) as net:
        driver = net.add("driver")
        texts = sorted((ROOT / "input").glob("*.txt"))
        driver.write({f"input/{path.name}": path.read_text() * 20_000 for path in texts})
        for number in range(1, nodes + 1):
            net.add(f"node{number}").work()
        net.wait_for_workers(nodes)
        for host in net.hosts:
            print(f"{host.address}  {host.name:<8} {', '.join(sorted(each.name for each in host.root.iterdir()))}")
        command = [
            sys.executable,
            "-m",
            "rqmr",
            "run",
            "wordcount",
            "input",
            "--split-size",
            "256KiB",
            "-r",
            "2",
            "-o",
            "counts",
        ]
        ran = subprocess.run(driver.command(*command), env={**os.environ, "RQMR_REDIS_URL": driver.url})
        if not ran.returncode:
            print("counts/part-00000 on driver begins with:")
            print(*driver.read("counts")["part-00000"].decode().splitlines()[:5], sep="\n")
        return ran.returncode


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3))
