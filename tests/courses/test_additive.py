from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from p2pfl.courses.additive import AddShares, Split, SplitShares, agreed, packed
from p2pfl.courses.additive_trainer import AdditiveTrainer
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.secagg import AggregationFailed, AggregationLeft, Masked, SecAggSpec
from p2pfl.errors import ConfigError, CourseError
from p2pfl.node.events import RoundEnded
from p2pfl.node.peer import Peer
from p2pfl.privacy.additive import sealed_bytes
from p2pfl.topology.families import build
from tests.courses.kit import Played, Roles

LOST = 3  # a seat


def fedavg(n: int = 7, **settings: object) -> Played:
    spec = SecAggSpec(bits=20, most_examples=100)
    chosen = FedAvgSettings(**{"rounds": 2, "privacy": "additive", "secagg": spec} | settings)
    return Played(FEDAVG, chosen, build("star", n))


class Failing(AdditiveTrainer):
    """Fails in one stage of the first round."""

    at = ""

    @Split.handler
    async def split(self, ask: Split, peer: Peer) -> SplitShares:
        self._fail("split")
        return await super().split(ask, peer)

    @AddShares.handler
    async def add(self, ask: AddShares, peer: Peer) -> Masked:
        self._fail("add")
        return await super().add(ask, peer)

    def _fail(self, stage: str) -> None:
        if stage == self.at and self._pledge is not None and self._pledge.round == 0:
            raise CourseError("it is gone")


def failing(stage: str):
    def recast(seat: int, roles: Roles) -> Roles:
        if seat != LOST:
            return roles
        (role,) = roles
        other = Failing(role._learner, 0, None, role._secrecy, role._floors)
        other.at = stage
        return (other,)

    return recast


@pytest.mark.parametrize("settings", [{}, {"weights": "equal", "fraction": 0.7}])
def test_it_is_federated_averaging_but_for_rounding(settings: dict[str, object]) -> None:
    played = fedavg(**settings).play()
    reference = replace(fedavg(**settings, privacy="plain"), events=[]).play()
    assert torch.allclose(played.params[0], reference.params[0], rtol=0, atol=2e-4)
    assert not played.missing and not played.told(AggregationLeft) and not played.told(AggregationFailed)


@pytest.mark.parametrize("stage", ["split", "add"])
def test_whoever_is_lost_costs_the_round_and_the_course_goes_on(stage: str) -> None:
    played = replace(fedavg(), recast=failing(stage)).play()
    assert [event.round for event in played.told(AggregationFailed)] == [1]
    assert [ended.participants for ended in played.told(RoundEnded)] == [0, 6]
    assert [round for round, _ in played.missing] == [1]


def test_more_than_sixteen_are_refused() -> None:
    fedavg(17).learner(0)
    with pytest.raises(ConfigError, match="asks 17 clients, and at most 16 can add up in secret"):
        fedavg(18).play()


def test_shares_come_in_just_the_ways_that_are_agreed() -> None:
    assert packed([memoryview(bytes(sealed_bytes(5)))] * 4).schema in agreed(5)
    assert packed([memoryview(bytes(sealed_bytes(6)))] * 4).schema not in agreed(5)
