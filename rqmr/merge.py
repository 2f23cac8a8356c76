"""The reduce side of the shuffle: segments → keys with their values.

The sorted runs of all segments are merged, so that the values of a key come in the order of (producer, emission),
whatever ran where. A partition may be larger than memory: of each run there is one chunk in memory (`windows`), and if
that is too much, some are merged into a temporary file before (`passes`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, islice
from operator import length_hint
from typing import Any, Protocol

from rqmr.aggregators import Aggregator
from rqmr.codec import Key, unseal
from rqmr.config import Config
from rqmr.errors import KeyFunctionError, SegmentLost
from rqmr.job import Reducer, Step
from rqmr.passes import Passes, ascending, folded, grouped, together
from rqmr.windows import SortedRun, Stream, windows

#: In a segment: more than any server holds.
_MOST_CHUNKS = 1 << 32
#: About how many bytes are fetched in one go, and how many chunks at the most.
_WINDOW, _MOST_FETCHED = 4 << 20, 256
#: A chunk's bytes where nothing is known of them, and for how many chunks that counts.
_USUAL_SIZE, _FIRST_FETCHED = 64 << 10, 16


class Segments(Protocol):
    """The committed segments for one reduce task."""

    def producers(self) -> Sequence[int]:
        """Return who has a segment, ascending."""

    def chunks(self, wanted: Sequence[tuple[int, int]]) -> Sequence[bytes | None]:
        """Return chunks: for each (producer, number) its bytes, or None if it is missing."""


class SegmentReader:
    """Opens the committed segments of one partition and merges them."""

    def __init__(
        self,
        step: Step,
        segments: Segments,
        memory: int = Config().memory,
        check: Callable[[], None] = lambda: None,
        note: Callable[[int], None] = lambda size: None,
    ) -> None:
        """`memory`: bytes that decoded chunks may take; `check` is called while nothing is yielded for long.

        `note` hears how many bytes have been fetched.
        """
        self.values = 0  # that were given
        self.largest_key: tuple[Key, int] = (None, 0)  # the key with most of them, and how many
        self._step = step
        self._passes = Passes(step, memory, check)
        self._fetch = _Fetch(step, segments, memory, note)

    @property
    def chunks(self) -> int:
        """Chunks in all: of the segments, about, until all are opened; and of the temporary file."""
        fetch = self._fetch
        return fetch.chunks * len(fetch.producers) // (fetch.opened or 1) + self._passes.written

    @property
    def loaded(self) -> int:
        """How many of them have been read."""
        return self._fetch.loaded + self._passes.loaded

    def groups(self) -> Iterator[tuple[Key, Iterable[Any]]]:
        """Yield each key, ascending, with its values, or the accumulators of an aggregator.

        Those that are in memory come as a list. A key that fills a whole chunk is streamed by an iterator, which ends
        when the next key is asked.

        Raises:
            SegmentLost: a chunk is missing or damaged.
            JobError: values that are to be sorted have no order.
            RecordError: the temporary file can't be written.
        """
        is_grouped = not isinstance(self._step.reducer, Aggregator)
        with closing(self._passes):
            for window in windows(self._runs()):
                if isinstance(window, Stream):
                    yield window.key, self._streamed(window) if is_grouped else window.items()
                    continue
                groups = grouped(window, sort_values=self._step.sort_values) if is_grouped else together(window)
                counts = list(map(len, groups.values()))
                self._note(next(islice(groups, counts.index(max(counts)), None)), max(counts), sum(counts))
                for key in ascending(groups):
                    yield key, groups[key]

    def folded(self) -> Iterator[tuple[list[Key], list[Any]]]:
        """Yield keys, ascending, and their results, many at a time. Raises as `groups`, and KeyFunctionError."""
        aggregator = self._step.reducer
        assert isinstance(aggregator, Aggregator)
        with closing(self._passes):
            for window in windows(self._runs()):
                table = folded(window, aggregator)
                keys = ascending(table)
                yield keys, _finished(aggregator, keys, table)

    def _streamed(self, stream: Stream) -> Iterator[Any]:
        lists = stream.values_in_order() if self._step.sort_values else stream.items()
        return chain.from_iterable(self._noted(stream.key, lists))

    def _noted(self, key: Key, lists: Iterable[list[Any]]) -> Iterator[list[Any]]:
        count = 0
        for values in lists:
            count += len(values)
            self._note(key, count, len(values))
            yield values

    def _note(self, key: Key, count: int, more: int) -> None:
        self.values += more
        if count > self.largest_key[1]:
            self.largest_key = key, count

    def _runs(self) -> list[SortedRun]:
        return self._passes.fit(self._fetch.runs(), len(self._fetch.producers))


class _SegmentRun(SortedRun):
    """A sorted run of a segment."""

    def __init__(self, fetch: _Fetch, producer: int, numbers: range, total: int, last: bytes | None) -> None:
        """`numbers`: those of its chunks, of as many as the segment has in `total`; `last`: one more, behind them."""
        super().__init__()
        self.producer = producer
        self.ahead: deque[bytes | None] = deque()  # fetched already
        self._fetch = fetch
        self._numbers = numbers
        self._total = total
        self._last = last

    @property
    def has_more(self) -> bool:
        return bool(self.ahead or self._numbers or self._last)

    @property
    def waits(self) -> bool:
        """Whether what comes next isn't fetched yet."""
        return bool(self._numbers) and not self.ahead

    def want(self, count: int) -> list[tuple[int, int]]:
        """Return the next chunks that aren't fetched yet, and take them for fetched."""
        taken, self._numbers = self._numbers[:count], self._numbers[count:]
        # The last chunk of all is stored as 0.
        return [(self.producer, number % self._total) for number in taken]

    def _load(self) -> tuple[list[Key], list[Any]]:
        if self.waits:
            self._fetch.fetch(self)
        if self.ahead:
            return self._fetch.decode(self.producer, self.ahead.popleft())
        stored, self._last = self._last, None
        return self._fetch.decode(self.producer, stored, kept=True)


