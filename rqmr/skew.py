"""Skew: partitions and keys that have so much of a shuffle that their reduce tasks take longer than all others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rqmr.model import Outcome, Spec

#: What isn't worth a word: a shuffle of fewer bytes or values, all in all.
_LEAST_BYTES, _LEAST_VALUES = 16 << 20, 1_000_000
#: A partition is told of when it has this many times its fair share and this much more, so that of two none ever is;
_TIMES, _MORE = 2, 0.1
#: and a key when it has this much of all values.
_KEY_SHARE = 0.2


def skew(spec: Spec, outcomes: Sequence[Sequence[Outcome]]) -> tuple[str, ...]:
    """Tell what stands out, in lines. `outcomes` are the winners' of each phase, in the order of the tasks."""
    several = len(spec.phases) > 2
    return tuple(
        f"{told} of the shuffle{f' of step {phase.step}' if several else ''}"
        for phase, of_phase in zip(spec.phases[1:], outcomes[1:], strict=True)
        for told in (*_partitions(of_phase), *_keys(of_phase))
    )


def _partitions(outcomes: Sequence[Outcome]) -> Iterator[str]:
    total = sum(outcome.size for outcome in outcomes)
    largest = max(range(len(outcomes)), key=lambda index: outcomes[index].size)
    if total >= _LEAST_BYTES:
        share = outcomes[largest].size / total
        if share >= _TIMES / len(outcomes) + _MORE:
            yield f"partition {largest} has {share:.0%}"


def _keys(outcomes: Sequence[Outcome]) -> Iterator[str]:
    total = sum(outcome.values for outcome in outcomes)
    if total >= _LEAST_VALUES:
        key, values = max((outcome.largest_key for outcome in outcomes), key=lambda each: each[1])
        if values / total >= _KEY_SHARE:
            yield f"key {key} has {values / total:.0%} of the values"
