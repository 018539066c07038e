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

__all__ = ["Activation", "elu", "gelu", "leaky_relu", "logistic", "relu", "sigmoid", "silu", "tanh"]

_aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Activation:
    """An elementwise function."""

    name: str
    forward: Callable[[Tensor], Tensor]  # may overwrite its input where `backward` does not need it
    backward: Callable[[Tensor, Tensor, Tensor], Tensor]  # of the gradient by the output, the input and the output


def relu() -> Activation:
    """max(z, 0)."""
    return Activation("relu", torch.relu_, lambda d, _, a: _aten.threshold_backward.default(d, a, 0))


def tanh() -> Activation:
    """The hyperbolic tangent."""
    return Activation("tanh", torch.tanh_, lambda d, _, a: _aten.tanh_backward.default(d, a))


def sigmoid() -> Activation:
    """The logistic function."""
    return Activation("sigmoid", logistic, lambda d, _, a: _aten.sigmoid_backward.default(d, a))


def silu() -> Activation:
    """z times the logistic function of z."""
    return Activation("silu", lambda z: z * logistic(z), _silu_backward)


def gelu() -> Activation:
    """z times the standard normal distribution function of z."""
    return Activation("gelu", lambda z: z * _normal(z), _gelu_backward)


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


def logistic(z: Tensor) -> Tensor:
    """1 / (1 + exp(-z))."""
    return z.neg().exp_().add_(1).reciprocal_()


def _silu_backward(d: Tensor, z: Tensor, _: Tensor) -> Tensor:
    s = logistic(z)
    return d * (s * (1 + z * (1 - s)))


def _normal(z: Tensor) -> Tensor:
    return z.mul(math.sqrt(0.5)).erf_().add_(1).mul_(0.5)


def _gelu_backward(d: Tensor, z: Tensor, _: Tensor) -> Tensor:
    density = z.square().mul_(-0.5).exp_().mul_(1 / math.sqrt(2 * math.pi))
    return d * density.mul_(z).add_(_normal(z))
