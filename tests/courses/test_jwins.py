"""JWINS against its recursion by numpy, with what does not come, and on digits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from p2pfl.app.build import prepare
from p2pfl.app.config import from_mapping
from p2pfl.app.savings import savings
from p2pfl.app.simulate import simulate
from p2pfl.courses.dpsgd import DPSGD, DpsgdSettings
from p2pfl.courses.jwins import JWINS, JwinsSettings, Ranked
from p2pfl.errors import ConfigError, RemoteProtocolError
from p2pfl.learn.model import Model
from p2pfl.topology.families import build
from p2pfl.topology.mixing import mixing_matrix
from p2pfl.wire.tensor import Tensors, schema_bytes
from tests.courses.kit import Normalised, Played, dataset, first_models, last_models, local_training
from tests.learn.test_wavelet import matrix

NUMEL, COEFFICIENTS = 650, 656  # of logistic regression on digits; the next multiple of sixteen


def jwins(topology, **settings):
    return Played(JWINS, JwinsSettings(**{"rounds": 5, "evaluators": 0} | settings), topology)


def transform(x):
    """Level 4 of every sixteen numbers, (n, 656): the order of the coefficients does not matter here."""
    filled = np.pad(x, ((0, 0), (0, COEFFICIENTS - NUMEL)))
    return (filled.reshape(len(x), -1, 16) @ matrix(4).T).reshape(len(x), -1)


def back(c):
    return (c.reshape(len(c), -1, 16) @ matrix(4)).reshape(len(c), -1)[:, :NUMEL]


@pytest.mark.parametrize("topology", [build("ring", 5), build("star", 4)], ids=repr)
def test_it_is_the_recursion_of_the_paper(topology):
    played = jwins(topology, fractions=(0.25,)).play()
    w, n, k = mixing_matrix(topology), topology.n, round(0.25 * COEFFICIENTS)
    x, change = first_models(played), np.zeros((topology.n, COEFFICIENTS))
    for number in range(5):
        y = local_training(played, x, number)
        c, change = transform(y), change + transform(y - x)
        sent = np.full_like(c, np.nan)
        for i in range(n):
            places = np.argsort(-np.abs(change[i]))[:k]
            sent[i, places], change[i, places] = c[i, places], 0
        mixed = [sum(w[i, j] * np.where(np.isnan(sent[j]), c[i], sent[j]) for j in range(n)) for i in range(n)]
        x = back(np.stack(mixed)).astype(np.float32)
    np.testing.assert_allclose(last_models(played), x, atol=5e-5)


def test_who_sends_all_plays_dpsgd():
    topology = build("one-peer-exponential", 4)
    plain = Played(DPSGD, DpsgdSettings(rounds=4, evaluators=0), topology).play()
    found = jwins(topology, rounds=4, fractions=(1.0,)).play()
    for one, other in zip(found.params, plain.params, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def ranked(model=None, **settings):
    learner = jwins(build("ring", 3)).learner(0)
    return Ranked(learner if model is None else replace(learner, model=model), JwinsSettings(**settings))


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.6, 1.0])
def test_what_is_sent_comes_as_it_was(fraction):
    steps = ranked(fractions=(fraction,))
    given = steps.give(torch.zeros(NUMEL), torch.randn(NUMEL))
    tensors = steps.parts.tensors(given)
    assert tensors.schema == steps.parts.schema and torch.equal(steps.parts.vector(tensors), given)
    count = max(1, round(fraction * COEFFICIENTS))
    assert int(steps.parts.split(given)["chosen"].sum()) == count
    at_most = 4 * count + min(COEFFICIENTS / 8, count * (2 + np.log2(COEFFICIENTS / count)) / 8 + 2)
    assert tensors.nbytes <= at_most


def test_shares_are_drawn_anew_in_every_round_and_by_every_node():
    steps = ranked()
    counts = set()
    for steps._round in range(30):
        counts.add(int(steps.parts.split(steps.give(torch.zeros(NUMEL), torch.randn(NUMEL)))["chosen"].sum()))
    assert counts == {round(share * COEFFICIENTS) for share in (0.1, 0.2, 0.3, 0.4, 1.0)}


def test_what_was_sent_counts_as_unchanged_and_the_rest_adds_up():
    steps = ranked(fractions=(0.5,))
    first = steps.parts.split(steps.give(torch.zeros(NUMEL), torch.randn(NUMEL)))["chosen"]
    assert not steps.state()["change"][first == 1].any()
    steps.give(torch.zeros(NUMEL), torch.zeros(NUMEL))
    assert int((steps.state()["change"] != 0).sum()) <= COEFFICIENTS - NUMEL, "two halves are all"


def test_running_statistics_go_as_they_are():
    data = dataset()
    model = Model.of(Normalised(), nn.functional.cross_entropy, data.x[:8], data.y[:8])
    steps, trained = ranked(model, fractions=(0.1,)), torch.rand(model.layout.numel)
    given = steps.parts.vector(steps.parts.tensors(steps.give(model.initial, trained)))
    at = model.layout.trainable_numel
    assert torch.equal(steps.parts.split(given)["buffers"], trained[at:]) and at < len(trained)
    assert torch.allclose(steps.take(model.initial, trained, given, {}), trained, atol=1e-5)


def test_what_cannot_be_read_is_refused():
    steps = ranked(fractions=(0.1,))
    schema = steps.parts.schema
    for fill in (0xFF, 0x00):
        tensors = Tensors(schema, [memoryview(bytes([fill]) * spec.nbytes) for spec in schema])
        with pytest.raises(RemoteProtocolError, match="the coefficients that came cannot be placed: places came"):
            steps.parts.vector(tensors)
    other = ranked(fractions=(0.2,)).parts.schema
    with pytest.raises(RemoteProtocolError, match="were agreed"):
        steps.parts.vector(Tensors(other, [memoryview(bytes(spec.nbytes)) for spec in other]))


def test_it_learns_with_half_of_the_bytes_and_the_report_says_so():
    tables = {
        "course": {"name": "jwins", "rounds": 12}, "topology": {"family": "ring", "n": 6}, "seed": 7,
        "train": {"lr": 0.2, "epochs": 3, "batch_size": 10},
    }  # fmt: skip
    setup = prepare(from_mapping(tables))
    small = simulate(setup)
    plain = simulate(prepare(from_mapping({**tables, "course": {"name": "dpsgd", "rounds": 12}})))
    ratio = savings(setup, 0)["ratio"]
    assert ratio == pytest.approx(4 * 2410 / np.mean([schema_bytes(each) for each in ranked_schemas(setup)]))
    assert plain.bytes / small.bytes == pytest.approx(ratio, rel=0.25) and ratio > 2
    assert small.rounds[-1].metrics["accuracy"] > plain.rounds[-1].metrics["accuracy"] - 0.02


def ranked_schemas(setup):
    (role,) = setup.roles(0, None)
    return role.parts.schemas


def test_a_mistake_is_one_sentence():
    for wrong, sentence in (
        ({"fractions": ()}, r"course.fractions is \[\]; give one share or more, each in \(0, 1\]"),
        ({"fractions": (0.1, 2.0)}, r"course.fractions is \[0.1, 2.0\]; give"),
        ({"levels": 17}, "course.levels is 17; it must lie between 0 and 16"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            JwinsSettings(**wrong)
