"""A mapper or reducer and the loop that takes its pairs, compiled as one loop where that gives the same.

A generator costs a call for each record, and for each pair a tuple and two changes of frame: a quarter of what counting
words takes. Here its body is put into the loop over the records, and the body of the loop that takes the pairs where it
yields them, as compilers of queries do (Neumann, "Efficiently Compiling Efficient Query Plans for Modern Hardware",
2011, section 3) and of functional programs (Wadler, "Deforestation", 1990). It is done only where it can be seen to
give the same: the source is that of the code that would run, no record sees a name that another one has set, and
nothing outlives its record. All other mappers stay generators.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import copy
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from inspect import isgeneratorfunction
from itertools import chain, starmap
from types import CodeType, FunctionType, MethodType
from typing import Any

Pair = tuple[Any, Any]
Function = Callable[[Any, Any], Any]
Method = Callable[..., None]

#: They see the names of the frame that they are called in.
_SEEING = frozenset({"eval", "exec", "locals", "vars", "dir"})
#: What can outlive its record, and what gives names values where it isn't followed here.
_UNFOLLOWED = (ast.Lambda, ast.GeneratorExp, ast.NamedExpr, ast.Yield, ast.YieldFrom, ast.Await)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp)
#: Statements of what takes pairs. `break` and `continue` would be those of the mapper's loops.
_TAKING = (ast.Assign, ast.AugAssign, ast.If, ast.For, ast.Try, ast.Expr, ast.Raise, ast.Pass)


class Yielded:
    """What a mapper or reducer yields for some records or groups: pairs one by one, or a loop takes them all."""

    def __init__(self, function: Function, given: Iterable[tuple[Any, Any]]) -> None:
        """`function`: a generator function; `given`: what it is called with."""
        self.is_fused = False
        self._function = function
        self._given = given

    def __iter__(self) -> Iterator[Pair]:
        return chain.from_iterable(starmap(self._function, self._given))

    def fused(self, take: Method) -> Callable[..., None] | None:
        """Return run(watch, …), which does what take(…, pairs) does, faster; None if the two can't be fused.

        `watch` is called with whatever the function loops over while it yields, and gives what to loop over.
        """
        fused = fuse(self._function, take)
        if fused is None:
            return None
        self.is_fused = True
        return functools.partial(fused, self._given)


def fuse(function: Function, take: Method) -> Callable[..., None] | None:
    """Return a mapper or reducer and a method that takes pairs as one function, None if they can't be fused.

    The method: statements, of which one is a loop over the last argument, the pairs. The arguments of what is returned:
    what the first is to be called with, `watch`, and the method's other ones.
    """
    plain, bound = (function.__func__, [function.__self__]) if isinstance(function, MethodType) else (function, [])
    if not isinstance(plain, FunctionType) or not isinstance(take, MethodType):
        return None
    fused = _fused(plain, take.__func__, len(bound))
    return functools.partial(fused, take.__self__, *bound) if fused else None


class _CannotBeFusedError(Exception):
    """What it is raised about can't be followed."""


@functools.lru_cache(maxsize=16)
def _fused(function: FunctionType, take: FunctionType, bound: int) -> FunctionType | None:
    try:
        taking = _Taking(take)
        code = _compiled([_Yielding(function, bound, taking).fused()], function.__code__)
        return FunctionType(code, function.__globals__, function.__name__, tuple(taking.used.values()))
    except (_CannotBeFusedError, SyntaxError, ValueError, RecursionError):
        return None


def _source_of(function: FunctionType) -> ast.FunctionDef:
    """Return what a function was compiled from, which isn't always what its file has become since."""
    source = None
    with contextlib.suppress(AttributeError, ImportError, OSError):
        source = sys.modules[function.__module__].__loader__.get_source(function.__module__)  # type: ignore[union-attr]
    code = function.__code__
    nodes = list(ast.walk(ast.parse(source or "")))
    # The compiler calls what is in an imported module in another way; and some imports are of the future.
    imports = [each for each in nodes if isinstance(each, ast.Import | ast.ImportFrom)]
    for node in nodes:
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            line = min((each.lineno for each in node.decorator_list), default=node.lineno)
            if line == code.co_firstlineno and _compiled([*imports, node], code) == code:
                return copy.deepcopy(node)
    raise _CannotBeFusedError


