"""Count how often each word occurs.

    rqmr run wordcount input/*.txt
"""

from collections.abc import Iterator

from rqmr import Job, Sum


class WordCount(Job):
    def mapper(self, source: str, line: str) -> Iterator[tuple[str, int]]:
        for word in line.lower().split():
            yield word, 1

    reducer = Sum()
