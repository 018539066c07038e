from collections import Counter
from dataclasses import replace
from random import Random

import pytest
import torch

from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.fedprox import FEDPROX, FedProxSettings, Held
from p2pfl.courses.learner import seed_of
from p2pfl.errors import ConfigError
from p2pfl.learn.specs import TrainSpec
from p2pfl.topology.families import build
from tests.courses.descent import cohort, descend
from tests.courses.kit import Played

TRAIN = TrainSpec(lr=0.5, batch_size=8, epochs=3)


def fedprox(train=TRAIN, **settings):
    return Played(FEDPROX, FedProxSettings(**{"rounds": 3} | settings), build("star", 6), train=train)


def by_hand(played):
    """Algorithm 2 of the paper, with the weights of federated averaging."""
    settings, w = played.settings, played.model.initial
    for round in range(settings.rounds):
        updates, sizes = [], []
        for seat in cohort(played, round):
            draw = Random(seed_of(played.seed, "work", round, seat))
            epochs = draw.randint(1, 3) if draw.random() < settings.stragglers else 3
            updates.append(descend(played, w, seat, round, lambda v, w=w: settings.mu * (v - w), epochs)[0])
            sizes.append(len(played.shards[seat]))
        w = torch.stack(updates).T @ (torch.tensor(sizes) / sum(sizes))
    return w


@pytest.mark.parametrize("stragglers", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("mu", [0.0, 0.7])
def test_it_is_the_loop_that_the_paper_has(mu, stragglers):
    played = fedprox(mu=mu, stragglers=stragglers, fraction=0.6).play()
    assert torch.allclose(played.params[0], by_hand(played), rtol=0, atol=1e-5)


def test_without_a_pull_it_is_federated_averaging():
    plain = Played(FEDAVG, FedAvgSettings(rounds=3), build("star", 6), train=TRAIN).play()
    assert fedprox(mu=0.0).play().bytes == plain.bytes
    assert fedprox(mu=0.1).play().bytes != plain.bytes


def test_so_many_straggle_and_their_work_is_any_part_of_the_whole():
    played = fedprox()
    learner = played.learner(1)
    for train, name in ((TRAIN, "epochs"), (replace(TRAIN, steps=3), "steps")):
        held = Held(train, 0.4)
        seen = Counter(getattr(held._work(learner, round), name) for round in range(3000))
        assert {work: pytest.approx(count / 3000, abs=0.03) for work, count in seen.items()} == {
            1: 0.4 / 3, 2: 0.4 / 3, 3: 0.6 + 0.4 / 3
        }  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "value", "sentence"),
    [
        ("mu", -1.0, "course.mu is -1.0; it must not be negative"),
        ("stragglers", 1.5, r"course.stragglers is 1.5; it must lie in \[0, 1\]"),
        ("rounds", 0, "course.rounds is 0"),
    ],
)
def test_mistakes_name_the_field(setting, value, sentence):
    with pytest.raises(ConfigError, match=sentence):
        FedProxSettings(**{setting: value})


def test_two_pulls_are_one_too_many():
    with pytest.raises(ConfigError, match=r"train.proximal is 0.1, and the course has course.mu for that; leave"):
        fedprox(train=TrainSpec(proximal=0.1)).play()
