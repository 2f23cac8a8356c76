"""Total order: a partitioner by ranges of keys, which it has or which are found by a sample of the input."""

from __future__ import annotations

import contextlib
import io
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from msgspec import structs

from rqmr.codec import Key, one_signature
from rqmr.errors import CarryError, JobError, MixedKeysError
from rqmr.job import Job, Step, steps_of
from rqmr.model import Piece, Settings, Split

#: At how many places the input is looked at, and how many bytes of it: some ten thousand records of a line's length,
#: by which ten partitions differ by a few percent.
_PLACES, _PLACE_BYTES = 100, 16 << 10


class TotalOrder:
    """A partitioner that gives each partition a range of keys, so that the part files, one after the other, are sorted.

        class Sort(Job):
            partitioner = TotalOrder()

    The ranges are cut so that the partitions are about equal: when a run is planned, the first step's mapper is given a
    small sample of the input, in the process that plans. A later step needs `bounds`: ascending keys, each the first of
    another partition.
    """

    def __init__(self, bounds: Sequence[Key] = ()) -> None:
        if any(not first <= second for first, second in pairwise(bounds)):
            raise ValueError(f"TotalOrder({list(bounds)!r}): the bounds must ascend")
        self.bounds = list(bounds)

    def __call__(self, key: Key, partitions: int) -> int:
        """Return the partition of a key."""
        return bisect_right(self.bounds, key, hi=min(partitions - 1, len(self.bounds)))

    def cut(
        self, entries: list[Any], partitions: int, key_of: Callable[[Any], Key] | None = None
    ) -> Iterator[tuple[int, list[Any]]]:
        """Yield each partition that some entries, ascending by their keys, belong to, with its entries.

        An entry is a key, or `key_of` gives it.
        """
        ends = [bisect_left(entries, bound, key=key_of) for bound in self.bounds[: partitions - 1]]
        for partition, (start, end) in enumerate(pairwise([0, *ends, len(entries)])):
            if start < end:
                yield partition, entries[start:end]


def bounds_of(job: Job, splits: Sequence[Split], settings: Settings, partitions: int) -> list[Key]:
    """Return what parts the partitions of a job's first step, from a sample; nothing if it isn't in total order.

    Raises:
        JobError: a later step needs bounds of its own, or the sample's keys have no order.
    """
    first, *others = steps_of(job)
    for number, step in enumerate(others, 1):
        if isinstance(step.partitioner, TotalOrder) and not step.partitioner.bounds:
            raise JobError(
                f"{type(job).__name__}: only the first step's input can be sampled, so give step {number}'s TotalOrder "
                f"its bounds: TotalOrder([…])"
            )
    if (
        not isinstance(first.partitioner, TotalOrder)
        or first.partitioner.bounds
        or partitions == 1
        or not first.reducer
    ):
        return []
    keys = _sampled_keys(job, first, splits, settings)
    try:
        one_signature(keys)
    except (MixedKeysError, CarryError) as error:
        raise JobError(f"{type(job).__name__}: {error}") from error
    # What is folded or combined travels once for each key.
    keys = sorted(set(keys) if first.fold or first.combiner else keys)
    return [keys[len(keys) * number // partitions] for number in range(1, partitions)] if keys else []


def ordered(step: Step, bounds: Sequence[Key]) -> None:
    """Give a step that was sampled its bounds."""
    if bounds and isinstance(step.partitioner, TotalOrder):
        step.partitioner = TotalOrder(bounds)


def _sampled_keys(job: Job, step: Step, splits: Sequence[Split], settings: Settings) -> list[Key]:
    keys: list[Key] = []
    # What can't be set up, read or mapped is told when the run comes to it.
    told_later = Exception, SystemExit
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(*told_later):
        job.setup()
        for piece in _sampled_pieces([piece for split in splits for piece in split.pieces]):
            size = 0
            with contextlib.suppress(*told_later):
                for block in job.reader.blocks(piece, settings):
                    for record in block.records:
                        with contextlib.suppress(*told_later):
                            keys.extend(key for key, _ in step.mapper(block.source, record) or ())
                    size += block.size
                    if size >= _PLACE_BYTES:
                        break
    return keys


def _sampled_pieces(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Yield pieces of pieces that lie about as far apart from each other."""
    total = sum(piece.size for piece in pieces)
    length = min(_PLACE_BYTES, total // _PLACES + 1)
    behind, chosen = 0, 0
    for piece in pieces:
        while chosen < _PLACES and total * chosen < (behind + piece.size) * _PLACES:
            if piece.stop is None:
                yield piece
                chosen = -(-(behind + piece.size) * _PLACES // total)
                break
            start = piece.start + total * chosen // _PLACES - behind
            yield structs.replace(piece, start=start, stop=min(start + length, piece.stop))
            chosen += 1
        behind += piece.size
