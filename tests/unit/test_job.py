"""What users subclass: parameters are checked before anything runs, and so are the steps."""

from __future__ import annotations

import contextlib
import datetime
import enum
from collections.abc import Generator, Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, Literal, Optional

import pytest

from rqmr.aggregators import Aggregator, Collect, Count, Max, Mean, Min, Sum
from rqmr.errors import JobError, ParameterError
from rqmr.job import Job, Step, parameters_of, steps_of


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Plain(Job):
    """A job without parameters."""

    not_annotated = 3

    def mapper(self, key: Any, value: Any) -> Iterable[tuple[Any, Any]]:
        yield key, value


class Rich(Plain):
    """A job with a parameter of every kind."""

    pattern: str
    number: int = 1
    ratio: float = 0.5
    flag: bool = False
    words: list[str] = ["the"]  # noqa: RUF012 - as users write it
    numbers: list[int] = []  # noqa: RUF012
    limit: Optional[int] = None  # noqa: UP045 - both spellings are in use
    name: str | None = None
    mode: Literal["fast", "slow"] = "fast"
    level: Literal[1, 2, 3] = 1
    since: datetime.date = datetime.date(2026, 1, 1)
    at: datetime.datetime | None = None
    price: Decimal = Decimal("1.0")
    path: Path = Path()
    colour: Colour = Colour.RED
    constant: ClassVar[int] = 7
    _private: int = 1


# --- parameters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("pattern", "mutex", "mutex"), ("pattern", "", ""), ("pattern", "12", "12"), ("pattern", "null", "null"),
        ("pattern", "true", "true"), ("pattern", "a=b c", "a=b c"), ("pattern", r"^\d+", r"^\d+"),
        ("number", "12", 12), ("number", "-3", -3), ("number", 12, 12), ("number", "0", 0),
        ("ratio", "0.25", 0.25), ("ratio", "1", 1.0), ("ratio", 1, 1.0), ("ratio", "1e3", 1000.0), ("ratio", ".5", 0.5),
        ("flag", "true", True), ("flag", "false", False), ("flag", "1", True), ("flag", "0", False),
        ("flag", True, True), ("flag", "True", True), ("flag", "FALSE", False),
        ("words", ["a", "b"], ["a", "b"]), ("words", "a", ["a"]), ("words", [], []),
        ("numbers", ["1", "2"], [1, 2]), ("numbers", "1", [1]), ("numbers", [1], [1]),
        ("limit", "5", 5), ("limit", None, None), ("name", "x", "x"), ("name", None, None),
        ("mode", "slow", "slow"), ("level", "2", 2), ("level", 2, 2),
        ("since", "2026-11-21", datetime.date(2026, 11, 21)),
        ("since", datetime.date(2026, 11, 21), datetime.date(2026, 11, 21)),
        ("at", "2026-11-21T08:30:00", datetime.datetime(2026, 11, 21, 8, 30)),
        ("price", "1.10", Decimal("1.10")), ("path", "a/b c", Path("a/b c")), ("colour", "blue", Colour.BLUE),
    ],
)  # fmt: skip
def test_a_parameter_gets_the_type_of_its_annotation(name: str, given: Any, expected: Any) -> None:
    """From the command line all are text, a name given several times a list; from Python they're what they are."""
    job = Rich(**{"pattern": "x", name: given})
    value = getattr(job, name)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("name", "given", "must_be"),
    [
        ("number", "twelve", "int"), ("number", "1.5", "int"), ("number", "", "int"), ("number", ["1", "2"], "int"),
        ("number", "1_000", "int"), ("ratio", "half", "float"), ("flag", "maybe", "bool"), ("flag", "2", "bool"),
        ("numbers", ["1", "x"], "list[int]"), ("limit", "five", "int"), ("mode", "medium", "'fast', 'slow'"),
        ("level", "4", "1, 2, 3"), ("since", "yesterday", "date"), ("since", "2026-13-01", "date"),
        ("price", "cheap", "Decimal"), ("colour", "green", "Colour"), ("pattern", ["a", "b"], "str"),
    ],
)  # fmt: skip
def test_an_ill_typed_parameter_is_told_with_what_it_must_be(name: str, given: Any, must_be: str) -> None:
    """And with the job, its own name and what was given."""
    with pytest.raises(ParameterError) as caught:
        Rich(**{"pattern": "x", name: given})
    message = str(caught.value)
    assert "Rich" in message
    assert f"'{name}'" in message
    assert must_be in message
    assert repr(given) in message


def test_what_is_allowed_is_said_for_an_enum_and_a_bool() -> None:
    """The user must not have to look into the job."""
    with pytest.raises(ParameterError, match=r"red.*blue"):
        Rich(pattern="x", colour="green")
    with pytest.raises(ParameterError, match="true or false"):
        Rich(pattern="x", flag="maybe")


