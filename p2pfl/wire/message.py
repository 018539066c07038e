"""Typed messages: frozen dataclasses by subclassing, handlers by decoration, and the vocabulary of a node.

A course's file reads:

    class Update(Message):
        params: Tensors
        samples: int

    class Train(Request[Update]):
        round: int
        params: Tensors

    class Trainer:
        @Train.handler
        async def train(self, ask: Train, peer: Peer) -> Update: ...
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Generic, Self, TypeVar, dataclass_transform, get_args, get_origin, overload

from p2pfl.errors import MessageError
from p2pfl.wire.fields import check_fields

__all__ = [
    "Handler", "Handlers", "Message", "Request", "Vocabulary", "handled_by", "handlers_of", "is_async", "reply_type",
]  # fmt: skip

RoleT = TypeVar("RoleT")
PeerT = TypeVar("PeerT")
ReplyT = TypeVar("ReplyT", bound="Message")
_MARK = "__p2pfl_message__"


@dataclass_transform(frozen_default=True)
class Message:
    """A statement, sent one way. Subclass it with annotated fields; the subclass is a frozen dataclass.

    Fields may be bool, int, float, str, bytes, None, enums, lists, tuples, dicts with str keys, dataclasses of these,
    and `Tensors`. The tag on the wire is the class's name, or `class Update(Message, tag="update/2")`.
    """

    tag: ClassVar[str]

    def __init_subclass__(cls, *, tag: str | None = None) -> None:
        super().__init_subclass__()
        if "tag" in inspect.get_annotations(cls):
            raise MessageError(f"{cls.__name__} has a field named tag, which every message type has: name it otherwise")
        cls.tag = tag or cls.__name__
        dataclass(frozen=True)(cls)

    @overload
    @classmethod
    def handler(
        cls, method: Callable[[RoleT, Self, PeerT], Coroutine[Any, Any, None]]
    ) -> Callable[[RoleT, Self, PeerT], Coroutine[Any, Any, None]]: ...

    @overload
    @classmethod
    def handler(cls, method: Callable[[RoleT, Self, PeerT], None]) -> Callable[[RoleT, Self, PeerT], None]: ...

    @classmethod
    def handler(cls, method: Callable[..., Any]) -> Callable[..., Any]:
        """Mark a role's method as the one that takes this message.

        A coroutine method, or, where there is nothing to wait for (a model goes into a mailbox), an ordinary one: that
        is called the moment the message arrives, and costs no task.
        """
        _mark(method, cls)
        return method


class Request(Message, Generic[ReplyT]):
    """A message that is answered once: `class Train(Request[Update])`."""

    @classmethod
    def handler(  # type: ignore[override]  # a request's handler answers; a statement's does not
        cls, method: Callable[[RoleT, Self, PeerT], Coroutine[Any, Any, ReplyT]]
    ) -> Callable[[RoleT, Self, PeerT], Coroutine[Any, Any, ReplyT]]:
        """Mark a role's coroutine method as the one that answers this request."""
        _mark(method, cls)
        return method


def _mark(method: Callable[..., object], kind: type[Message]) -> None:
    known: type[Message] | None = getattr(method, _MARK, None)
    if known not in (None, kind):
        raise MessageError(f"{method.__qualname__} handles {known.tag} already: write one method for each message")
    setattr(method, _MARK, kind)


def reply_type(request: type[Request[Any]]) -> type[Message]:
    """What a request is answered with: `Update` for `class Train(Request[Update])`. MessageError if it does not say."""
    for cls in request.__mro__:
        for parent in getattr(cls, "__orig_bases__", ()):
            if get_origin(parent) is Request and isinstance(get_args(parent)[0], type):
                reply: type[Message] = get_args(parent)[0]
                return reply
    raise MessageError(f"{request.__name__} does not say its reply: write class {request.__name__}(Request[Reply])")


Handler = Callable[[Any, Any], Coroutine[Any, Any, Message | None]] | Callable[[Any, Any], None]
"""A bound method that takes (message, peer)."""

Handlers = Mapping[type[Message], Handler]
"""Message types and their handlers."""


def handlers_of(roles: Iterable[object]) -> Handlers:
    """The handlers of several roles together.

    Raises MessageError where two handle one type, or where the handler of a request is no coroutine function.
    """
    found: dict[type[Message], Handler] = {}
    for role in roles:
        for name, kind in handled_by(type(role)):  # type: ignore[arg-type]  # a class is hashable whatever it holds
            if kind in found:
                first = found[kind].__qualname__
                raise MessageError(f"{kind.tag} has two handlers: {first} and {_qualified(role, name)}")
            method = getattr(role, name)
            if issubclass(kind, Request) and not is_async(method):
                raise MessageError(f"{_qualified(role, name)} answers {kind.tag}, so it must be `async def`")
            found[kind] = method
    return found


@lru_cache(maxsize=1024)
def handled_by(role: type) -> tuple[tuple[str, type[Message]], ...]:
    """Names of the handlers that a role's class has, inherited ones included, and the message type of each."""
    names = dict.fromkeys(name for cls in reversed(role.__mro__) for name in vars(cls))
    kinds = ((name, getattr(inspect.getattr_static(role, name), _MARK, None)) for name in names)
    return tuple((name, kind) for name, kind in kinds if kind is not None)


def is_async(handler: Handler) -> bool:
    """Whether a handler is a coroutine method."""
    return _is_async(getattr(handler, "__func__", handler))


@lru_cache(maxsize=1024)
def _is_async(function: Callable[..., object]) -> bool:
    return inspect.iscoroutinefunction(function)


def _qualified(role: object, name: str) -> str:
    return f"{type(role).__name__}.{name}"


class Vocabulary:
    """The message types that one node can read, by tag. Nodes have one each; there is no global list.

    >>> class Ping(Message):
    ...     pass
    >>> Vocabulary([Ping])["Ping"] is Ping
    True
    """

    __slots__ = ("_types",)

    def __init__(self, types: Iterable[type[Message]] = ()) -> None:
        """Raises MessageError where two types have one tag, or where a field cannot be carried."""
        self._types: dict[str, type[Message]] = {}
        self.add(types)

    def add(self, types: Iterable[type[Message]]) -> None:
        """Learn more types. Raises MessageError where two types have one tag, or where a field cannot be carried."""
        for kind in types:
            check_fields(kind)  # type: ignore[arg-type]  # a class is hashable, whatever its instances are
            known = self._types.setdefault(kind.tag, kind)
            if known is not kind:
                raise MessageError(
                    f"{known.__module__}.{known.__qualname__} and {kind.__module__}.{kind.__qualname__} have one tag, "
                    f"{kind.tag!r}: give one of them another, class {kind.__name__}(Message, tag=...)"
                )

    def __getitem__(self, tag: str) -> type[Message]:
        return self._types[tag]

    def __contains__(self, tag: object) -> bool:
        return tag in self._types

    def __iter__(self) -> Iterator[type[Message]]:
        return iter(self._types.values())

    def __len__(self) -> int:
        return len(self._types)

    def __repr__(self) -> str:
        return f"<Vocabulary {' '.join(sorted(self._types))}>"