def _compiled(statements: list[ast.stmt], like: CodeType) -> CodeType:
    """Return the code of the function among some statements that is called as another one is."""
    module = compile(ast.Module(statements, []), like.co_filename, "exec", dont_inherit=True)
    return next(each for each in module.co_consts if isinstance(each, CodeType) and each.co_name == like.co_name)


def _arguments(node: ast.FunctionDef) -> list[str]:
    given = node.args
    if given.posonlyargs or given.kwonlyargs or given.vararg or given.kwarg or given.defaults:
        raise _CannotBeFusedError
    return [each.arg for each in given.args]


def _body(node: ast.FunctionDef) -> list[ast.stmt]:
    return node.body[ast.get_docstring(node) is not None :]


def _within(nodes: Iterable[ast.AST]) -> list[ast.AST]:
    return [each for node in nodes for each in ast.walk(node)]


def _bound(nodes: Iterable[ast.AST]) -> set[str]:
    """Return the names that these nodes, and not those within them, give values."""
    names = {each.id for each in nodes if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
    return names | {each.name for each in nodes if isinstance(each, ast.ExceptHandler) and each.name}


class _Taking(ast.NodeTransformer):
    """The method that takes the pairs: `before`, the loop's `target` and `body`, and `after`.

    Its names begin with a dot, so that they are none of a user's. Those of its module become arguments: `used`.
    """

    def __init__(self, take: FunctionType) -> None:
        node = _source_of(take)
        *self.arguments, pairs = _arguments(node)
        statements = _body(node)
        loops = [each for each in statements if isinstance(each, ast.For) and _is_named(each.iter, pairs)]
        within = _within(statements)
        followed = all(isinstance(each, _TAKING) for each in within if isinstance(each, ast.stmt))
        if len(loops) != 1 or loops[0].orelse or not followed or any(isinstance(each, _UNFOLLOWED) for each in within):
            raise _CannotBeFusedError
        self._locals = {*self.arguments, *_bound(within)}
        self._module = {**vars(builtins), **take.__globals__}
        self.used: dict[str, Any] = {}
        at = statements.index(loops[0])
        self.before = [self.visit(each) for each in statements[:at]]
        self.target: ast.expr = self.visit(loops[0].target)
        self.body: list[ast.stmt] = [self.visit(each) for each in loops[0].body]
        self.after = [self.visit(each) for each in statements[at + 1 :]]

    def visit_Name(self, node: ast.Name) -> ast.Name:
        name = f".{node.id}"
        if node.id not in self._locals:
            if node.id not in self._module:
                raise _CannotBeFusedError
            self.used[name] = self._module[node.id]
        return ast.copy_location(ast.Name(name, node.ctx), node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        node.name = node.name and f".{node.name}"
        return self.generic_visit(node)

    def taken(self, pair: ast.Tuple) -> list[ast.stmt]:
        """Return what the loop does with a pair; an error in it is told of the line that yields."""
        first = ast.copy_location(ast.Assign([self.target], pair), pair)
        return [first, *(_placed(each, pair) for each in self.body)]


def _is_named(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _placed(node: ast.stmt, at: ast.AST) -> ast.stmt:
    """Return a copy of a statement, all of it at another node's place."""
    made = copy.deepcopy(node)
    for each in ast.walk(made):
        ast.copy_location(each, at)
    return made


#: Names of a function's own that have got a value by then, for this record; None: nothing comes to here.
_Known = frozenset[str] | None


def _either(*ways: _Known) -> _Known:
    """Return what is known where several ways meet."""
    known = [way for way in ways if way is not None]
    return frozenset.intersection(*known) if known else None


class _Yielding:
    """A mapper or reducer, its body followed from statement to statement."""

    def __init__(self, function: FunctionType, bound: int, taking: _Taking) -> None:
        """`bound`: arguments before the two that differ from record to record."""
        self._taking = taking
        self._node = _source_of(function)
        self._arguments = _arguments(self._node)
        if not isgeneratorfunction(function) or len(self._arguments) != bound + 2:
            raise _CannotBeFusedError
        within = _within(_body(self._node))
        comprehensions = [each for each in within if isinstance(each, _COMPREHENSIONS)]
        scoped = _within(part.target for each in comprehensions for part in each.generators)
        bound_here = _bound([each for each in within if each not in scoped])
        self._own = {*self._arguments, *bound_here}
        # One name for two things isn't followed; and `self` is there once for all records.
        if _bound(scoped) & self._own or bound_here & set(self._arguments[:-2]):
            raise _CannotBeFusedError

    def fused(self) -> ast.FunctionDef:
        """Return the function of this one and what takes its pairs."""
        taking, (*bound, key, value) = self._taking, self._arguments
        body, _ = self._block(_body(self._node), frozenset(self._arguments), in_loop=False)
        names: list[ast.expr] = [ast.Name(key, ast.Store()), ast.Name(value, ast.Store())]
        records = ast.For(ast.Tuple(names, ast.Store()), ast.Name(".records", ast.Load()), body, [])
        first, *given = [f".{each}" for each in taking.arguments]
        node = copy.copy(self._node)
        node.body = [_placed(each, node) for each in taking.before]
        node.body += [ast.copy_location(records, node), *(_placed(each, node) for each in taking.after)]
        arguments = [first, *bound, ".records", ".watch", *given, *taking.used]
        node.args = ast.arguments([], [ast.arg(each) for each in arguments], None, [], [], None, [])
        node.decorator_list, node.returns = [], None
        return ast.fix_missing_locations(node)

    def _block(self, statements: Sequence[ast.stmt], known: _Known, *, in_loop: bool) -> tuple[list[ast.stmt], _Known]:
        done: list[ast.stmt] = []
        for each in statements:
            if known is None:
                break
            made, known = self._statement(each, known, in_loop)
            done += made
        return done, known

    def _statement(self, node: ast.stmt, known: frozenset[str], in_loop: bool) -> tuple[list[ast.stmt], _Known]:
        """Return what stands for a statement, and what is known after it."""
        match node:
            case ast.Expr(ast.Yield(ast.Tuple([key, value]) as pair)):
                self._read([key, value], known)
                return self._taking.taken(pair), known
            case ast.Expr(value):
                self._read([value], known)
            case ast.Assign(targets, value):
                self._read([value], known)
                self._read(targets, known)
                known |= _bound(_within(targets))
            case ast.AugAssign(target, _, value):
                if isinstance(target, ast.Name) and target.id not in known:
                    raise _CannotBeFusedError
                self._read([target, value], known)
            case ast.If(test, body, orelse):
                self._read([test], known)
                node.body, then = self._block(body, known, in_loop=in_loop)
                node.orelse, otherwise = self._block(orelse, known, in_loop=in_loop)
                return [node], _either(then, otherwise)
            case ast.For(target, iterable, body, []):
                self._read([iterable, target], known)
                if any(isinstance(each, ast.Yield) for each in _within(body)):
                    node.iter = ast.copy_location(ast.Call(ast.Name(".watch", ast.Load()), [iterable], []), iterable)
                node.body, _ = self._block(body, known | _bound(_within([target])), in_loop=True)
            case ast.Try() if not any(isinstance(each, ast.Yield) for each in ast.walk(node)):
                return [node], self._try(node, known, in_loop=in_loop)
            case ast.Return(None | ast.Constant(None)) if not in_loop:
                return [ast.copy_location(ast.Continue(), node)], None
            case ast.Continue() | ast.Break():
                return [node], None
            case ast.Raise():
                self._read([node], known)
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
            self._read([handler.type] if handler.type else [], known)
            name = {handler.name} if handler.name else set()
            handler.body, handled = self._block(handler.body, known | name, in_loop=in_loop)
            ways.append(handled if handled is None else handled - name)
        node.finalbody, ended = self._block(node.finalbody, known, in_loop=in_loop)
        after = _either(*ways)
        return None if after is None or ended is None else after | ended

    def _read(self, nodes: Iterable[ast.AST], known: frozenset[str]) -> None:
        """See to it that all names in some nodes have a value, and that nothing there sees or outlives the record."""
        for each in _within(nodes):
            unknown = isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load) and each.id in self._own - known
            seeing = isinstance(each, ast.Name) and each.id in _SEEING
            if unknown or seeing or isinstance(each, _UNFOLLOWED):
                raise _CannotBeFusedError