def test_an_unknown_parameter_is_told_with_those_there_are() -> None:
    """Attributes without annotation, of Job itself, private ones and class variables are none."""
    for name in ("patern", "not_annotated", "reader", "mapper", "constant", "_private", "counters", "sort_values"):
        with pytest.raises(ParameterError) as caught:
            Rich(**{"pattern": "x", name: "1"})
        message = str(caught.value)
        assert f"Rich has no parameter '{name}'" in message
        assert "it has pattern, number" in message
        assert "constant" not in message.partition("it has")[2]
    with pytest.raises(ParameterError, match="it has none"):
        Plain(anything=1)


def test_a_typo_in_a_parameter_is_answered_with_the_name_that_was_meant() -> None:
    """Before the complaint that the right one is missing."""
    with pytest.raises(ParameterError, match=r"has no parameter 'patern'.*pattern"):
        Rich(patern="x")


def test_a_missing_parameter_is_told_with_its_type_and_how_to_give_it() -> None:
    """Ready to be copied."""
    with pytest.raises(ParameterError) as caught:
        Rich()
    assert str(caught.value) == "Rich needs the parameter 'pattern' (str); give it as -p pattern=…"


def test_parameters_are_inherited_and_can_be_given_another_default() -> None:
    """A base class may have some, a subclass gives them values."""

    class Base(Plain):
        pattern: str
        number: int = 1

    class Mutex(Base):
        pattern = "mutex"

    assert list(parameters_of(Mutex)) == ["pattern", "number"]
    assert Mutex().pattern == "mutex"
    assert Mutex(pattern="x", number="2").number == 2


def test_a_default_is_left_as_it_is() -> None:
    """Whatever its type: it is the job's own business."""
    job = Rich(pattern="x")
    assert (job.number, job.words, job.limit, job.constant) == (1, ["the"], None, 7)


def test_a_parameter_may_not_have_the_name_of_a_jobs_function() -> None:
    """`count: int = 5` would take self.count away, and `steps` the whole job."""

    class Shadows(Plain):
        count: int = 5  # type: ignore[assignment]

    class Worse(Plain):
        steps: int = 2  # type: ignore[assignment]

    for job in (Shadows, Worse):
        with pytest.raises((JobError, ParameterError), match=r"count|steps"):
            steps_of(job())


def test_an_annotation_that_cannot_be_read_is_told_with_its_name() -> None:
    """A name that is imported for type checkers only."""

    class Unreadable(Plain):
        when: NotThere  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(JobError, match=r"Unreadable.*NotThere"):
        Unreadable()


def test_parameters_of_two_jobs_do_not_mix() -> None:
    """They are of the instance."""
    one, other = Rich(pattern="1", numbers=["1"]), Rich(pattern="2")
    assert (one.pattern, other.pattern) == ("1", "2")
    assert (one.numbers, other.numbers) == ([1], [])


# --- steps -------------------------------------------------------------------------------------------------------


def test_a_job_is_one_step_of_its_own_functions() -> None:
    """The common case."""

    class WordCount(Plain):
        reducer = Sum()
        sort_values = True

        def partitioner(self, key: Any, partitions: int) -> int:
            return 0

    job = WordCount()
    (step,) = steps_of(job)
    assert step.mapper == job.mapper
    assert step.reducer is WordCount.reducer
    assert step.fold is WordCount.reducer
    assert step.partitioner == job.partitioner
    assert step.sort_values


def test_a_job_without_reducer_is_map_only() -> None:
    """Its step has none, and nothing to fold."""
    (step,) = steps_of(Plain())
    assert step.reducer is None
    assert step.fold is None


def test_a_job_without_mapper_is_told_how_to_write_one() -> None:
    """The first thing that a beginner forgets."""

    class Empty(Job):
        reducer = Sum()

    with pytest.raises(JobError, match=r"Empty has no mapper.*def mapper\(self, key, value\)"):
        steps_of(Empty())


def test_a_job_of_several_steps_has_them_in_order() -> None:
    """Without a mapper the pairs pass as they are."""

    class TwoSteps(Plain):
        def steps(self) -> list[Step]:
            return [Step(self.mapper, Sum()), Step(reducer=Max()), Step(lambda key, value: [(value, key)])]

    steps = steps_of(TwoSteps())
    assert len(steps) == 3
    assert list(steps[1].mapper("a", 1)) == [("a", 1)]
    assert steps[2].reducer is None


def bad(**attributes: Any) -> type[Job]:
    return type("Bad", (Plain,), attributes)


