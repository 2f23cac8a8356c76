"""Where an attempt is among its records, and how it leaves out bad ones.

A bad record raises, or ends its process, each time. The first kind is found and left out within an attempt. The second
kind is found by careful attempts: they tell each record before it begins, so that it is known where one died.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from inspect import isgenerator
from itertools import chain, count, repeat
from operator import length_hint
from typing import Any, Literal

from rqmr.codec import as_text, check_pair, shorten
from rqmr.errors import AttemptEnded, JobError, RecordError
from rqmr.failures import too_many_bad
from rqmr.files import UnreadableRecord
from rqmr.job import Job, Step
from rqmr.loader import user_traceback
from rqmr.merge import SegmentReader
from rqmr.model import Failure, Progress, RecordAt, Skipped
from rqmr.readers import Block, TextLines

Pair = tuple[Any, Any]
#: What the job's code does with a record, or with a key and its items.
Work = Callable[[Any, Any], "Iterable[Pair] | None"]
#: Hears which record is about to begin; None: none is.
Tell = Callable[["RecordAt | None"], None]

_IMMUTABLE = frozenset({type(None), bool, int, float, str, bytes})
_MESSAGE = 500  # characters of what a bad record raised


class Place:
    """Where an attempt is. Its heartbeat reads it from another thread, and stops it there."""

    def __init__(self) -> None:
        self.stopped = False
        self._rest: list[Any] = []  # the records of the block, which `_taken` iterates over
        self.waits: Literal["", "memory", "input"] = ""  # for what comes through Redis: no fault of the code
        self.start_over()

    def start_over(self) -> None:
        """Go back to before the first record."""
        self.records = 0  # of the blocks, or the groups, behind it
        self.size = 0  # their bytes; of groups, those fetched
        self.block: Block | None = None
        self.key: Any = None
        self.fraction: Callable[[], float] = float  # of the whole task
        self._count = self._begun = 0  # records of the block, if they can be counted; those that were taken
        self._taken: Iterator[Any] | None = None  # what gives them, if it can tell how many it has given

    def stop(self) -> None:
        """Let no other record begin. Called in other threads, and by handlers of signals."""
        self.stopped = True
        self._rest.clear()  # who iterates over it is at its end

    def enter(self, block: Block) -> Iterator[Any]:
        """Go to a block; return its records, which are counted as they are taken: at no cost where it can be told.

        If the place is stopped they end early: look at `stopped` behind them.
        """
        self.block = block
        if not isinstance(block.records, Sized):
            self._start(0)
            return self._counted(block.records)
        # A text's lines needn't be counted for that.
        rest = self._rest = block.records.cut() if isinstance(block.records, TextLines) else list(iter(block.records))
        self._count, self._taken = len(rest), iter(rest)
        if self.stopped:  # perhaps before there was a rest to clear
            rest.clear()
        return self._taken

    def enter_whole(self, block: Block, count: int = 0) -> None:
        """Go to a block whose records are counted by setting `begun`, or are all taken at once."""
        self.block = block
        self._start(count)

    def note_size(self, size: int) -> None:
        """Take what has been fetched of segments for what is behind it."""
        self.size = size

    def leave(self) -> None:
        """Count the block and its records as done."""
        assert self.block is not None
        self.records += self._count or self._begun
        self.size += self.block.size
        self._start(0)

    def _start(self, count: int) -> None:
        self._count, self._begun, self._taken = count, 0, None

    def _counted(self, records: Iterable[Any]) -> Iterator[Any]:
        for self._begun, record in enumerate(records, 1):
            if self.stopped:
                return
            yield record

    @property
    def begun(self) -> int:
        """Records of the block that the mapper has been given."""
        return self._begun if self._taken is None else self._count - length_hint(self._taken)

    @begun.setter
    def begun(self, number: int) -> None:
        self._begun = number

    @property
    def size_begun(self) -> float:
        """Bytes finished, and about those of the block that the mapper has been given."""
        block, count = self.block, self._count
        return self.size + (block.size * self.begun / count if block and count else 0)

    @property
    def index(self) -> int:
        """Which of the task's records, or keys, it is at."""
        return self.records + max(self.begun - 1, 0)

    def at(self) -> RecordAt:
        """Return the record, or key, that it is at."""
        if self.block is None:
            return RecordAt(self.index, "", -1, "" if self.key is None else f"key {shorten(self.key)}")
        index = max(self.begun - 1, 0)
        try:
            offset, record = self.block.offset_of(index), shorten(self.block.text_of(index))
        except Exception:  # a reader of the job's own, whose blocks aren't lines
            offset, record = self.block.offset, ""
        return RecordAt(self.index, as_text(self.block.source), offset, record)

    def progress(self) -> Progress:
        """Return how far the attempt is."""
        return Progress(self.records + self.begun, self.size, min(self.fraction(), 1.0))

    def failure(self, error: BaseException) -> Failure:
        """Tell an exception of the job's code together with the record or key that it was about."""
        if isinstance(error, UnreadableRecord):
            return Failure(str(error), source=error.source, offset=error.offset, final=True)
        message = "".join(traceback.format_exception_only(error)).strip()
        told = user_traceback(error)
        if "  File " not in told:  # raised by our loops
            message, told = message + _hint(message), ""
        at = self.at()
        return Failure(message, source=at.source, offset=at.offset, record=at.record, traceback=told)


