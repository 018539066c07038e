import pytest
import torch
from torch import nn

from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.partial import (
    FEDBN,
    FEDPER,
    LGFEDAVG,
    FedBnSettings,
    FedPerSettings,
    LgFedAvgSettings,
    shared,
)
from p2pfl.errors import ConfigError
from p2pfl.learn.model import Model
from p2pfl.learn.specs import PartitionSpec, TrainSpec
from tests.courses.by_hand import descend, is_close, local_of, mask_of, served, small

ROUNDS = 3
SKEWED = PartitionSpec("classes", classes_per_client=4)


def expected(played, *private):
    """By hand: each client's model and the server's, where some layers stay."""
    model, own = played.model, mask_of(played.model, *private)
    server, clients = model.initial, dict.fromkeys(played.shards, model.initial)
    for _ in range(ROUNDS):
        clients = {
            seat: descend(model, own * params + (1 - own) * server, played.shards[seat])
            for seat, params in clients.items()
        }
        server = own * server + (1 - own) * torch.stack(list(clients.values())).mean(0)
    return server, {seat: own * params + (1 - own) * server for seat, params in clients.items()}


@pytest.mark.parametrize(
    ("course", "settings", "private"),
    [
        (FEDPER, FedPerSettings(rounds=ROUNDS), "3"),
        (LGFEDAVG, LgFedAvgSettings(rounds=ROUNDS), "1"),
        (FEDBN, FedBnSettings(rounds=ROUNDS, private=("1.*",)), "1"),
        (FEDPER, FedPerSettings(rounds=ROUNDS, private=("1.*",)), "1"),
    ],
    ids=["fedper", "lgfedavg", "fedbn", "patterns"],
)
def test_what_is_private_is_trained_and_never_averaged(course, settings, private):
    played = small(course, settings).play()
    server, clients = expected(played, private)
    assert is_close(played.params[0], server)
    for seat, params in clients.items():
        assert is_close(played.params[seat], params)
    assert not is_close(played.params[1], played.params[2])


def test_only_what_is_shared_travels():
    layers = {"1": 64 * 6 + 6, "3": 6 * 10 + 10}
    played = small(FEDPER, FedPerSettings(rounds=1)).play()
    rule = played.world.seats[1].roles[0]._rule
    assert rule.up.numel == rule.down.numel == layers["1"]


def test_clients_are_evaluated_by_their_own_models():
    settings = FedPerSettings(rounds=5)
    many = TrainSpec(lr=0.5, epochs=3, batch_size=8)
    personal = small(FEDPER, settings, train=many, split=SKEWED).play()
    common = small(FEDAVG, FedAvgSettings(rounds=5, evaluate="clients"), train=many, split=SKEWED).play()
    assert personal.metric("client_accuracy")[-1] > common.metric("client_accuracy")[-1] + 0.02


def normalised():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.LayerNorm(6), nn.Linear(6, 10))


def test_fedbn_keeps_normalisation_layers_and_their_statistics():
    played = small(FEDBN, FedBnSettings(rounds=2, private=("1.*",)))
    played.model = Model.of(normalised(), nn.functional.cross_entropy, *played.data.batch(torch.arange(4)))
    played.settings = FedBnSettings(rounds=2)
    played.play()
    views = [dict(zip([e.name for e in played.model.layout.entries], played.model.layout.views(v), strict=True))
             for v in (*played.params, played.model.initial)]  # fmt: skip
    server, one, two, _, initial = views
    for name in server:
        stays = name[0] in "23"
        assert torch.equal(one[name], two[name]) != stays
        assert torch.equal(server[name], initial[name]) == stays
        assert torch.equal(server[name], one[name]) != stays
    assert not torch.equal(one["2.running_mean"], initial["2.running_mean"])


def test_without_anything_private_it_is_federated_averaging():
    played = small(FEDAVG, FedAvgSettings(rounds=ROUNDS)).play()
    rule = shared(played.model, ())
    central = rule.central()
    assert rule.down.schema == played.learner(1).schema
    assert torch.equal(central.absorb(played.model.initial, played.params[0], 1.0, 0), played.params[0])


def test_what_a_client_keeps_survives_with_what_is_within():
    played = small(FEDPER, FedPerSettings(rounds=1)).play()
    half, learner = local_of(played, 1), played.learner(1)
    stay = {"3.weight", "3.bias"}
    other = shared(played.model, stay).local()
    assert other.state() == {}
    other.resume(half.state())
    assert torch.equal(served(other, learner, played.params[0]), served(half, learner, played.params[0]))


@pytest.mark.parametrize(
    ("course", "settings", "sentence"),
    [
        (FEDBN, FedBnSettings(), "fedbn, which keeps nothing of this model at its clients; name some"),
        (FEDPER, FedPerSettings(layers=2), "fedper, which shares nothing of this model; name some"),
        (FEDPER, FedPerSettings(private=("head.*",)), r"course.private has 'head\.\*', which fits no tensor .* 1.w"),
    ],
    ids=["no normalisation", "all layers", "no such name"],
)  # fmt: skip
def test_what_does_not_fit_the_model(course, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        small(course, settings).play()


def test_settings():
    with pytest.raises(ConfigError, match=r"course.layers is 0; it must be at least 1"):
        FedPerSettings(layers=0)
    assert FedBnSettings().evaluate == "clients"
