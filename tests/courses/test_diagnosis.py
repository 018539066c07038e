"""Figures against the definitions, with all updates at hand."""

import doctest
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.courses import diagnosis
from p2pfl.courses.baselines import LOCAL, LocalSettings
from p2pfl.courses.diagnosis import Diagnosis, diagnosed
from p2pfl.courses.dpsgd import DPSGD, DpsgdSettings
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.fedbuff import FEDBUFF, FedAsyncSettings, FedBuffSettings
from p2pfl.courses.fednova import FEDNOVA, FedNovaSettings
from p2pfl.courses.learner import seed_of
from p2pfl.courses.scaffold import SCAFFOLD, ScaffoldSettings
from p2pfl.errors import ConfigError
from p2pfl.learn.compression import CompressSpec, UpSpec
from p2pfl.node.events import RoundEnded
from p2pfl.topology.families import build
from tests.courses.kit import Played, fit

NAMES = {"dissimilarity", "gradient_diversity", "update_norm", "update_distance"}


def defined(updates, weights):
    """Each figure from its definition."""
    g, p = np.array(updates, float), np.array(weights, float) / sum(weights)
    mean = p @ g
    squares = (g**2).sum(1)
    return {
        "dissimilarity": math.sqrt(p @ squares / (mean @ mean)),
        "gradient_diversity": sum(np.linalg.norm(q * x) ** 2 for q, x in zip(p, g, strict=True)) / (mean @ mean),
        "update_norm": np.sqrt(squares).mean(),
        "update_distance": math.sqrt(p @ ((g - mean) ** 2).sum(1)),
    }


def streamed(updates, weights):
    found = Diagnosis(lambda vector: vector)
    for update, weight in zip(updates, weights, strict=True):
        found.add(torch.tensor(update), weight)
    mean = sum(torch.tensor(u).double() * w for u, w in zip(updates, weights, strict=True)) / sum(weights)
    return found.figures(mean)


def test_examples():
    assert doctest.testmod(diagnosis).failed == 0


numbers = st.floats(0.125, 8.0, width=32)
rounds = st.lists(st.tuples(st.tuples(numbers, numbers, numbers), st.integers(1, 50)), min_size=1, max_size=8)


@given(rounds)
def test_one_pass_gives_what_the_definitions_give(pairs):
    updates, weights = [list(update) for update, _ in pairs], [weight for _, weight in pairs]
    found = streamed(updates, weights)
    assert found == pytest.approx(defined(updates, weights), rel=1e-5, abs=1e-3)
    assert found["dissimilarity"] >= 1 - 1e-9
    assert found == streamed(updates[::-1], weights[::-1]), "the order does not matter"


def test_equal_updates_and_orthogonal_ones_are_the_two_ends():
    same = streamed([[1.0, 2.0]] * 4, [1] * 4)
    assert (same["dissimilarity"], same["gradient_diversity"], same["update_distance"]) == pytest.approx((1, 0.25, 0))
    assert streamed(torch.eye(3).tolist(), [1] * 3)["gradient_diversity"] == pytest.approx(1)


def test_what_is_not_defined_is_left_out():
    assert Diagnosis(lambda vector: vector).figures(None) == {}
    opposite = streamed([[1.0], [-1.0]], [1, 1])
    assert set(opposite) == {"update_norm", "update_distance"} and opposite["update_distance"] == 1


def test_a_node_counts_from_its_own_model_and_passes_over_what_is_not_finite():
    before = torch.tensor([1.0, 1.0])
    models = [before + torch.tensor([1.0, 0.0]), before + torch.tensor([0.0, 1.0]), torch.tensor([math.nan, 0.0])]
    assert diagnosed(before, models) == pytest.approx(defined([[1, 0], [0, 1]], [1, 1]))
    assert diagnosed(before, [torch.tensor([math.inf, 0.0])]) == {}


# -- in courses --------------------------------------------------------------------------------------------------------


def test_a_server_tells_how_alike_the_updates_were():
    played = Played(FEDAVG, FedAvgSettings(rounds=1, diagnose=True), build("star", 5)).play()
    first, weights = played.model.initial, [len(shard) for shard in played.shards.values()]
    updates = [
        (fit(first, played.model, shard, played.train, seed_of(0, "fit", 0, seat)).params - first).tolist()
        for seat, shard in played.shards.items()
    ]
    (ended,) = played.told(RoundEnded, 0)
    assert {name: ended.metrics[name] for name in NAMES} == pytest.approx(defined(updates, weights), rel=1e-5)


def test_without_it_nothing_is_told_and_with_it_nothing_else_changes():
    star = build("star", 5)
    plain, told = (Played(FEDAVG, FedAvgSettings(rounds=2, diagnose=on), star).play() for on in (False, True))
    assert plain.bytes == told.bytes and plain.world.wire.trace == told.world.wire.trace
    assert not NAMES & set(plain.told(RoundEnded, 0)[0].metrics)


@pytest.mark.parametrize(
    ("course", "settings"),
    [
        (SCAFFOLD, ScaffoldSettings(rounds=1, diagnose=True, weights="examples")),
        (FEDNOVA, FedNovaSettings(rounds=1, diagnose=True)),
        (FEDBUFF, FedBuffSettings(rounds=1, diagnose=True, goal=4)),
    ],
    ids=["scaffold", "fednova", "fedbuff"],
)
def test_whatever_updates_are_sent_as_it_is_what_they_add_that_counts(course, settings):
    """In the first round of these, clients do what those of FedAvg do; FedNova divides by the number of steps."""
    found = Played(course, settings, build("star", 5)).play().told(RoundEnded, 0)[0].metrics
    usual = Played(FEDAVG, FedAvgSettings(rounds=1, diagnose=True), build("star", 5)).play()
    expected = usual.told(RoundEnded, 0)[0].metrics
    assert set(found) >= NAMES
    if course is not FEDNOVA:
        assert {name: found[name] for name in NAMES} == pytest.approx({n: expected[n] for n in NAMES}, rel=1e-3)


def test_nodes_of_a_graph_tell_it_where_they_evaluate():
    settings = DpsgdSettings(rounds=2, diagnose=True, evaluators=2, evaluate_every=2)
    played = Played(DPSGD, settings, build("ring", 4)).play()
    told = [[set(event.metrics) >= NAMES for event in played.told(RoundEnded, seat)] for seat in range(4)]
    assert told == [[False, True], [False, True], [False, False], [False, False]]


def test_where_updates_cannot_be_compared_it_is_refused():
    with pytest.raises(ConfigError, match="of which fedasync has one each"):
        FedAsyncSettings(diagnose=True)
    with pytest.raises(ConfigError, match="those of local are of different things; leave it out"):
        Played(LOCAL, LocalSettings(diagnose=True), build("star", 3)).play()
    pressed = replace(FEDAVG, play=lambda place: FEDAVG.play(replace(place, compress=CompressSpec(UpSpec("top-k")))))
    with pytest.raises(ConfigError, match=r"course\.diagnose does not go with \[compress\]"):
        Played(pressed, FedAvgSettings(diagnose=True), build("star", 3)).play()
