"""How well an attack has done: closeness of what was rebuilt, and separation of what was told apart."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["auc", "mse", "psnr", "tpr_at"]


def mse(found: Tensor, truth: Tensor) -> float:
    """Mean squared error of two tensors of one shape."""
    return float((found.double() - truth.double()).square().mean())


def psnr(found: Tensor, truth: Tensor, peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB, for values from 0 to `peak`: about 10 for a guess, over 20 for a likeness.

    >>> import torch
    >>> psnr(torch.tensor([0.1, 0.9]), torch.tensor([0.0, 1.0]))
    20.0
    """
    error = mse(found, truth)
    return round(10 * math.log10(peak**2 / error), 3) if error else math.inf


def auc(members: Tensor, others: Tensor) -> float:
    """The chance that a member has a higher score than somebody else; ties count half. 0.5: the scores tell nothing.

    >>> import torch
    >>> auc(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 0.0]))
    0.75
    """
    differences = members.double()[:, None] - others.double()[None, :]
    return float((differences.sign() / 2 + 0.5).mean())


def tpr_at(members: Tensor, others: Tensor, fpr: float = 0.01) -> float:
    """The share of members above a threshold that at most `fpr` of the others exceed: an attack that is rarely wrong.

    N. Carlini, S. Chien, M. Nasr, S. Song, A. Terzis, F. Tramèr: "Membership Inference Attacks From First Principles",
    S&P 2022, https://arxiv.org/abs/2112.03570, section III, says why it is this that counts, and not the mean.

    >>> import torch
    >>> tpr_at(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 0.0]))
    0.5
    """
    allowed = math.floor(fpr * len(others) + 1e-9)
    threshold = others.sort(descending=True).values[allowed] if allowed < len(others) else -math.inf
    return float((members > threshold).double().mean())
