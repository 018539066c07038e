"""Whether the messages of a course fit together, found from its classes alone: nothing of the course is run."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from p2pfl.app.flow import Edge, Flow, draw, draw_svg
from p2pfl.app.modules import load_module
from p2pfl.app.sends import Sends, sends_of, signature_of
from p2pfl.courses.course import Course
from p2pfl.errors import ConfigError, MessageError
from p2pfl.node.membership import Membership
from p2pfl.wire.fields import check_fields
from p2pfl.wire.message import Message, Request, handled_by, reply_type

__all__ = ["Edge", "Flow", "check_course", "check_module", "check_roles", "draw", "draw_svg"]

Kind = type[Message]
_CHECKED = "checked."


def check_course(course: Course, settings: object = None) -> Flow:
    """The message flow of a course, with these settings or the default ones, and all that is wrong in it."""
    return check_roles(course.name, course.cast(settings))


def check_module(path_or_name: str) -> Flow:
    """The flow between the roles of a module, given as `path/to/file.py` or `package.module`. The module is imported.

    If it has a `Course`, the roles are those of the course; else all its classes with handlers or `run(self, node)`.
    Raises ConfigError where there is no such module, or no role in it.
    """
    module = load_module(path_or_name, _CHECKED)
    courses = [value for value in vars(module).values() if isinstance(value, Course)]
    listed = [role for course in courses for role in course.roles] if courses else vars(module).values()
    roles = list(dict.fromkeys(role for role in listed if isinstance(role, type) and _is_role(role)))
    if not roles:
        raise ConfigError(f"{path_or_name} has no role: give a class a handler, or async def run(self, node)")
    return check_roles(module.__name__.removeprefix(_CHECKED), roles)


def check_roles(name: str, roles: Sequence[type]) -> Flow:
    """The flow between some roles. Raises ConfigError where the source of one cannot be read."""
    parts = [_Part(role, tuple(handled_by(role)), sends_of(role)) for role in roles]
    replies = {reply for kind in _known(parts) if (reply := _reply(kind)) is not None}
    senders = {kind: [part.name for part in parts if part.sends_kind(kind, replies)] for kind in _known(parts)}
    handlers = {kind: [part.name for part in parts if part.handles(kind)] for kind in _known(parts)}
    return Flow(
        name,
        tuple(part.name for part in parts),
        {kind.tag: tuple(names) for kind, names in senders.items() if names},
        {kind.tag: tuple(names) for kind, names in handlers.items() if names},
        tuple(_edges(senders, handlers)),
        tuple(dict.fromkeys((*_type_problems(parts), *_role_problems(parts), *_flow_problems(parts, replies)))),
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """A role of the course: its handlers by name, and what it sends."""

    role: type
    handled: tuple[tuple[str, Kind], ...]
    sends: Sends

    @property
    def name(self) -> str:
        return self.role.__name__

    def handles(self, kind: Kind) -> bool:
        return any(kind is handled for _, handled in self.handled)

    def makes(self, kind: Kind, replies: set[Kind]) -> bool:
        """Whether it builds that message in order to send it. A type that is an answer must be told to count."""
        return kind in self.sends.built and (kind not in replies or kind in self.sends.told)

    def sends_kind(self, kind: Kind, replies: set[Kind]) -> bool:
        return self.makes(kind, replies) or kind in self.sends.told


def _known(parts: Iterable[_Part]) -> list[Kind]:
    """All message types of the course: those that are handled as they come in the source, then the others."""
    handled = dict.fromkeys(kind for part in parts for _, kind in part.handled)
    others = {kind for part in parts for kind in part.sends.built | part.sends.told} - handled.keys()
    return [*handled, *sorted(others, key=lambda kind: (kind.tag, kind.__module__))]


def _reply(kind: Kind) -> Kind | None:
    """What answers a message; None for a statement, and for a request that does not say it."""
    try:
        return reply_type(kind) if issubclass(kind, Request) else None
    except MessageError:
        return None


def _edges(senders: dict[Kind, list[str]], handlers: dict[Kind, list[str]]) -> Iterator[Edge]:
    for kind in senders:
        reply = _reply(kind)
        for sender in senders[kind]:
            for receiver in handlers[kind]:
                yield Edge(sender, kind.tag, receiver, reply.tag if reply else None)


def _type_problems(parts: Sequence[_Part]) -> Iterator[str]:
    """Message types that no node could use."""
    by_tag: dict[str, Kind] = {}
    kinds = _known(parts)
    for kind in dict.fromkeys((*kinds, *(reply for kind in kinds if (reply := _reply(kind)) is not None))):
        first = by_tag.setdefault(kind.tag, kind)
        if first is not kind:
            yield (
                f"{_place(first)} and {_place(kind)} have one tag, {kind.tag!r}: "
                f'give one of them another, class {kind.__name__}(..., tag="...")'
            )
        try:
            check_fields(kind)  # type: ignore[arg-type]  # a class is hashable, whatever its instances are
            if issubclass(kind, Request):
                reply_type(kind)
        except MessageError as error:
            yield str(error)


def _role_problems(parts: Sequence[_Part]) -> Iterator[str]:
    """What is wrong with a role, whatever the others are."""
    built_in = {kind for _, kind in handled_by(Membership)}
    for part in parts:
        if not _runs(part.role):
            yield (
                f"{part.name} has no run, so its node would serve for ever and the course cannot end: "
                "write async def run(self, node: Node) that returns when the course is over"
            )
        first: dict[Kind, str] = {}
        for method, kind in part.handled:
            where = f"{part.name}.{method}"
            if kind in built_in:
                yield f"{where} handles {kind.tag}, which every node handles itself: define a message of your own"
            elif kind in first:
                yield f"{part.name} has two handlers for {kind.tag}, {first[kind]} and {method}: drop one of them"
            first.setdefault(kind, method)
            yield from _handler_problems(part, method, kind)


def _handler_problems(part: _Part, method: str, kind: Kind) -> Iterator[str]:
    where, signature = f"{part.name}.{method}", signature_of(part.role, method)
    wanted = _reply(kind) if issubclass(kind, Request) else type(None)
    if issubclass(kind, Request) and not signature.is_async:
        yield f"{where} answers {kind.tag} and is no coroutine function: write async def"
    if signature.message not in (kind, None):
        yield (
            f"{where} handles {kind.tag}, but its parameter is annotated {_shown(signature.message)}: "
            f"annotate {kind.__name__}, or decorate with @{_shown(signature.message)}.handler"
        )
    if wanted is not None and signature.reply not in (wanted, None):
        needed = (
            f"{kind.tag} is answered by {_shown(wanted)}" if wanted is not type(None) else f"{kind.tag} has no answer"
        )
        yield f"{where} returns {_shown(signature.reply)}, but {needed}: return {_shown(wanted)}"


def _flow_problems(parts: Sequence[_Part], replies: set[Kind]) -> Iterator[str]:
    """Messages that go nowhere, and handlers that nothing reaches."""
    built_in = {kind for _, kind in handled_by(Membership)}
    for kind in _known(parts):
        makers = [part.name for part in parts if part.makes(kind, replies)]
        handlers = [part.name for part in parts if part.handles(kind)]
        if makers and not handlers and kind not in built_in:
            yield (
                f"{kind.tag} is sent by {' and '.join(makers)} and handled by no role: "
                f"give one a method with @{kind.__name__}.handler"
            )
        if handlers and not makers and kind not in built_in:
            yield (
                f"{kind.tag} is handled by {' and '.join(handlers)} and sent by no role: "
                f"send {kind.__name__}(...) somewhere, or drop the handler"
            )


def _is_role(value: type) -> bool:
    return not getattr(value, "_is_protocol", False) and (_runs(value) or bool(handled_by(value)))


def _runs(role: type) -> bool:
    run = getattr(role, "run", None)
    return inspect.iscoroutinefunction(run) and list(inspect.signature(run).parameters)[1:2] == ["node"]


def _place(kind: Kind) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _shown(annotation: Any) -> str:
    return "None" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))
