"""What a bad network costs: word count with latency before Redis, and with connections cut at random.

    python benchmarks/network.py [rounds]

Two stock workers, started again when they end, as systemd would; they and the command reach Redis through a proxy. Each
round runs all rows, one after the other, and each is compared with the first of its own round. Every output is compared
with that of --inline. The table goes to stdout, in Markdown.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from cluster import started  # noqa: E402
from harness import Workers  # type: ignore[import-not-found]  # noqa: E402
from proxies import bad_network  # type: ignore[import-not-found]  # noqa: E402

ROWS = {
    "no latency": {},
    "50 ms there and back": {"latency": 0.05},
    "the same, and a connection lasts 5 s on average": {"latency": 0.05, "cut_after": 5.0},
}
WORDS = 30_000


def main(rounds: int) -> None:
    """Run the rounds and print the table."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        chance = random.Random(5)
        words = [f"word{number}" for number in range(WORDS)]
        for number in range(8):
            lines = (" ".join(chance.choices(words, k=10)) for _ in range(40_000))
            (directory / f"{number}.txt").write_text("\n".join(lines) + "\n")
        options = ["wordcount", *map(str, sorted(directory.glob("*.txt"))), "--split-size", "1MiB", "-r", "2"]
        _rqmr(*options, "--inline", "-o", str(directory / "expected"))
        seconds: dict[str, list[float]] = {row: [] for row in ROWS}
        for number in range(rounds):
            for index, (row, settings) in enumerate(ROWS.items()):
                output = directory / f"out-{number}-{index}"
                seconds[row].append(_run(options, output, number, settings))
                assert _content(output) == _content(directory / "expected"), f"{row}: the output is wrong"
                print(f"round {number + 1}  {seconds[row][-1]:6.2f} s  {row}", file=sys.stderr)
    print("| network | seconds | against none |\n|---|--:|--:|")
    for row, taken in seconds.items():
        ratios = [each / none for each, none in zip(taken, seconds["no latency"], strict=True)]
        told = f"{statistics.median(ratios):.2f} [{min(ratios):.2f} … {max(ratios):.2f}]"
        print(f"| {row} | {statistics.median(taken):.2f} [{min(taken):.2f} … {max(taken):.2f}] | {told} |")


def _run(options: list[str], output: Path, seed: int, settings: dict[str, float]) -> float:
    with started(0) as cluster, bad_network(str(cluster.directory / "r.sock"), seed=seed, **settings) as network:
        url = f"redis://127.0.0.1:{network.port}/0"
        workers = Workers(url, cluster.directory)
        try:
            workers.keep(2)
            began = time.monotonic()
            _rqmr(*options, "--lease", "3", "--redis-url", url, "-o", str(output))
            return time.monotonic() - began
        finally:
            workers.stop()


def _rqmr(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "rqmr", "run", *arguments, "--quiet"], check=True)


def _content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("part-*")}


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
