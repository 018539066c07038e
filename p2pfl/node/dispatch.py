"""What a node does with a message that arrived: find its handler, check and decode it, run it, catch what it raises."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from p2pfl.errors import MessageError, RemoteProtocolError
from p2pfl.node.events import Event, HandlerFailed
from p2pfl.wire.codec import Body, Incoming, announced, decode, encode, outline
from p2pfl.wire.frame import OversizeError
from p2pfl.wire.message import Handler, Message, Request, Vocabulary, handlers_of, is_async, reply_type
from p2pfl.wire.tensor import Schema, schema_bytes

if TYPE_CHECKING:
    from p2pfl.node.peer import Peer

__all__ = ["Dispatch", "HandlerError", "Unready"]

log = logging.getLogger("p2pfl.node")
_MODELS_AT_ONCE = 2  # in one message; each is of agreed tensors


class HandlerError(Exception):
    """What the asker is told instead of a reply."""


class Unready(HandlerError):
    """No role of ours handles the request, so far."""


class _Entry(NamedTuple):
    """How one message type is handled."""

    kind: type[Message]
    handler: Handler
    prompt: bool  # it is an ordinary function, called when the message arrives
    reply: type[Message] | None  # None for a statement


@lru_cache(maxsize=1024)
def _check_tags(kinds: tuple[type[Message], ...]) -> None:
    Vocabulary(kinds)  # which refuses what cannot be told apart


class Dispatch:
    """The roles of a node as one table from tags to handlers."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self.schemas: set[Schema] = set()  # of the tensors that were agreed; empty: any are taken
        self.failures = 0  # handlers that raised
        self.expecting = False  # roles are yet to come: who sends what they will handle does nothing wrong
        self._roles: list[object] = []
        self._table: dict[str, _Entry] = {}
        self._emit = emit

    def add(self, roles: Iterable[object]) -> None:
        """Take more roles, or none of them.

        Raises MessageError for two handlers of one type, two types with one tag, and for fields that cannot be carried.
        """
        wanted = [*self._roles, *roles]
        table = {}
        for kind, handler in handlers_of(wanted).items():
            reply = reply_type(kind) if issubclass(kind, Request) else None
            table[kind] = _Entry(kind, handler, not is_async(handler), reply)
        _check_tags((*table, *(entry.reply for entry in table.values() if entry.reply is not None)))
        self._roles = wanted
        self._table = {kind.tag: entry for kind, entry in table.items()}

    def admit(self, head: bytes, sizes: tuple[int, ...]) -> bool:
        """Whether the tensors of a message were agreed. False: nothing was, and any are taken.

        Raises RemoteProtocolError if they are not what the head says, or others than agreed, or too many.
        """
        expected: list[int] = []
        for schema in announced(head):
            if self.schemas and schema not in self.schemas:
                raise RemoteProtocolError(f"tensors of another shape than agreed: {outline(schema)}")
            expected.extend(spec.nbytes for spec in schema)
        if sorted(expected) != sorted(sizes):
            raise RemoteProtocolError("the announced buffers are not those of the tensors in the head")
        if self.schemas and sum(sizes) > _MODELS_AT_ONCE * max(map(schema_bytes, self.schemas)):
            raise OversizeError(f"tensors of {sum(sizes)} bytes are over {_MODELS_AT_ONCE} times what was agreed")
        return bool(self.schemas)

    def checked(self, kind: type[Message], content: Incoming) -> Message:
        """The message, if it is of `kind` and its tensors are as agreed. Raises RemoteProtocolError."""
        if content.tag != kind.tag:
            raise RemoteProtocolError(f"{content.tag[:40]!r} came where {kind.tag} was due")
        return decode(kind, content, self.schemas)

    def prompt(self, content: Incoming) -> bool:
        """Whether the handler is an ordinary function: `run_now` then does what `run` does."""
        entry = self._table.get(content.tag)
        return entry is not None and entry.prompt

    def overtakes(self, content: Incoming) -> bool:
        """Whether a message need not wait until those that came before it are begun."""
        return False

    def run_now(self, peer: Peer, content: Incoming) -> None:
        """Handle a statement at once; see `run`. A handler that fails is reported, and raises nothing."""
        entry = self._table[content.tag]
        message = self.checked(entry.kind, content)
        try:
            entry.handler(message, peer)
        except RemoteProtocolError:
            raise
        except Exception as error:  # noqa: BLE001 - a failing handler must not end the node; it is logged and told
            self._failed(entry, peer, error)

    async def run(self, peer: Peer, content: Incoming, *, asked: bool) -> Body | None:
        """Handle one message of a peer; the encoded reply, if it was asked for one.

        Raises RemoteProtocolError for a message that is wrong, also where the handler says so; HandlerError for a
        handler of ours that failed, and for a request that no role of ours answers; Unready if one may do so yet.
        """
        entry = self._table.get(content.tag)
        if entry is None:
            self._unhandled(content.tag, asked=asked)
            return None
        if asked is (entry.reply is None):
            raise RemoteProtocolError(f"{entry.kind.tag} is not to be {'asked' if asked else 'told'}")
        message = self.checked(entry.kind, content)
        try:
            handling = entry.handler(message, peer)
            reply = None if handling is None else await handling
            if entry.reply is None:
                return None
            if not isinstance(reply, entry.reply):
                raise MessageError(f"the handler of {entry.kind.tag} gave a {type(reply).__name__}")
            return encode(reply)
        except RemoteProtocolError:
            raise
        except Exception as error:  # a failing handler must not end the node
            raise self._failed(entry, peer, error) from error

    def _unhandled(self, tag: str, *, asked: bool) -> None:
        reason = f"nothing here handles {tag[:40]!r}"
        if self.expecting:
            if asked:
                raise Unready(f"{reason} yet")
        elif asked:
            raise HandlerError(reason)
        else:
            raise RemoteProtocolError(reason)

    def _failed(self, entry: _Entry, peer: Peer, error: Exception) -> HandlerError:
        self.failures += 1
        reason = f"{type(error).__name__}: {error}"
        if (ending := peer.line_ending()) is not None:
            log.error("handler of %s failed%s", entry.kind.tag, ending, exc_info=error)
            self._emit(HandlerFailed(peer.id, entry.kind.tag, reason + ending))
        return HandlerError(reason)
