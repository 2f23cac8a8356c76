"""A mapper or reducer and the loop that takes its pairs, compiled as one loop where that gives the same.

    def mapper(self, source, line):            def fold(self, table, pairs):
        for word in line.split():                  get = table.get
            yield word, 1                          for key, value in pairs:
                                                       table[key] = get(key, 0) + value

become, but for what looks at the memory,

    get = table.get
    for source, line in records:
        try:
            for word in line.split():
                table[word] = get(word, 0) + 1
        finally:
            word = None

since a generator costs a call for each record, and for each pair a tuple and two changes of frame: a quarter of what
counting words takes. Compilers of queries do so (Neumann, "Efficiently Compiling Efficient Query Plans for Modern
Hardware", 2011, section 3), and of functional programs (Wadler, "Deforestation", 1990). It is done only where it can be
seen to give the same: the source is that of the code that would run, no record sees a name that another one has set,
and none is kept beyond it. All other mappers and reducers stay generators. (Who looks at the frame of his caller sees
that of the loop.)
"""

from __future__ import annotations

import ast
import builtins
import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from inspect import isgeneratorfunction
from itertools import chain, starmap
from types import FunctionType, MethodType
from typing import Any, Protocol

from rqmr.syntax import CannotBeFusedError, arguments_of, assigned, body_of, compiled, placed, source_of, within

Pair = tuple[Any, Any]
Function = Callable[[Any, Any], Any]
#: Takes what a function loops over as it yields, and gives what to loop over.
Watch = Callable[[Iterable[Any]], Iterable[Any]]
#: Stands before a loop that yields. `watch` is asked about all but lists, and about these once in so many items: a call
#: for each record takes several percent of what counting words does.
_WATCHING = f"""
looped = ...
unwatched = unwatched + len(looped) if type(looped) is list else {1 << 14}
if unwatched >= {1 << 14}:
    looped = watch(looped)
    unwatched = 0
"""
#: Stand before the loops, where a pair is yielded, and after them.
_SAMPLING = """
unsampled = sampler.left
unsampled -= 1
if unsampled < 0:
    unsampled = sampler.weigh(key, value)
sampler.left = unsampled
"""

#: They see the names of the frame that they are called in.
_SEEING = frozenset({"eval", "exec", "locals", "vars", "dir"})
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp)
#: Expressions that can outlive their record, or that set names where it isn't followed here.
_UNFOLLOWED = (ast.Lambda, ast.GeneratorExp, ast.NamedExpr, ast.Yield, ast.YieldFrom, ast.Await)
#: Statements that are followed.
_FOLLOWED = (ast.Expr, ast.Assign, ast.AugAssign, ast.If, ast.For, ast.Try, ast.Return, ast.Continue, ast.Break,
             ast.Raise, ast.Pass)  # fmt: skip


class Sampler(Protocol):
    """Is given some of the pairs that are yielded."""

    #: How many go by until the next one.
    left: int

    def weigh(self, key: Any, value: Any) -> int:
        """Take one, and return how many go by until the next."""


class Yielded:
    """What a mapper or reducer yields for some records or groups: pairs one by one, or a loop takes them all."""

    def __init__(self, function: Function, given: Iterable[tuple[Any, Any]], *, is_held: bool = False) -> None:
        """`function`: a generator function; `given`: what it is called with; `is_held`: that is in memory anyway."""
        self._is_held = is_held
        self._function = function
        self._given = given

    def __iter__(self) -> Iterator[Pair]:
        return chain.from_iterable(starmap(self._function, self._given))

    def fused(
        self, take: Callable[..., None], watch: Watch | None = None, sampler: Sampler | None = None
    ) -> Callable[..., None] | None:
        """Return run(…), which does what take(…, pairs) does, faster; None if the two can't be fused. See `fuse`."""
        fused = fuse(self._function, take, watch, sampler)
        return fused and partial(fused, self._given if self._is_held or not watch else watch(self._given))


