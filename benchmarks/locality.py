"""What it saves to give a worker the tasks whose input it sees: bytes shipped with and without, in one go.

    sudo python benchmarks/locality.py

Two hosts of a network of namespaces have half of the files each, at the same place; the command's host has all of them.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from hosts import Network, network  # type: ignore[import-not-found]  # noqa: E402

FILES, MIB = 16, 2
WITHOUT = "import rqmr.sight\nrqmr.sight.Sight.prefer = lambda self, named: named\n"


def main() -> None:
    """Measure both and print the table."""
    print("| tasks are given | shipped | of the input | seconds |\n|---|--:|--:|--:|")
    for row, patch in (("to who sees their input first", ""), ("in the order of the line", WITHOUT)):
        with tempfile.TemporaryDirectory(prefix="rqmr-locality-") as name, network(Path(name)) as net:
            shipped, total, seconds = _run(net, patch)
        print(f"| {row} | {shipped / 2**20:.1f} MiB | {100 * shipped / total:.0f} % | {seconds:.1f} |")


def _run(net: Network, patch: str) -> tuple[int, int, float]:
    chance = random.Random(3)
    line = " ".join(f"word{chance.randrange(1000)}" for _ in range(12)) + "\n"
    texts = {f"input/{number:02}.txt": line * (MIB * 2**20 // len(line)) for number in range(FILES)}
    driver = net.add("driver")
    driver.write(texts)
    for number in range(2):
        node = net.add(f"node{number}")
        node.write({name: text for index, (name, text) in enumerate(texts.items()) if index % 2 == number})
        node.write({"patch/sitecustomize.py": patch})
        node.work(PYTHONPATH=str(node.home / "patch"))
    net.wait_for_workers(2)
    began = time.monotonic()
    command = driver.begin_rqmr("run", "wordcount", "input", "--split-size", "512KiB", "-r", "1", "-o", "counts")
    shipped = 0
    while command.poll() is None:
        for run in net.client.zrange("rqmr:runs", 0, -1):
            shipped = int(net.client.hget(f"rqmr:{run.decode()}", "shipped") or shipped)
        time.sleep(0.002)
    driver.finish(command)
    return shipped, sum(map(len, texts.values())), time.monotonic() - began


if __name__ == "__main__":
    main()