@pytest.mark.parametrize(
    ("job", "told"),
    [
        (bad(mapper="a string"), "mapper.*'a string'"),
        (bad(reducer=Sum), r"reducer.*write Sum\(\)"),
        (bad(combiner=Count), r"combiner.*write Count\(\)"),
        (bad(reducer=7), "reducer.*neither a function nor an Aggregator"),
        (bad(combiner=[1]), "combiner.*neither"),
        (bad(partitioner=3), "partitioner"),
        (bad(setup=1), "setup"),
        (bad(reader="lines"), "reader"),
        (bad(reader=str), "reader"),
        (bad(steps=lambda self: []), r"steps\(\)"),
        (bad(steps=lambda self: None), r"steps\(\)"),
        (bad(steps=lambda self: 5), r"steps\(\)"),
        (bad(steps=lambda self: Step()), r"steps\(\)"),
        (bad(steps=lambda self: [Step(), 1]), r"steps\(\)"),
        (bad(steps=lambda self: [Step(lambda k, v: []), Step(reducer=Sum())]), "step 0 has no reducer"),
        (bad(steps=lambda self: [Step(reducer=Sum()), Step(), Step(reducer=Sum())]), "step 1 has no reducer"),
    ],
)
def test_a_job_that_is_not_well_made_is_told_what_is_wrong(job: type[Job], told: str) -> None:
    """Before anything runs, with the job's name and the part that is wrong."""
    with pytest.raises(JobError, match=told) as caught:
        steps_of(job())
    assert "Bad" in str(caught.value)


def test_a_reader_may_be_given_as_a_class() -> None:
    """Or it is told that it has to be made: `reader = JsonLines` without () is an easy slip."""
    from rqmr import JsonLines

    with pytest.raises(JobError, match=r"JsonLines\(\)"):
        steps_of(bad(reader=JsonLines)())


# --- annotations -------------------------------------------------------------------------------------------------


def test_the_type_of_values_is_read_from_the_mappers_annotation() -> None:
    """In all the ways in which people annotate a generator."""

    def iterator(k: Any, v: Any) -> Iterator[tuple[str, Decimal]]: ...
    def iterable(k: Any, v: Any) -> Iterable[tuple[str, Decimal]]: ...
    def generator(k: Any, v: Any) -> Generator[tuple[str, Decimal], None, None]: ...
    def listed(k: Any, v: Any) -> list[tuple[str, Decimal]]: ...
    def optional(k: Any, v: Any) -> list[tuple[str, Decimal]] | None: ...

    for function in (iterator, iterable, generator, listed, optional):
        assert Step(function).value_type is Decimal, function.__name__


def test_without_an_annotation_values_are_what_the_wire_gives() -> None:
    """Nothing is guessed; a name that can't be resolved is no error here."""

    def nothing(k: Any, v: Any): ...  # type: ignore[no-untyped-def]
    def plain(k: Any, v: Any) -> Iterable[Any]: ...
    def unknown(k: Any, v: Any) -> Iterable[tuple[str, NotThere]]: ...  # type: ignore[name-defined]  # noqa: F821

    for function in (nothing, plain, unknown, None, len):
        assert Step(function).value_type is Any  # type: ignore[arg-type]


def test_what_is_shuffled_has_the_type_of_the_accumulator_or_the_value() -> None:
    """An aggregator knows what its accumulators are made of."""

    def mapper(k: Any, v: Any) -> Iterator[tuple[str, Decimal]]: ...

    def reducer(k: Any, v: Any) -> None: ...

    assert Step(mapper, reducer).item_type is Decimal
    assert Step(mapper, Sum()).item_type is Decimal
    assert Step(mapper, Count()).item_type is int
    assert Step(mapper, Collect()).item_type == list[Decimal]
    assert Step(mapper, reducer, combiner=Min()).item_type is Decimal
    assert Step(mapper, reducer, combiner=Mean()).item_type is Any
    assert isinstance(Step(mapper, reducer, combiner=Sum()).fold, Aggregator)


def test_an_annotation_that_cannot_be_restored_is_refused_before_anything_runs() -> None:
    """The wire couldn't tell a Decimal from a str: both are text there."""

    class Ambiguous(Job):
        def mapper(self, key: Any, value: Any) -> Iterator[tuple[str, Decimal | str]]:
            yield key, value

        reducer = Collect()

    with pytest.raises(JobError, match="Decimal"):
        steps_of(Ambiguous())


# --- counters ----------------------------------------------------------------------------------------------------


def test_counters_add_up_by_group_and_name() -> None:
    """From one each time, or by any amount."""
    job = Plain()
    job.count("lines", "empty")
    job.count("lines", "empty")
    job.count("lines", "long", 5)
    job.count("words", "all", 0)
    assert job.counters == {"lines": {"empty": 2, "long": 5}, "words": {"all": 0}}


def test_counters_are_of_one_instance() -> None:
    """Two tasks in one process don't share them."""
    one, other = Plain(), Plain()
    one.count("a", "b")
    assert other.counters == {}


@pytest.mark.parametrize("arguments", [("status", 404), (404, "status"), ("g", "n", 1.5), ("g", None)])
def test_a_counter_travels_or_is_an_error_where_it_is_counted(arguments: tuple[Any, ...]) -> None:
    """In the user's own line, rather than when the whole run is told: names are str or become one, amounts are int."""
    job = Plain()
    with contextlib.suppress(TypeError, ValueError):
        job.count(*arguments)
    for group, members in job.counters.items():
        for name, amount in members.items():
            assert (type(group), type(name), type(amount)) == (str, str, int)
