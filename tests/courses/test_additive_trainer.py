from __future__ import annotations

from dataclasses import replace

import pytest

from p2pfl.courses.additive import Split
from p2pfl.courses.additive_trainer import AdditiveTrainer
from p2pfl.courses.fedavg import SecretServer
from p2pfl.courses.messages import Train
from p2pfl.courses.secagg import AggregationFailed, AggregationLeft
from p2pfl.courses.secagg_trainer import PledgedTrainer
from p2pfl.errors import AggregationAborted, RemoteError
from p2pfl.node.node import Node
from tests.courses.kit import Roles
from tests.courses.test_additive import fedavg


class Curious(SecretServer):
    """Asks its clients in the clear, or for a session that there is not, before the course begins."""

    refused = 0

    async def run(self, node: Node) -> None:
        await self._clients.assemble(node, len(self._clients.seats))
        for ask in (Train(0, self._rule.down.tensors(self.params)), Split("another", [])):
            for peer in node.peers:
                with pytest.raises(RemoteError, match=r"forbids it|not the session"):
                    await peer.ask(ask)
                self.refused += 1
        await super().run(node)


def test_who_asks_in_the_clear_or_out_of_turn_gets_nothing() -> None:
    def recast(seat: int, roles: Roles) -> Roles:
        if seat:
            assert isinstance(roles[0], PledgedTrainer)
            return roles
        roles[0].__class__ = Curious
        return roles

    played = replace(fedavg(4), recast=recast).play()
    assert played.world.seats[0].roles[0].refused == 6
    assert [str(event) for event in played.told(AggregationLeft)] == [
        "WARNING: the secure aggregation of round 1 is left: we were asked for our update in the clear"
    ] * 3


class Forgetful(AdditiveTrainer):
    """Cannot write down what it gives in the first round."""

    async def _keep(self) -> None:
        if self._pledge is not None and self._pledge.round == 0:
            raise AggregationAborted("what we are about to give cannot be written down: the disk is full")
        await super()._keep()


def test_what_is_given_is_written_down_before_shares_leave() -> None:
    played = fedavg(4).play()
    clients = [played.world.seats[seat].roles[0] for seat in (1, 2, 3)]
    assert [len(client._given) for client in clients] == [2, 2, 2]  # an update for each round

    def recast(seat: int, roles: Roles) -> Roles:
        if seat == 1:
            roles[0].__class__ = Forgetful
        return roles

    played = replace(fedavg(4), recast=recast).play()
    assert [event.round for event in played.told(AggregationFailed)] == [1]
    assert [str(event) for event in played.told(AggregationLeft)] == [
        "WARNING: the secure aggregation of round 1 is left: what we are about to give cannot be written down: the "
        "disk is full"
    ]
