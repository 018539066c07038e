"""Activations with their gradients by hand, for the batched tier.

Every formula gives an element the same bits wherever in a tensor it lies. Some of torch's own do not (sigmoid, silu,
elu, gelu: the last elements of a tensor go through other instructions than the rest), and then a client's result would
depend on who is computed with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["GELU", "RELU", "SIGMOID", "SILU", "TANH", "Activation", "elu", "leaky_relu", "sigmoid"]

_aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Activation:
    """An elementwise function."""

    name: str
    forward: Callable[[Tensor], Tensor]  # may overwrite its input where `backward` does not need it
    backward: Callable[[Tensor, Tensor, Tensor], Tensor]  # of the gradient by the output, the input and the output


def sigmoid(z: Tensor) -> Tensor:
    """The logistic function."""
    return z.neg().exp_().add_(1).reciprocal_()


def _normal_share(z: Tensor) -> Tensor:
    """The standard normal distribution function."""
    return z.mul(math.sqrt(0.5)).erf_().add_(1).mul_(0.5)


def _gelu_backward(d: Tensor, z: Tensor, _: Tensor) -> Tensor:
    density = z.square().mul_(-0.5).exp_().mul_(1 / math.sqrt(2 * math.pi))
    return d * density.mul_(z).add_(_normal_share(z))


def _silu_backward(d: Tensor, z: Tensor, _: Tensor) -> Tensor:
    s = sigmoid(z)
    return d * (s * (1 + z * (1 - s)))


RELU = Activation("relu", torch.relu_, lambda d, _, a: _aten.threshold_backward.default(d, a, 0))
TANH = Activation("tanh", torch.tanh_, lambda d, _, a: _aten.tanh_backward.default(d, a))
SIGMOID = Activation("sigmoid", sigmoid, lambda d, _, a: _aten.sigmoid_backward.default(d, a))
SILU = Activation("silu", lambda z: z * sigmoid(z), _silu_backward)
GELU = Activation("gelu", lambda z: z * _normal_share(z), _gelu_backward)


def leaky_relu(slope: float) -> Activation:
    """ReLU with a slope below zero."""
    return Activation(
        "leaky_relu",
        lambda z: torch.nn.functional.leaky_relu(z, slope),
        lambda d, z, _: _aten.leaky_relu_backward.default(d, z, slope, False),
    )


def elu(alpha: float) -> Activation:
    """The exponential linear unit."""
    return Activation(
        "elu",
        lambda z: torch.where(z > 0, z, z.expm1().mul_(alpha)),
        lambda d, _, a: _aten.elu_backward.default(d, alpha, 1.0, 1.0, True, a),
    )
