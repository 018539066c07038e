"""Examples rebuilt from the gradient that they gave, by a search for others that give the same one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from p2pfl.attacks.gradients import Gradients, guessing
from p2pfl.learn.model import Model

__all__ = ["Search", "deep_leakage", "invert"]


def deep_leakage(
    model: Model, params: Tensor, seen: Gradients, shape: Sequence[int], classes: int, *, iterations: int = 200,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The batch, and the chances of its classes, whose gradient is closest to the one that was `seen`.

    L. Zhu, Z. Liu, S. Han: "Deep Leakage from Gradients", NeurIPS 2019, https://arxiv.org/abs/1906.08935. L-BFGS by the
    squared distance of the gradients, from random inputs and logits. Deviation: steps go by a line search.

    `shape`: of the batch, (examples, ...). Gives x of that shape and y (examples, classes). The order within a batch
    is not to be known. The model should be smooth: where ReLUs are, the search often ends early.
    """
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=random).requires_grad_()
    logits = torch.randn(shape[0], classes, generator=random).requires_grad_()
    search = torch.optim.LBFGS(
        [x, logits],
        max_iter=iterations,
        tolerance_grad=0,
        tolerance_change=0,
        history_size=100,
        line_search_fn="strong_wolfe",
    )
    with guessing(model, params) as gradient:

        def distance() -> Tensor:
            mine = gradient(x, logits.softmax(1))
            apart = torch.stack([(one - other).square().sum() for one, other in zip(mine, seen, strict=True)]).sum()
            x.grad, logits.grad = torch.autograd.grad(apart, [x, logits])
            return apart

        search.step(distance)  # type: ignore[no-untyped-call]  # torch does not say what it takes
    return x.detach(), logits.detach().softmax(1)


@dataclass(frozen=True, slots=True)
class Search:
    """How long, and for what kind of images, `invert` looks."""

    iterations: int = 300
    lr: float = 0.1
    variation: float = 0.2
    """How much the total variation of the images counts beside the cosine, which goes from 0 to 2."""
    low: float = 0.0
    high: float = 1.0
    """Between which the values of images lie."""


def invert(
    model: Model, params: Tensor, seen: Gradients, y: Tensor, shape: Sequence[int], search: Search | None = None,
    seed: int = 0,
) -> Tensor:  # fmt: skip
    """Images whose gradient points to where the one that was `seen` does; the labels y (examples,) are known.

    J. Geiping, H. Bauermeister, H. Dröge, M. Moeller: "Inverting Gradients - How easy is it to break privacy in
    federated learning?", NeurIPS 2020, https://arxiv.org/abs/2003.14053: Adam on the signs of the gradient of cosine
    distance and total variation, a rate that falls at 3/8, 5/8 and 7/8 of the way, values kept within their box.
    Deviation: one start, from the middle of the box with a little noise, and far fewer steps.

    `shape`: (examples, ..., height, width). Gives images of that shape.
    """
    search = search or Search()
    middle, width = (search.low + search.high) / 2, search.high - search.low
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    images = (middle + 0.1 * width * noise).clamp(search.low, search.high).requires_grad_()
    optimizer = torch.optim.Adam([images], lr=search.lr)
    drops = [search.iterations * eighths // 8 for eighths in (3, 5, 7)]
    rate = torch.optim.lr_scheduler.MultiStepLR(optimizer, drops, gamma=0.1)
    with guessing(model, params) as gradient:
        for _ in range(search.iterations):
            cost = _cosine_distance(gradient(images, y), seen) + search.variation * _variation(images)
            (slope,) = torch.autograd.grad(cost, images)
            images.grad = slope.sign()
            optimizer.step()
            rate.step()
            images.data.clamp_(search.low, search.high)
    return images.detach()


def _cosine_distance(mine: Gradients, seen: Gradients) -> Tensor:
    one = torch.cat([part.reshape(-1) for part in mine])
    other = torch.cat([part.reshape(-1) for part in seen])
    return 1 - torch.cosine_similarity(one, other, dim=0)


def _variation(images: Tensor) -> Tensor:
    """The mean absolute difference of neighbouring pixels, down and across."""
    return images.diff(dim=-2).abs().mean() + images.diff(dim=-1).abs().mean()
