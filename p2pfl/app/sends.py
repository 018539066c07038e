"""What a role sends, read in its source. No code of the role is run.

A message counts as sent where it is built, unless it is an answer, and where it stands in a `tell` or an `ask`.
Functions and classes that the role calls are read as well, if they are in its own module or among the shipped courses.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any

from p2pfl.errors import ConfigError
from p2pfl.wire.message import Message

__all__ = ["Sends", "Signature", "sends_of", "signature_of"]

_VERBS = {"tell", "tell_all", "ask", "ask_all"}
_SHARED = ("p2pfl.courses.", "p2pfl.council.")
Resolve = Callable[[ast.expr | None], Any]


@dataclass(frozen=True, slots=True)
class Sends:
    """Message types that a role builds, and those that it surely sends, whether it has built them or passes them on."""

    built: set[type[Message]] = field(default_factory=set)
    told: set[type[Message]] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Signature:
    """What the annotations of a handler say: types, or None where there is no annotation that can be resolved."""

    message: Any
    reply: Any
    is_async: bool


def sends_of(role: type) -> Sends:
    """What the methods of a role send. Raises ConfigError where there is no source to read."""
    sends, seen = Sends(), set[object]()
    waiting: list[type | FunctionType] = [role]
    while waiting:
        owner = waiting.pop()
        if owner in seen:
            continue
        seen.add(owner)
        for tree, resolve in _functions(owner):
            reader = _Reader(resolve, sends, reads_parameters=owner is role)
            reader.visit(tree)
            waiting.extend(
                callee
                for callee in reader.called
                if callee.__module__ == role.__module__ or callee.__module__.startswith(_SHARED)
            )
    return sends


def signature_of(role: type, method: str) -> Signature:
    """The annotations of a handler. Raises ConfigError where there is no source to read."""
    handler = inspect.getattr_static(role, method)
    tree, resolve = _tree(handler), _resolver(handler)
    if not isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef):
        return Signature(None, None, False)  # a lambda
    parameters = [*tree.args.posonlyargs, *tree.args.args]
    message = resolve(_unquoted(parameters[1].annotation)) if len(parameters) > 1 else None
    returns = _unquoted(tree.returns)
    reply = type(None) if isinstance(returns, ast.Constant) and returns.value is None else resolve(returns)
    return Signature(message, reply, isinstance(tree, ast.AsyncFunctionDef))


class _Reader(ast.NodeVisitor):
    """Reads one function. `called` are the functions and classes that it calls by name."""

    def __init__(self, resolve: Resolve, sends: Sends, *, reads_parameters: bool) -> None:
        self.called: set[Any] = set()
        self._sends = sends
        self._resolve = resolve
        self._reads_parameters = reads_parameters
        self._variables: dict[str, type[Message]] = {}

    def visit_arg(self, node: ast.arg) -> None:
        if self._reads_parameters and (kind := _message(self._resolve(_unquoted(node.annotation)))):
            self._variables[node.arg] = kind

    def visit_Assign(self, node: ast.Assign) -> None:
        kind = self._kind(node.value)
        for target in node.targets:
            if kind and isinstance(target, ast.Name):
                self._variables[target.id] = kind
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        callee = self._resolve(node.func)
        if kind := _message(callee):
            self._sends.built.add(kind)
        elif isinstance(callee, FunctionType | type):
            self.called.add(callee)
        if isinstance(node.func, ast.Attribute) and node.func.attr in _VERBS:
            self._note_sent(node)
        self.generic_visit(node)

    def visit_Await(self, node: ast.Await) -> None:
        call = node.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and not _is_self(call.func.value):
            self._note_sent(call)  # whoever takes a message and must be awaited may send it on
        self.generic_visit(node)

    def _note_sent(self, call: ast.Call) -> None:
        for argument in (*call.args, *(keyword.value for keyword in call.keywords)):
            if kind := self._kind(argument):
                self._sends.told.add(kind)

    def _kind(self, node: ast.expr) -> type[Message] | None:
        if isinstance(node, ast.Call):
            return _message(self._resolve(node.func))
        return self._variables.get(node.id) if isinstance(node, ast.Name) else None


def _functions(owner: type | FunctionType) -> Iterator[tuple[ast.stmt, Resolve]]:
    """A function, or those that are written in a class and in its bases; not those that dataclasses make."""
    if isinstance(owner, FunctionType):
        yield _tree(owner), _resolver(owner)
        return
    for cls in owner.__mro__:
        tree = _tree(cls) if _is_written_here(cls, owner) else None
        for node in tree.body if isinstance(tree, ast.ClassDef) else ():
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                value = vars(cls).get(node.name)
                function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
                yield node, _resolver(inspect.unwrap(function) if callable(function) else cls)


def _is_written_here(cls: type, owner: type) -> bool:
    """Whether to read a class in which `owner` is one: not those of libraries, which know nothing of our messages."""
    package = cls.__module__.partition(".")[0]
    return package in (owner.__module__.partition(".")[0], "p2pfl") and package not in sys.stdlib_module_names


def _tree(written: type | FunctionType) -> ast.stmt:
    try:
        source = inspect.getsource(written)
        whole = ast.parse(f"if True:\n{source}" if source[0].isspace() else source)
    except (OSError, TypeError, SyntaxError) as error:
        raise ConfigError(
            f"the source of {written.__qualname__} cannot be read; put the role into a file, and check that"
        ) from error
    first = whole.body[0]
    return first.body[0] if isinstance(first, ast.If) else first


def _resolver(owner: object) -> Resolve:
    """Gives what a name or a dotted name in the source of a function or class stands for; None for anything else."""
    known = dict(vars(sys.modules[owner.__module__])) if owner.__module__ in sys.modules else {}
    if isinstance(owner, FunctionType):
        known |= owner.__globals__ | dict(inspect.getclosurevars(owner).nonlocals)

    def resolve(node: ast.expr | None) -> Any:
        match node:
            case ast.Name(name):
                return known.get(name)
            case ast.Attribute(value, name):
                parent = resolve(value)
                return getattr(parent, name, None) if isinstance(parent, ModuleType | type) else None
        return None

    return resolve


def _unquoted(annotation: ast.expr | None) -> ast.expr | None:
    """An annotation, also if it is written as a string."""
    match annotation:
        case ast.Constant(str(text)):
            return ast.parse(text, mode="eval").body
    return annotation


def _message(value: object) -> type[Message] | None:
    return value if isinstance(value, type) and issubclass(value, Message) else None


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"
