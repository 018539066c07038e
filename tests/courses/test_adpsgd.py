import asyncio
import math
from dataclasses import fields
from itertools import pairwise

import pytest
import torch

from p2pfl.courses.adpsgd import ADPSGD, AdpsgdSettings, Swap, Swapped
from p2pfl.courses.gossip import Release, Released
from p2pfl.errors import ConfigError, RemoteError
from p2pfl.learn.specs import TrainSpec
from p2pfl.node.events import CourseEnded, RoundEnded, UpdateMissing
from p2pfl.sim.devices import DeviceSpec
from p2pfl.sim.network import NetworkSpec
from p2pfl.topology.families import build
from p2pfl.topology.graph import Topology
from tests.courses.kit import Played

STILL = TrainSpec(lr=0.0)
RING = build("ring", 4)


def adpsgd(topology, recast=lambda seat, roles: roles, **more):
    own = {name: more.pop(name) for name in list(more) if name in Played.__dataclass_fields__}
    return Played(ADPSGD, AdpsgdSettings(**{"rounds": 4, "evaluators": 0} | more), topology, recast=recast, **own)


def scattered(played):
    """Give each seat a vector of its own to begin with; the vectors as rows."""
    x = torch.randn(played.topology.n, played.model.layout.numel, generator=torch.Generator().manual_seed(5))

    def recast(seat, roles):
        roles[0].params = x[seat].clone()
        return roles

    played.recast = recast
    return x.double()


def ends(played):
    return torch.stack(played.params).double()


# On the second network a swap takes longer than a round of training, so that many are under way at once at every node.
NETWORKS = {
    "near": NetworkSpec(latency_ms=0.01),
    "far": NetworkSpec(latency_ms=200, latency_spread=1.0, jitter=2.0),
}


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("topology", [RING, build("full", 8), build("star", 6), build("torus", 9)], ids=repr)
def test_the_mean_stays_whatever_is_under_way(topology, network):
    played = adpsgd(topology, train=STILL, network=network, devices=DeviceSpec(spread=1.0))
    x = scattered(played)
    played.play()
    torch.testing.assert_close(ends(played).mean(0), x.mean(0), rtol=0, atol=2e-6)
    exchanges = sum(role.exchanges for seat in played.world.seats.values() for role in seat.roles)
    assert exchanges == 4 * topology.n
    assert not played.missing


def test_on_the_complete_graph_the_disagreement_shrinks_as_theory_says():
    """Random pairwise gossip: the sum of squares is multiplied by 1 - 1/(n-1) in each exchange, on average."""
    n, rounds, rates = 12, 5, []
    for seed in range(4):
        played = adpsgd(
            build("full", n), rounds=rounds, seed=seed, train=STILL, network=NETWORKS["near"],
            devices=DeviceSpec(examples_per_second=100, spread=0.5),
        )  # fmt: skip
        before = spread(scattered(played))
        rates.append(math.log(spread(ends(played.play())) / before) / (n * rounds))
    rate = sum(rates) / len(rates)
    assert 0.75 <= rate / math.log(1 - 1 / (n - 1)) <= 1.25


def spread(x):
    return float(((x - x.mean(0)) ** 2).sum())


def test_steps_made_while_a_neighbour_averages_stay():
    """With one local step for each exchange, the sum over all moves by the sum of all steps, and by nothing else."""
    played = adpsgd(RING, network=NETWORKS["far"], devices=DeviceSpec(examples_per_second=500, spread=1.0))
    steps = []

    def recast(seat, roles):
        learner = roles[0]._learner

        class Watched(type(learner)):
            async def fit(self, params, round):
                fitted = await super().fit(params, round)
                steps.append(fitted.params.double() - params.double())
                return fitted

        roles[0]._learner = Watched(*(getattr(learner, item.name) for item in fields(learner) if item.init))
        return roles

    played.recast = recast
    played.play()
    moved = ends(played).sum(0) - 4 * played.model.initial.double()
    torch.testing.assert_close(moved, sum(steps), rtol=0, atol=2e-6)


