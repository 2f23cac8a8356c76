"""What steers a run's processes, as it is stored: packed, signed if there is a secret, and checked when it is read.

The spec, the splits, and how the inputs were (which a command ships to workers that don't see them).
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from rqmr import signing
from rqmr.damage import reading, unpacked
from rqmr.errors import AttemptEnded, RqmrError
from rqmr.inputs import InputMark
from rqmr.model import PROTOCOL, Spec, Split

#: Far more than a plan makes of anything; each has keys that are named one by one.
_MOST_TASKS = 2_000_000


class _Release(Struct):
    """The part of a spec that every release can read."""

    protocol: int


def seal_spec(spec: Spec) -> bytes:
    """Return a spec as it is stored."""
    return signing.sign("spec", spec.run, "", msgspec.msgpack.encode(spec))


def open_spec(run: str, stored: bytes) -> Spec:
    """Return the spec that is stored for a run.

    Raises:
        SignatureError: this process has a secret, and the spec isn't signed with it.
        DamagedError: it is none, or another run's.
        RqmrError: another release of rqmr wrote it.
    """
    what = f"the spec of run {run}"
    data = signing.verified("spec", run, "", stored)
    if (protocol := unpacked(data, _Release, what).protocol) != PROTOCOL:
        raise RqmrError(
            f"run {run} speaks protocol {protocol}, this worker {PROTOCOL}: "
            f"install the same rqmr on driver and workers, and restart the workers"
        )
    spec = unpacked(data, Spec, what)
    with reading(what):
        _check(spec, run)
    return spec


def _check(spec: Spec, run: str) -> None:
    if spec.run != run:
        raise ValueError(f"it is that of {spec.run!r:.80}")
    tasks = [phase.tasks for phase in spec.phases]
    if not tasks or min(tasks) < 0 or sum(tasks) > _MOST_TASKS or min(phase.step for phase in spec.phases) < 0:
        raise ValueError(f"{len(tasks)} phases of {sum(tasks)} tasks")
    if min(spec.lease_ms, spec.keep_ms, spec.max_failed, spec.max_lost) < 1 or not spec.queue:
        raise ValueError("a limit is less than 1, or the queue has no name")


def seal_split(run: str, index: int, split: Split) -> bytes:
    """Return the split of a run's map task as it is stored."""
    return signing.sign("split", run, str(index), msgspec.msgpack.encode(split))


def open_split(run: str, index: int, stored: bytes | None) -> Split:
    """Return the split that is stored for a run's map task, if one is.

    Raises:
        AttemptEnded: there is none (any more).
        SignatureError: this process has a secret, and the split isn't signed with it.
        DamagedError: it is none.
    """
    if stored is None:
        raise AttemptEnded(f"run {run} has no split {index} (any more)")
    return unpacked(signing.verified("split", run, str(index), stored), Split, f"split {index} of run {run}")


def seal_mark(run: str, path: bytes, mark: InputMark) -> bytes:
    """Return how a run's input was as it is stored."""
    return signing.sign("input", run, path.hex(), msgspec.msgpack.encode(mark))


def open_mark(run: str, path: bytes, stored: bytes) -> InputMark:
    """Return how a run's input was.

    Raises:
        SignatureError: this process has a secret, and the mark isn't signed with it.
        DamagedError: it is none.
    """
    return unpacked(signing.verified("input", run, path.hex(), stored), InputMark, f"how an input of run {run} was")
