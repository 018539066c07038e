"""The role beside a gossiping one that holds all nodes to one model for each round, and bans who gives two."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field

from p2pfl.courses.equivocation import Pledge, Proof, Statement, Witness, model_digest
from p2pfl.crypto.signing import Signer
from p2pfl.errors import ConfigError, JournalError, LinkError
from p2pfl.journal.journal import Journal
from p2pfl.node.connection import Connection
from p2pfl.node.events import Event
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer, require_seat
from p2pfl.wire.codec import encode
from p2pfl.wire.message import Message
from p2pfl.wire.tensor import Tensors

__all__ = ["Convict", "Equivocated", "Stated", "Watch", "Withheld"]

_NAME = "pledge"  # in the journal
_MOST_STATEMENTS = 128  # in one message: they take 10 ms to verify
_MOST_DUE = 4096  # for one neighbour that is behind; it misses the oldest
_LARGE = 1 << 20  # bytes, which take a millisecond to hash


class Stated(Message):
    """What others have stated, and is new to the sender."""

    statements: list[Statement]

    def __post_init__(self) -> None:
        if len(self.statements) > _MOST_STATEMENTS:
            raise ValueError(f"there are {len(self.statements)} statements, over the limit of {_MOST_STATEMENTS}")


class Convict(Message):
    """A proof that is new to the sender. Who gets it need not trust the sender."""

    proof: Proof


@dataclass(frozen=True, slots=True)
class Equivocated(Event):
    """A peer is proven to have given two models in one round. It is banned. Rounds are counted from 1, for people."""

    round: int
    peer: str

    def __str__(self) -> str:
        return f"{self.peer[:10]} has given two models in round {self.round}: it is banned"


@dataclass(frozen=True, slots=True)
class Withheld(Event):
    """Our model of a round, from 1, is given to nobody: another might be known as ours, and we would be convicted."""

    round: int
    reason: str

    def __str__(self) -> str:
        return f"WARNING: round {self.round} goes on without our model: {self.reason}"


@dataclass(slots=True)
class _Line:
    """What one neighbour is yet to be told, and over which link it was told all else."""

    due: deque[Statement | Proof] = field(default_factory=lambda: deque(maxlen=_MOST_DUE))
    connection: Connection | None = None
    busy: bool = False

    def take(self) -> Message:
        """The next message for it."""
        if isinstance(first := self.due.popleft(), Proof):
            return Convict(first)
        batch = [first]
        while self.due and len(batch) < _MOST_STATEMENTS and isinstance(self.due[0], Statement):
            batch.append(self.due.popleft())  # type: ignore[arg-type]  # the line above has looked
        return Stated(batch)


class Watch:
    """Signs our models, checks those of others, and compares with the neighbours what everybody has stated.

    Without a journal a node must not be restarted in the middle of a run, and its identity take part in no other run:
    nothing would tell it what it has stated, nor tell the runs apart. A ban ends with the process; the neighbours of a
    node that is restarted tell it the proof again.
    """

    def __init__(self, seat: int, neighbors: Collection[int], journal: Journal | None = None) -> None:
        self._seat = seat
        self._neighbors = tuple(neighbors)
        self._journal = journal
        self._run = "" if journal is None else journal.run
        self._pledge = _pledged(journal)
        self._witness: Witness | None = None
        self._lines = {neighbor: _Line() for neighbor in neighbors}

    @property
    def convicts(self) -> Collection[int]:
        """The seats of those who have given two models in one round."""
        return () if self._witness is None else self._witness.proofs.keys()

    async def run(self, node: Node) -> None:
        """Raises ConfigError if the node's transport cannot sign. All else is to answer, for as long as others play."""
        self._witness_of(node)

    async def sign(self, node: Node, round: int, params: Tensors) -> str | None:
        """Our signature on the model that we give in this round, from 0; None: we must not give it, which is told."""
        witness = self._witness_of(node)
        witness.advance(round)
        model = await _digest(params)
        if not await self._may_state(node, Pledge(round, model)):
            return None
        statement = Statement.signed(_signer(node), self._run, round, self._seat, model)
        witness.note(statement)
        return statement.signature

    async def check(self, peer: Peer, round: int, params: Tensors, signature: str) -> None:
        """Look at the model that a seated peer gives in this round, from 0. It does not count if it makes it a convict.

        Raises RemoteProtocolError unless the peer has signed just this model.
        """
        assert peer.seat is not None, "only models of those who sit in the course are looked at"
        statement = Statement(self._run, round, peer.seat, peer.id, await _digest(params), signature)
        self._heed(peer.node, self._witness_of(peer.node).note(statement), statement.seat)

    @Stated.handler
    def stated(self, message: Stated, peer: Peer) -> None:
        source = require_seat(peer, *self._neighbors)
        for statement in message.statements:
            self._heed(peer.node, self._witness_of(peer.node).note(statement), source)

    @Convict.handler
    def convict(self, message: Convict, peer: Peer) -> None:
        source = require_seat(peer, *self._neighbors)
        self._heed(peer.node, self._witness_of(peer.node).convict(message.proof), source)

    # -- what we state ourselves -----------------------------------------------------------------------------------

    async def _may_state(self, node: Node, pledge: Pledge) -> bool:
        """Whether we may state this, and will state nothing else after a restart."""
        reason = ""
        if self._pledge is None:
            reason = "the journal cannot tell what was stated before the restart"
        elif not self._pledge.permits(pledge.round, pledge.model):
            reason = "another one of this round, or one of a later round, was stated before the restart"
        elif pledge != self._pledge and self._journal is not None:
            try:
                await self._journal.keep(_NAME, pledge.state())
            except JournalError as error:
                reason = str(error)
        if reason:
            node.emit(Withheld(pledge.round + 1, reason))
            return False
        self._pledge = pledge
        return True

    # -- what others state -----------------------------------------------------------------------------------------

    def _witness_of(self, node: Node) -> Witness:
        if self._witness is None:

            def sits(seat: int) -> str | None:
                member = node.members.at(seat)
                return None if member is None else member.id

            self._witness = Witness(self._run, sits, _signer(node).verifies)
        return self._witness

    def _heed(self, node: Node, news: Statement | Proof | None, source: int) -> None:
        """Something is new to us, and so to our neighbours."""
        if isinstance(news, Proof):
            node.emit(Equivocated(news.round + 1, news.peer))
            if news.peer != node.id:
                node.peer(news.peer).ban(f"it has given two models in round {news.round + 1}")
        if news is not None:
            for seat in self._neighbors:
                if seat not in (source, news.seat):
                    self._tell(node, seat, news)

    def _tell(self, node: Node, seat: int, news: Statement | Proof) -> None:
        line, peer = self._lines[seat], node.at(seat)
        if peer is None:
            return  # over its next link it is told everything
        line.due.append(news)
        if not line.busy:
            line.busy = True
            node.spawn(self._deliver(peer, line))

    async def _deliver(self, peer: Peer, line: _Line) -> None:
        """Tell a neighbour what is due; over a new link everything, since what was under way on another one is lost."""
        try:
            with suppress(LinkError):
                while line.due:
                    connection = await peer.room_to_tell()
                    if connection is not line.connection:
                        line.connection = connection
                        line.due.clear()
                        line.due.extend(self._witness_of(peer.node).known())
                    if line.due:
                        connection.tell(encode(line.take()))
                        await connection.link.drain()
        finally:
            line.busy = False


def _pledged(journal: Journal | None) -> Pledge | None:
    """What was pledged in an earlier life; None: that is not known, and so everything may have been stated."""
    try:
        kept = None if journal is None else journal.intact(_NAME)
        return Pledge() if kept is None else Pledge.restored(kept)
    except JournalError:
        return None


def _signer(node: Node) -> Signer:
    if node.transport.signer is None:
        raise ConfigError(f"course.signed is true, and {node.transport!r} cannot sign: give it a signer")
    return node.transport.signer


async def _digest(params: Tensors) -> str:
    """Of the one tensor that a model is sent as; a large one does not stop the loop."""
    (buffer,) = params.buffers
    if buffer.nbytes < _LARGE:
        return model_digest(buffer)
    return await asyncio.to_thread(model_digest, buffer)