def _hint(message: str) -> str:
    """Return what to do about an exception that was raised by our loops over what the job yields."""
    if "unpack" in message:
        return " (mapper and reducer yield pairs: yield key, value)"
    if "unhashable" in message:
        return " (keys are str, int, float, bool, bytes, None or tuples of these; so are the values of Distinct)"
    if "positional argument" in message:
        return " (write mapper(self, key, value) and reducer(self, key, values))"
    return ""


class Guard:
    """Gives the job's code its records one by one, so that each can be told, tried again and left out.

    For careful attempts, and for those of runs that may leave records out after one has raised. In such a run the pairs
    of a record are collected before they are passed on, so that one that fails leaves nothing behind.
    """

    def __init__(
        self, job: Job, place: Place, *, limit: int, bad: Mapping[int, str], tell: Tell | None, shuffled_by: Step | None
    ) -> None:
        """Take what is allowed and known.

        `limit`: records that may be left out; `bad`: indexes of those that processes died at, and how the last one did;
        `shuffled_by`: the step that takes the pairs, None if they are the output.
        """
        self.skipped: list[Skipped] = []
        self._job = job
        self._place = place
        self._limit = limit
        self._bad = bad if limit else {}
        self._tell = tell
        self._try_to_take = _taker(shuffled_by)

    def mapped(self, block: Block, mapper: Work) -> Iterator[Pair]:
        """Yield the pairs of a block's records."""
        place, records, begins = self._place, iter(block.records), self._begins(block)
        place.enter_whole(block)
        for begun in count(1):
            if place.stopped:
                raise AttemptEnded
            offset, line = next(begins)
            try:
                value = next(records)
            except StopIteration:
                return
            except UnreadableRecord as error:
                place.begun = begun
                if not self._limit or isgenerator(records):  # a generator has nothing more after it has raised
                    raise
                self._skip(error.reason)
            else:
                place.begun = begun
                at = RecordAt(place.index, as_text(block.source), offset, line) if self._tell else None
                yield from self._pairs_of(mapper, block.source, value, at)

    def reduced(self, reader: SegmentReader, reducer: Work) -> Iterator[Pair]:
        """Yield the pairs of a reader's keys."""
        place = self._place
        for place.key, items in reader.groups():
            if place.stopped:
                raise AttemptEnded
            at = place.at() if self._tell else None
            # What is streamed, since it may not fit into memory, can't be had again.
            yield from self._pairs_of(reducer, place.key, items, at, once=not isinstance(items, list))
            place.records += 1

    def leave(self) -> None:
        """Let what follows be no record's fault."""
        if self._tell:
            self._tell(None)

    def _begins(self, block: Block) -> Iterator[tuple[int, str]]:
        nowhere = repeat((block.offset, ""))
        if not self._tell:
            return nowhere
        try:
            return chain(block.begins(), nowhere)
        except Exception:  # a reader of the job's own, whose blocks aren't lines
            return nowhere

    def _pairs_of(self, work: Work, key: Any, value: Any, at: RecordAt | None, *, once: bool = False) -> Iterable[Pair]:
        if (death := self._bad.get(self._place.index)) is not None:
            self._skip(f"its process died twice ({death})")
            return ()
        if self._tell:
            self._tell(at)
        if self._limit and not once:
            pairs = self._tried(work, key, value)
            self.leave()
            return pairs
        made = work(key, value)
        return () if made is None else made

    def _tried(self, work: Work, key: Any, value: Any) -> list[Pair]:
        """Return the pairs of a record; if it raises, it is tried once more at once, and then left out."""
        job, problem = self._job, None
        for given in (value, _spare(value)):
            counters, job.counters = job.counters, {}
            try:
                pairs, counted = _collected(work(key, given)), job.counters
                job.counters = {}
                self._try_to_take(pairs)
            except (Exception, SystemExit) as error:
                problem = error
            else:
                _add(counters, counted)
                return pairs
            finally:
                job.counters = counters
        assert problem is not None
        failure = self._place.failure(problem)
        self._skip(failure.message, failure.traceback)
        return []

    def _skip(self, message: str, traceback: str = "") -> None:
        at = self._place.at()
        told = as_text(message)
        told = told if len(told) <= _MESSAGE else f"{told[:_MESSAGE]}…"
        self.skipped.append(Skipped(at.index, at.source, at.offset, at.record, told))
        if len(self.skipped) > self._limit:
            raise RecordError(too_many_bad(self._limit, self.skipped[-1], traceback=traceback))