def test_nodes_go_at_their_own_pace_and_end():
    played = adpsgd(RING, devices=DeviceSpec(spread=2.0)).play()
    through = {}
    for seconds, seat, event in played.events:
        if isinstance(event, RoundEnded) and event.round == 4:
            through[seat] = seconds
    assert len(through) == 4
    assert all(b > a for a, b in pairwise(sorted(through.values())))
    assert len(played.told(CourseEnded)) == 4


# -- neighbours that do not answer -------------------------------------------------------------------------------------


class Vanishes:
    """A neighbour that is gone as soon as somebody wants to swap."""

    def __init__(self, pair):
        self.params = pair.params
        self._gone = asyncio.Event()

    async def run(self, node):
        await node.meet([0, 2])
        await self._gone.wait()

    @Swap.handler
    async def swap(self, ask: Swap, peer) -> Swapped:
        self._gone.set()
        await asyncio.Event().wait()

    @Release.handler
    async def release(self, ask: Release, peer) -> Released:
        await asyncio.Event().wait()


class Mute(Vanishes):
    """A neighbour that never answers a swap; it leaves after a minute."""

    async def run(self, node):
        await node.meet([0, 2])
        await asyncio.sleep(60)


class Poisons(Mute):
    """A neighbour whose model is no model."""

    @Swap.handler
    async def swap(self, ask: Swap, peer) -> Swapped:
        return Swapped(self.learner.tensors(torch.full_like(self.params, math.nan)))


def with_neighbour(kind, **more):
    def recast(seat, roles):
        if seat != 1:
            return roles
        other = kind(roles[0])
        other.learner = roles[0]._learner
        return (other,)

    return adpsgd(RING, recast, rounds=8, **more).play()


def test_a_neighbour_that_is_lost_is_passed_over():
    played = with_neighbour(Vanishes)
    first = played.told(UpdateMissing)[0]
    assert first.peer == "seat 1" and "said goodbye" in first.reason
    assert {seat for _, seat, event in played.events if isinstance(event, CourseEnded)} == {0, 2, 3}
    assert 1 <= len(played.missing) <= 2, "who is gone is not asked again"


def test_a_neighbour_that_does_not_answer_is_passed_over():
    played = with_neighbour(Mute, patience_seconds=2.0)
    assert {event.reason for event in played.told(UpdateMissing)} == {"no answer in time"}
    assert {peer for _, peer in played.missing} == {"seat 1"}
    assert {seat for _, seat, event in played.events if isinstance(event, CourseEnded)} == {0, 2, 3}


def test_a_model_that_is_not_finite_is_passed_over():
    played = with_neighbour(Poisons)
    assert {event.reason for event in played.told(UpdateMissing)} == {"a model with NaN or infinite numbers came"}
    assert all(played.params[seat].isfinite().all() for seat in (0, 2, 3))


def test_only_neighbours_may_swap():
    class Stranger(Mute):
        """Seat 2 is no neighbour of seat 0."""

        async def run(self, node):
            (peer,) = await node.meet([0])
            await node.meet([1, 3])
            self.errors = []
            for ask in (Swap(self.learner.tensors(torch.zeros_like(self.params))), Release()):
                try:
                    await peer.ask(ask)
                except RemoteError as error:
                    self.errors.append(str(error))
            await asyncio.sleep(60)

    def recast(seat, roles):
        if seat != 2:
            return roles
        stranger = Stranger(roles[0])
        stranger.learner = roles[0]._learner
        return (stranger,)

    played = adpsgd(RING, recast, train=STILL, patience_seconds=2.0).play()
    errors = played.world.seats[2].roles[0].errors
    assert len(errors) == 2 and all("seat 2 has no say here: that is for neighbours" in error for error in errors)
    assert torch.allclose(played.params[0], played.model.initial)


def test_settings_that_cannot_be_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"^course\.patience_seconds is 0"):
        AdpsgdSettings(patience_seconds=0)
    with pytest.raises(ConfigError, match=r"^course\.rounds is 0"):
        AdpsgdSettings(rounds=0)


def test_links_must_go_both_ways():
    assert "both ways" in ADPSGD.needs(build("exponential", 8))
    assert "connected" in ADPSGD.needs(Topology.from_edges(4, [(0, 1), (2, 3)]))
    assert ADPSGD.needs(RING) is None
