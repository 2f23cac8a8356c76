"""Make what the benchmarks read: text like books, text like source code, and records to sort.

    python benchmarks/corpora.py books --size 32MiB        (makes it if it isn't there; prints its files)

Each is the same for the same seed, and is made file by file, so a smaller corpus is the beginning of a larger one. They
are kept in a cache outside the checkout: $XDG_CACHE_HOME/rqmr-bench, or where `--work` says.
"""

from __future__ import annotations

import argparse
import os
import random
import string
from collections.abc import Callable, Iterator
from itertools import accumulate, islice
from multiprocessing import Pool
from pathlib import Path

from rqmr.inputs import parse_size

SEED = 1
#: Raised whenever the makers change, so that no corpus of an older one is taken for the new one's.
VERSION = 1
_MIB = 1 << 20

Maker = Callable[[random.Random, int], bytes]


def default_cache() -> Path:
    """Return where corpora and the peers' environment are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rqmr-bench"


def corpus(name: str, size: int, cache: Path) -> list[Path]:
    """Return the files of a corpus of about `size` bytes, at least one, and make those that aren't there."""
    file_bytes = MAKERS[name][1]
    directory = cache / "corpora" / f"{name}-{VERSION}-{SEED}"
    directory.mkdir(parents=True, exist_ok=True)
    step = min(size, file_bytes)
    # Files of a size below the usual are of use to tests only, and are kept apart.
    suffix = "" if step == file_bytes else f"-{step}"
    paths = [directory / f"{name}{suffix}-{number:04}.txt" for number in range(max(1, size // file_bytes))]
    missing = [(name, number, step, path) for number, path in enumerate(paths) if not path.exists()]
    if len(missing) > 4:
        with Pool() as pool:
            pool.starmap(_make, missing)
    else:
        for each in missing:
            _make(*each)
    return paths


def real_corpus(directory: Path, size: int) -> list[Path]:
    """Return files of a directory, sorted, of about `size` bytes in all; SystemExit if it has none."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name[0] not in "._")
    totals = accumulate((path.stat().st_size for path in files), initial=0)
    found = [path for path, before in zip(files, totals, strict=False) if before < size]
    if not found:
        raise SystemExit(f"{directory} has no files to read")
    return found


def _make(name: str, number: int, size: int, path: Path) -> None:
    data = MAKERS[name][0](random.Random(f"{SEED}-{name}-{number}"), size)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_bytes(data)
    partial.replace(path)  # so that one that was interrupted is made again


# --- books: few words, most of them often -------------------------------------------------------------------------

BOOK_WORDS = 46_000


def _book(chance: random.Random, size: int) -> bytes:
    words, weights = _vocabulary(BOOK_WORDS)
    # Per byte of text this many draws are enough: a word is four letters on average and a space.
    drawn = iter(chance.choices(words, cum_weights=weights, k=size // 4 + 100))
    return _filled(iter(lambda: " ".join(islice(drawn, 11)).capitalize(), ""), size)


def _vocabulary(count: int) -> tuple[list[str], list[float]]:
    """Words by rank, the frequent ones short, and their cumulated weights by Zipf's law as Mandelbrot has it."""
    if count not in _VOCABULARIES:
        words = sorted(_made_up(count), key=len)
        weights = list(accumulate(1 / (rank + 2.7) for rank in range(count)))
        _VOCABULARIES[count] = words, weights
    return _VOCABULARIES[count]


_VOCABULARIES: dict[int, tuple[list[str], list[float]]] = {}


def _made_up(count: int) -> list[str]:
    chance = random.Random(SEED)
    syllables = [a + b + c for a in "bcdfghlmnprstvw" for b in "aeiou" for c in ("", "", "n", "r", "s")]
    words: dict[str, None] = dict.fromkeys("abcdefghijklmnopqrstuvwxyz")
    while len(words) < count:
        words["".join(chance.choices(syllables, k=chance.choice((1, 2, 2, 3, 3, 4))))] = None
    return list(words)


# --- source: new words on every page ------------------------------------------------------------------------------

#: Of a line's words, and how the ranks of the rare ones are spread: smaller is a heavier tail.
COMMON, RARE_TAIL = 4_000, 0.25


def _source(chance: random.Random, size: int) -> bytes:
    names = _vocabulary(COMMON)[0]
    symbols = ["=", "{", "}", "==", "return", "if", "(", "#define", "*", "/*", "*/", "+", "int", "static", "struct"]
    common = [*symbols, *names]
    spread = list(accumulate(1 / (rank + 2.7) for rank in range(len(common))))
    drawn = iter(chance.choices(common, cum_weights=spread, k=size // 4 + 100))
    uniform, tail = chance.random, -1 / RARE_TAIL

    def lines() -> Iterator[str]:
        while True:
            rank = int((1 - uniform()) ** tail * 40)
            rare = f"{names[rank % 997]}_{names[rank % 3989]}{rank:x}"
            yield f"\t{' '.join(islice(drawn, 3))} {rare}({next(drawn)}, {next(drawn)});"

    return _filled(lines(), size)


# --- records: to sort ---------------------------------------------------------------------------------------------

RECORD_BYTES, SORT_KEY_BYTES = 100, 10
#: Letters that need no escape in a part file.
LETTERS = string.ascii_letters + string.digits


def _records(chance: random.Random, size: int) -> bytes:
    count = max(1, size // RECORD_BYTES)
    keys = chance.choices(LETTERS, k=SORT_KEY_BYTES * count)
    filler = "".join(chance.choices(LETTERS, k=RECORD_BYTES))
    rest = RECORD_BYTES - SORT_KEY_BYTES - 1
    lines = (
        "".join(keys[at : at + SORT_KEY_BYTES]) + f"{at // SORT_KEY_BYTES:012}{filler}"[:rest]
        for at in range(0, len(keys), SORT_KEY_BYTES)
    )
    return "".join(f"{line}\n" for line in lines).encode()


def _filled(lines: Iterator[str], size: int) -> bytes:
    """Lines until they are `size` bytes; all are ASCII."""
    taken, length = [], 0
    for line in lines:
        taken.append(line)
        length += len(line) + 1
        if length >= size:
            break
    return ("\n".join(taken) + "\n").encode()


#: How each corpus is made, and the bytes of one of its files.
MAKERS: dict[str, tuple[Maker, int]] = {
    "books": (_book, _MIB),
    "source": (_source, _MIB // 4),
    "records": (_records, 10**7),
}


def main() -> None:
    """Make what the command line asks for, and print the paths."""
    parser = argparse.ArgumentParser(description="Make a corpus of the benchmarks.")
    parser.add_argument("name", choices=MAKERS)
    parser.add_argument("--size", type=parse_size, default=32 * _MIB, help="default: 32MiB")
    parser.add_argument("--work", type=Path, default=default_cache(), help="default: %(default)s")
    given = parser.parse_args()
    for path in corpus(given.name, given.size, given.work):
        print(path)


if __name__ == "__main__":
    main()
