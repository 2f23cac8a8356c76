"""Fusing: a mapper and what takes its pairs, compiled as one loop, do what the two do."""

from __future__ import annotations

import importlib.util
import itertools
import math
import random
import sys
import textwrap
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any

import pytest

from rqmr import Config
from rqmr.aggregators import Aggregator, Count, Max, Mean, Min, Sum
from rqmr.errors import RecordError
from rqmr.fuse import Watch, Yielded, fuse
from rqmr.inputs import expand
from rqmr.model import Kind, Outcome, TaskId
from rqmr.plan import plan, program
from rqmr.records import Place
from rqmr.tasks import Task

Mapper = Callable[[str, Any], Iterable[tuple[Any, Any]]]
NUMBERS = itertools.count()
LINES = ["a b a", "", "the quick brown fox", "12 7 x 7", "b", "a b a", "x 3"]

#: Takes pairs as they come, with the source of the code where `fuse` looks for it.
TAKERS = '''
class Taker:
    def __init__(self):
        self.taken = []

    def take(self, pairs):
        """Keep them."""
        append = self.taken.append
        for key, value in pairs:
            append((key, value))
        self.taken.append("end")

    def take_checked(self, pairs):
        for pair in pairs:
            key, value = pair
            try:
                number = int(value)
            except (TypeError, ValueError) as error:
                number = len(str(error)) > 0
            for _ in range(2):
                self.taken.append((key, number))

    def take_changed(self, pairs):
        key = None
        for key, value in pairs:
            value = [value]
            self.taken.append((key, value))
        self.taken.append(key)
'''


@pytest.fixture
def module(tmp_path: Path) -> Iterator[Callable[[str], ModuleType]]:
    """Imports code from a file."""
    names = []

    def imported(code: str) -> ModuleType:
        path = tmp_path / f"code{next(NUMBERS)}.py"
        path.write_text(textwrap.dedent(code))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        names.append(path.stem)
        sys.modules[path.stem] = made
        spec.loader.exec_module(made)
        return made

    yield imported
    for name in names:
        del sys.modules[name]


