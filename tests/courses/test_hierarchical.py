import asyncio

import pytest
import torch

from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.hierarchical import HIERARCHICAL, Edge, HierarchicalSettings, _rounds_below
from p2pfl.courses.learner import seed_of
from p2pfl.courses.messages import Train
from p2pfl.courses.scores import ClientsEvaluated
from p2pfl.errors import ConfigError, RemoteError
from p2pfl.learn.specs import MetricsSpec, TrainSpec
from p2pfl.node.events import CourseEnded, RoundEnded, UpdateMissing
from p2pfl.sim.loop import run_virtual
from p2pfl.topology.families import build
from p2pfl.topology.graph import Topology
from tests.courses.kit import Played, fit

ROOT = 0
UNEVEN = Topology.from_edges(8, [(0, 1), (0, 2), (1, 3), (2, 4), (2, 5), (2, 6), (2, 7)])  # edges 1 and 2
DEEP = Topology.from_edges(8, [(0, 1), (0, 2), (1, 3), (1, 4), (3, 5), (3, 6), (2, 7)])  # edge 3 is below edge 1


def hierarchical(topology=UNEVEN, **more):
    own = {name: more.pop(name) for name in list(more) if name in Played.__dataclass_fields__}
    return Played(HIERARCHICAL, HierarchicalSettings(**{"rounds": 2} | more), topology, **own)


def by_hand(played):
    """The models of a course with everybody in every round, by the recursion that the paper has."""
    tree, edge_rounds = played.topology.union, played.settings.edge_rounds

    def update(seat, number, params):
        """What a seat makes of a model in a round: itself if it is a leaf, else with those below it."""
        children = tree.children(seat)
        if not children:
            seed = seed_of(played.seed, "fit", number, seat)
            result = fit(params, played.model, played.shards[seat], played.train, seed, number)
            return result.params, result.num_examples
        for edge_round in range(edge_rounds):
            params, weight = average(children, number * edge_rounds + edge_round, params)
        return params, weight

    def average(children, number, params):
        total, weights = torch.zeros_like(params), 0
        for child in children:
            found, weight = update(child, number, params)
            total, weights = total.add_(found, alpha=weight), weights + weight
        return total / weights, weights

    params = played.model.initial
    for number in range(played.settings.rounds):
        params, _ = average(tree.children(ROOT), number, params)
    return params


@pytest.mark.parametrize("topology", [UNEVEN, DEEP, build("hierarchy", 9, edges=2), build("star", 4)], ids=repr)
@pytest.mark.parametrize("edge_rounds", [1, 2, 3])
def test_it_is_the_loop_that_the_paper_has(topology, edge_rounds):
    played = hierarchical(topology, edge_rounds=edge_rounds).play()
    assert torch.equal(played.params[0], by_hand(played))
    assert all(torch.equal(params, played.params[0]) for params in played.params)


def test_with_one_edge_round_it_is_federated_averaging_over_all_leaves():
    """A mean of means, weighted by what is below, is the mean over all: so for one round from one model."""
    played = hierarchical(rounds=1, train=TrainSpec(lr=0.5, batch_size=1000)).play()
    leaves = {
        seat: fit(played.model.initial, played.model, shard, played.train, 0) for seat, shard in played.shards.items()
    }
    total = sum(result.num_examples for result in leaves.values())
    mean = sum(result.params.double() * result.num_examples / total for result in leaves.values())
    torch.testing.assert_close(played.params[0].double(), mean, rtol=0, atol=1e-6)


def test_a_star_without_edges_is_federated_averaging_to_the_last_bit():
    star = build("star", 5)
    plain = Played(FEDAVG, FedAvgSettings(rounds=2), star).play()
    assert hierarchical(star).play().bytes == plain.bytes


def test_clients_evaluate_by_way_of_their_edges():
    played = hierarchical(evaluate="both").play()
    assert all("client_accuracy" in event.metrics for event in played.told(RoundEnded, ROOT))


