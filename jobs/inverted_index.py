"""List, for each word, the files that it occurs in.

    rqmr run inverted_index input/*.txt

The key that a mapper gets is the name of the input, so a record knows where it comes from. `Distinct` keeps each
name once, and does so where the lines are read: a word that fills a book travels no heavier than a rare one.
"""

import re
from collections.abc import Iterator

from rqmr import Distinct, Job

WORD = re.compile(r"\w+")


class InvertedIndex(Job):
    def mapper(self, source: str, line: str) -> Iterator[tuple[str, str]]:
        for word in WORD.findall(line.lower()):
            yield word, source

    reducer = Distinct()
