"""DiLoCo against twenty lines of torch, with torch.optim on both sides of the round."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from p2pfl.courses.diloco import DILOCO, DilocoSettings
from p2pfl.courses.fedopt import FEDAVGM, FedAvgMSettings
from p2pfl.learn.params import bind, flatten
from p2pfl.learn.specs import TrainSpec
from tests.courses.by_hand import local_of, small
from tests.courses.kit import Played

ADAMW = TrainSpec(epochs=3, lr=0.02, batch_size=10_000, optimizer="AdamW", weight_decay=0.1)  # three steps of all


def by_torch(played: Played, *, carry: bool) -> torch.Tensor:
    """Algorithm 1 of the paper."""
    theta = nn.Parameter(played.model.initial.clone())
    outer = torch.optim.SGD([theta], lr=0.7, momentum=0.9, nesterov=True)
    clients = {seat: played.model.copy().module for seat in played.shards}
    inner = {}
    for round in range(played.settings.rounds):
        ends = []
        for seat, module in clients.items():
            x, y = played.data.batch(played.shards[seat].indices)
            with torch.no_grad():
                for weight, value in zip(module.parameters(), played.model.layout.views(theta.data), strict=True):
                    weight.copy_(value)
            if round == 0:
                bind(module, theta.data.clone())
            if round == 0 or not carry:
                inner[seat] = torch.optim.AdamW(module.parameters(), lr=0.02, weight_decay=0.1)
            for _ in range(3):
                inner[seat].zero_grad()
                nn.functional.cross_entropy(module(x), y).backward()
                inner[seat].step()
            ends.append(flatten(module).detach())
        theta.grad = theta.data - torch.stack(ends).mean(0)
        outer.step()
    return theta.data


@pytest.mark.parametrize("carry", [True, False])
def test_it_is_algorithm_1(carry):
    played = small(DILOCO, DilocoSettings(rounds=4, evaluate="none", carry=carry), train=ADAMW).play()
    for params in played.params:
        torch.testing.assert_close(params, by_torch(played, carry=carry), rtol=0, atol=1e-5)
    assert not torch.allclose(played.params[0], by_torch(played, carry=not carry), atol=1e-3)


def test_a_clients_half_keeps_its_moments_and_sends_none():
    played = small(DILOCO, DilocoSettings(rounds=2, evaluate="none"), train=ADAMW).play()
    numel = played.model.layout.numel
    kept = [local_of(played, seat).state()["memory"] for seat in (1, 2, 3)]
    assert all(len(memory) == 2 * numel + 4 and memory[-4:].tolist() == [6.0] * 4 for memory in kept), "steps"
    assert not torch.equal(kept[0], kept[1])
    (server,) = played.world.seats[0].roles
    assert server.rule.up.sizes == {"params": numel}
    half = server.rule.local()
    half.resume({"memory": kept[0]})
    assert torch.equal(half.state()["memory"], kept[0])


def test_without_anything_to_remember_it_is_fedavgm_with_nesterov():
    """Plain SGD remembers nothing; the fast tiers train it."""
    settings = {"rounds": 3, "evaluate": "none", "server_lr": 0.7}
    ours = small(DILOCO, DilocoSettings(**settings)).play()
    theirs = small(FEDAVGM, FedAvgMSettings(**settings, server_nesterov=True)).play()
    assert ours.bytes == theirs.bytes


def test_without_an_outer_optimizer_it_is_averaging_with_momentum_that_goes_on():
    """One client: then the rounds are one long training."""
    settings = DilocoSettings(rounds=5, evaluate="none", server_lr=1.0, server_momentum=0.0, server_nesterov=False)
    spec = TrainSpec(steps=2, lr=0.05, batch_size=10_000, momentum=0.9)
    rounds = small(DILOCO, settings, n=2, train=spec).play()
    whole = small(DILOCO, replace(settings, rounds=1), n=2, train=replace(spec, steps=10)).play()
    torch.testing.assert_close(rounds.params[0], whole.params[0], rtol=0, atol=1e-5)
