"""CHOCO-SGD against its recursion in the paper, and against known figures of CHOCO-Gossip."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from p2pfl.app.build import prepare
from p2pfl.app.config import from_mapping, load_config
from p2pfl.app.simulate import simulate
from p2pfl.courses.choco import CHOCO, ChocoSettings, Replicated
from p2pfl.courses.dpsgd import DpsgdSettings
from p2pfl.errors import ConfigError
from p2pfl.learn.compression import CompressSpec, UpSpec
from p2pfl.topology.families import build
from p2pfl.topology.mixing import mixing_matrix
from tests.courses.kit import Played, first_models, last_models, local_training
from tests.courses.test_deepsqueeze import largest

EXAMPLES = Path(__file__).parents[2] / "examples/compare"
TENTH = UpSpec(select="top-k", fraction=0.1)


def choco(up, topology, **settings):
    course = replace(CHOCO, play=lambda place: CHOCO.play(replace(place, compress=CompressSpec(up))))
    return Played(course, ChocoSettings(**{"rounds": 6, "evaluators": 0} | settings), topology)


@pytest.mark.parametrize("restart_every", [0, 4])
@pytest.mark.parametrize("topology", [build("ring", 5), build("star", 4)], ids=repr)
def test_it_is_the_recursion_of_the_paper(topology, restart_every):
    """With xhat of all nodes kept in one place, as in algorithm 2, and the initial model for zero."""
    played = choco(TENTH, topology, gamma=0.3, restart_every=restart_every).play()
    w = mixing_matrix(topology).astype(np.float32)
    x = first_models(played)
    known, k = x, round(0.1 * x.shape[1])
    for number in range(6):
        if restart_every and number % restart_every == 0:
            known = first_models(played)
        y = local_training(played, x, number)
        known = known + np.stack([largest(row, k) for row in y - known])
        x = y + 0.3 * (w @ known - known)
    np.testing.assert_allclose(last_models(played), x, atol=2e-5)


def consensus(gamma, rounds, spec=TENTH):
    """Squared distance to the mean, relative to the first, of eight on a ring that learn nothing."""
    played = choco(spec, build("ring", 8))
    weights = torch.from_numpy(mixing_matrix(played.topology)).float()
    nodes = [Replicated(played.learner(seat), spec, gamma) for seat in range(8)]
    x = list(torch.randn(8, played.model.layout.numel, generator=torch.Generator().manual_seed(0)))
    spread = [float((torch.stack(x) - torch.stack(x).mean(0)).square().sum())]
    mean = torch.stack(x).mean(0)
    for _ in range(rounds):
        given = torch.stack([node.give(each, each) for node, each in zip(nodes, x, strict=True)])
        mixed = weights @ given
        x = [node.take(own, own, mix, {}) for node, own, mix in zip(nodes, x, mixed, strict=True)]
    found = torch.stack(x)
    spread.append(float((found - found.mean(0)).square().sum()))
    return spread[1] / spread[0], float((found.mean(0) - mean).norm() / mean.norm())


def test_eight_on_a_ring_agree_with_a_tenth_of_the_numbers_and_not_if_they_go_too_far():
    """In float32, where 1e-11 of the square is what rounding leaves."""
    agreed, moved = consensus(0.2, 300)
    assert agreed < 1e-10 and moved < 1e-4, "on the mean of what they began with"
    assert consensus(0.4, 250)[0] > 2 * consensus(0.4, 150)[0] > 1e-6


def test_they_agree_in_full_steps_where_fewer_bytes_carry_more_numbers():
    assert consensus(1.0, 60, UpSpec(select="top-k", fraction=0.3, values="uniform", bits=4))[0] < 1e-6


def test_without_compression_and_all_the_way_it_is_dpsgd():
    played = choco(UpSpec(), build("ring", 5), gamma=1.0).play()
    x, w = first_models(played), mixing_matrix(played.topology).astype(np.float32)
    for number in range(6):
        x = w @ local_training(played, x, number)
    np.testing.assert_allclose(last_models(played), x, atol=2e-5)


def test_a_tenth_of_the_bytes_learns_as_much_as_all_of_them_on_skewed_digits():
    """The example, within a point of D-PSGD."""
    config = load_config(EXAMPLES / "choco.toml")
    config = replace(config, course=replace(config.course, evaluate_every=config.course.rounds))
    course = DpsgdSettings(rounds=config.course.rounds, evaluate_every=config.course.rounds)
    small = simulate(prepare(config))
    plain = simulate(prepare(replace(config, course=course, compress=CompressSpec())))
    assert small.bytes < 0.1 * plain.bytes
    assert small.rounds[-1].metrics["accuracy"] > plain.rounds[-1].metrics["accuracy"] - 0.01


def test_what_cannot_be_is_one_sentence():
    with pytest.raises(ConfigError, match=r"course.gamma is 2; it must lie in \(0, 1\]"):
        ChocoSettings(gamma=2)
    with pytest.raises(ConfigError, match=r"course.restart_every is -1; it must not be negative"):
        ChocoSettings(restart_every=-1)
    changing = {"course": {"name": "choco"}, "topology": {"family": "random-matching", "n": 4}}
    with pytest.raises(ConfigError, match="which changes; choose a family that does not"):
        simulate(prepare(from_mapping(changing)))
    down = {
        "course": {"name": "choco"},
        "topology": {"family": "ring", "n": 3},
        "compress": {"down": {"values": "sign"}},
    }
    with pytest.raises(ConfigError, match="nothing goes down in choco"):
        simulate(prepare(from_mapping(down)))
