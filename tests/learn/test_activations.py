"""Activations and their gradients against torch's own, and that an element's bits do not depend on its place."""

import pytest
import torch
from torch.nn import functional

from p2pfl.learn.activations import elu, gelu, leaky_relu, relu, sigmoid, silu, tanh

PAIRS = {
    "relu": (relu(), torch.relu),
    "tanh": (tanh(), torch.tanh),
    "sigmoid": (sigmoid(), torch.sigmoid),
    "silu": (silu(), functional.silu),
    "gelu": (gelu(), functional.gelu),
    "elu": (elu(0.7), lambda z: functional.elu(z, 0.7)),
    "leaky_relu": (leaky_relu(0.2), lambda z: functional.leaky_relu(z, 0.2)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_values_and_gradients_are_torchs(name: str) -> None:
    activation, theirs = PAIRS[name]
    z = torch.cat([torch.linspace(-6, 6, 101), torch.tensor([-200.0, 200.0])]).requires_grad_()
    expected = theirs(z)
    d = torch.linspace(-1, 2, len(z))
    (gradient,) = torch.autograd.grad(expected, z, d)
    outputs = activation.forward(before := z.detach().clone())
    assert activation.name == name
    assert torch.allclose(outputs, expected, atol=1e-6)
    assert torch.allclose(activation.backward(d, before, outputs), gradient, atol=1e-6)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("size", [1, 3, 30, 63, 64, 97])
def test_bits_do_not_depend_on_the_place(name: str, size: int) -> None:
    activation, _ = PAIRS[name]
    z, d = torch.randn(11, size), torch.randn(11, size)
    together = activation.forward(z.clone())
    slopes = activation.backward(d, z, together)
    for row in range(11):
        alone = activation.forward(z[row].clone())
        assert torch.equal(alone, together[row])
        assert torch.equal(activation.backward(d[row], z[row], alone), slopes[row])
