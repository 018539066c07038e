"""DeepSqueeze against its recursion in the paper, and on graphs that change."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from p2pfl.app.build import prepare
from p2pfl.app.config import from_mapping
from p2pfl.app.simulate import simulate
from p2pfl.courses.deepsqueeze import DEEPSQUEEZE, DeepSqueezeSettings
from p2pfl.courses.dpsgd import DPSGD, DpsgdSettings
from p2pfl.errors import ConfigError
from p2pfl.learn.compression import CompressSpec, UpSpec
from p2pfl.topology.families import build
from p2pfl.topology.mixing import mixing_matrix
from tests.courses.kit import Played, first_models, last_models, local_training


def deepsqueeze(up, topology, **settings):
    course = replace(DEEPSQUEEZE, play=lambda place: DEEPSQUEEZE.play(replace(place, compress=CompressSpec(up))))
    return Played(course, DeepSqueezeSettings(**{"rounds": 5, "evaluators": 0} | settings), topology)


def largest(row, k):
    kept = np.zeros_like(row)
    places = np.argsort(-np.abs(row))[:k]
    kept[places] = row[places]
    return kept


@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_it_is_the_recursion_of_the_paper(gamma):
    topology = build("ring", 5)
    played = deepsqueeze(UpSpec(select="top-k", fraction=0.25), topology, gamma=gamma).play()
    w = mixing_matrix(topology).astype(np.float32)
    x = first = first_models(played)
    k, delta = round(0.25 * x.shape[1]), np.zeros_like(x)
    for number in range(5):
        y = local_training(played, x, number)
        v = y - first + delta
        c = np.stack([largest(row, k) for row in v])
        delta = v - c
        x = y + gamma * (w @ c - c)
    np.testing.assert_allclose(last_models(played), x, atol=2e-5)


def test_without_compression_and_all_the_way_it_is_dpsgd():
    topology = build("one-peer-exponential", 4)
    plain = Played(DPSGD, DpsgdSettings(rounds=4, evaluators=0), topology).play()
    found = deepsqueeze(UpSpec(), topology, gamma=1.0, rounds=4).play()
    for one, other in zip(found.params, plain.params, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_it_learns_with_an_eighth_of_the_bytes():
    tables = {
        "course": {"name": "deepsqueeze", "rounds": 12}, "topology": {"family": "ring", "n": 6}, "seed": 7,
        "train": {"lr": 0.2, "epochs": 3, "batch_size": 10},
    }  # fmt: skip
    small = simulate(prepare(from_mapping({**tables, "compress": {"up": {"values": "uniform", "bits": 4}}})))
    plain = simulate(prepare(from_mapping({**tables, "course": {"name": "dpsgd", "rounds": 12}})))
    assert plain.bytes / small.bytes > 6
    assert small.rounds[-1].metrics["accuracy"] > plain.rounds[-1].metrics["accuracy"] - 0.02


def test_what_cannot_be_is_one_sentence():
    with pytest.raises(ConfigError, match=r"course.gamma is 0; it must lie in \(0, 1\]"):
        DeepSqueezeSettings(gamma=0)
    tables = {"course": {"name": "deepsqueeze"}, "topology": {"family": "ring", "n": 3}}
    for compress, sentence in (
        ({"down": {"values": "sign"}}, "nothing goes down in deepsqueeze"),
        ({"up": {"values": "sign", "memory": "ef21"}}, "memory is 'ef21', and deepsqueeze remembers the error"),
        ({"up": {"values": "sign", "feedback": False}}, "feedback is false, and is what deepsqueeze is about"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            simulate(prepare(from_mapping({**tables, "compress": compress})))
