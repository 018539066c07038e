"""A client that splits its update into shares for all others, and gives its server a sum of shares alone."""

from __future__ import annotations

import asyncio

from p2pfl.courses.additive import AddShares, Split, SplitShares, agreed, packed
from p2pfl.courses.secagg import Masked, digest, unhurried
from p2pfl.courses.secagg_trainer import PledgedTrainer
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer
from p2pfl.privacy.additive import Splitter
from p2pfl.privacy.secagg import Advert

__all__ = ["AdditiveTrainer"]


class AdditiveTrainer(PledgedTrainer[Splitter]):
    """A client whose update leaves in shares."""

    client_type = Splitter

    async def run(self, node: Node) -> None:
        node.agree(*agreed(self._secrecy.size))
        await super().run(node)

    @Split.handler
    async def split(self, ask: Split, peer: Peer) -> SplitShares:
        pledge = self._asked(peer, ask.session)
        with self._watched(peer.node, pledge.round):
            pledge.client.join([Advert(*each) for each in ask.adverts])
            sealed: list[memoryview] = []
            for share in pledge.client.splitting(await self._encoded(pledge)):
                sealed.append(memoryview(share))
                await asyncio.sleep(0)
            await self._give(pledge)
            self._pledged(ask.session)
        return SplitShares(packed(sealed))

    @AddShares.handler
    async def add(self, ask: AddShares, peer: Peer) -> Masked:
        pledge = self._asked(peer, ask.session)
        with self._watched(peer.node, pledge.round):
            await unhurried(pledge.client.adding(ask.sealed.buffers))
            words = self._pledged(ask.session).client.total()
            found = await digest(words)
        return Masked(self._secrecy.tensors(words), pledge.client.sign(found))
