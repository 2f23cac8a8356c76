"""Count how often each word occurs.

    rqmr run wordcount input/*.txt

The mapper says what one line is about, the reducer what it all comes to. `Sum` adds up where the words are read, so a
word travels once for each map task, however often it occurs.
"""

from collections.abc import Iterator

from rqmr import Job, Sum


class WordCount(Job):
    def mapper(self, source: str, line: str) -> Iterator[tuple[str, int]]:
        for word in line.lower().split():
            yield word, 1

    reducer = Sum()
