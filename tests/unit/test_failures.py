"""When a run that workers refuse is given up: when all have, for a while, and nobody has got anything done."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rqmr.facts import Event
from rqmr.failures import INPUT_UNREADABLE, advised, nobody_is_fit
from rqmr.model import Failure


def refused(worker: str, at_ms: int) -> Event:
    return Event(at_ms, "refused", worker, f"{worker} has no numpy")


COMMITTED = Event(5, "committed", "s0-m0000-a1", "")
RESUMED = Event(5, "resumed", "run", "")


@pytest.mark.parametrize(
    ("events", "listening", "given_up"),
    [
        ([refused("a", 0)], {"a"}, True),
        ([refused("a", 0), refused("b", 90)], {"a", "b"}, True),
        ([refused("a", 0), refused("a", 90)], {"a"}, True),
        ([refused("gone", 0), refused("a", 90)], {"a"}, True),
        ([COMMITTED, refused("a", 10)], {"a"}, False),
        ([refused("a", 10)], {"a"}, False),
        ([refused("a", 0)], {"a", "b"}, False),
        ([refused("a", 0)], set(), False),
        ([refused("a", 0), COMMITTED], {"a"}, False),
        ([refused("a", 0), refused("b", 0), RESUMED], {"a", "b"}, False),
        ([refused("a", 0), refused("b", 0), RESUMED, refused("a", 90)], {"a"}, False),
        ([], {"a"}, False),
    ],
    ids=[
        "one and only", "the last of two", "twice", "one that left was first", "too short since a commit", "too short",
        "not all", "nobody listens", "it has worked since", "it was resumed since",
        "too short since it was resumed", "nobody has refused",
    ],
)  # fmt: skip
def test_a_run_is_given_up_when_all_who_listen_have_refused_it_for_a_while(
    events: list[Event], listening: set[str], given_up: bool
) -> None:
    failure = nobody_is_fit(events, listening, now_ms=100, patience_ms=95)
    assert (failure is not None) == given_up
    if failure:
        assert "a has no numpy" in failure.message


@pytest.mark.parametrize(
    ("message", "is_advised"), [("FileNotFoundError: stop.txt", True), (f"{INPUT_UNREADABLE}: a.log: gone", False)]
)
def test_include_is_advised_for_files_of_the_job_and_not_for_inputs(message: str, is_advised: bool) -> None:
    spec: Any = SimpleNamespace(is_spread=True)
    told = advised(Failure(message), FileNotFoundError(), spec).message
    assert ("--include" in told) == is_advised
