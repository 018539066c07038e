import pytest
import torch

from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.pfedme import PFEDME, PFedMeSettings
from p2pfl.errors import ConfigError
from p2pfl.learn.specs import PartitionSpec, TrainSpec
from tests.courses.by_hand import LR, gradient, is_close, local_of, served, small

ROUNDS = 3


@pytest.mark.parametrize("server_lr", [1.0, 0.5])
def test_it_is_that_of_the_paper(server_lr):
    pull, outer_lr, inner = 0.7, 0.6, 3
    settings = PFedMeSettings(rounds=ROUNDS, pull=pull, outer_lr=outer_lr, inner_steps=inner, server_lr=server_lr)
    played = small(PFEDME, settings).play()
    model, server, personal = played.model, played.model.initial, {}
    for _ in range(ROUNDS):
        clients = []
        for seat, shard in played.shards.items():
            own = theta = server
            for _ in range(2):  # a batch is all examples
                for _ in range(inner):
                    theta = theta - LR * (gradient(model, theta, shard) + pull * (theta - own))
                own = own - outer_lr * pull * (own - theta)
            personal[seat] = theta
            clients.append(own)
        server = (1 - server_lr) * server + server_lr * torch.stack(clients).mean(0)
    assert is_close(played.params[0], server)
    for seat, params in personal.items():
        assert is_close(played.params[seat], params)


def test_on_skewed_clients_personal_models_serve_better():
    split = PartitionSpec("classes", classes_per_client=4)
    train = TrainSpec(lr=0.3, epochs=2, batch_size=8)
    found = small(PFEDME, PFedMeSettings(rounds=4, evaluate="clients"), split=split, train=train).play()
    plain = small(FEDAVG, FedAvgSettings(rounds=4, evaluate="clients"), split=split, train=train).play()
    assert found.metric("client_accuracy")[-1] > plain.metric("client_accuracy")[-1] + 0.02


def test_the_personal_model_survives():
    played = small(PFEDME, PFedMeSettings(rounds=1)).play()
    half, learner = local_of(played, 1), played.learner(1)
    other = played.world.seats[1].roles[0]._rule.local()
    assert other.state() == {}
    assert served(other, learner, played.params[0]) is played.params[0]
    other.resume(half.state())
    assert torch.equal(served(other, learner, played.params[0]), played.params[1])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"inner_steps": 0}, "course.inner_steps is 0; it must be at least 1"),
        ({"pull": 0}, "course.pull is 0; it must be above 0"),
        ({"outer_lr": -1.0}, "course.outer_lr is -1.0; it must be above 0"),
        ({"server_lr": 0}, "course.server_lr is 0; it must be above 0"),
        ({"pull": 15.0}, "is 7.5, and must be at most 1; lower course.outer_lr"),
    ],
)
def test_settings(given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        PFedMeSettings(**given)
