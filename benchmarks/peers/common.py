"""What the peers have in common: the arguments, the record functions, and how output is spelled.

    PYTHON PEER.py WORK OUT FILE...        (WORK: words index grep sort; a peer tells those that it knows)

They run in an environment of their own, which has no rqmr.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent.parent
for _place in (BENCHMARKS, BENCHMARKS / "jobs"):
    sys.path.insert(0, str(_place))
# What a peer starts shall find the record functions, too.
os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (BENCHMARKS, BENCHMARKS / "jobs", BENCHMARKS / "peers")))

import pools  # noqa: E402

spell = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def pieces(paths: Sequence[str]) -> list[pools.Piece]:
    """Pieces of 16 MiB, as the hand-written pools have them."""
    return list(pools.pieces(paths))


def write(lines: Iterable[str], output: str) -> None:
    """Write the output as one file."""
    with Path(output).open("w", encoding="utf-8") as file:
        file.writelines(lines)


def index_lines(found: Iterable[tuple[str, Iterable[str]]]) -> Iterator[str]:
    """Spell an inverted index."""
    return (f"{word}\t{spell(sorted(names))}\n" for word, names in found)


def pair_lines(pairs: Iterable[tuple[Any, Any]]) -> Iterator[str]:
    """Spell pairs."""
    return (f"{key}\t{value}\n" for key, value in pairs)


def main(works: Mapping[str, Callable[[list[str]], Iterable[str]]]) -> None:
    """Do the work that the command line asks for."""
    name, output, *paths = sys.argv[1:]
    write(works[name](paths), output)
