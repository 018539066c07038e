import pytest
import torch
from torch.nn import functional

from p2pfl.courses.fedproto import FEDPROTO, FedProtoSettings, Meeting, Showing
from p2pfl.errors import ConfigError
from p2pfl.learn.prototypes import prototyped
from p2pfl.learn.specs import PartitionSpec
from tests.courses.by_hand import LR, is_close, local_of, served, small

PULL, ROUNDS, WIDTH = 0.7, 3, 6


def forward(model, flat, x):
    """Logits and features of the small model, by its tensors."""
    w1, b1, w3, b3 = model.layout.views(flat)
    features = torch.relu(x.flatten(1) @ w1.T + b1)
    return features @ w3.T + b3, features


def descended(model, flat, shard, prototypes, steps=2):
    x, y = shard.dataset.batch(shard.indices)
    for _ in range(steps):
        flat = flat.detach().requires_grad_()
        logits, features = forward(model, flat, x)
        near = [
            (f - prototypes[int(c)]).square().mean() for f, c in zip(features, y, strict=True) if int(c) in prototypes
        ]
        loss = functional.cross_entropy(logits, y) + PULL * sum(near) / len(y)
        flat = flat - LR * torch.autograd.grad(loss, flat)[0]
    return flat.detach()


@pytest.mark.parametrize(
    "split", [PartitionSpec("dirichlet", alpha=1.0), PartitionSpec("classes", classes_per_client=4)]
)
def test_it_is_the_algorithm_of_the_paper(split):
    played = small(FEDPROTO, FedProtoSettings(rounds=ROUNDS, pull=PULL), split=split)
    played.settings = FedProtoSettings(rounds=ROUNDS, pull=PULL)
    played.play()
    model, own, prototypes = played.model, dict.fromkeys(played.shards, played.model.initial), {}
    for _ in range(ROUNDS):
        seen = {}
        for seat, shard in played.shards.items():
            own[seat] = descended(model, own[seat], shard, prototypes)
            x, y = shard.dataset.batch(shard.indices)
            for feature, label in zip(forward(model, own[seat], x)[1], y.tolist(), strict=True):
                seen.setdefault(label, []).append(feature)
        prototypes |= {label: torch.stack(features).mean(0) for label, features in seen.items()}
    for seat in played.shards:
        assert is_close(played.params[seat], own[seat])
    state = played.world.seats[0].roles[0].state()
    for label, expected in prototypes.items():
        assert is_close(state["central.prototypes"][label], expected)
    assert state["central.known"].tolist() == [float(label in prototypes) for label in range(10)]
    assert torch.equal(played.params[0], model.initial)


def test_a_class_that_a_round_brings_nothing_of_keeps_its_prototype_and_all_survive():
    half = Meeting(3, 1)
    half.absorb(torch.ones(1), torch.tensor([1.0, 0.0, 3.0, 0.25, 0.0, 0.75]), 1.0, 0)
    assert half.broadcast(torch.ones(1), 1).tolist() == [4.0, 0.0, 4.0, 1.0, 0.0, 1.0]
    half.absorb(torch.ones(1), torch.tensor([2.0, 1.0, 0.0, 0.5, 0.5, 0.0]), 1.0, 0)
    other = Meeting(3, 1)
    other.resume(half.state())
    assert other.broadcast(torch.ones(1), 2).tolist() == [4.0, 2.0, 4.0, 1.0, 1.0, 1.0]


def test_the_own_model_survives():
    played = small(FEDPROTO, FedProtoSettings(rounds=1)).play()
    half, other = local_of(played, 1), Showing(prototyped(played.model, 1.0))
    assert other.state() == {}
    other.resume(half.state())
    assert torch.equal(served(other, played.learner(1), played.params[0]), played.params[1])


def test_settings():
    with pytest.raises(ConfigError, match=r"course.pull is -1; it must not be negative"):
        FedProtoSettings(pull=-1)
