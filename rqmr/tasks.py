"""Run one map task or one reduce task: records in, segments or a part file out.

Knows neither Redis nor RQ nor leases: where the data comes from and goes to is passed in, so the workers and the
inline oracle run the same lines.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import Any

from rqmr.codec import shorten
from rqmr.errors import AttemptEnded, CarryError, JobError, KeyFunctionError, MixedKeysError, RecordError, RqmrError
from rqmr.job import Job, Mapper, Step, steps_of
from rqmr.loader import user_traceback
from rqmr.model import Failure, Outcome, Piece, Progress, Spec, Split, TaskId, bitmap
from rqmr.output import PartWriter
from rqmr.readers import Block, UnreadableRecord
from rqmr.shuffle import SegmentReader, Segments, Shuffler, Sink, check_pair, reduced

_REPLACED = ("rqmr", "undecodable characters replaced")


class Place:
    """Where an attempt is. Its heartbeat reads it from another thread, and sets `stopped` there."""

    def __init__(self) -> None:
        self.stopped = False
        self.waits = False  # for memory in Redis: no fault of the code
        self.records = 0  # of the blocks, or the groups, behind it
        self.size = 0  # their bytes
        self.block: Block | None = None
        self.begun = 0  # records of the block that the mapper has been given
        self.key: Any = None
        self.fraction: Callable[[], float] = float  # of the whole task

    @property
    def size_begun(self) -> float:
        """Bytes finished, and about those of the block that the mapper has been given."""
        block = self.block
        if block is None or not self.begun or not isinstance(block.records, Sized):
            return self.size
        return self.size + block.size * self.begun / len(block.records)

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
        if self.block is None:
            record = "" if self.key is None else f"key {shorten(self.key)}"
            return Failure(message, record=record, traceback=told)
        index = max(self.begun - 1, 0)
        try:
            offset, record = self.block.offset_of(index), shorten(self.block.text_of(index))
        except Exception:  # a reader of the job's own, whose blocks aren't lines
            offset, record = self.block.offset, ""
        return Failure(message, source=self.block.source, offset=offset, record=record, traceback=told)


def _hint(message: str) -> str:
    """Return what to do about an exception that was raised by our loops over what the job yields."""
    if "unpack" in message:
        return " (mapper and reducer yield pairs: yield key, value)"
    if "unhashable" in message:
        return " (keys are str, int, float, bool, bytes, None or tuples of these; so are the values of Distinct)"
    if "positional argument" in message:
        return " (write mapper(self, key, value) and reducer(self, key, values))"
    return ""


def _read(piece: Piece, blocks: Iterator[Block]) -> Iterator[Block]:
    try:
        yield from blocks
    except OSError as error:
        raise RecordError(Failure(f"an input can't be read: {piece.name}: {error.strerror or error}")) from error


class Task:
    """One attempt's work, bound to where it reads and writes."""

    def __init__(self, spec: Spec, job: Job, task: TaskId, place: Place, sink: Sink, output_name: str) -> None:
        self._spec = spec
        self._job = job
        self._task = task
        self._place = place
        self._sink = sink
        self._output_name = output_name
        self._steps = steps_of(job)

    def run(self, source: Split | Segments) -> Outcome:
        """Run the task.

        Raises:
            RecordError: the job's code raised, or yielded what can't be carried.
            SegmentLost: a segment is missing or damaged.
            AttemptEnded: the place was told to stop, or the stage is gone.
        """
        self._job.counters = {}
        try:
            self._job.setup()
            if isinstance(source, Split):
                return self._write(self._mapped(source), next_step=0)
            return self._write(self._reduced(source), next_step=self._task.step + 1)
        except (CarryError, MixedKeysError, JobError) as error:
            raise RecordError(Failure(f"{type(self._job).__name__}: {error}", final=True)) from error
        except KeyFunctionError as error:
            self._place.block, self._place.key = None, error.key
            raise RecordError(self._place.failure(error.__cause__ or error)) from error.__cause__
        except RqmrError:
            raise
        except (Exception, SystemExit) as error:
            raise RecordError(self._place.failure(error)) from error

    def _mapped(self, split: Split) -> Iterator[tuple[Any, Any]]:
        place, mapper = self._place, self._steps[0].mapper
        place.fraction = lambda: place.size_begun / (split.size or 1)
        for piece in split.pieces:
            for block in _read(piece, self._job.reader.blocks(piece, self._spec.settings)):
                place.block, place.begun = block, 0
                for place.begun, value in enumerate(block.records, 1):
                    if place.stopped:
                        raise AttemptEnded
                    pairs = mapper(block.source, value)
                    if pairs is not None:
                        yield from pairs
                place.records, place.begun = place.records + place.begun, 0
                place.size += block.size
                if block.replaced:
                    self._job.count(*_REPLACED, block.replaced)

    def _reduced(self, segments: Segments) -> Iterator[tuple[Any, Any]]:
        place, step = self._place, self._steps[self._task.step]
        reader = SegmentReader(step, segments)
        place.fraction = lambda: reader.loaded / (reader.chunks or 1)
        pairs = self._reduced_groups(step, reader)
        following = self._steps[self._task.step + 1 :]
        return _mapped_pairs(following[0].mapper, pairs) if following else pairs

    def _reduced_groups(self, step: Step, reader: SegmentReader) -> Iterator[tuple[Any, Any]]:
        place = self._place
        for place.key, items in reader.groups():
            if place.stopped:
                raise AttemptEnded
            yield from reduced(step, place.key, items)
            place.records += 1
            place.size = reader.size

    def _write(self, pairs: Iterable[tuple[Any, Any]], next_step: int) -> Outcome:
        phase = self._spec.phase_of(self._task)
        if phase + 1 < len(self._spec.phases):
            partitions = self._spec.phases[phase + 1].tasks
            shuffler = Shuffler(self._steps[next_step], partitions, self._sink, self._spec.settings.map_memory)
            shuffler.consume(pairs)
            written = bitmap(shuffler.finish())
            return self._outcome(partitions=written, key_type=shuffler.key_type, key_example=shuffler.key_example)
        return self._write_part(pairs)

    def _write_part(self, pairs: Iterable[tuple[Any, Any]]) -> Outcome:
        try:
            writer = PartWriter(Path(self._spec.stage), self._output_name, self._spec.settings.format)
        except OSError as error:
            # If it went since the run has ended, nobody will hear of this.
            message = f"this worker can't write to {self._spec.stage}: {error.strerror}; is the output directory there?"
            raise RecordError(Failure(message)) from error
        try:
            for pair in pairs:
                check_pair(pair)
                key, value = pair
                writer.write(key, value)
            return self._outcome(writer.records, part=writer.close())
        except BaseException:
            writer.discard()
            raise

    def _outcome(self, written: int = 0, **produced: Any) -> Outcome:
        return Outcome(self._place.records, self._place.size, written, self._job.counters, **produced)


def _mapped_pairs(mapper: Mapper, pairs: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    for key, value in pairs:
        yield from mapper(key, value) or ()
