"""Keys and ids: an order that holds for any numbers, and ids that are read back as they were written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqmr.keys import PHASE_STRIDE, RunKeys, rank, ranks_of, segment_field
from rqmr.model import AttemptId, Kind, Outcome, Phase, TaskId, bitmap

phases = st.integers(0, 1_000)
indexes = st.integers(0, PHASE_STRIDE // 2 - 1)
places = st.tuples(phases, st.booleans(), indexes)
task_ids = st.builds(TaskId, st.integers(0, 10_000), st.sampled_from(Kind), st.integers(0, 10**7))
attempt_ids = st.builds(AttemptId, task_ids, st.integers(1, 10**6))


@given(places, places)
def test_places_order_by_phase_then_urgency_then_index(one, other):
    """Earlier phases first, in each the urgent ones, then by index."""

    def order(each):
        phase, urgent, index = each
        return phase, not urgent, index

    def at(each):
        phase, urgent, index = each
        return rank(phase, index, urgent=urgent)

    assert (at(one) < at(other)) == (order(one) < order(other))


@given(places, phases)
def test_a_place_lies_within_its_phase_and_no_other(each, phase):
    """What `ranks_of` encloses are the places of one phase."""
    number, urgent, index = each
    low, high = ranks_of(phase)

    assert (low <= rank(number, index, urgent=urgent) < high) == (number == phase)


@given(phases)
def test_the_ranks_of_phases_adjoin(phase):
    """There is neither a gap nor an overlap."""
    assert ranks_of(phase)[1] == ranks_of(phase + 1)[0]


@given(places)
def test_a_place_is_exact_as_a_score(each):
    """Redis keeps scores as doubles."""
    phase, urgent, index = each
    score = rank(phase, index, urgent=urgent)

    assert int(float(score)) == score


@given(places)
def test_only_what_is_urgent_lies_before_the_first_place_of_its_phase(each):
    """It is how a claim knows that others wait for a task."""
    phase, urgent, index = each

    assert (rank(phase, index, urgent=urgent) < phase * PHASE_STRIDE) == urgent


@given(task_ids)
def test_a_task_id_is_read_back(task):
    """`parse` reads what `str` wrote."""
    assert TaskId.parse(str(task)) == task


@given(attempt_ids)
def test_an_attempt_id_is_read_back(attempt):
    """`parse` reads what `str` wrote."""
    assert AttemptId.parse(str(attempt)) == attempt


@given(st.lists(task_ids, unique=True))
def test_task_ids_differ(tasks):
    """No two tasks are written alike."""
    assert len({str(task) for task in tasks}) == len(tasks)


@pytest.mark.parametrize(
    "text",
    ["", "s0-m", "s0-m1", "s0-x0001", "s-1-m0001", "s0-m0001-a1", "s0-m0001\n", " s0-m0001", "s0-m0001x", "S0-M0001"],
)
def test_what_is_no_task_id_is_refused(text):
    """And named."""
    with pytest.raises(ValueError, match="no task id"):
        TaskId.parse(text)


@pytest.mark.parametrize("text", ["", "a1", "s0-m0001", "s0-m0001-a", "s0-m0001-ax", "s0-m0001-1", "s0-m1-a1"])
def test_what_is_no_attempt_id_is_refused(text):
    """Whatever part of it is wrong."""
    assert not is_attempt_id(text)


def test_an_id_has_one_spelling():
    """A text that `str` would have written otherwise is refused."""
    numbers = ["s0-m0001-a-1", "s0-m0001-a+1", "s0-m0001-a 1", "s0-m0001-a1_0", "s0-m0001-a01", "s0-m0001-a1\n"]
    tasks = ["s0-m00001-a1", "s00-m0001-a1", "s0-m٠٠٠١-a1"]

    assert [text for text in numbers + tasks if is_attempt_id(text)] == []


def is_attempt_id(text: str) -> bool:
    try:
        AttemptId.parse(text)
    except ValueError:
        return False
    return True


@given(st.sets(st.integers(0, 2_000)), st.integers(0, 2_100))
def test_a_bitmap_holds_what_was_put_in(indexes, index):
    """Absent is not lost: a reducer is told which tasks have something for it."""
    assert Outcome(0, 0, 0, {}, bitmap(indexes)).has_partition(index) == (index in indexes)


@given(st.lists(st.tuples(*[st.integers(0, 10_000)] * 3), unique=True))
def test_segment_fields_differ(chunks):
    """No two chunks in a reducer's hash are written alike."""
    assert len({segment_field(*chunk) for chunk in chunks}) == len(chunks)


def test_all_keys_of_a_run_begin_with_its_name_and_differ():
    """So that they can be found, and that no two things share one."""
    phases = (Phase(0, Kind.MAP, 3), Phase(0, Kind.REDUCE, 2), Phase(1, Kind.REDUCE, 2))
    listed = RunKeys("wordcount-7k2p").all(phases)

    assert len(set(listed)) == len(listed)
    assert all(name == "rqmr:wordcount-7k2p" or name.startswith("rqmr:wordcount-7k2p:") for name in listed)
    assert {f"rqmr:wordcount-7k2p:s{step}:shuffle:{reducer}" for step in (0, 1) for reducer in (0, 1)} <= set(listed)


def test_a_run_without_reducer_has_no_shuffle():
    """A map-only job has nothing to hand on."""
    assert not [name for name in RunKeys("x").all((Phase(0, Kind.MAP, 3),)) if "shuffle" in name]
