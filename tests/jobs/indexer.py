"""List the files of each word in the order in which the values come: that of the input, or ascending if `ascending`.

With `marks`, the file named `last` is mapped after `others` other ones, so the order of the commits is another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from marks import count, wait_for_marks

from rqmr import Job, Step, Whole


class Indexer(Job):
    reader = Whole()
    ascending: bool = False
    marks: str = ""  # a directory
    last: str = ""
    others: int = 0

    def steps(self) -> list[Step]:
        return [Step(self.words, self.files, sort_values=self.ascending)]

    def words(self, source: str, text: str) -> Iterator[tuple[str, str]]:
        name = Path(source).name
        if self.marks and name == self.last:
            assert wait_for_marks(self.marks, "mapped", self.others), "the others aren't mapped"
        for word in set(text.split()):  # a set: no two processes have it in one order
            yield word, name
        if self.marks:
            count(self.marks, "mapped")

    def files(self, word: str, names: Iterable[str]) -> Iterator[tuple[str, str]]:
        found = list(names)
        yield word, f"{len(found)} {','.join(found)}"
