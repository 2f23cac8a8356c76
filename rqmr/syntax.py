"""A function's syntax tree, where it is what the function's code was compiled from, and questions to such trees."""

from __future__ import annotations

import ast
import contextlib
import copy
import sys
from collections.abc import Iterable, Sequence
from types import CodeType, FunctionType
from typing import TypeVar

Node = TypeVar("Node", bound=ast.AST)


class CannotBeFusedError(Exception):
    """It has no source, or not the code's, or something in it isn't followed."""


def source_of(function: FunctionType) -> ast.FunctionDef:
    """Return what a function was compiled from, which isn't always what its file has become since.

    Raises:
        CannotBeFusedError: it can't be found.
    """
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
                alone = compiled([*imports, node], code)
                if alone.replace(co_flags=code.co_flags) == code:
                    return copy.deepcopy(node)
    raise CannotBeFusedError


def compiled(statements: list[ast.stmt], like: CodeType) -> CodeType:
    """Return the code of the function among some statements that is called as another one is."""
    module = compile(ast.Module(statements, []), like.co_filename, "exec", dont_inherit=True)
    for each in module.co_consts:
        if isinstance(each, CodeType) and each.co_name == like.co_name:
            return each
    raise CannotBeFusedError


def arguments_of(node: ast.FunctionDef) -> list[str]:
    """Return a function's arguments; CannotBeFusedError if they are not all plain ones."""
    given = node.args
    if given.posonlyargs or given.kwonlyargs or given.vararg or given.kwarg or given.defaults:
        raise CannotBeFusedError
    return [each.arg for each in given.args]


def body_of(node: ast.FunctionDef) -> list[ast.stmt]:
    """Return a function's statements, without its docstring."""
    return node.body[ast.get_docstring(node) is not None :]


def within(nodes: Iterable[ast.AST]) -> list[ast.AST]:
    """Return some nodes and all below them."""
    return [each for node in nodes for each in ast.walk(node)]


def assigned(nodes: Sequence[ast.AST]) -> frozenset[str]:
    """Return the names that these nodes, and not those within them, give values."""
    names = {each.id for each in nodes if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
    return frozenset(names | {each.name for each in nodes if isinstance(each, ast.ExceptHandler) and each.name})


def placed(node: Node, at: ast.AST) -> Node:
    """Return a copy of a node, all of it at another one's place."""
    made = copy.deepcopy(node)
    for each in ast.walk(made):
        ast.copy_location(each, at)
    return made
