"""Sharpness-aware minimisation: steps go by the gradient at the point nearby where the loss is worst.

SAM: P. Foret, A. Kleiner, H. Mobahi, B. Neyshabur: "Sharpness-Aware Minimization for Efficiently Improving
Generalization", ICLR 2021, https://arxiv.org/abs/2010.01412.
ASAM: J. Kwon, J. Kim, H. Park, I. K. Choi: "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of
Deep Neural Networks", ICML 2021, https://arxiv.org/abs/2102.11600. Deviation: biases are scaled like all other weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["climb", "norm"]

_ETA = 0.01  # of ASAM: keeps weights that are zero movable
_TINY = 1e-12


def climb(weights: Sequence[Tensor], gradients: Sequence[Tensor], rho: float, *, adaptive: bool) -> None:
    """Move weights to where the loss is worst within radius `rho`, to first order: w + rho T T g / |T g|.

    T is 1, or |w| + 0.01 for each weight where the radius is adaptive.
    """
    with torch.no_grad():
        scaled = way = tuple(gradients)
        if adaptive:
            scales = [weight.abs().add_(_ETA) for weight in weights]
            scaled = torch._foreach_mul(scaled, scales)
            way = torch._foreach_mul(scaled, scales)
        torch._foreach_add_(list(weights), torch._foreach_mul(way, rho / (norm(scaled) + _TINY)))


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """The L2 norm of all tensors together, a scalar."""
    length: Tensor = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors]))
    return length
