"""What a node does with a message that arrived: find its handler, check and decode it, run it, catch what it raises."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from p2pfl.errors import MessageError, RemoteProtocolError
from p2pfl.node.events import Event, HandlerFailed
from p2pfl.wire.codec import Body, Incoming, announced, decode, encode
from p2pfl.wire.message import Handlers, Message, Request, Vocabulary, handlers_of, reply_type
from p2pfl.wire.tensor import Schema

if TYPE_CHECKING:
    from p2pfl.node.peer import Peer

__all__ = ["Dispatch", "HandlerError"]

log = logging.getLogger("p2pfl.node")


class HandlerError(Exception):
    """What the asker is told instead of a reply."""


class Dispatch:
    """The roles of a node as one table from message types to handlers."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self.handlers: Handlers = {}
        self.vocabulary = Vocabulary()
        self.schemas: set[Schema] = set()
        self.failures = 0
        self._roles: list[object] = []
        self._emit = emit

    def add(self, roles: Iterable[object]) -> None:
        """Take more roles. Raises MessageError for two handlers of one type, or two types with one tag."""
        wanted = [*self._roles, *roles]
        handlers = handlers_of(wanted)
        vocabulary = Vocabulary(handlers)
        vocabulary.add(reply_type(kind) for kind in handlers if issubclass(kind, Request))
        self._roles, self.handlers, self.vocabulary = wanted, handlers, vocabulary

    def admit(self, head: bytes, sizes: tuple[int, ...]) -> tuple[memoryview, ...]:
        """Memory for the tensors of a message, once the head proves that they are what it says and what was agreed."""
        expected: list[int] = []
        for schema in announced(head):
            if self.schemas and schema not in self.schemas:
                raise RemoteProtocolError(f"tensors of another shape than agreed are announced: {_outline(schema)}")
            expected.extend(spec.nbytes for spec in schema)
        if sorted(expected) != sorted(sizes):
            raise RemoteProtocolError("the announced buffers are not those of the tensors in the head")
        return tuple(memoryview(bytearray(size)) for size in sizes)

    def checked(self, kind: type[Message], content: Incoming) -> Message:
        """The message, if it is of `kind` and its tensors are as agreed. RemoteProtocolError."""
        if content.tag != kind.tag:
            raise RemoteProtocolError(f"{content.tag[:40]!r} came where {kind.tag} was due")
        message = decode(kind, content)
        if self.schemas and content.buffers:
            self._agreed(content.fields)
        return message

    def _agreed(self, fields: dict[str, Any]) -> None:
        for value in fields.values():
            if isinstance(value, dict) and "tensors" in value:
                schema = tuple((name, dtype, tuple(shape)) for name, dtype, shape in value["tensors"])
                if schema not in self.schemas:
                    raise RemoteProtocolError(f"tensors of another shape than agreed: {_outline(schema)}")

    async def run(self, peer: Peer, content: Incoming) -> Body | None:
        """Handle one message of a peer; the encoded reply, if it was a request.

        Raises RemoteProtocolError for a message that is wrong, HandlerError for a handler of ours that failed.
        """
        kind = self.vocabulary[content.tag] if content.tag in self.vocabulary else None
        handler = self.handlers.get(kind) if kind else None
        if kind is None or handler is None:
            raise RemoteProtocolError(f"nothing here handles {content.tag[:40]!r}")
        message = self.checked(kind, content)
        try:
            reply = await handler(message, peer)
            if not isinstance(message, Request):
                return None
            if not isinstance(reply, reply_type(type(message))):
                raise MessageError(f"the handler of {kind.tag} gave a {type(reply).__name__}")
            return encode(reply)
        except Exception as error:  # noqa: BLE001 - the one supervisor: a failing handler must not end the node
            self.failures += 1
            reason = f"{type(error).__name__}: {error}"
            log.error("handler of %s failed", kind.tag, exc_info=error)
            self._emit(HandlerFailed(peer.id, kind.tag, reason))
            raise HandlerError(reason) from error


def _outline(schema: Iterable[tuple[object, object, object]]) -> str:
    return ", ".join(f"{name} {dtype}{shape}" for name, dtype, shape in list(schema)[:3])[:200]