class _Fetch:
    """Fetches chunks ahead, of many runs in one go, so that reading doesn't wait for each."""

    def __init__(self, step: Step, segments: Segments, memory: int, note: Callable[[int], None]) -> None:
        self._note = note
        self._codec = step.codec()
        self._segments = segments
        self._window = min(_WINDOW, max(memory // 16, 1))
        self._open: list[_SegmentRun] = []
        self._keeps = self._window  # bytes of heads that may be kept until they are needed as the last chunks
        self._fetched = 0
        self.producers = segments.producers()
        self.opened = 0  # of them
        self.chunks = 0  # of the segments opened
        self.loaded = 0
        self._size = 0  # bytes fetched

    def runs(self) -> Iterator[SortedRun]:
        """Yield all runs, by producer."""
        while self.opened < len(self.producers):
            some = self.producers[self.opened : self.opened + self._limit()]
            heads = self._get([(producer, 0) for producer in some])
            if None in heads:
                raise SegmentLost(self._missing(), "missing")
            self.opened += len(some)
            runs = [run for head in zip(some, heads, strict=True) for run in self._runs_of(*head)]
            self._open += runs
            yield from runs

    def fetch(self, first: _SegmentRun) -> None:
        """Fetch the next chunks of a run, and of others that will need some soon."""
        self._open = [run for run in self._open if run.has_more]
        limit = self._limit()
        waiting = [first, *(run for run in self._open if run.waits and run is not first)][:limit]
        each = max(1, (limit - sum(len(run.ahead) for run in self._open)) // len(waiting))
        wanted = [(run, chunk) for run in waiting for chunk in run.want(each)]
        for (run, _), data in zip(wanted, self._get([chunk for _, chunk in wanted]), strict=True):
            run.ahead.append(data)

    def decode(self, producer: int, stored: bytes | None, *, kept: bool = False) -> tuple[list[Key], list[Any]]:
        """Return the keys and items of a chunk; SegmentLost if it is missing or damaged. `kept`: it is a head."""
        if kept and stored:
            self._keeps += len(stored)
        decoded: tuple[list[Key], list[Any]]
        decoded = _checked(producer, stored, lambda stored: self._codec.items(unseal(stored)))
        self.loaded += 1
        return decoded

    def _runs_of(self, producer: int, head: bytes | None) -> Iterator[_SegmentRun]:
        lengths = _checked(producer, head, _lengths)
        total = sum(lengths)
        self.chunks += total
        end = 0
        for length in lengths:
            start, end = end + 1, end + length
            # The head is the last chunk of all. Where there are too many to keep it is fetched again when it is needed.
            if end == total and head and (total == 1 or len(head) <= self._keeps):
                self._keeps -= len(head)
                yield _SegmentRun(self, producer, range(start, end), total, head)
            else:
                yield _SegmentRun(self, producer, range(start, end + 1), total, None)

    def _missing(self) -> list[int]:
        """Return whose segments are missing: all at once, so that they are made again side by side."""
        missing = []
        for start in range(self.opened, len(self.producers), _FIRST_FETCHED):
            some = self.producers[start : start + _FIRST_FETCHED]
            heads = self._get([(producer, 0) for producer in some])
            missing += [producer for producer, head in zip(some, heads, strict=True) if head is None]
        return missing

    def _limit(self) -> int:
        """Return how many chunks to fetch in one go, by the size of those before."""
        # Heads come first, and may be small: so a few chunks of the usual size are taken for known.
        fetched, size = self._fetched + _FIRST_FETCHED, self._size + _FIRST_FETCHED * _USUAL_SIZE
        return max(1, min(_MOST_FETCHED, self._window * fetched // size))

    def _get(self, wanted: Sequence[tuple[int, int]]) -> Sequence[bytes | None]:
        stored = self._segments.chunks(wanted)
        self._fetched += len(stored)
        self._size += sum(len(data) for data in stored if data)
        self._note(self._size)
        return stored


def _checked(producer: int, stored: bytes | None, decode: Callable[[bytes], Any]) -> Any:
    if stored is None:
        raise SegmentLost([producer], "missing")
    try:
        return decode(stored)
    except ValueError as error:
        raise SegmentLost([producer], f"not readable: {error}") from error


def _lengths(head: bytes) -> tuple[int, ...]:
    runs = unseal(head).runs
    if not runs or min(runs) < 1 or sum(runs) > _MOST_CHUNKS:
        raise ValueError(f"no segment has {sum(runs)} chunks in {len(runs)} runs")
    return runs


def reducing(step: Step) -> Callable[[Key, Iterable[Any]], Iterable[tuple[Key, Any]]]:
    """Return what makes a step's pairs of a key and what `SegmentReader.groups` has of it."""
    reducer = step.reducer
    if isinstance(reducer, Aggregator):
        return partial(_merged, reducer)
    assert reducer is not None
    return partial(_called, reducer)


def _merged(aggregator: Aggregator, key: Key, accumulators: Iterable[Any]) -> Iterable[tuple[Key, Any]]:
    accumulator = aggregator.zero()
    for other in accumulators:
        accumulator = aggregator.merge(accumulator, other)
    return ((key, aggregator.finish(accumulator)),)


def _called(reducer: Reducer, key: Key, values: Iterable[Any]) -> Iterable[tuple[Key, Any]]:
    pairs = reducer(key, iter(values))
    return () if pairs is None else pairs


def folds_in_bulk(step: Step) -> bool:
    """Whether `SegmentReader.folded` gives the step's output, with none of the job's own functions to be watched."""
    reducer = step.reducer
    if not isinstance(reducer, Aggregator):
        return False
    kind = type(reducer)
    is_ours = kind.__module__ == Aggregator.__module__
    return is_ours or (kind.merge_all is not Aggregator.merge_all and kind.finish is Aggregator.finish)


def _finished(aggregator: Aggregator, keys: list[Key], table: dict[Key, Any]) -> list[Any]:
    if type(aggregator).finish is Aggregator.finish:
        return list(map(table.__getitem__, keys))
    upcoming = iter(keys)
    try:
        return [aggregator.finish(table[key]) for key in upcoming]
    except Exception as error:
        raise KeyFunctionError(keys[len(keys) - length_hint(upcoming) - 1]) from error