def fuse(
    function: Function, take: Callable[..., None], watch: Watch | None = None, sampler: Sampler | None = None
) -> Callable[..., None] | None:
    """Return a mapper or reducer and a method of ours that takes pairs as one function, None if they can't be fused.

    The method is statements, of which one is a loop over its last argument, the pairs, that goes to its end. The
    arguments of what is returned: what the mapper or reducer is to be called with each time, then the method's others.
    """
    # What only looks like a method, such as a decorator's proxy, is not what it stands for.
    plain, bound = (function.__func__, [function.__self__]) if type(function) is MethodType else (function, [])
    if type(plain) is not FunctionType or type(take) is not MethodType:
        return None
    fused = _fuse(plain, len(bound), take.__func__, watch is not None, sampler is not None)
    return partial(fused, take.__self__, *bound, watch, sampler) if fused else None


@lru_cache(maxsize=16)
def _fuse(
    function: FunctionType, bound: int, take: FunctionType, is_watched: bool, is_sampled: bool
) -> FunctionType | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they were shown when it was imported
            taking = _Taking(take, is_sampled=is_sampled)
            code = compiled([_Yielding(function, bound, taking, is_watched=is_watched).fused()], function.__code__)
            code = code.replace(co_qualname=function.__code__.co_qualname)  # as a profiler shows it
    except (CannotBeFusedError, SyntaxError, ValueError, RecursionError):
        return None
    return FunctionType(code, function.__globals__, function.__name__, tuple(taking.used.values()))


def _yields(nodes: Iterable[ast.AST]) -> bool:
    return any(isinstance(each, ast.Yield) for each in within(nodes))


