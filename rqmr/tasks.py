"""Run one map task or one reduce task: records in, segments or a part file out.

Knows neither Redis nor RQ nor leases: where the data comes from and goes to is passed in, so the workers and the
inline oracle run the same lines.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from inspect import isgeneratorfunction
from itertools import chain, repeat
from operator import is_not
from typing import Any

from msgspec import Struct

from rqmr import remote
from rqmr.batch import BatchMapper
from rqmr.codec import as_keys, as_text, shorten
from rqmr.errors import AttemptEnded, CarryError, JobError, KeyFunctionError, MixedKeysError, RecordError, RqmrError
from rqmr.failures import INPUT_UNREADABLE
from rqmr.fuse import Yielded
from rqmr.job import Job, Mapper, Step, steps_of
from rqmr.merge import SegmentReader, Segments, folds_in_bulk, reducing
from rqmr.model import Failure, Kind, Outcome, Piece, Spec, Split, TaskId, bitmap
from rqmr.order import ordered
from rqmr.parts import Columns, PartFile, PartWriter
from rqmr.readers import Block
from rqmr.records import Guard, Place, Tell, Work
from rqmr.shuffle import Shuffler, Sink

_is_given = partial(is_not, None)
#: New objects that make Python look for garbage among them, and how often it does so among older ones. With Python's
#: own numbers a reduce task of small groups spends half of its time on that.
_COLLECT_AFTER = (100_000, 50, 100)
_REPLACED = ("rqmr", "undecodable characters replaced")


def _read(piece: Piece, blocks: Iterator[Block]) -> Iterator[Block]:
    try:
        yield from blocks
    except OSError as error:
        raise RecordError(Failure(f"{INPUT_UNREADABLE}: {piece.name}: {error.strerror or error}")) from error


class Care(Struct, frozen=True):
    """What is known of attempts that died at this task, and what is to be told for that."""

    tell: Tell | None = None  # hears of each record before it begins
    bad: Mapping[int, str] = {}  # indexes of records to leave out, and how processes died at them


class Task:
    """One attempt's work, bound to where it reads and writes."""

    def __init__(
        self,
        spec: Spec,
        new_job: Callable[[], Job],
        task: TaskId,
        place: Place,
        sink: Sink,
        output_name: str,
        care: Care = Care(),  # noqa: B008 - it is frozen
        open_part: Callable[[], PartFile] | None = None,
        *,
        fuses: bool = True,
    ) -> None:
        """Take what the attempt is about.

        `open_part`: where the task's part goes; into the stage unless given. `fuses`: whether what yields may be fused.
        """
        self._spec = spec
        self._new_job = new_job
        self._task = task
        self._place = place
        self._sink = sink
        self._output_name = output_name
        self._care = care
        self._fuses = fuses
        self._open_part = open_part or partial(remote.open_part, spec.stage, output_name)

    def run(self, source: Split | Segments) -> Outcome:
        """Run the task, and if a record raises that may be left out, run it anew record by record.

        Raises:
            RecordError: the job's code raised, or yielded what can't be carried.
            SegmentLost: a segment is missing or damaged.
            AttemptEnded: the place was told to stop, or the stage is gone.
        """
        with _seldom_collecting():
            return self._try(source)

    def _try(self, source: Split | Segments) -> Outcome:
        self._begin(with_guard=self._care.tell is not None)
        try:
            return self._run(source)
        except RecordError as error:
            if self._guard or not self._spec.skip_bad or isinstance(error.__cause__, RqmrError):
                raise
        self._sink.discard()
        self._place.start_over()
        self._begin(with_guard=True)
        return self._run(source)

    def _begin(self, *, with_guard: bool) -> None:
        self._job = self._new_job()
        self._steps = steps_of(self._job)
        ordered(self._steps[0], as_keys(self._spec.bounds))
        is_last = self._spec.phase_of(self._task) + 1 == len(self._spec.phases)
        self._shuffled_by = None if is_last else self._steps[0 if self._task.kind == Kind.MAP else self._task.step + 1]
        self._reader: SegmentReader | None = None
        self._guard: Guard | None = None
        if with_guard:
            self._guard = Guard(
                self._job, self._place, limit=self._spec.skip_bad, bad=self._care.bad, tell=self._care.tell,
                shuffled_by=self._shuffled_by,
            )  # fmt: skip

    def _run(self, source: Split | Segments) -> Outcome:
        self._job.counters = {}
        try:
            self._job.setup()
            return self._write(self._mapped(source) if isinstance(source, Split) else self._reduced(source))
        except (CarryError, MixedKeysError, JobError) as error:
            raise RecordError(Failure(f"{type(self._job).__name__}: {error}", final=True)) from error
        except KeyFunctionError as error:
            self._place.block, self._place.key = None, error.key
            raise RecordError(self._place.failure(error.__cause__ or error)) from error.__cause__
        except RqmrError:
            raise
        except (Exception, SystemExit) as error:
            raise RecordError(self._place.failure(error)) from error

    def _mapped(self, split: Split) -> Iterator[Iterable[tuple[Any, Any]]]:
        """Yield the pairs of each block, lazily.

        They flow from the mapper to the table through C only, as a loop of ours for each would cost a tenth; or the
        mapper and the loop that takes them are fused.
        """
        place, step = self._place, self._steps[0]
        place.fraction = lambda: place.size_begun / (split.size or 1)
        for piece in split.pieces:
            for block in _read(piece, self._job.reader.blocks(piece, self._spec.settings)):
                if self._guard:
                    yield self._guard.mapped(block, step.mapper)
                elif step.batch:
                    yield self._mapped_at_once(step.batch, block)
                else:
                    records = zip(repeat(block.source), place.enter(block))
                    yield self._pairs_of(step.mapper, records, is_held=isinstance(block.records, Sized))
                if place.stopped:
                    raise AttemptEnded
                place.leave()
                if block.replaced:
                    self._job.count(*_REPLACED, block.replaced)
        if self._guard:
            self._guard.leave()

    def _pairs_of(
        self, function: Work, given: Iterable[tuple[Any, Any]], *, is_held: bool = False
    ) -> Iterable[tuple[Any, Any]]:
        """Return the pairs of records or groups: they can be fused with what takes them if the function yields."""
        if isgeneratorfunction(function):
            yielded = Yielded(function, given, is_held=is_held)
            return yielded if self._fuses and self._job.fuse else iter(yielded)
        # What calls a function for `starmap` would take a StopIteration that it raises for the end of what is given.
        return _given(function(key, value) for key, value in given)

    def _mapped_at_once(self, batch: BatchMapper, block: Block) -> Iterable[tuple[Any, Any]]:
        self._place.enter_whole(block)
        records, count = batch.records_of(block)
        self._place.enter_whole(block, count)
        return batch(block.source, records)

    def _reduced(self, segments: Segments) -> Iterable[Iterable[tuple[Any, Any]]]:
        place, step = self._place, self._steps[self._task.step]
        self._reader = reader = SegmentReader(
            step, segments, self._spec.settings.memory, self._check_stopped, place.note_size
        )
        place.fraction = lambda: reader.loaded / (reader.chunks or 1)
        following = self._steps[self._task.step + 1 :]
        if self._guard:
            return (self._guard.reduced(reader, partial(_reduced_and_mapped, reducing(step), following)),)
        if not following and folds_in_bulk(step):
            return self._folded(reader)
        reducer = step.reducer if isgeneratorfunction(step.reducer) else reducing(step)
        pairs = self._pairs_of(reducer, self._groups(reader))
        return (_mapped_pairs(following[0].mapper, pairs) if following else pairs,)

    def _groups(self, reader: SegmentReader) -> Iterator[tuple[Any, Iterator[Any]]]:
        place = self._place
        for place.key, values in reader.groups():
            if place.stopped:
                raise AttemptEnded
            yield place.key, iter(values)
            place.records += 1

    def _folded(self, reader: SegmentReader) -> Iterator[Columns]:
        place = self._place
        for keys, values in reader.folded():
            self._check_stopped()
            yield Columns(keys, values)
            place.records += len(keys)

    def _check_stopped(self) -> None:
        if self._place.stopped:
            raise AttemptEnded

    def _write(self, streams: Iterable[Iterable[tuple[Any, Any]]]) -> Outcome:
        if self._shuffled_by is None:
            return self._write_part(streams)
        partitions = self._spec.phases[self._spec.phase_of(self._task) + 1].tasks
        shuffler = Shuffler(self._shuffled_by, partitions, self._sink, self._spec.settings.memory)
        shuffler.consume(streams)
        written = bitmap(shuffler.finish())
        return self._outcome(partitions=written, key_type=shuffler.key_type, key_example=shuffler.key_example)

    def _write_part(self, streams: Iterable[Iterable[tuple[Any, Any]]]) -> Outcome:
        try:
            writer = PartWriter(self._open_part(), self._output_name, self._spec.settings.format)
        except OSError as error:
            # If it went since the run has ended, nobody will hear of this.
            message = f"this worker can't write to {self._spec.stage}: {error.strerror}; is the output directory there?"
            raise RecordError(Failure(message)) from error
        try:
            for stream in streams:
                writer.write(stream)
            part = writer.close()
            return self._outcome(writer.records, part=part)
        except BaseException:
            writer.discard()
            raise

    def _outcome(self, written: int = 0, **produced: Any) -> Outcome:
        skipped = tuple(self._guard.skipped) if self._guard else ()
        place = self._place
        if self._reader:
            key, values = self._reader.largest_key
            produced |= {"values": self._reader.values, "largest_key": (as_text(shorten(key, 40)), values)}
        return Outcome(place.records, place.size, written, self._job.counters, skipped=skipped, **produced)


@contextmanager
def _seldom_collecting() -> Iterator[None]:
    """Let Python look for cyclic garbage less often: a task makes millions of lists that all live for a while."""
    before = gc.get_threshold()
    gc.set_threshold(*_COLLECT_AFTER)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _mapped_pairs(mapper: Mapper, pairs: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    return _given(mapper(key, value) for key, value in pairs)


def _given(made: Iterable[Iterable[tuple[Any, Any]] | None]) -> Iterator[tuple[Any, Any]]:
    """Return the pairs that calls of a mapper have made, without the calls that made none."""
    return chain.from_iterable(filter(_is_given, made))  # type: ignore[arg-type]


def _reduced_and_mapped(
    pairs_of: Callable[[Any, Iterable[Any]], Iterable[Any]], following: Sequence[Step], key: Any, items: Iterable[Any]
) -> Iterable[Any]:
    pairs = pairs_of(key, items)
    return _mapped_pairs(following[0].mapper, pairs) if following else pairs
