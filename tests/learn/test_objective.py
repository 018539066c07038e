"""Losses and their gradients for several clients, against torch one by one."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from p2pfl.learn.model import LOSSES
from p2pfl.learn.objective import Targets, objective_of


def smooth(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, label_smoothing=0.1)


def targets_of(y: Tensor, counts: list[int]) -> Targets:
    present = (torch.arange(y.shape[1]) < torch.tensor(counts).unsqueeze(1)).float()
    return Targets(y, present, present / torch.tensor(counts).unsqueeze(1), torch.tensor(counts))


@pytest.mark.parametrize(
    ("loss", "outputs", "y"),
    [
        (LOSSES["cross_entropy"], 4, torch.randint(4, (3, 5))),
        (smooth, 4, torch.randint(4, (3, 5))),
        (functional.cross_entropy, 4, torch.rand(3, 5, 4)),  # shares of classes: not by hand
        (LOSSES["mse"], 1, torch.randn(3, 5)),
        (LOSSES["mse"], 2, torch.randn(3, 5, 2)),
        (LOSSES["mse"], 1, torch.randint(3, (3, 5))),
        (functional.mse_loss, 2, torch.randn(3, 5, 2)),
        (LOSSES["bce"], 1, torch.randint(2, (3, 5))),
        (LOSSES["bce"], 3, torch.rand(3, 5, 3)),
    ],
)
def test_each_client_has_its_own_mean(loss, outputs: int, y: Tensor) -> None:
    counts = [5, 2, 1]
    z = 3 * torch.randn(3, 5, outputs)
    losses, gradient = objective_of(loss, y[0], outputs)(z.clone(), targets_of(y, counts))
    for client, count in enumerate(counts):
        alone = z[client, :count].clone().requires_grad_()
        expected = loss(alone, y[client, :count])
        (slope,) = torch.autograd.grad(expected, alone)
        assert torch.allclose(losses[client].sum() / count, expected, atol=1e-6)
        assert torch.allclose(gradient[client, :count], slope, atol=1e-7)
        assert not gradient[client, count:].any()


def test_large_logits() -> None:
    z, y = torch.tensor([[[200.0], [-200.0]]]), torch.tensor([[0, 0]])
    losses, gradient = objective_of(LOSSES["bce"], y[0], 1)(z, targets_of(y, [2]))
    assert losses.tolist() == [[200, 0]]
    assert gradient.flatten().tolist() == [0.5, 0]
