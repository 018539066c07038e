import pytest
import torch

from p2pfl.courses.apfl import APFL, ApflSettings
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.errors import ConfigError
from p2pfl.learn.specs import PartitionSpec, TrainSpec
from tests.courses.by_hand import LR, gradient, is_close, local_of, served, small

ROUNDS = 3


@pytest.mark.parametrize("adapt", [True, False])
def test_it_is_that_of_the_paper(adapt):
    played = small(APFL, ApflSettings(rounds=ROUNDS, alpha=0.6, adapt=adapt)).play()
    model, server = played.model, played.model.initial
    own, alphas = dict.fromkeys(played.shards, server), dict.fromkeys(played.shards, 0.6)
    for _ in range(ROUNDS):
        copies = []
        for seat, shard in played.shards.items():
            w, v, alpha = server, own[seat], alphas[seat]
            for _ in range(2):
                at_mixture = gradient(model, alpha * v + (1 - alpha) * w, shard)
                slope = float(at_mixture @ (v - w))
                w, v = w - LR * gradient(model, w, shard), v - LR * alpha * at_mixture
                alpha = min(max(alpha - LR * slope, 0.0), 1.0) if adapt else alpha
            own[seat], alphas[seat] = v, alpha
            copies.append(w)
        server = torch.stack(copies).mean(0)
    assert is_close(played.params[0], server)
    for seat, alpha in alphas.items():
        assert local_of(played, seat)._alpha == pytest.approx(alpha, rel=1e-4)
        assert (alpha != 0.6) == adapt
        assert is_close(played.params[seat], alpha * own[seat] + (1 - alpha) * server)


def test_on_skewed_clients_mixtures_serve_better():
    split, train = PartitionSpec("classes", classes_per_client=4), TrainSpec(lr=0.3, epochs=2, batch_size=8)
    found = small(APFL, ApflSettings(rounds=4, evaluate="clients"), split=split, train=train).play()
    plain = small(FEDAVG, FedAvgSettings(rounds=4, evaluate="clients"), split=split, train=train).play()
    assert found.metric("client_accuracy")[-1] > plain.metric("client_accuracy")[-1] + 0.02


def test_the_own_model_and_its_weight_survive():
    played = small(APFL, ApflSettings(rounds=1)).play()
    half, learner = local_of(played, 1), played.learner(1)
    other = played.world.seats[1].roles[0]._rule.local()
    assert other.state() == {}
    other.resume({})
    other.resume(half.state())
    assert torch.equal(served(other, learner, played.params[0]), played.params[1])


def test_settings():
    with pytest.raises(ConfigError, match=r"course.alpha is 1.5; it must lie in \[0, 1\]"):
        ApflSettings(alpha=1.5)
    with pytest.raises(ConfigError, match="apfl, which needs plain SGD"):
        small(APFL, ApflSettings(), train=TrainSpec(momentum=0.5)).play()
