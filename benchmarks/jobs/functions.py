"""What is done to each record: the jobs, the hand-written pools and the peers all call these."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

WORD = re.compile(r"\w+")
#: Few lines of a corpus match it.
PATTERN = r"_\w+beef\("
matches = re.compile(PATTERN).search
SORT_KEY_BYTES = 10


def words(source: str, line: str) -> Iterator[tuple[str, int]]:
    """Yield each word of a line, and 1."""
    for word in line.lower().split():
        yield word, 1


def words_of_text(text: str) -> Counter[str]:
    """Count the words of many lines."""
    return Counter(text.lower().split())


def added(word: str, counts: Iterable[int]) -> Iterator[tuple[str, int]]:
    """Yield a word and the sum of its counts."""
    yield word, sum(counts)


def index(source: str, line: str) -> Iterator[tuple[str, str]]:
    """Yield each word of a line, and the name of its file."""
    for word in WORD.findall(line.lower()):
        yield word, source


def matching(source: str, line: str) -> Iterator[tuple[str, str]]:
    """Yield the line, and the name of its file, if it matches."""
    if matches(line):
        yield source, line


def parted(source: str, line: str) -> Iterator[tuple[str, str]]:
    """Yield a record's key, which it begins with, and what follows."""
    yield line[:SORT_KEY_BYTES], line[SORT_KEY_BYTES:]
