"""The yardstick: each job written by hand over `multiprocessing.Pool`, as one would who needs just this, once.

    python benchmarks/pools.py words OUT FILE...        (also: lines chunks reducer index grep sort)

Two processes read pieces of 16 MiB, cut at line ends, and send what they made of them; this one puts it together and
writes one sorted file. Nothing is given out twice, nothing is checked, and all that comes back has to fit in memory.
Records go through the job's own functions; but `sort` sorts whole lines, and `lines` and `chunks` do what one would who
has only words to count.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import Pool
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "jobs"))

from functions import SORT_KEY_BYTES, added, index, matching, words

PROCESSES = 2
PIECE_BYTES, BLOCK_BYTES = 16 << 20, 256 << 10

#: Of one file: its path, and the bytes at which the lines begin that are the piece's.
Range = tuple[str, int, int]
Piece = list[Range]


# --- reading ------------------------------------------------------------------------------------------------------


def pieces(paths: Iterable[str]) -> Iterator[Piece]:
    """Cut big files, and pack small ones together."""
    packed: Piece = []
    held = 0
    for path in paths:
        size = Path(path).stat().st_size
        for start in range(0, size, PIECE_BYTES):
            stop = min(start + PIECE_BYTES, size)
            if packed and held + stop - start > PIECE_BYTES:
                yield packed
                packed, held = [], 0
            packed.append((path, start, stop))
            held += stop - start
    if packed:
        yield packed


def blocks(piece: Piece) -> Iterator[tuple[str, str]]:
    """Yield the file's name and some whole lines of it, again and again."""
    for path, start, stop in piece:
        with Path(path).open("rb") as file:
            if start:
                file.seek(start - 1)
                file.readline()
            while file.tell() < stop:
                raw = file.read(min(BLOCK_BYTES, stop - file.tell()))
                if not raw.endswith(b"\n"):
                    raw += file.readline()
                yield path, raw.decode(errors="replace")


def lines_of(piece: Piece) -> Iterator[tuple[str, str]]:
    """Yield each line with the name of its file."""
    for path, text in blocks(piece):
        if "\r" in text:
            text = text.replace("\r\n", "\n")
        lines = text.split("\n")
        if not lines[-1]:
            lines.pop()  # what follows the last line's end
        for line in lines:
            yield path, line


# --- what a process makes of a piece ------------------------------------------------------------------------------


def count_words(piece: Piece) -> dict[str, int]:
    """With the mapper that the job has, folded in place."""
    counts: dict[str, int] = {}
    get = counts.get
    for path, line in lines_of(piece):
        for word, one in words(path, line):
            counts[word] = get(word, 0) + one
    return counts


def count_by_line(piece: Piece) -> Counter[str]:
    """A Counter, fed line by line."""
    counts: Counter[str] = Counter()
    for _, line in lines_of(piece):
        counts.update(line.lower().split())
    return counts


def count_by_chunk(piece: Piece) -> Counter[str]:
    """A Counter, fed with 256 KiB at a time."""
    counts: Counter[str] = Counter()
    for _, text in blocks(piece):
        counts.update(text.lower().split())
    return counts


def count_by_reducer(piece: Piece) -> dict[str, list[int]]:
    """Group what the mapper yields, and have the reducer combine it."""
    groups: dict[str, list[int]] = {}
    for path, line in lines_of(piece):
        for word, one in words(path, line):
            if word in groups:
                groups[word].append(one)
            else:
                groups[word] = [one]
    return {key: [value] for word, ones in groups.items() for key, value in added(word, ones)}


def index_words(piece: Piece) -> dict[str, set[str]]:
    """The files of each word."""
    found: dict[str, set[str]] = {}
    for path, line in lines_of(piece):
        for word, name in index(path, line):
            if word in found:
                found[word].add(name)
            else:
                found[word] = {name}
    return found


def find_lines(piece: Piece) -> list[tuple[str, str]]:
    """The lines that match."""
    return [pair for path, line in lines_of(piece) for pair in matching(path, line)]


def sort_lines(piece: Piece) -> list[str]:
    """The records of a piece, sorted: whole lines, as they begin with the key."""
    return sorted(line for _, line in lines_of(piece))


# --- and this one of all that -------------------------------------------------------------------------------------


def merge_counts(parts: Iterable[dict[str, int]]) -> Iterator[str]:
    """Add all up, in place."""
    totals: dict[str, int] = {}
    get = totals.get
    for part in parts:
        for word, count in part.items():
            totals[word] = get(word, 0) + count
    return (f"{word}\t{totals[word]}\n" for word in sorted(totals))


def merge_counters(parts: Iterable[Counter[str]]) -> Iterator[str]:
    """Add all up, by Counter."""
    totals: Counter[str] = Counter()
    for part in parts:
        totals.update(part)
    return (f"{word}\t{totals[word]}\n" for word in sorted(totals))


def merge_groups(parts: Iterable[dict[str, list[int]]]) -> Iterator[str]:
    """Bring together what belongs to a word, and reduce it."""
    groups: dict[str, list[int]] = {}
    for part in parts:
        for word, counts in part.items():
            if word in groups:
                groups[word] += counts
            else:
                groups[word] = counts
    return (f"{key}\t{value}\n" for word in sorted(groups) for key, value in added(word, groups[word]))


def merge_index(parts: Iterable[dict[str, set[str]]]) -> Iterator[str]:
    """Unite the files of each word."""
    found: dict[str, set[str]] = {}
    for part in parts:
        for word, names in part.items():
            if word in found:
                found[word] |= names
            else:
                found[word] = names
    spell = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    return (f"{word}\t{spell(sorted(found[word]))}\n" for word in sorted(found))


def merge_found(parts: Iterable[list[tuple[str, str]]]) -> Iterator[str]:
    """Write what was found as it comes."""
    return (f"{path}\t{line}\n" for part in parts for path, line in part)


def merge_sorted(parts: Iterable[list[str]]) -> Iterator[str]:
    """Sort the sorted pieces, which timsort does by merging them."""
    lines = [line for part in parts for line in part]
    lines.sort()
    return (f"{line[:SORT_KEY_BYTES]}\t{line[SORT_KEY_BYTES:]}\n" for line in lines)


PROGRAMS: dict[str, tuple[Callable[[Piece], Any], Callable[[Iterable[Any]], Iterator[str]]]] = {
    "words": (count_words, merge_counts),
    "lines": (count_by_line, merge_counters),
    "chunks": (count_by_chunk, merge_counters),
    "reducer": (count_by_reducer, merge_groups),
    "index": (index_words, merge_index),
    "grep": (find_lines, merge_found),
    "sort": (sort_lines, merge_sorted),
}


def main(name: str, output: str, *paths: str) -> None:
    """Run one of them."""
    work, put_together = PROGRAMS[name]
    with Pool(PROCESSES) as pool, Path(output).open("w", encoding="utf-8") as file:
        file.writelines(put_together(pool.imap_unordered(work, pieces(paths))))


if __name__ == "__main__":
    main(*sys.argv[1:])
