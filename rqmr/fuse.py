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
import contextlib
import copy
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from inspect import isgeneratorfunction
from itertools import chain, islice, starmap
from types import CodeType, FunctionType, MethodType
from typing import Any, TypeVar

Pair = tuple[Any, Any]
Node = TypeVar("Node", bound=ast.AST)
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

#: They see the names of the frame that they are called in.
_SEEING = frozenset({"eval", "exec", "locals", "vars", "dir"})
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp)
#: Expressions that can outlive their record, or that set names where it isn't followed here.
_UNFOLLOWED = (ast.Lambda, ast.GeneratorExp, ast.NamedExpr, ast.Yield, ast.YieldFrom, ast.Await)
#: Statements that are followed.
_FOLLOWED = (ast.Expr, ast.Assign, ast.AugAssign, ast.If, ast.For, ast.Try, ast.Return, ast.Continue, ast.Break,
             ast.Raise, ast.Pass)  # fmt: skip


class Yielded:
    """What a mapper or reducer yields for some records or groups: pairs one by one, or a loop takes them all."""

    def __init__(self, function: Function, given: Iterable[tuple[Any, Any]], size: int | None = None) -> None:
        """`function`: a generator function; `given`: what it is called with; `size`: how much, if all is in memory."""
        self.size = size
        self._function = function
        self._given = given

    def __iter__(self) -> Iterator[Pair]:
        return chain.from_iterable(starmap(self._function, self._given))

    def fused(self, take: Callable[..., None], watch: Watch | None = None) -> Callable[..., None] | None:
        """Return run(…), which does what take(…, pairs) does, faster; None if the two can't be fused. See `fuse`."""
        fused = fuse(self._function, take, watch)
        return fused and partial(fused, self._given if self.size is not None or not watch else watch(self._given))

    def parts(self, most: int, share: int) -> Iterator[tuple[Yielded, Yielded, float]]:
        """Yield parts of up to `most` records: the first of these, one in `share`, and the others, and their ratio."""
        given, left = iter(self._given), self.size or 0
        while left:
            size = min(left, most)
            left -= size
            first, of = -(-size // share), partial(Yielded, self._function)
            yield of(islice(given, first), first), of(islice(given, size - first), size - first), size / first - 1


def fuse(function: Function, take: Callable[..., None], watch: Watch | None = None) -> Callable[..., None] | None:
    """Return a mapper or reducer and a method of ours that takes pairs as one function, None if they can't be fused.

    The method is statements, of which one is a loop over its last argument, the pairs, that goes to its end. The
    arguments of what is returned: what the mapper or reducer is to be called with each time, then the method's others.
    """
    # What only looks like a method, such as a decorator's proxy, is not what it stands for.
    plain, bound = (function.__func__, [function.__self__]) if type(function) is MethodType else (function, [])
    if type(plain) is not FunctionType or type(take) is not MethodType:
        return None
    fused = _fuse(plain, len(bound), take.__func__, watch is not None)
    return partial(fused, take.__self__, *bound, watch) if fused else None


class _CannotBeFusedError(Exception):
    """Something in it isn't followed."""


@lru_cache(maxsize=16)
def _fuse(function: FunctionType, bound: int, take: FunctionType, is_watched: bool) -> FunctionType | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they were shown when it was imported
            taking = _Taking(take)
            code = _compiled([_Yielding(function, bound, taking, is_watched=is_watched).fused()], function.__code__)
            code = code.replace(co_qualname=function.__code__.co_qualname)  # as a profiler shows it
    except (_CannotBeFusedError, SyntaxError, ValueError, RecursionError):
        return None
    return FunctionType(code, function.__globals__, function.__name__, tuple(taking.used.values()))


def _source_of(function: FunctionType) -> ast.FunctionDef:
    """Return what a function was compiled from, which isn't always what its file has become since."""
    source = ""
    with contextlib.suppress(Exception):  # it may have no module, and a loader of anyone's
        source = sys.modules[function.__module__].__loader__.get_source(function.__module__)  # type: ignore[union-attr]
    code = function.__code__
    nodes = list(ast.walk(ast.parse(source or "")))
    # The compiler calls what is in an imported module in another way; and some imports are of the future.
    imports = [each for each in nodes if isinstance(each, ast.Import | ast.ImportFrom)]
    for node in nodes:
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            line = min((each.lineno for each in node.decorator_list), default=node.lineno)
            # Flags tell whether it stands in another one, too. Names of a class's or another function's own make the
            # code itself differ.
            if line == code.co_firstlineno:
                alone = _compiled([*imports, node], code)
                if alone.replace(co_flags=code.co_flags) == code:
                    return copy.deepcopy(node)
    raise _CannotBeFusedError


def _compiled(statements: list[ast.stmt], like: CodeType) -> CodeType:
    """Return the code of the function among some statements that is called as another one is."""
    module = compile(ast.Module(statements, []), like.co_filename, "exec", dont_inherit=True)
    for each in module.co_consts:
        if isinstance(each, CodeType) and each.co_name == like.co_name:
            return each
    raise _CannotBeFusedError


def _arguments(node: ast.FunctionDef) -> list[str]:
    given = node.args
    if given.posonlyargs or given.kwonlyargs or given.vararg or given.kwarg or given.defaults:
        raise _CannotBeFusedError
    return [each.arg for each in given.args]


def _body(node: ast.FunctionDef) -> list[ast.stmt]:
    return node.body[ast.get_docstring(node) is not None :]


def _within(nodes: Iterable[ast.AST]) -> list[ast.AST]:
    return [each for node in nodes for each in ast.walk(node)]


def _yields(nodes: Iterable[ast.AST]) -> bool:
    return any(isinstance(each, ast.Yield) for each in _within(nodes))


def _assigned(nodes: Sequence[ast.AST]) -> frozenset[str]:
    """Return the names that these nodes, and not those within them, give values."""
    names = {each.id for each in nodes if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
    return frozenset(names | {each.name for each in nodes if isinstance(each, ast.ExceptHandler) and each.name})


class _Taking(ast.NodeTransformer):
    """The method that takes the pairs: `before`, the loop's `target` and `body`, and `after`.

    Its names begin with a dot, so that they are none of a user's. Those of its module become arguments: `used`.
    """

    def __init__(self, take: FunctionType) -> None:
        node = _source_of(take)
        *self.arguments, pairs = _arguments(node)
        statements = _body(node)
        loops = [each for each in statements if isinstance(each, ast.For) and _is_named(each.iter, pairs)]
        # A `break` would be that of a loop of the user's.
        leaving = (ast.Continue, ast.Break, ast.Return)
        if len(loops) != 1 or loops[0].orelse or any(isinstance(each, leaving) for each in _within(statements)):
            raise _CannotBeFusedError
        self._locals = {*self.arguments, *_assigned(_within(statements)), "watch", "looped", "unwatched"}
        self._module = {**vars(builtins), **take.__globals__}
        self.used: dict[str, Any] = {}
        at = statements.index(loops[0])
        self.before = [self.visit(each) for each in statements[:at]]
        self.target: ast.expr = self.visit(loops[0].target)
        self.body: list[ast.stmt] = [self.visit(each) for each in loops[0].body]
        self.after = [self.visit(each) for each in statements[at + 1 :]]
        #: Names that the loop gives other values, or that are used after it.
        self._lasting = _assigned(_within(self.body)).union(
            each.id for each in _within(self.after) if isinstance(each, ast.Name)
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
                given.append(ast.copy_location(ast.Assign([_placed(target, pair)], value), pair))
        return [*given, *(_placed(_Instead(instead).visit(copy.deepcopy(each)), pair) for each in self.body)]

    def watching(self, iterable: ast.expr) -> list[ast.stmt]:
        """Return what makes `.looped` of what is to be looped over."""
        looped, *others = [_placed(self.visit(each), iterable) for each in ast.parse(_WATCHING).body]
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


def _placed(node: Node, at: ast.AST) -> Node:
    """Return a copy of a node, all of it at another one's place."""
    made = copy.deepcopy(node)
    for each in ast.walk(made):
        ast.copy_location(each, at)
    return made


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
        self._node = _source_of(function)
        self._arguments = _arguments(self._node)
        if not isgeneratorfunction(function) or len(self._arguments) != bound + 2:
            raise _CannotBeFusedError
        within = _within(_body(self._node))
        if not all(isinstance(each, _FOLLOWED) for each in within if isinstance(each, ast.stmt)):
            raise _CannotBeFusedError
        comprehensions = [each for each in within if isinstance(each, _COMPREHENSIONS)]
        scoped = _within(part.target for each in comprehensions for part in each.generators)
        self._assigned = _assigned([each for each in within if each not in scoped])
        self._own = self._assigned.union(self._arguments)
        self._forgotten = set(self._assigned)
        #: What is as long as its first argument.
        self._counting = {"enumerate"} - self._own - function.__globals__.keys()
        # A comprehension's name that is also the function's isn't followed; and what is bound is so for all records.
        if _assigned(scoped) & self._own or self._assigned.intersection(self._arguments[:-2]):
            raise _CannotBeFusedError

    def fused(self) -> ast.FunctionDef:
        """Return the function of this one and what takes its pairs."""
        taking, node, (*bound, key, value) = self._taking, copy.copy(self._node), self._arguments
        body, _ = self._block(_body(self._node), frozenset(self._arguments), in_loop=False)
        if names := sorted(self._forgotten):
            # A generator lets go of what it has when it ends.
            forgets = ast.Assign([ast.Name(name, ast.Store()) for name in names], ast.Constant(None))
            body = [ast.copy_location(ast.Try(body, [], [], [ast.copy_location(forgets, node)]), node)]
        target = ast.Tuple([ast.Name(key, ast.Store()), ast.Name(value, ast.Store())], ast.Store())
        loop = ast.For(target, ast.Name(".given", ast.Load()), body, [])
        unwatched = ast.Assign([ast.Name(".unwatched", ast.Store())], ast.Constant(0))
        node.body = [_placed(each, node) for each in (unwatched, *taking.before)]
        node.body += [ast.copy_location(loop, node), *(_placed(each, node) for each in taking.after)]
        first, *others = [f".{each}" for each in taking.arguments]
        arguments = [first, *bound, ".watch", ".given", *others, *taking.used]
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
                known |= _assigned(_within(targets))
            case ast.AugAssign(target, _, value):
                if isinstance(target, ast.Name) and target.id not in known:
                    raise _CannotBeFusedError
                self._check([target, value], known)
            case ast.If(test, body, orelse):
                self._check([test], known)
                node.body, then = self._block(body, known, in_loop=in_loop)
                node.orelse, otherwise = self._block(orelse, known, in_loop=in_loop)
                return [node], _after_any(then, otherwise)
            case ast.For(target, iterable, body, []):
                self._check([iterable, target], known)
                before, node.iter = self._watched(iterable) if _yields(body) else ([], iterable)
                node.body, _ = self._block(body, known | _assigned(_within([target])), in_loop=True)
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
                raise _CannotBeFusedError
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
        for each in _within(nodes):
            unknown = isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load) and each.id in self._own - known
            seeing = isinstance(each, ast.Name) and each.id in _SEEING
            if unknown or seeing or isinstance(each, _UNFOLLOWED):
                raise _CannotBeFusedError