def test_each_client_is_told_of_to_the_root():
    played = hierarchical(rounds=1, evaluate="clients", metrics=MetricsSpec(clients=("each", "fairness"))).play()
    (told,) = played.told(ClientsEvaluated)
    assert list(told.clients) == sorted(played.shards)
    (ended,) = played.told(RoundEnded, ROOT)
    assert ended.metrics["client_accuracy_min"] == min(found["accuracy"] for found in told.clients.values())


def test_a_leaf_obeys_its_own_edge_only():
    class Root:
        """A root that passes its edges over."""

        refused = None

        def __init__(self, server):
            self.server, self.params = server, server.params

        async def run(self, node):
            (leaf,) = await node.meet([3])
            try:
                await leaf.ask(Train(0, self.server._learner.tensors(self.params)))
            except RemoteError as error:
                self.refused = error
            await self.server.run(node)

    played = hierarchical(recast=lambda seat, roles: (Root(roles[0]),) if seat == ROOT else roles).play()
    assert "that is for seat 1" in str(played.world.seats[ROOT].roles[0].refused)


def test_an_edge_that_is_asked_before_it_runs_answers_when_it_does():
    played = hierarchical(rounds=1)
    edge = Edge(played.learner(1), played.settings, (3,), 0)

    class Root:
        seat, label = 0, "root"

    async def ask_first():
        ask = Train(0, played.learner(1).tensors(played.model.initial))
        asked = asyncio.create_task(edge.train(ask, Root()))
        await asyncio.sleep(1)
        assert not asked.done()
        asked.cancel()
        await asyncio.wait([asked])
        return asked.cancelled()

    assert run_virtual(ask_first())


# -- deadlines ---------------------------------------------------------------------------------------------------------


def slow(*seats):
    def recast(seat, roles):
        if seat in seats:
            roles[0]._learner.compute.examples_per_second /= 1e6
        return roles

    return recast


@pytest.mark.parametrize(("edge_rounds", "seat", "deadlines"), [(1, 0, 3), (1, 1, 2), (1, 3, 1), (3, 0, 13), (3, 1, 4)])
def test_who_asks_edges_gives_them_the_time_for_their_rounds(edge_rounds, seat, deadlines):
    assert _rounds_below(DEEP, seat, edge_rounds) == deadlines


@pytest.mark.parametrize("topology", [UNEVEN, DEEP], ids=["uneven", "deep"])
def test_an_edge_with_a_straggler_is_still_in_time_for_its_root(topology):
    played = hierarchical(topology, recast=slow(6), deadline_seconds=5.0, edge_rounds=2, evaluate="none").play()
    assert [event.participants for event in played.told(RoundEnded, ROOT)] == [2, 2]
    assert {event.peer for event in played.told(UpdateMissing)} == {"seat 6"}


def test_an_edge_without_any_update_is_missing_at_the_root():
    played = hierarchical(recast=slow(3), deadline_seconds=5.0, evaluate="none").play()
    assert [event.participants for event in played.told(RoundEnded, ROOT)] == [1, 1]
    missed = {event.peer: event.reason for event in played.told(UpdateMissing, ROOT)}
    assert list(missed) == ["seat 1"] and "none of the clients of this edge gave an update" in missed["seat 1"]
    assert played.told(CourseEnded)


def test_the_seats_must_form_a_tree():
    assert "tree" in HIERARCHICAL.needs(build("ring", 4))
    assert HIERARCHICAL.needs(DEEP) is None
    assert HIERARCHICAL.learners(DEEP) == (4, 5, 6, 7)


def test_edge_rounds_are_at_least_one():
    with pytest.raises(ConfigError, match=r"^course\.edge_rounds is 0"):
        HierarchicalSettings(edge_rounds=0)
    with pytest.raises(ConfigError, match=r"^course\.rounds is 0"):
        HierarchicalSettings(rounds=0)