class _Taking(ast.NodeTransformer):
    """The method that takes the pairs: `before`, the loop's `target` and `body`, and `after`.

    Its names begin with a dot, so that they are none of a user's. Those of its module become arguments: `used`.
    """

    def __init__(self, take: FunctionType, *, is_sampled: bool) -> None:
        node = source_of(take)
        *self.arguments, pairs = arguments_of(node)
        statements = body_of(node)
        loops = [each for each in statements if isinstance(each, ast.For) and _is_named(each.iter, pairs)]
        # A `break` would be that of a loop of the user's.
        leaving = (ast.Continue, ast.Break, ast.Return)
        if len(loops) != 1 or loops[0].orelse or any(isinstance(each, leaving) for each in within(statements)):
            raise CannotBeFusedError
        self._locals = {*self.arguments, *assigned(within(statements)), "watch", "looped", "unwatched", "sampler"}
        self._module = {**vars(builtins), **take.__globals__}
        self.used: dict[str, Any] = {}
        at = statements.index(loops[0])
        if is_sampled:
            if ast.unparse(loops[0].target) != "(key, value)":
                raise CannotBeFusedError
            begin, *weigh, end = ast.parse(_SAMPLING).body
            self._locals.add("unsampled")
            loops[0].body[:0] = weigh
            statements[at + 1 : at + 1] = [end]
            statements.insert(at, begin)
            at += 1
        self.before = [self.visit(each) for each in statements[:at]]
        self.target: ast.expr = self.visit(loops[0].target)
        self.body: list[ast.stmt] = [self.visit(each) for each in loops[0].body]
        self.after = [self.visit(each) for each in statements[at + 1 :]]
        #: Names that the loop gives other values, or that are used after it.
        self._lasting = assigned(within(self.body)).union(
            each.id for each in within(self.after) if isinstance(each, ast.Name)
        )

    def visit_Name(self, node: ast.Name) -> ast.Name:
        name = f".{node.id}"
        if node.id not in self._locals:
            self.used[name] = self._module[node.id]
        return ast.copy_location(ast.Name(name, node.ctx), node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        node.name = node.name and f".{node.name}"
        return self.generic_visit(node)

    def taken(self, pair: ast.Tuple, own: frozenset[str]) -> list[ast.stmt]:
        """Return what the loop does with a pair; an error in it is told of the line that yields.

        `own`: the names of the function that yields. Where the pair has one of them, or a constant, the loop's own name
        for it is left out.
        """
        parts: list[tuple[ast.expr, ast.expr]] = [(self.target, pair)]
        if isinstance(self.target, ast.Tuple) and not any(isinstance(each, ast.Starred) for each in pair.elts):
            parts = list(zip(self.target.elts, pair.elts, strict=True))
        given: list[ast.stmt] = []
        instead: dict[str, ast.expr] = {}
        for target, value in parts:
            is_plain = isinstance(value, ast.Constant) or (isinstance(value, ast.Name) and value.id in own)
            if isinstance(target, ast.Name) and target.id not in self._lasting and is_plain:
                instead[target.id] = value
            else:
                given.append(ast.copy_location(ast.Assign([placed(target, pair)], value), pair))
        return [*given, *(placed(_Instead(instead).visit(copy.deepcopy(each)), pair) for each in self.body)]

    def watching(self, iterable: ast.expr) -> list[ast.stmt]:
        """Return what makes `.looped` of what is to be looped over."""
        looped, *others = [placed(self.visit(each), iterable) for each in ast.parse(_WATCHING).body]
        looped.value = iterable
        return [looped, *others]


class _Instead(ast.NodeTransformer):
    """Puts expressions in the place of names."""

    def __init__(self, expressions: dict[str, ast.expr]) -> None:
        self._expressions = expressions

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._expressions.get(node.id, node)


def _is_named(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


#: Names of a function's own that have got a value by then, for this record; None: no way leads there.
_Known = frozenset[str] | None


def _after_any(*ways: _Known) -> _Known:
    """Return what has a value whichever way was taken."""
    taken = [way for way in ways if way is not None]
    return frozenset.intersection(*taken) if taken else None


class _Yielding:
    """A mapper or reducer, its body followed, and changed, from statement to statement."""

    def __init__(self, function: FunctionType, bound: int, taking: _Taking, *, is_watched: bool) -> None:
        """`bound`: arguments before the two that differ from record to record."""
        self._taking = taking
        self._is_watched = is_watched
        self._node = source_of(function)
        self._arguments = arguments_of(self._node)
        if not isgeneratorfunction(function) or len(self._arguments) != bound + 2:
            raise CannotBeFusedError
        nodes = within(body_of(self._node))
        if not all(isinstance(each, _FOLLOWED) for each in nodes if isinstance(each, ast.stmt)):
            raise CannotBeFusedError
        comprehensions = [each for each in nodes if isinstance(each, _COMPREHENSIONS)]
        scoped = within(part.target for each in comprehensions for part in each.generators)
        self._assigned = assigned([each for each in nodes if each not in scoped])
        self._own = self._assigned.union(self._arguments)
        self._forgotten = set(self._assigned)
        #: What is as long as its first argument.
        self._counting = {"enumerate"} - self._own - function.__globals__.keys()
        # A comprehension's name that is also the function's isn't followed; and what is bound is so for all records.
        if assigned(scoped) & self._own or self._assigned.intersection(self._arguments[:-2]):
            raise CannotBeFusedError

    def fused(self) -> ast.FunctionDef:
        """Return the function of this one and what takes its pairs."""
        taking, node, (*bound, key, value) = self._taking, copy.copy(self._node), self._arguments
        body, _ = self._block(body_of(self._node), frozenset(self._arguments), in_loop=False)
        if names := sorted(self._forgotten):
            # A generator lets go of what it has when it ends.
            forgets = ast.Assign([ast.Name(name, ast.Store()) for name in names], ast.Constant(None))
            body = [ast.copy_location(ast.Try(body, [], [], [ast.copy_location(forgets, node)]), node)]
        target = ast.Tuple([ast.Name(key, ast.Store()), ast.Name(value, ast.Store())], ast.Store())
        loop = ast.For(target, ast.Name(".given", ast.Load()), body, [])
        unwatched = ast.Assign([ast.Name(".unwatched", ast.Store())], ast.Constant(0))
        node.body = [placed(each, node) for each in (unwatched, *taking.before)]
        node.body += [ast.copy_location(loop, node), *(placed(each, node) for each in taking.after)]
        first, *others = [f".{each}" for each in taking.arguments]
        arguments = [first, *bound, ".watch", ".sampler", ".given", *others, *taking.used]
        node.args = ast.arguments([], [ast.arg(each) for each in arguments], None, [], [], None, [])
        node.decorator_list, node.returns = [], None
        return ast.fix_missing_locations(node)

    def _watched(self, iterable: ast.expr) -> tuple[list[ast.stmt], ast.expr]:
        """Return what comes before a loop that yields, and what that loops over."""
        if not self._is_watched:
            return [], iterable
        match iterable:
            case ast.Call(ast.Name(name), [first, *_]) if name in self._counting and not isinstance(first, ast.Starred):
                before, iterable.args[0] = self._watched(first)
                return before, iterable
        self._forgotten.add(".looped")
        return self._taking.watching(iterable), ast.copy_location(ast.Name(".looped", ast.Load()), iterable)

    def _block(self, statements: Sequence[ast.stmt], known: _Known, *, in_loop: bool) -> tuple[list[ast.stmt], _Known]:
        """Return what stands for some statements, and what is known after them."""
        done: list[ast.stmt] = []
        for each in statements:
            if known is None:
                break
            made, known = self._statement(each, known, in_loop=in_loop)
            done += made
        return done, known

    def _statement(self, node: ast.stmt, known: frozenset[str], *, in_loop: bool) -> tuple[list[ast.stmt], _Known]:
        match node:
            case ast.Expr(ast.Yield(ast.Tuple([key, value]) as pair)):
                self._check([key, value], known)
                return self._taking.taken(pair, known), known
            case ast.Expr(value):
                self._check([value], known)
            case ast.Assign(targets, value):
                self._check([value, *targets], known)
                known |= assigned(within(targets))
            case ast.AugAssign(target, _, value):
                if isinstance(target, ast.Name) and target.id not in known:
                    raise CannotBeFusedError
                self._check([target, value], known)
            case ast.If(test, body, orelse):
                self._check([test], known)
                node.body, then = self._block(body, known, in_loop=in_loop)
                node.orelse, otherwise = self._block(orelse, known, in_loop=in_loop)
                return [node], _after_any(then, otherwise)
            case ast.For(target, iterable, body, []):
                self._check([iterable, target], known)
                before, node.iter = self._watched(iterable) if _yields(body) else ([], iterable)
                node.body, _ = self._block(body, known | assigned(within([target])), in_loop=True)
                return [*before, node], known
            case ast.Try() if not _yields([node]):
                return [node], self._try(node, known, in_loop=in_loop)
            case ast.Return(None | ast.Constant(None)) if not in_loop:
                return [ast.copy_location(ast.Continue(), node)], None
            case ast.Continue() | ast.Break():
                return [node], None
            case ast.Raise():
                self._check([node], known)
                return [node], None
            case ast.Pass():
                pass
            case _:
                raise CannotBeFusedError
        return [node], known

    def _try(self, node: ast.Try, known: frozenset[str], *, in_loop: bool) -> _Known:
        node.body, tried = self._block(node.body, known, in_loop=in_loop)
        if tried is not None:
            node.orelse, tried = self._block(node.orelse, tried, in_loop=in_loop)
        ways = [tried]
        for handler in node.handlers:
            self._check([handler.type] if handler.type else [], known)
            name = {handler.name} if handler.name else set()
            handler.body, handled = self._block(handler.body, known | name, in_loop=in_loop)
            ways.append(handled if handled is None else handled - name)
        # What a handler deletes may count as known: it is unbound, and raises, in both.
        node.finalbody, ended = self._block(node.finalbody, known, in_loop=in_loop)
        after = _after_any(*ways)
        return None if after is None or ended is None else after | ended

    def _check(self, nodes: Iterable[ast.AST], known: frozenset[str]) -> None:
        """Raise unless all names in some expressions have a value, and nothing there sees or outlives the record."""
        for each in within(nodes):
            unknown = isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load) and each.id in self._own - known
            seeing = isinstance(each, ast.Name) and each.id in _SEEING
            if unknown or seeing or isinstance(each, _UNFOLLOWED):
                raise CannotBeFusedError
