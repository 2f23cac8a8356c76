"""What users subclass: `Job`, its parameters, and its steps."""

from __future__ import annotations

import functools
import operator
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec

from rqmr.aggregators import Aggregator
from rqmr.batch import BatchMapper
from rqmr.codec import ChunkCodec
from rqmr.errors import JobError, ParameterError
from rqmr.included import NOTHING, Included
from rqmr.readers import Lines, Reader

Pairs = Iterable[tuple[Any, Any]]
Mapper = Callable[[Any, Any], "Pairs | None"]
Reducer = Callable[[Any, Iterable[Any]], "Pairs | None"]


class Step:
    """One map, shuffle and reduce. Without a mapper its pairs pass as they are; without a reducer it ends the job."""

    def __init__(
        self,
        mapper: Mapper | None = None,
        reducer: Reducer | Aggregator | None = None,
        *,
        combiner: Reducer | Aggregator | None = None,
        partitioner: Callable[[Any, int], int] | None = None,
        sort_values: bool = False,
        map_batch: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        self.batch = BatchMapper(map_batch) if callable(map_batch) else None
        if mapper is None and self.batch:
            mapper = self.batch.map_one
        self.mapper: Mapper = mapper or _identity
        self.reducer = reducer
        self.combiner = combiner
        self.partitioner = partitioner
        self.sort_values = sort_values
        self.value_type = _value_type(combiner if callable(combiner) else mapper)

    @property
    def fold(self) -> Aggregator | None:
        """The aggregator that the map side folds with, if there is one."""
        for function in (self.reducer, self.combiner):
            if isinstance(function, Aggregator):
                return function
        return None

    @property
    def item_type(self) -> Any:
        """The type of what is shuffled for a key: the reducer's accumulator, or one value."""
        fold = self.fold
        if fold is None:
            return self.value_type
        # What an aggregator gives as a combiner only is known if it gives its accumulators as they are.
        known = fold is self.reducer or type(fold).finish is Aggregator.finish
        return fold.accumulator_type(self.value_type) if known else Any

    @property
    def shape(self) -> str:
        """What the step's segments hold, in words: those of two versions of a job can be merged if it is the same."""
        reducer = self.reducer
        kind = f"{type(reducer).__qualname__} {vars(reducer)}" if isinstance(reducer, Aggregator) else "values"
        others = [word for word, is_so in (("partitioned", self.partitioner), ("sorted", self.sort_values)) if is_so]
        return ", ".join([f"{kind} of {self.item_type!r}", *others])

    def codec(self) -> ChunkCodec:
        """Return the codec of the step's segments; TypeError if its annotation says no one type."""
        return ChunkCodec(self.item_type, grouped=not isinstance(self.reducer, Aggregator))


class Job:
    """A MapReduce program. Write a mapper, and mostly a reducer:

        class WordCount(Job):
            def mapper(self, source: str, line: str):
                for word in line.lower().split():
                    yield word, 1

            reducer = Sum()

    `mapper(key, value)` and `reducer(key, values)` yield pairs; so does `combiner`, which may run any number of
    times on some of a key's values, and has to yield under the same key. A reducer or combiner may be an
    `Aggregator`. `partitioner(key, partitions)` returns 0 <= p < partitions. With `sort_values` the reducer sees
    the values ascending, else in the order of the input. A job without reducer is map-only: its pairs are the
    output. `map_batch(key, records)` maps many records in one call, where that is faster: it returns pairs, `Ones`,
    or a dict of values by key, gets a list of records or, annotated as `str`, the lines as one text, and gives what
    `mapper` gives for these records one by one (which is called instead where one bad record has to be told from
    others; a job may have one of the two only). A mapper or reducer that yields may be compiled
    together with the loop that takes its pairs, where that gives the same; not with ``fuse = False``. An annotated
    attribute is a parameter (`-p pattern=mutex`), required if it has no default.

    Functions must give the same for the same records: a task may run more than once, and one attempt's output wins.
    """

    #: How input files become records; the mapper's key is the input's name.
    reader: Reader = Lines()
    mapper: Any = None
    map_batch: Any = None
    reducer: Any = None
    combiner: Any = None
    partitioner: Any = None
    sort_values: bool = False
    fuse: bool = True
    _included: Included = NOTHING

    def __init__(self, **parameters: Any) -> None:
        """Set the parameters.

        Raises:
            ParameterError: one is unknown, missing, or doesn't fit its annotation.
        """
        self.counters: dict[str, dict[str, int]] = {}
        for name, value in _checked(type(self), parameters).items():
            setattr(self, name, value)

    def setup(self) -> None:
        """Do once per task what shouldn't be done per record."""

    def steps(self) -> list[Step]:
        """Return the job's steps; the mapper of each but the first gets the pairs of the reducer before it."""
        return [
            Step(
                self.mapper,
                self.reducer,
                combiner=self.combiner,
                partitioner=self.partitioner,
                sort_values=self.sort_values,
                map_batch=self.map_batch,
            )
        ]

    def included(self, name: str) -> Path:
        """Return where a file that was given with `--include` is: ``self.included("stopwords.txt")``.

        For an included directory ``data``, `name` is ``"data"`` or ``"data/stopwords.txt"``. The path is of use for as
        long as the job is, and is another one in each task. Best asked for in `setup`.

        Raises:
            JobError: no such file was included.
        """
        return self._included.path(name)

    def count(self, group: str, name: str, amount: int = 1) -> None:
        """Add to a counter. Exact: only the attempts that win are counted, each once."""
        counters = self.counters.setdefault(str(group), {})
        counters[str(name)] = counters.get(str(name), 0) + operator.index(amount)


def new_job(job: type[Job], parameters: Mapping[str, Any], included: Included) -> Job:
    """Return a job that has its included files already when it is initialised. Raises as `Job.__init__`."""
    made = job.__new__(job)
    made._included = included
    made.__init__(**parameters)  # type: ignore[misc]
    return made


def parameters_of(job: type[Job]) -> dict[str, Any]:
    """Return a job's parameters with their annotations."""
    return dict(_parameters_of(job))  # type: ignore[arg-type]  # a class can be hashed


@functools.lru_cache(maxsize=8)  # for a small task this would take longer than all the rest
def _parameters_of(job: Any) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(job)
    except Exception as error:
        raise JobError(f"{job.__name__}: the annotations of its parameters can't be read: {error}") from error
    own = typing.get_type_hints(Job)
    found = {
        name: hint
        for name, hint in hints.items()
        if name not in own and not name.startswith("_") and typing.get_origin(hint) is not typing.ClassVar
    }
    for name in found:
        if hasattr(Job, name):
            raise JobError(f"{job.__name__}'s parameter {name!r} hides Job.{name}; give it another name")
    return found


def steps_of(job: Job) -> list[Step]:
    """Return a job's steps.

    Raises:
        JobError: the job has no mapper, or a step but the last has no reducer.
    """
    name = type(job).__name__
    if type(job).steps is Job.steps and job.mapper is None and job.map_batch is None:
        raise JobError(f"{name} has no mapper; give it one: def mapper(self, key, value): yield key, value")
    if not callable(job.setup):
        raise JobError(f"{name}.setup is not a function")
    reader: Any = job.reader
    if not isinstance(reader, Reader):
        hint = f"; write {reader.__name__}()" if isinstance(reader, type) else ""
        raise JobError(f"{name}.reader is no reader but {reader!r}{hint}")
    steps: Any = job.steps()
    if not isinstance(steps, list) or not steps or not all(isinstance(step, Step) for step in steps):
        raise JobError(f"{name}.steps() must return a list of rqmr.Step")
    for number, step in enumerate(steps):
        _check_functions(f"{name}: the {{}} of step {number}", step)
        if number and step.batch:
            raise JobError(f"{name}: only the first step of a job reads blocks, so step {number} can't have map_batch")
        if number and step.mapper is _identity:
            step.value_type = _value_type(steps[number - 1].reducer)
        if step.reducer is None and number < len(steps) - 1:
            raise JobError(f"{name}: step {number} has no reducer; only the last step of a job may be map-only")
        try:
            step.codec()
        except TypeError as error:
            raise JobError(f"{name}: the type of step {number}'s values can't be restored: {error}") from None
    return steps


def _check_functions(which: str, step: Step) -> None:
    if not callable(step.mapper):
        raise JobError(f"{which.format('mapper')} is not a function but {step.mapper!r}")
    if step.partitioner is not None and not callable(step.partitioner):
        raise JobError(f"{which.format('partitioner')} is not a function but {step.partitioner!r}")
    if isinstance(step.reducer, Aggregator) and step.combiner is not None:
        raise JobError(f"{which.format('combiner')} is of no use: {type(step.reducer).__name__} combines by itself")
    for role, function in (("reducer", step.reducer), ("combiner", step.combiner)):
        if isinstance(function, Aggregator):
            missing = [
                each for each in ("zero", "add", "merge") if getattr(type(function), each) is getattr(Aggregator, each)
            ]
            if missing:
                raise JobError(f"{which.format(role)}, {type(function).__name__}, doesn't define {', '.join(missing)}")
        if isinstance(function, type) and issubclass(function, Aggregator):
            raise JobError(f"{which.format(role)} is a class; write {function.__name__}()")
        if function is not None and not isinstance(function, Aggregator) and not callable(function):
            raise JobError(f"{which.format(role)} is neither a function nor an Aggregator but {function!r}")


def _identity(key: Any, value: Any) -> Pairs:
    return ((key, value),)


def _checked(job: type[Job], given: Mapping[str, Any]) -> dict[str, Any]:
    known = parameters_of(job)
    for name in given:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ParameterError(f"{job.__name__} has no parameter {name!r}; {has}")
    for name, annotation in known.items():
        if name not in given and not hasattr(job, name):
            kind = _spell(annotation)
            raise ParameterError(f"{job.__name__} needs the parameter {name!r} ({kind}); give it as -p {name}=…")
    return {name: _convert(job, name, value, known[name]) for name, value in given.items()}


def _convert(job: type[Job], name: str, value: Any, annotation: Any) -> Any:
    if isinstance(value, str) and annotation is float:
        value = _float_or_text(value)  # msgspec reads JSON's floats only, not .5
    elif isinstance(value, str) and typing.get_origin(annotation) in (list, set, tuple):
        value = [value]  # a name that was given once
    try:
        return msgspec.convert(value, annotation, strict=False, dec_hook=lambda kind, given: kind(given))
    except (msgspec.ValidationError, ValueError, TypeError):
        raise ParameterError(
            f"{job.__name__}'s parameter {name!r} must be {_spell(annotation)}, not {value!r}"
        ) from None


def _float_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _spell(annotation: Any) -> str:
    if annotation is bool:
        return "bool (true or false)"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return f"{annotation.__name__} ({', '.join(str(member.value) for member in annotation)})"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _value_type(function: Any) -> Any:
    """Return V of a function annotated `-> Iterator[tuple[K, V]]`, Any if it isn't."""
    if isinstance(function, types.MethodType):  # the same function for each task
        return _value_type_of_method(function.__func__)
    try:
        annotation = typing.get_type_hints(function).get("return")
    except (NameError, TypeError, AttributeError):
        return Any  # e.g. names that are imported under TYPE_CHECKING only
    for _ in range(3):  # Iterator[tuple[K, V]] | None, then without the None, then tuple[K, V]
        arguments = typing.get_args(annotation)
        if typing.get_origin(annotation) in (typing.Union, types.UnionType):
            arguments = tuple(each for each in arguments if each is not types.NoneType)
        if typing.get_origin(annotation) is tuple and len(arguments) == 2:
            return arguments[1]
        annotation = arguments[0] if arguments else None
    return Any


@functools.lru_cache(maxsize=8)
def _value_type_of_method(function: types.FunctionType) -> Any:
    return _value_type(function)
