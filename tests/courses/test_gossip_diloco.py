"""DiLoCo on a graph against torch.optim at every node, with the mixing matrix between."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from p2pfl.courses.dpsgd import DPSGD, DpsgdSettings
from p2pfl.courses.gossip_diloco import GOSSIP_DILOCO, GossipDilocoSettings, Outer
from p2pfl.errors import ConfigError
from p2pfl.learn.params import bind, flatten
from p2pfl.learn.specs import ModelSpec, TrainSpec
from p2pfl.topology.families import build
from p2pfl.topology.mixing import mixing_matrix
from tests.courses.kit import Played, last_models

ADAMW = TrainSpec(epochs=3, lr=0.02, batch_size=10_000, optimizer="AdamW", weight_decay=0.1)  # three steps of all


def gossip(topology, rounds=4, train=ADAMW, **settings):
    settings = GossipDilocoSettings(**{"rounds": rounds, "evaluators": 0} | settings)
    return Played(GOSSIP_DILOCO, settings, topology, model_spec=ModelSpec("mlp", hidden=(6,)), train=train)


def by_torch(played):
    n = played.topology.n
    thetas = [nn.Parameter(played.model.initial.clone()) for _ in range(n)]
    outer = [torch.optim.SGD([theta], lr=0.7, momentum=0.9, nesterov=True) for theta in thetas]
    modules = [played.model.copy().module for _ in range(n)]
    for module, theta in zip(modules, thetas, strict=True):
        bind(module, theta.data.clone())
    inner = [torch.optim.AdamW(module.parameters(), lr=0.02, weight_decay=0.1) for module in modules]
    for round in range(played.settings.rounds):
        w = torch.from_numpy(mixing_matrix(played.topology.at(round))).float()
        for seat, module in enumerate(modules):
            x, y = played.data.batch(played.shards[seat].indices)
            for weight, value in zip(module.parameters(), played.model.layout.views(thetas[seat].data), strict=True):
                weight.data.copy_(value)
            for _ in range(3):
                inner[seat].zero_grad()
                nn.functional.cross_entropy(module(x), y).backward()
                inner[seat].step()
        mixed = w @ torch.stack([flatten(module).detach() for module in modules])
        for theta, mean, optimizer in zip(thetas, mixed, outer, strict=True):
            theta.grad = theta.data - mean
            optimizer.step()
    return torch.stack([theta.data for theta in thetas]).numpy()


@pytest.mark.parametrize("topology", [build("ring", 5), build("star", 4), build("one-peer-exponential", 4)], ids=repr)
def test_it_is_torchs_optimizers_with_neighbours_between(topology):
    played = gossip(topology).play()
    np.testing.assert_allclose(last_models(played), by_torch(played), atol=1e-5)


def test_on_a_full_graph_all_nodes_are_one():
    found = last_models(gossip(build("full", 4)).play())
    np.testing.assert_allclose(found, np.tile(found[0], (4, 1)), atol=1e-6)


def test_with_an_outer_step_of_one_it_is_dpsgd():
    train = TrainSpec(lr=0.5, batch_size=8)
    ours = gossip(build("ring", 5), train=train, outer_lr=1.0, outer_momentum=0.0).play()
    theirs = Played(
        DPSGD, DpsgdSettings(rounds=4, evaluators=0), ours.topology, model_spec=ours.model_spec, train=train
    )
    np.testing.assert_allclose(last_models(ours), last_models(theirs.play()), atol=1e-5)


@pytest.mark.parametrize("family", ["ring", "star", "chain", "hypercube"])
def test_nodes_that_do_not_learn_come_together_and_keep_their_mean(family):
    topology = build(family, 8)
    w = torch.from_numpy(mixing_matrix(topology)).float()
    nodes = [Outer(gossip(topology).learner(seat), GossipDilocoSettings()) for seat in range(8)]
    numel = nodes[0]._trainable
    x = torch.randn(8, numel, generator=torch.Generator().manual_seed(1))
    first = x - x.mean(0)
    mean = x.mean(0)
    for _ in range(150):
        x = torch.stack([node.take(own, own, mix, {}) for node, own, mix in zip(nodes, x, w @ x, strict=True)])
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=1e-4)
    assert (x - mean).norm() < 0.02 * first.norm()


def test_it_remembers_both_optimizers_and_forgets_them_with_a_foreign_model():
    played = gossip(build("ring", 5)).play()
    (mixer,) = played.world.seats[0].roles
    state = mixer.state()
    assert set(state) == {"params", "round", "memory", "v"} and state["memory"][-1] == 12, "steps of AdamW"
    node = Outer(played.learner(0), played.settings)
    node.resume(state)
    assert torch.equal(node.state()["v"], state["v"]) and torch.equal(node.state()["memory"], state["memory"])
    node.restart()
    assert set(node.state()) == {"memory"} and not len(node.state()["memory"])
    (mixer,) = gossip(build("ring", 5), carry=False).play().world.seats[0].roles
    assert "memory" not in mixer.state()


@pytest.mark.parametrize("wrong", [{"outer_lr": 0.0}, {"outer_momentum": 1.0}, {"deadline_seconds": -1.0}])
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ConfigError, match=rf"^course\.{next(iter(wrong))} is .*; it must"):
        GossipDilocoSettings(**wrong)
