"""Count how often each word occurs.

    rqmr run wordcount input/*.txt

The mapper says what one line is about, the reducer what it all comes to. `Count` counts where the words are read, so a
word travels once for each map task, however often it occurs.

`map_batch` is the same mapper for many lines at once. A job does without; it is for where a call for each line is what
takes the time. What it gives as `Ones`, each word with a 1, is counted by `Count` without a step of Python for each.
"""

from collections.abc import Iterable, Iterator

from rqmr import Count, Job, Ones


class WordCount(Job):
    def mapper(self, source: str, line: str) -> Iterator[tuple[str, int]]:
        for word in line.lower().split():
            yield word, 1

    def map_batch(self, source: str, lines: str) -> Iterable[tuple[str, int]]:
        return Ones(lines.lower().split())

    reducer = Count()
