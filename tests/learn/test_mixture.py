import pytest
import torch
from torch import nn
from torch.nn import functional

from p2pfl.errors import ConfigError
from p2pfl.learn.data import load_dataset
from p2pfl.learn.mixture import WEIGHTS, mixture
from p2pfl.learn.model import Model, build_model
from p2pfl.learn.specs import DataSpec, ModelSpec

DATA = load_dataset(DataSpec(subsample=0.05), 0)
X, Y = DATA.batch(DATA.train_indices[:12])
WEIGHED = torch.tensor([0.2, 0.5, 0.3])


def normalised() -> Model:
    layers = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 10))
    return Model.of(layers, functional.cross_entropy, X, Y)


@pytest.mark.parametrize("model", [build_model(ModelSpec("mlp"), DATA, 0), normalised()], ids=["mlp", "buffers"])
def test_its_probabilities_are_the_weighted_mean_of_its_components(model: Model) -> None:
    mixed = mixture(model, 3)
    components = torch.stack([model.redrawn(seed) for seed in range(3)])
    vector = mixed.pack(components, WEIGHED)
    assert [torch.equal(*pair) for pair in zip(mixed.unpack(vector), (components, WEIGHED), strict=True)] == [True] * 2
    expected = torch.zeros(12, 10)
    for component, weight in zip(components, WEIGHED, strict=True):
        with model.using(component, training=False), torch.no_grad():
            expected += weight * functional.softmax(model.module(X), 1)
    with mixed.model.using(vector, training=False), torch.no_grad():
        assert torch.allclose(mixed.model.module(X).exp(), expected, atol=1e-6)


def test_it_begins_as_equal_parts_of_the_initial_model() -> None:
    model = normalised()
    components, weights = mixture(model, 2).unpack(mixture(model, 2).model.initial)
    assert torch.equal(components, model.initial.expand(2, -1))
    assert weights.tolist() == [0.5, 0.5]
    assert mixture(model, 2) is mixture(model, 2)
    assert WEIGHTS in [entry.name for entry in mixture(model, 2).model.layout.entries]


def test_a_weight_of_nothing_does_no_harm() -> None:
    mixed = mixture(build_model(ModelSpec("mlp"), DATA, 0), 2)
    vector = mixed.pack(mixed.unpack(mixed.model.initial)[0], torch.tensor([1.0, 0.0]))
    with mixed.model.using(vector, training=True) as tensors:
        gradients = torch.autograd.grad(mixed.model.loss(mixed.model.module(X), Y), tensors)
    assert all(torch.isfinite(gradient).all() for gradient in gradients[:-1])


def test_only_classes_can_be_mixed() -> None:
    model = Model.of(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), nn.MultiMarginLoss(), X, Y)
    with pytest.raises(ConfigError, match="only models of classes can be mixed"):
        mixture(model, 2)