def _add(totals: dict[str, dict[str, int]], counted: Mapping[str, Mapping[str, int]]) -> None:
    for group, members in counted.items():
        sums = totals.setdefault(group, {})
        for name, amount in members.items():
            sums[name] = sums.get(name, 0) + amount


def _collected(pairs: Iterable[Pair] | None) -> list[Pair]:
    """Return pairs, each value as it is when it is yielded."""
    held = []
    for pair in () if pairs is None else pairs:
        check_pair(pair)
        key, value = pair
        held.append((key, _snapshot(value)))
    return held


def _taker(step: Step | None) -> Callable[[list[Pair]], object]:
    """Return what raises what the step's shuffle would raise for a record's pairs."""
    if step is None:
        return lambda pairs: None
    if (fold := step.fold) is None:
        return lambda pairs: dict(pairs)  # an unhashable key
    # Of copies, since an accumulator may be the first value itself, and then change.
    return lambda pairs: fold.fold(fold.table(), [(key, _snapshot(value)) for key, value in pairs])


def _spare(value: Any) -> Any:
    """Return a copy of a record: what failed may have changed it."""
    try:
        return _copied(value)
    except Exception as error:
        raise JobError(f"--skip-bad has to copy records, and can't copy {shorten(value)}: {error}") from error


def _snapshot(value: Any) -> Any:
    """Return what a value is now, whatever becomes of it; what can't be copied as it is."""
    try:
        return _copied(value)
    except Exception:  # nor can it be carried, which is told when it is written
        return value


def _copied(value: Any) -> Any:
    kind = type(value)
    if kind in _IMMUTABLE:
        return value
    if kind is list:
        return [_copied(element) for element in value]
    if kind is tuple:
        return tuple([_copied(element) for element in value])
    if kind is dict:
        return {key: _copied(element) for key, element in value.items()}
    return copy.deepcopy(value)
