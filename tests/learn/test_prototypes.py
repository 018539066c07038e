import pytest
import torch
from torch import nn
from torch.nn import functional

from p2pfl.errors import ConfigError
from p2pfl.learn.data import load_dataset
from p2pfl.learn.model import Model
from p2pfl.learn.prototypes import prototyped
from p2pfl.learn.specs import DataSpec

DATA = load_dataset(DataSpec(subsample=0.05), 0)
X, Y = DATA.batch(DATA.train_indices[:12])


def body() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 5), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten())


def test_vectors_go_in_and_come_out() -> None:
    model = Model.of(nn.Sequential(body(), nn.Linear(32, 10)), functional.cross_entropy, X, Y)
    whole = prototyped(model, 1.0)
    assert (whole.classes, whole.width) == (10, 32)
    prototypes, known = torch.randn(10, 32), torch.ones(10)
    vector = whole.pack(model.initial, prototypes, known)
    params, found = whole.unpack(vector)
    assert torch.equal(params, model.initial) and torch.equal(found, prototypes)
    assert torch.equal(whole.pulled.leave(whole.pulled.enter(vector)), vector)
    assert prototyped(model, 1.0) is whole


def test_distances_are_those_to_what_goes_into_the_last_layer() -> None:
    layers = nn.Sequential(body(), nn.Linear(32, 10))
    model = Model.of(layers, functional.cross_entropy, X, Y)
    whole = prototyped(model, 1.0)
    prototypes, known = torch.randn(10, 32), (torch.arange(10) % 2).float()
    twin = whole.gathering
    with twin.model.using(twin.enter(whole.pack(model.initial, prototypes, known)), training=False), torch.no_grad():
        logits, distances = twin.model.module(X).chunk(2, 1)
    with model.using(model.initial, training=False), torch.no_grad():
        assert torch.equal(logits, layers(X))
        assert torch.allclose(distances, torch.cdist(layers[0](X), prototypes).square() * known, rtol=1e-3)


@pytest.mark.parametrize(
    ("module", "loss"),
    [(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), nn.MultiMarginLoss()),
     (nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.LayerNorm(10)), functional.cross_entropy)],
)  # fmt: skip
def test_what_has_no_prototypes(module: nn.Module, loss) -> None:
    with pytest.raises(ConfigError, match="only models of classes that end in a linear layer have prototypes"):
        prototyped(Model.of(module, loss, X, Y), 1.0)
