"""One voter at its node: what it must not forget, whom it can reach, and which rounds it knows to be over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager

from p2pfl.council.consensus import Voter, is_certified, majority
from p2pfl.crypto.signing import Signer
from p2pfl.errors import ConfigError
from p2pfl.journal.certificate import Certificate
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer, require_seat

__all__ = ["Hold", "Keep", "Voting"]

Keep = Callable[[Mapping[str, int | str]], Awaitable[None]]
"""Puts a voter's state where a crash does not reach it. Raises JournalError; then nobody is answered."""

Hold = Callable[[Certificate, Peer | None], Awaitable[None]]
"""Returns once the model of a certificate is on this node's disk: who endorses it, or knows it as committed, can go on
from it. The peer has it; None: it is here already, or nobody who has it is linked. Raises a P2pflError if it cannot be
had, or if the certificate is not to be endorsed. No other vote is taken meanwhile."""


class Voting:
    """Steps are taken one at a time: `async with voting.turn(): ...; await voting.record(voter)`."""

    node: Node
    signer: Signer

    def __init__(self, voter: Voter, seat: int, voters: Collection[int], keep: Keep, hold: Hold) -> None:
        self.voter = voter
        self.seat = seat
        self.quorum = majority(len(voters))
        self.hold = hold
        self._seats = tuple(sorted(voters))
        self._keep = keep
        self._entered = asyncio.Event()
        self._lock = asyncio.Lock()
        self._writing: asyncio.Task[None] | None = None

    def enter(self, node: Node) -> None:
        """Begin to vote. Raises ConfigError if the node's transport cannot sign."""
        if node.transport.signer is None:
            raise ConfigError(f"course.coordinator is 'elect', and {node.transport!r} cannot sign: give it a signer")
        self.node, self.signer = node, node.transport.signer
        self._entered.set()

    @property
    def entered(self) -> bool:
        """Whether we have begun."""
        return self._entered.is_set()

    async def begun(self) -> None:
        """Wait until we have begun."""
        await self._entered.wait()

    async def asker(self, peer: Peer) -> int:
        """The seat of a voter that asks, once we have begun. Raises RemoteProtocolError for who is none."""
        await self.begun()
        return require_seat(peer, *self._seats)

    def linked(self) -> dict[Peer, int]:
        """The other voters that are linked, with their seats."""
        return {peer: seat for seat in self._others() if (peer := self.node.at(seat)) is not None}

    @property
    def backed(self) -> bool:
        """Whether a quorum is linked, ourselves included."""
        return len(self.linked()) + 1 >= self.quorum

    async def change(self) -> None:
        """Wait for a change at the node, see Node.change; keep links to all voters meanwhile."""
        self.node.want(self._others())
        await self.node.change()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """To look at the voter and take a step, while nobody else does. Turns come in the order of the calls."""
        async with self._lock:
            if self._writing is not None:  # of one who was cancelled: states reach the disk in their order
                await asyncio.wait([self._writing])
            yield

    async def record(self, voter: Voter) -> None:
        """Take a step: once this returns, it is not forgotten. To cancel the waiting does not stop it."""
        if voter != self.voter:
            self._writing = asyncio.create_task(self._write(voter))
            await asyncio.shield(self._writing)

    async def _write(self, voter: Voter) -> None:
        await self._keep(voter.state())
        self.voter = voter
        self.node.stir()

    async def learn(self, certificate: Certificate, peer: Peer) -> None:
        """A peer shows a committed round. One whose signers are not all known here is passed over: it comes again.

        Raises a P2pflError if its model cannot be had.
        """
        async with self.turn():
            voter = self.voter.learn(certificate)
            seated = [self.node.members.at(seat) for seat in self._seats]
            ids = {member.id for member in seated if member is not None}
            if voter != self.voter and is_certified(certificate, ids, self.quorum, self.signer.verifies):
                await self.hold(certificate, peer)
                await self.record(voter)

    def _others(self) -> list[int]:
        return [seat for seat in self._seats if seat != self.seat]
