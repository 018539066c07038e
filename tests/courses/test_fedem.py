import pytest
import torch
from torch.nn import functional

from p2pfl.courses.fedem import FEDEM, FedEmSettings, Weighing
from p2pfl.courses.ifca import beginnings
from p2pfl.errors import ConfigError
from p2pfl.learn.evaluate import evaluate
from p2pfl.learn.mixture import mixture
from p2pfl.sim.loop import run_virtual
from tests.courses.by_hand import LR, is_close, local_of, served, small

COUNT, ROUNDS = 3, 3


def log_probabilities(model, params, shard):
    """Of each example's own class, and its gradient by `params` as a function of weights of the examples."""
    x, y = shard.dataset.batch(shard.indices)
    with model.using(params.clone(), training=True) as tensors:
        logs = functional.log_softmax(model.module(x), 1).gather(1, y[:, None])[:, 0]

        def slope(weights):
            found = torch.zeros_like(params)
            gradients = torch.autograd.grad((weights * logs).mean(), tensors, retain_graph=True)
            for view, g in zip(model.layout.views(found), gradients, strict=False):
                view.copy_(g)
            return found

        return logs.detach(), slope


def responsibilities(model, components, pi, shard):
    """(count, examples), and the slopes."""
    logs, slopes = zip(*(log_probabilities(model, each, shard) for each in components), strict=True)
    joint = torch.stack(logs).exp() * pi[:, None]
    return joint / joint.sum(0), slopes


def test_it_is_the_algorithm_of_the_paper():
    """By responsibilities example by example; two steps of all examples in a round."""
    played = small(FEDEM, FedEmSettings(rounds=ROUNDS, components=COUNT)).play()
    model, seats = played.model, list(played.shards)
    components = beginnings(played.learner(0), COUNT)
    pi = dict.fromkeys(seats, torch.full((COUNT,), 1 / COUNT))
    for _ in range(ROUNDS):
        ends = []
        for seat, shard in played.shards.items():
            pi[seat] = responsibilities(model, components, pi[seat], shard)[0].mean(1)
            mine = components
            for _ in range(2):
                q, slopes = responsibilities(model, mine, pi[seat], shard)
                mine = torch.stack([m + LR * slope(each) for m, slope, each in zip(mine, slopes, q, strict=True)])
            ends.append(mine)
        components = torch.stack(ends).mean(0)
    (server,) = played.world.seats[0].roles
    assert is_close(server.state()["central.components"], components)
    assert is_close(played.params[0], components[0])
    for seat, shard in played.shards.items():
        assert is_close(local_of(played, seat).state()["weights"], pi[seat])
        last = responsibilities(model, components, pi[seat], shard)[0].mean(1)
        assert is_close(played.params[seat], components[last.argmax()])
        found = run_virtual(local_of(played, seat).evaluate(played.learner(seat), components.flatten(), shard))
        mixed = mixture(model, COUNT)
        expected = evaluate(mixed.pack(components, last), mixed.model, shard)
        assert found.accuracy == expected.accuracy
        assert found.loss == pytest.approx(expected.loss, rel=1e-4)


def test_the_weights_survive_and_who_has_never_trained_begins_with_equal_ones():
    played = small(FEDEM, FedEmSettings(rounds=2, components=COUNT)).play()
    half, other, learner = local_of(played, 1), Weighing(mixture(played.model, COUNT)), played.learner(1)
    components = played.world.seats[0].roles[0].state()["central.components"]
    assert other.state()["weights"].tolist() == pytest.approx([1 / COUNT] * COUNT)
    assert not torch.equal(half.state()["weights"], other.state()["weights"])
    other.resume(half.state())
    assert torch.equal(served(other, learner, components.flatten()), played.params[1])


def test_settings():
    with pytest.raises(ConfigError, match=r"course.components is 0; it must be at least 1"):
        FedEmSettings(components=0)
    with pytest.raises(ConfigError, match=r"course.keep is 'best', and fedem has many"):
        FedEmSettings(keep="best")
    with pytest.raises(ConfigError, match=r"course.finetune_epochs is set, and fedem serves by more than one"):
        FedEmSettings(finetune_epochs=1)
