"""Which modules are chains, and what is said of those that are none."""

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from p2pfl.learn.chain import Chain, Dense, chain_of
from p2pfl.learn.models import cnn, logistic, mlp


class Written(nn.Module):
    """A network whose forward is written out."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 3)
        self.written = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.written(self, x)


def names(chain: Chain | str) -> list[str]:
    assert isinstance(chain, Chain), chain
    return [f"{layer.inputs}-{layer.outputs}" if isinstance(layer, Dense) else layer.name for layer in chain.layers]


def test_our_own_models() -> None:
    assert names(chain_of(mlp((1, 2, 3), 4, hidden=(5, 7)))) == ["6-5", "relu", "5-7", "relu", "7-4"]
    chain = chain_of(logistic((2, 3), 4))
    assert chain == Chain((Dense(0, 1, 6, 4),), flattens=True)
    assert (chain.inputs, chain.outputs) == (6, 4)
    assert chain_of(cnn((1, 8, 8), 4)) == "its forward uses conv2d"


@pytest.mark.parametrize(
    ("forward", "flattens"),
    [
        (lambda m, x: m.second(functional.relu(m.first(x))), False),
        (lambda m, x: m.second(torch.relu(m.first(x))), False),
        (lambda m, x: m.second(m.first(x).relu()), False),
        (lambda m, x: m.second(functional.relu(m.first(x.flatten(1)), inplace=True)), True),
        (lambda m, x: m.second(functional.relu(m.first(torch.flatten(x, start_dim=1)))), True),
        (lambda m, x: m.second(functional.relu(m.first(x.view(x.size(0), -1)))), True),
        (lambda m, x: m.second(functional.relu(m.first(x.view(x.shape[0], 6)))), True),
        (lambda m, x: m.second(functional.relu(m.first(x.reshape(-1, 6)))), True),
        (lambda m, x: m.second(functional.dropout(functional.relu(m.first(x)), p=0.0)), False),
    ],
)
def test_the_ways_to_write_one(forward, flattens: bool) -> None:
    chain = chain_of(Written(forward))
    assert names(chain) == ["6-5", "relu", "5-3"]
    assert chain.flattens is flattens


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.Tanh(), "tanh"), (nn.Sigmoid(), "sigmoid"), (nn.GELU(), "gelu"), (nn.SiLU(), "silu"), (nn.ELU(2), "elu"),
        (nn.LeakyReLU(0.3), "leaky_relu"), (nn.ReLU(inplace=True), "relu"),
    ],
)  # fmt: skip
def test_activations(layer: nn.Module, name: str) -> None:
    nested = nn.Sequential(nn.Sequential(nn.Linear(4, 3, bias=False), layer), nn.Identity(), nn.Dropout(0))
    assert names(chain_of(nested)) == ["4-3", name]
    assert chain_of(nested).layers[0].bias is None


def frozen() -> nn.Module:
    module = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    module[0].weight.requires_grad_(False)
    return module


def tied() -> nn.Module:
    module = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    module[1].weight = module[0].weight
    return module


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (frozen(), "frozen or computed weight"),
        (tied(), "called twice, or shares its weight"),
        (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), "layer_norm"),
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), "dropout of 0.5"),
        (nn.Sequential(nn.Linear(4, 4), nn.GELU("tanh")), "gelu with approximate='tanh'"),
        (nn.Sequential(nn.Linear(4, 4), nn.Flatten(0)), "flattens from dimension 0"),
        (nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 2)), "a single input"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "frozen or computed weight"),
        (Written(lambda m, x: torch.relu(x)), "no linear layer"),
        (Written(lambda m, x: m.second(m.first(x)) + x), "unsupported operand"),
        (Written(lambda m, x: torch.add(m.first(x), x)), "uses add"),
        (Written(lambda m, x: (m.first(x), m.second(x))[1]), "a value twice"),
        (Written(lambda m, x: (m.first(x), x)[1]), "the last layer's output"),
        (Written(lambda m, x: m.second(m.first(m.first(x)))), "called twice"),
        (Written(lambda m, x: m.first(x) if x.mean() > 0 else x), "uses .mean"),
        (Written(lambda m, x: m.first(x) if x == 0 else x), "looks at values"),
        (Written(lambda m, x: m.first(x) if x.size(0) == 1 else x), "the batch's size"),
        (Written(lambda m, x: m.first(x) if len(x) > 1 else x), "the batch's size"),
        (Written(lambda m, x: m.first(x[0])), "TypeError"),
        (Written(lambda m, x: m.first(x.view(-1, 12))), "pieces of 12"),
        (Written(lambda m, x: m.first(x).view(-1, 1)), "pieces of 1"),
        (Written(lambda m, x: m.first(x.view(x.size(1), -1))), "an example's shape"),
        (Written(lambda m, x: x @ m.first.weight), "uses __rmatmul__"),
    ],
    ids=str,
)
def test_what_is_none(module: nn.Module, reason: str) -> None:
    found = chain_of(module)
    assert isinstance(found, str)
    assert reason in found


def test_hooks_are_followed() -> None:
    module = nn.Sequential(nn.Linear(4, 3))
    module[0].register_forward_hook(lambda layer, inputs, output: torch.relu(output))
    assert names(chain_of(module)) == ["4-3", "relu"]


def test_the_module_is_looked_at_in_training_and_left_as_it_is() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).eval()
    before = [(parameter, parameter.clone()) for parameter in module.parameters()]
    assert chain_of(module) == "it has dropout of 0.5"
    assert not any(layer.training for layer in module.modules())
    assert all(a is b and torch.equal(a, c) for a, (b, c) in zip(module.parameters(), before, strict=True))


def test_a_module_is_looked_at_once_and_not_kept() -> None:
    calls = []
    module = Written(lambda m, x: calls.append(1) or m.first(x))
    assert chain_of(module) is chain_of(module)
    assert len(calls) == 1
    gone = weakref.ref(module.first.weight)
    del module
    gc.collect()
    assert gone() is None