def yielded(mapper: Mapper, records: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    return itertools.chain.from_iterable(mapper("s", record) for record in records)


def passed(items: Iterable[Any]) -> Iterator[Any]:
    """A watch."""
    yield from items


FUSED = {
    "a loop": """
        for word in line.split():
            yield word, 1
    """,
    "a condition": """
        if "a" in line:
            yield source, line
    """,
    "leaving early": """
        '''What has no words has no pairs.'''
        if not line:
            return
        words = line.split()
        yield words[0], len(words)
    """,
    "leaving early with nothing": """
        if not line:
            return None
        yield line, 1
    """,
    "the record under another value": """
        line = line.upper()
        line += "!"
        yield line, 1
    """,
    "nested loops": """
        for word in line.split():
            for letter in word:
                if letter == "a":
                    continue
                if letter == "w":
                    break
                yield (word, letter), [letter]
            yield word, 0
    """,
    "trying": """
        for word in line.split():
            try:
                number = int(word)
            except ValueError as error:
                self_said = str(error)
                continue
            else:
                twice = number * 2
            finally:
                pass
            yield word, twice
    """,
    "trying before all": """
        try:
            first, *rest = line.split()
        except ValueError:
            return
        yield first, rest
    """,
    "each way gives a value": """
        if line:
            kind = "full"
        elif source:
            kind = "empty"
        else:
            raise ValueError(line)
        yield kind, line
    """,
    "comprehensions": """
        lengths = {word: len(word) for word in line.split()}
        for each in [word[0] for word in line.split() if lengths[word] > 1]:
            yield each, {letter for letter in line}
    """,
    "a dict, an enumeration and a generator": """
        for at, word in enumerate(line.split(), 1):
            yield word, at
        for at, word in enumerate(*[line.split()]):
            yield word, at
        for word, letter in zip(*[line.split(), line]):
            yield word, letter
        for word, count in collections.Counter(line).items():
            yield word, count
        for word in reversed(line.split()):
            yield word, -1
    """,
    "names that the taker has, too": """
        append = key = line
        value = self = taken = pairs = 1
        for error in line.split():
            yield error, (append, key, value, self, taken, pairs)
    """,
    "the source under another value": """
        source += line
        yield source, 1
    """,
    "constants, and a star": """
        yield "constant", None
        yield *[line], 1
        yield line, line
    """,
    "targets of several kinds": """
        held = {}
        held["a"], (second, third) = 1, line.partition(" ")[::2]
        held["a"] += len(third)
        yield second, held["a"]
    """,
}


@pytest.mark.parametrize("watch", [None, passed])
@pytest.mark.parametrize("taker", ["take", "take_checked", "take_changed"])
@pytest.mark.parametrize("name", FUSED)
def test_a_fused_mapper_gives_what_the_generator_gives(
    module: Callable[[str], ModuleType], name: str, taker: str, watch: Watch | None
) -> None:
    body = textwrap.indent(textwrap.dedent(FUSED[name]), "    ")
    code = module(f"import collections\n{TAKERS}\ndef mapper(source, line):\n{body}")
    alone, together = code.Taker(), code.Taker()

    getattr(alone, taker)(yielded(code.mapper, LINES))
    run = fuse(code.mapper, getattr(together, taker), watch)
    assert run is not None
    run(zip(itertools.repeat("s"), LINES))

    assert together.taken == alone.taken
    assert len(together.taken) > 1


KEPT = {
    "a name that another record may have set": """
        if line:
            word = line
        yield word, 1
    """,
    "a name that a loop sets, behind it": """
        for word in line.split():
            pass
        yield word, 1
    """,
    "a name that is only perhaps set in a try": """
        try:
            number = int(line)
        except ValueError:
            pass
        yield number, 1
    """,
    "a yield within a try": """
        try:
            yield line, 1
        except TypeError:
            pass
    """,
    "a function that outlives the record": """
        keep = lambda: line
        yield line, keep
    """,
    "a generator that outlives the record": """
        yield line, (letter for letter in line)
    """,
    "a pair that was made before": """
        pair = line, 1
        yield pair
    """,
    "pairs of another generator": """
        yield from [(line, 1)]
    """,
    "what a yield gives": """
        got = yield line, 1
    """,
    "leaving a loop for good": """
        for word in line.split():
            if word == "a":
                return
            yield word, 1
    """,
    "a name that is a comprehension's, too": """
        word = line
        yield word, [word for word in line]
    """,
    "names of the frame": """
        yield line, len(locals())
    """,
    "a loop with an end of its own": """
        while line:
            yield line, 1
            line = line[1:]
    """,
    "no pairs": """
        return [(line, 1)]
    """,
}


@pytest.mark.parametrize("name", KEPT)
def test_a_mapper_that_cannot_be_followed_stays_a_generator(module: Callable[[str], ModuleType], name: str) -> None:
    body = textwrap.indent(textwrap.dedent(KEPT[name]), "    ")
    code = module(f"{TAKERS}\ndef mapper(source, line):\n{body}")
    assert fuse(code.mapper, code.Taker().take) is None


def test_a_function_of_another_functions_names_stays_a_generator(module: Callable[[str], ModuleType]) -> None:
    code = module(
        TAKERS
        + textwrap.dedent(
            """
            def around(number):
                def mapper(source, line):
                    yield line, number
                return mapper

            one, two = around(1), around(2)
            """
        )
    )
    assert fuse(code.one, code.Taker().take) is None
    assert fuse(code.two, code.Taker().take) is None


@pytest.mark.parametrize(
    "arguments", ["source, line, more=1", "source, *line", "source, line, *, more=1", "source, line, /", "source"]
)
def test_a_mapper_with_other_arguments_stays_a_generator(module: Callable[[str], ModuleType], arguments: str) -> None:
    code = module(f"{TAKERS}\ndef mapper({arguments}):\n    yield source, 1\n")
    assert fuse(code.mapper, code.Taker().take) is None


def test_methods_are_fused_with_their_jobs(module: Callable[[str], ModuleType]) -> None:
    code = module(
        TAKERS
        + textwrap.dedent(
            """
            class Job:
                seen = 0

                def mapper(self, source, line):
                    self.seen += 1
                    self.note(line)
                    yield self.seen, source

                def note(self, line):
                    self.last = line

                @staticmethod
                def alone(source, line):
                    yield line, source

                def hidden(self, source, line):
                    self.__seen = line
                    yield self.__seen, 1
            """
        )
    )
    job, taker = code.Job(), code.Taker()
    run = fuse(job.mapper, taker.take)
    assert run is not None
    run(zip(itertools.repeat("s"), "xyz"))
    assert taker.taken == [(1, "s"), (2, "s"), (3, "s"), "end"]
    assert (job.seen, job.last) == (3, "z")
    assert fuse(code.Job.alone, taker.take) is not None
    assert fuse(job.hidden, taker.take) is None, "such a name is changed by the compiler"


def test_a_file_that_has_changed_since_is_not_the_code_that_runs(module: Callable[[str], ModuleType]) -> None:
    code = module(f"{TAKERS}\ndef mapper(source, line):\n    yield line, 1\n")
    path = Path(code.__file__ or "")
    path.write_text(path.read_text().replace("line, 1", "line, 2"))

    assert fuse(code.mapper, code.Taker().take) is None


class Longest(Aggregator):
    """One of a user's own."""

    def zero(self) -> str:
        return ""

    def add(self, accumulator: str, value: Any) -> str:
        return max(accumulator, str(value), key=len)

    def merge(self, accumulator: str, other: str) -> str:
        return self.add(accumulator, other)


@pytest.mark.parametrize("aggregator", [Sum(), Min(), Max(), Mean(), Longest()])
def test_aggregators_that_loop_are_fused(module: Callable[[str], ModuleType], aggregator: Aggregator) -> None:
    code = module("def mapper(source, line):\n    for word in line.split():\n        yield word, len(line)\n")
    alone, together = aggregator.table(), aggregator.table()

    aggregator.fold(alone, yielded(code.mapper, LINES))
    run = fuse(code.mapper, aggregator.fold)
    assert run is not None
    run(zip(itertools.repeat("s"), LINES), together)

    assert list(together.items()) == list(alone.items())


def test_what_loops_in_c_is_not_fused(module: Callable[[str], ModuleType]) -> None:
    code = module("def mapper(source, line):\n    yield line, 1\n")
    assert fuse(code.mapper, Count().fold) is None


def test_what_a_generator_lets_go_of_at_its_end_is_not_kept(module: Callable[[str], ModuleType]) -> None:
    code = module(
        TAKERS
        + textwrap.dedent(
            """
            import weakref

            class Thing:
                pass

            alive = weakref.WeakSet()

            def mapper(source, line):
                if line:
                    thing = Thing()
                    alive.add(thing)
                yield line, len(alive)
            """
        )
    )
    taker = code.Taker()
    run = fuse(code.mapper, taker.take)
    assert run is not None
    run(zip(itertools.repeat("s"), ["a", "", "b", ""]))
    assert taker.taken == [("a", 1), ("", 0), ("b", 1), ("", 0), "end"]


@pytest.mark.parametrize("after", ["continue", "break"])
def test_a_loop_that_is_left_is_not_fused(module: Callable[[str], ModuleType], after: str) -> None:
    """It would be the mapper's that is left."""
    code = module(
        TAKERS.replace("append((key, value))", f"append((key, value))\n            {after}")
        + "\ndef mapper(source, line):\n    yield line, 1\n"
    )
    assert fuse(code.mapper, code.Taker().take) is None


def test_what_only_looks_like_a_method_is_not_taken_for_one(module: Callable[[str], ModuleType]) -> None:
    """As decorators of several libraries do: their proxies say that they are what they wrap."""
    code = module(
        TAKERS
        + textwrap.dedent(
            """
            class Proxy:
                def __init__(self, wrapped):
                    self.wrapped = wrapped

                __class__ = property(lambda self: type(self.wrapped))
                __func__ = property(lambda self: self.wrapped.__func__)
                __self__ = property(lambda self: self.wrapped.__self__)

                def __call__(self, *arguments):
                    for key, value in self.wrapped(*arguments):
                        yield key.upper(), value

            class Job:
                def plain(self, source, line):
                    yield line, 1

            mapper = Proxy(Job().plain)
            """
        )
    )
    assert isinstance(code.mapper, MethodType)
    assert list(code.mapper("s", "a")) == [("A", 1)]
    assert fuse(code.mapper.wrapped, code.Taker().take) is not None
    assert fuse(code.mapper, code.Taker().take) is None


@pytest.mark.parametrize("spelled", ["", "import math"])
def test_functions_of_imported_modules_are_called(module: Callable[[str], ModuleType], spelled: str) -> None:
    """The compiler has another way for them where it sees the import."""
    code = module(f"{spelled}\n{TAKERS}\ndef mapper(source, line):\n    yield line, math.floor(2.5)\n")
    vars(code).setdefault("math", math)
    taker = code.Taker()
    run = fuse(code.mapper, taker.take)
    assert run is not None
    run([("s", "a")])
    assert taker.taken == [("a", 2), "end"]


def test_code_without_a_module_stays_a_generator(module: Callable[[str], ModuleType]) -> None:
    names: dict[str, Any] = {"__name__": "of no module"}
    exec("def mapper(source, line):\n    yield line, 1\n", names)
    assert fuse(names["mapper"], module(TAKERS).Taker().take) is None


# --- random mappers -----------------------------------------------------------------------------------------------

NAMES = ["a", "b", "c", "line"]
VALUES = [*NAMES, "1", "source", "len(line)", "int(line)", "[each for each in line]"]


class Writer:
    """Writes mappers by chance."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def name(self) -> str:
        return self.random.choice(NAMES)

    def value(self) -> str:
        return self.random.choice(VALUES)

    def block(self, depth: int, *, in_loop: bool = False) -> str:
        statements = [self.statement(depth, in_loop) for _ in range(self.random.randint(1, 4))]
        return textwrap.indent("\n".join(statements), "    ")

    def statement(self, depth: int, in_loop: bool) -> str:
        kind = self.random.random()
        if depth and kind < 0.35:
            return self.compound(depth - 1, in_loop)
        if kind < 0.55:
            return f"yield {self.value()}, {self.value()}"
        if kind < 0.9:
            return self.random.choice([
                f"{self.name()} = {self.value()}",
                f"{self.name()} += '.'",
                f"{self.name()}, {self.name()} = 'pq'",
            ])  # fmt: skip
        leaving = ["break", "continue"] if in_loop else ["return", "return", "raise ValueError(line)"]
        return self.random.choice(leaving)

    def compound(self, depth: int, in_loop: bool) -> str:
        def block() -> str:
            return self.block(depth, in_loop=in_loop)

        kind = self.random.randrange(5)
        if kind == 0:
            return f"if {self.value()}:\n{block()}\nelse:\n{block()}"
        if kind == 1:
            return f"if {self.value()} == {self.value()}:\n{block()}"
        if kind == 2:
            return f"try:\n{block()}\nexcept (ValueError, TypeError) as {self.name()}:\n{block()}"
        if kind == 3:
            return f"try:\n{block()}\nexcept ValueError:\n{block()}\nelse:\n{block()}\nfinally:\n{block()}"
        iterable = self.random.choice(["line", "'xy'", "a", "[b, c]"])
        return f"for {self.name()} in {iterable}:\n{self.block(depth, in_loop=True)}"


def outcomes(body: str, records: list[str], watch: Watch | None) -> tuple[Any, Any] | None:
    """What a mapper gives alone and fused: pairs, and what it raises; None if it can't be fused."""
    code = ModuleType("random_mapper")
    text = f"{TAKERS}\na, b, c = 'gh', '1', ''\ndef mapper(source, line):\n{body}\n    if not source: yield 0, 0\n"
    code.__loader__ = type("Loader", (), {"get_source": staticmethod(lambda name: text)})()
    sys.modules[code.__name__] = code
    try:
        exec(compile(text, "random_mapper.py", "exec", dont_inherit=True), vars(code))
        alone, together = code.Taker(), code.Taker()
        run = fuse(code.mapper, together.take, watch)
        if run is None:
            return None
        raised = (
            raised_by(alone.take, yielded(code.mapper, records)),
            raised_by(run, zip(itertools.repeat("s"), records)),
        )
    finally:
        del sys.modules[code.__name__]
    return (alone.taken, raised[0]), (together.taken, raised[1])


def raised_by(function: Callable[..., object], *arguments: Any) -> str:
    try:
        function(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("watch", [None, passed])
@pytest.mark.parametrize("seed", range(10))
def test_random_mappers_give_the_same_fused(seed: int, watch: Watch | None) -> None:
    """Also where they raise: the same, after the same pairs."""
    writer, fused = Writer(seed), 0
    for number in range(60):
        body = writer.block(2)
        records = writer.random.choices(["", "1", "x", "abc", "12"], k=4)
        if found := outcomes(body, records, watch):
            alone, together = found
            assert together == alone, f"seed {seed}, mapper {number}, of {records}:\n{body}"
            fused += 1
    assert fused > 5


# --- in a task ----------------------------------------------------------------------------------------------------


class Tasks:
    """Map tasks of a job over one file, with fused mappers or without."""

    def __init__(self, directory: Path, job: str, content: str, **config: Any) -> None:
        (directory / "input.txt").write_text(content)
        (directory / "job.py").write_text(f"from rqmr import *\n\n\n{textwrap.dedent(job)}")
        self.plan = plan(
            program(str(directory / "job.py"), {}), expand([str(directory / "input.txt")]),
            Config(reducers=2, split_bytes=64 << 20, **config), workers=1, stage_in=directory / "stage",
        )  # fmt: skip
        Path(self.plan.spec.stage).mkdir(parents=True)
        self.fused = 0  # blocks of the last one that were

    def run(self, *, fuses: bool) -> tuple[Outcome, dict[tuple[int, int], bytes]]:
        """Return the outcome and what was written: segments, or a part."""
        self.fused, sink, name = 0, Sink(), "part"
        task = Task(self.plan.spec, self.plan.program.new_job, TaskId(0, Kind.MAP, 0), Place(), sink, name, fuses=fuses)
        fused = Yielded.fused

        def counted(yielded: Yielded, *arguments: Any) -> Any:
            run = fused(yielded, *arguments)
            self.fused += run is not None
            return run

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Yielded, "fused", counted)
            outcome = task.run(self.plan.splits[0])
        if (part := Path(self.plan.spec.stage, name)).exists():
            sink.written[0, 0] = part.read_bytes()
        return outcome, sink.written


class Sink:
    def __init__(self) -> None:
        self.written: dict[tuple[int, int], bytes] = {}

    def write(self, partition: int, chunk: int, data: bytes) -> None:
        self.written[partition, chunk] = data

    def discard(self) -> None:
        self.written.clear()


#: Several blocks.
CONTENT = "".join(f"word{number % 997} word{number % 31} and {number}\n" for number in range(20_000))
COUNTS = """
    class Mine(Job):
        def mapper(self, source, line):
            for word in line.split():
                self.count("seen", "words")
                yield word, 1

        reducer = Sum()
"""
GREP = r"""
    class Mine(Job):
        def mapper(self, source, line):
            if "word7" in line:
                yield line.replace(" ", "\t"), [line] if "7 and" in line else line
"""


@pytest.mark.parametrize("job", [COUNTS, COUNTS.replace("1", "0.1"), COUNTS.replace("Sum", "Mean"), GREP])
@pytest.mark.parametrize("config", [{}, {"memory": 64 << 10}, {"format": "jsonl"}])
def test_a_task_writes_the_same_bytes_with_its_mapper_fused(tmp_path: Path, job: str, config: dict[str, Any]) -> None:
    tasks = Tasks(tmp_path, job, CONTENT, **config)

    fused = tasks.run(fuses=True)
    assert tasks.fused
    alone = tasks.run(fuses=False)
    assert not tasks.fused

    assert fused == alone
    assert fused[0].records == 20_000
    assert fused[1]


def test_a_job_may_say_that_its_mapper_is_not_to_be_fused(tmp_path: Path) -> None:
    tasks = Tasks(tmp_path, COUNTS.replace("reducer =", "fuse = False\n        reducer ="), CONTENT)
    tasks.run(fuses=True)
    assert not tasks.fused


def test_a_loop_of_a_users_own_takes_from_the_generator(tmp_path: Path) -> None:
    """It may keep something from pair to pair, and a fused mapper can have the table written in between."""
    own = """
    class Runs(Sum):
        def fold(self, table, pairs):
            for key, value in pairs:
                table[key] = table.get(key, 0) + value
    """
    tasks = Tasks(tmp_path, textwrap.dedent(own) + textwrap.dedent(COUNTS).replace("Sum", "Runs"), CONTENT)
    tasks.run(fuses=True)
    assert not tasks.fused


UNHASHABLE = COUNTS.replace("yield word, 1", "yield word if word != '15000' else [word], 1")


def test_what_a_fused_mapper_raises_is_told_of_the_record_and_the_line_that_yields(tmp_path: Path) -> None:
    tasks = Tasks(tmp_path, UNHASHABLE, CONTENT)
    with pytest.raises(RecordError) as caught:
        tasks.run(fuses=True)
    with pytest.raises(RecordError) as other:
        tasks.run(fuses=False)

    fused, alone = caught.value.failure, other.value.failure
    assert (fused.source, fused.offset, fused.record) == (alone.source, alone.offset, alone.record)
    assert fused.record == "'word45 word27 and 15000'"
    assert "unhashable type: 'list'" in fused.message
    assert "yield word if word" in fused.traceback
    assert "unhashable type: 'list' (keys are str" in alone.message


def test_a_bad_record_of_a_fused_mapper_is_left_out_like_any_other(tmp_path: Path) -> None:
    tasks = Tasks(tmp_path, UNHASHABLE, CONTENT, skip_bad=1)
    fused, alone = tasks.run(fuses=True), tasks.run(fuses=False)
    assert fused == alone
    assert [each.record for each in fused[0].skipped] == ["'word45 word27 and 15000'"]


@pytest.mark.parametrize("kind", ["list", "iter"])
def test_what_a_fused_mapper_makes_of_one_record_is_held_within_memory(tmp_path: Path, kind: str) -> None:
    """There may be any number of keys in it: a look at the memory is taken within its loops, too."""
    job = f"""
        class Mine(Job):
            def mapper(self, source, line):
                for number in {kind}(range(int(line))):
                    yield str(number), 1

            reducer = Sum()
    """
    tasks = Tasks(tmp_path, job, "10\n" * 30_000 + "200000\n", memory=2 << 20)

    tracemalloc.start()
    try:
        tasks.run(fuses=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert tasks.fused
    numbers = 200_000 * 40 if kind == "list" else 0  # the list itself
    assert peak < (2 << 20) * 5 + numbers


def test_what_a_fused_mapper_makes_of_many_records_is_held_within_memory(tmp_path: Path) -> None:
    """Each makes few keys, and all those of a block make many."""
    job = """
        class Mine(Job):
            def mapper(self, source, line):
                count, name = line.split()
                for number in list(range(int(count))):
                    yield f"{name}-{number}", 1

            reducer = Sum()
    """
    lines = ["1 small\n"] * 30_000 + [f"5000 {number}\n" for number in range(40)]
    tasks = Tasks(tmp_path, job, "".join(lines), memory=2 << 20)

    tracemalloc.start()
    try:
        tasks.run(fuses=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert tasks.fused
    assert peak < (2 << 20) * 5
