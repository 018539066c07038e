"""One step by a product is one step by its gradient, and both are the formulas of the module's docstring."""

import itertools

import pytest
import torch

from p2pfl.learn.descent import Descent, Part, parts_of


@pytest.mark.parametrize(
    ("momentum", "pull", "proximal", "drifts"),
    list(itertools.product([0.0, 0.9], [0.0, 0.3], [0.0, 0.2], [False, True])),
)
def test_steps(momentum: float, pull: float, proximal: float, drifts: bool) -> None:
    clients, outputs, rows, inputs = 3, 4, 5, 6
    w, v, w0, h = torch.randn(4, clients, outputs, inputs).double()
    left, right = torch.randn(clients, outputs, rows).double(), torch.randn(clients, rows, inputs).double()
    g = left @ right
    descent = Descent(0.1, momentum, pull + proximal, proximal)
    expected_v = momentum * v + (pull + proximal) * w - proximal * w0 + (h if drifts else 0) + g
    if not momentum:
        expected_v -= momentum * v
    expected = w - 0.1 * expected_v
    for gradient in (False, True):
        (part,) = parts_of(
            [w.clone()], [v.clone()] if momentum else None, [w0] if proximal else None, [h] if drifts else None
        )
        if gradient:
            descent.by_gradient(part, g)
        else:
            descent.by_product(part, left, right)
        assert torch.allclose(part.weight, expected)
        assert part.velocity is None or torch.allclose(part.velocity, expected_v)


def test_no_gradient_is_zero() -> None:
    descent = Descent(0.1, 0.5, 0.3, 0.0)
    for velocity in (None, torch.ones(1, 4)):
        parts = [Part(torch.ones(1, 4), None if velocity is None else velocity.clone()) for _ in range(2)]
        descent.by_gradient(parts[0], None)
        descent.by_gradient(parts[1], torch.zeros(1, 4))
        assert torch.equal(parts[0].weight, parts[1].weight)


def test_the_first_clients_are_views() -> None:
    part = Part(torch.zeros(3, 2), torch.zeros(3, 2))
    part.first(2).weight.add_(1)
    assert part.weight.tolist() == [[1, 1], [1, 1], [0, 0]]
    assert part.first(2).drift is None
