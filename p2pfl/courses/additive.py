"""The coordinator's clients where they add up by shares: it passes these on, and learns the sum of the updates.

The protocol is that of privacy/additive.py. Its first stage is `Enlist`, as in every secure aggregation. Clients are
not linked to each other: their shares go through the coordinator, sealed for who they are for.
"""

from __future__ import annotations

from p2pfl.courses.messages import Train
from p2pfl.courses.rounds import Cohort, Collected
from p2pfl.courses.secagg import Masked, digest, signer_of
from p2pfl.courses.secagg_clients import Play, SummedClients
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer
from p2pfl.privacy.additive import MOST_CLIENTS, Adder, sealed_bytes
from p2pfl.wire.message import Message, Request
from p2pfl.wire.tensor import Schema, Tensors, TensorSpec

__all__ = ["AddShares", "AdditiveClients", "Split", "SplitShares", "agreed", "packed"]


class SplitShares(Message):
    """The answer to Split: a share for each of the others, sealed, in the order of their ids."""

    sealed: Tensors


class Split(Request[SplitShares]):
    """Here is the whole list of the session: ids, keys and signatures. Split your update among them."""

    session: str
    adverts: list[tuple[str, bytes, str]]


class AddShares(Request[Masked]):
    """This is what all others have sealed for you, in the order of their ids. Add it to what you have kept."""

    session: str
    sealed: Tensors


def packed(sealed: list[memoryview]) -> Tensors:
    """Sealed shares as they are sent, by reference."""
    return Tensors(_schema(len(sealed), sealed[0].nbytes), sealed)


def agreed(size: int) -> list[Schema]:
    """All ways in which sealed shares of so many integers may come."""
    return [_schema(count, sealed_bytes(size)) for count in range(1, MOST_CLIENTS)]


def _schema(count: int, nbytes: int) -> Schema:
    return tuple(TensorSpec(str(place), "u8", (nbytes,)) for place in range(count))


class AdditiveClients(SummedClients[Adder]):
    """Clients whose updates are seen only in their sum, and who all have to stay for it."""

    async def _session(self, node: Node, cohort: Cohort, ask: Train) -> Collected:
        node.agree(*agreed(self._secrecy.size))
        session = await self._begin(node, ask)
        play = Play(node, Adder(session, self._secrecy.size, signer_of(node).verifies), cohort.peers)
        await self._advertise(play, ask)
        await self._split(play)
        await self._add(play)
        for peer in play.of(play.aggregator.added):
            self._welcome(node, peer, ask.round)
        return self._collected(play, play.aggregator.total(), play.aggregator.added, ask)

    async def _split(self, play: Play[Adder]) -> None:
        async def take(peer: Peer, shares: SplitShares, _: float) -> None:
            play.aggregator.deal(peer.id, shares.sealed.buffers)

        adverts = play.aggregator.close_list()
        ask = Split(play.nonce, [(each.peer, each.keys, each.signature) for each in adverts])
        await self._ask(play, dict.fromkeys(play.of(advert.peer for advert in adverts), ask), take)
        play.aggregator.close_shares()

    async def _add(self, play: Play[Adder]) -> None:
        async def take(peer: Peer, masked: Masked, _: float) -> None:
            words = self._secrecy.words(masked.words)
            play.aggregator.add(peer.id, words, await digest(words), masked.signature)

        asks = {
            peer: AddShares(play.nonce, packed(play.aggregator.sealed_for(peer.id)))
            for peer in play.of(play.aggregator.roster.peers)
        }
        await self._ask(play, asks, take)
