import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from p2pfl.learn.data import load_dataset
from p2pfl.learn.model import Model, build_model
from p2pfl.learn.pieces import Pieces, frozen, layers_of, matching
from p2pfl.learn.specs import DataSpec, ModelSpec, TrainSpec
from p2pfl.learn.tiers import fit_all, fit_one, tier_of
from p2pfl.learn.train import Fit, fit_plainly

DIGITS = load_dataset(DataSpec(subsample=0.05), 0)
MLP = build_model(ModelSpec("mlp", hidden=(6,)), DIGITS, 0)
NAMES = [entry.name for entry in MLP.layout.entries]
HEAD = frozenset({"3.weight", "3.bias"})
BODY = frozenset({"1.weight", "1.bias"})
PLAIN = TrainSpec(lr=0.3, batch_size=8)
PULLED = TrainSpec(lr=0.1, batch_size=8, momentum=0.9, weight_decay=0.1, proximal=0.5)


class Recurrent(nn.Module):
    """Its layer keeps its weights in a list of its own, too."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 5, batch_first=True)
        self.head = nn.Linear(5, 10)

    def forward(self, x):
        return self.head(self.lstm(x.squeeze(1))[0][:, -1])


class Normalised(nn.Sequential):
    def __init__(self):
        conv = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten()
        super().__init__(*conv, nn.Linear(108, 400), nn.ReLU(), nn.Linear(400, 10))


def bound(module):
    torch.manual_seed(0)
    return Model.of(module(), functional.cross_entropy, *DIGITS.batch(DIGITS.train_indices[:4]))


@given(st.sets(st.sampled_from(NAMES)))
def test_what_is_taken_and_put_back_is_the_vector(names):
    pieces, others = Pieces(MLP.layout, names), Pieces(MLP.layout, set(NAMES) - names)
    vector, zeros = torch.arange(float(MLP.layout.numel)), torch.zeros(MLP.layout.numel)
    assert pieces.numel + others.numel == MLP.layout.numel
    assert torch.equal(others.put(pieces.put(zeros, pieces.take(vector)), others.take(vector)), vector)
    assert pieces.put(zeros, pieces.take(vector)).sum() == pieces.take(vector).sum(), "and no more than that"
    for entry, view in zip(
        MLP.layout.entries, MLP.layout.views(pieces.put(zeros, pieces.take(vector + 1))), strict=True
    ):
        assert bool(view.bool().all()) == (entry.name in names)


def test_the_vector_stays_as_it_is():
    vector = torch.zeros(MLP.layout.numel)
    assert Pieces(MLP.layout, HEAD).put(vector, torch.ones(70)) is not vector
    assert not vector.any()


def test_a_name_that_is_none():
    with pytest.raises(KeyError, match="head"):
        Pieces(MLP.layout, ["head"])


@pytest.mark.parametrize("module", [Recurrent, Normalised])
@pytest.mark.parametrize(
    "spec",
    [
        TrainSpec(lr=0.3, batch_size=8),
        TrainSpec(lr=0.3, batch_size=8, momentum=0.9, weight_decay=0.1, proximal=0.5, clip=0.1),
        TrainSpec(lr=0.01, optimizer="Adam", weight_decay=0.1),
    ],
    ids=["plain", "pulled", "Adam"],
)
def test_what_is_frozen_stays_to_the_last_bit_and_the_rest_trains(module, spec):
    whole = bound(module)
    names = [entry.name for entry in whole.layout.entries[: whole.layout.trainable]]
    for ice in (names[:2], names[2:], names[1::2]):
        part = frozen(whole, frozenset(ice))
        start = whole.initial + 0.01
        drift = torch.ones_like(start)
        found = fit_one(Fit(part.enter(start), part.model, DIGITS.train, spec, 5, drift=drift))
        params = part.leave(found.params)
        for entry, before, after in zip(
            whole.layout.entries, whole.layout.views(start), whole.layout.views(params), strict=True
        ):
            moved = entry.name in names and entry.name not in ice
            assert torch.equal(before, after) != moved or entry.name not in names, entry.name


@pytest.mark.parametrize("ice", [HEAD, BODY, {"1.weight", "3.bias"}], ids=["head", "body", "across"])
@pytest.mark.parametrize("spec", [PLAIN, PULLED], ids=["plain", "pulled"])
def test_a_chain_of_which_parts_are_frozen_is_trained_in_a_cohort_as_it_is_alone(ice, spec):
    part = frozen(MLP, frozenset(ice))
    start = part.enter(MLP.initial + 0.01)
    fits = [Fit(start, part.model, DIGITS.train, spec, seed, drift=torch.ones_like(start)) for seed in (5, 6)]
    assert tier_of(part.model, spec).name == "cohort"
    trained = part.model.layout.trainable_numel
    for fit, found in zip(fits, fit_all(fits), strict=True):
        assert torch.equal(found.params[trained:], start[trained:])
        assert torch.allclose(found.params, fit_plainly(fit).params, rtol=0, atol=1e-5)
        assert torch.equal(found.params, fit_one(fit).params)


def test_constants_of_another_kind_are_left_to_other_tiers():
    """The chain counts entries as they lie in the module, and knows those of its linear layers alone."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    module[1].register_buffer("seen", torch.zeros(3))
    model = Model.of(module, functional.cross_entropy, *DIGITS.batch(torch.arange(2)))
    assert tier_of(frozen(model, frozenset({"1.bias"})).model, PLAIN).name == "plain"


@pytest.mark.parametrize("module", [Recurrent, Normalised])
def test_with_nothing_frozen_it_is_the_model(module):
    whole = bound(module)
    part = frozen(whole, frozenset())
    spec = TrainSpec(lr=0.3, batch_size=8)
    plain = fit_one(Fit(whole.initial, whole, DIGITS.train, spec, 5))
    found = fit_one(Fit(part.enter(whole.initial), part.model, DIGITS.train, spec, 5))
    assert torch.equal(part.leave(found.params), plain.params)
    assert torch.equal(part.model.initial, part.enter(whole.initial))


def test_the_model_itself_trains_as_before_and_clients_share_the_frozen_one():
    before = fit_one(Fit(MLP.initial, MLP, DIGITS.train, TrainSpec(), 0)).params
    part = frozen(MLP, HEAD)
    assert frozen(MLP, HEAD) is part
    assert torch.equal(fit_one(Fit(MLP.initial, MLP, DIGITS.train, TrainSpec(), 0)).params, before)
    assert all(parameter.requires_grad for parameter in MLP.module.parameters())


def test_names_of_layers_and_patterns():
    layout = bound(Normalised).layout
    assert list(layers_of(layout)) == ["0", "1", "3", "5"]
    assert layers_of(layout)["1"] == {"1.weight", "1.bias", "1.running_mean", "1.running_var"}
    assert matching(layout, ["1.run*", "5.?ias"]) == {"1.running_mean", "1.running_var", "5.bias"}
    assert not matching(layout, ["6.*"])
