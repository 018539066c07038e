"""A coordinator that pushes and looks who pulls."""

from __future__ import annotations

from dataclasses import replace

import torch

from p2pfl.app.build import prepare
from p2pfl.app.config import from_mapping
from p2pfl.app.simulate import simulate
from p2pfl.attacks.ascent import Ascent, ascending
from p2pfl.attacks.membership import by_loss
from p2pfl.attacks.scores import auc
from p2pfl.compute.inline import Inline
from p2pfl.courses.fedavg import FedAvgSettings, starred
from p2pfl.learn.data import Shard
from p2pfl.learn.model import build_model
from p2pfl.learn.specs import ModelSpec
from tests.attacks.test_membership import toy

CLIENTS = 5


def found(noise: dict[str, object], rate: float = 1.0) -> float:
    """The AUC for the examples of five clients against as many that nobody has, after some rounds on the toy."""
    course = {"name": "fedavg", "rounds": 10, "evaluate": "none", "weights": "equal"}
    train = {"epochs": 10, "batch_size": 10, "lr": 0.5}
    given = {"course": course, "topology": {"n": 1 + CLIENTS}, "train": train, "privacy": noise}
    model = build_model(ModelSpec("mlp"), toy(), 0)
    setup = replace(prepare(from_mapping(given)), dataset=toy(), model=model)
    ascent = Ascent(setup.learner(0, Inline()), toy().train, rate)
    shards = {1 + seat: Shard(toy(), part) for seat, part in enumerate(torch.arange(100).split(20))}
    attacked = starred("fedavg", FedAvgSettings, lambda learner, settings: ascending(learner, ascent))
    simulate(replace(setup, shards=shards, course=attacked))
    return auc(ascent.scores[:100], ascent.scores[100:])


def test_members_are_pulled_back() -> None:
    assert found({}) > found({}, rate=0.0) + 0.02 > 0.65  # the push tells more than looking on


def test_under_noise_that_hides_a_node_they_are_not() -> None:
    noised = found({"mode": "ldp", "clip": 0.5, "noise_multiplier": 2.0})
    assert abs(noised - 0.5) < 0.15


def test_what_is_given_out_is_worse_for_the_suspects() -> None:
    setup = prepare(from_mapping({"course": {"name": "fedavg"}, "topology": {"n": 3}}))
    suspects = Shard(setup.dataset, setup.dataset.test_indices[:20])
    ascent = Ascent(setup.learner(0, Inline()), suspects, rate=0.1)
    initial = setup.model.initial
    pushed = ascent.broadcast(initial, 0)
    assert by_loss(setup.model, pushed, suspects).mean() < by_loss(setup.model, initial, suspects).mean()
    assert ascent.absorb(pushed, initial, 1.0, 0) is initial
    torch.testing.assert_close(ascent.scores, by_loss(setup.model, initial, suspects))
