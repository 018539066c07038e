import pytest
import torch

from p2pfl.courses.ditto import DITTO, Ditto, DittoSettings
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.errors import ConfigError
from p2pfl.learn.specs import PartitionSpec, TrainSpec
from tests.courses.by_hand import LR, gradient, is_close, local_of, served, small

ROUNDS = 3


@pytest.mark.parametrize(("pull", "epochs"), [(0.1, 0), (0.8, 3), (0.0, 1)])
def test_own_models_are_those_of_the_paper(pull, epochs):
    played = small(DITTO, DittoSettings(rounds=ROUNDS, pull=pull, personal_epochs=epochs)).play()
    model, seats = played.model, list(played.shards)
    w, own = model.initial, dict.fromkeys(seats, model.initial)
    for _ in range(ROUNDS):
        trained = []
        for seat in seats:
            mine, theirs = own[seat], w
            for _ in range(epochs or 2):
                mine = mine - LR * (gradient(model, mine, played.shards[seat]) + pull * (mine - w))
            for _ in range(2):
                theirs = theirs - LR * gradient(model, theirs, played.shards[seat])
            own[seat] = mine
            trained.append(theirs)
        w = torch.stack(trained).mean(0)
    assert is_close(played.params[0], w)
    for seat in seats:
        assert is_close(played.params[seat], own[seat])


def test_the_global_model_is_that_of_federated_averaging_to_the_last_bit():
    train = TrainSpec(lr=0.5, batch_size=8)
    ditto = small(DITTO, DittoSettings(rounds=2), train=train).play()
    plain = small(FEDAVG, FedAvgSettings(rounds=2), train=train).play()
    assert torch.equal(ditto.params[0], plain.params[0])


def test_a_strong_pull_leaves_own_models_at_the_global_one():
    pulls = [small(DITTO, DittoSettings(rounds=3, pull=pull)).play() for pull in (0.0, 3.0)]
    free, tied = [float((played.params[1] - played.params[0]).norm()) for played in pulls]
    assert tied < free / 2


def test_on_skewed_clients_own_models_serve_better():
    settings = DittoSettings(rounds=4, evaluate="clients")
    split, train = PartitionSpec("classes", classes_per_client=4), TrainSpec(lr=0.3, epochs=2, batch_size=8)
    ditto = small(DITTO, settings, split=split, train=train).play()
    plain = small(FEDAVG, FedAvgSettings(rounds=4, evaluate="clients"), split=split, train=train).play()
    assert ditto.metric("client_accuracy")[-1] > plain.metric("client_accuracy")[-1] + 0.02


def test_the_own_model_survives():
    played = small(DITTO, DittoSettings(rounds=1)).play()
    half, other = local_of(played, 1), Ditto(TrainSpec())
    assert other.state() == {}
    assert served(other, played.learner(1), played.params[0]) is played.params[0]
    other.resume(half.state())
    assert torch.equal(served(other, played.learner(1), played.params[0]), played.params[1])


@pytest.mark.parametrize("field", ["pull", "personal_epochs"])
def test_settings(field):
    with pytest.raises(ConfigError, match=rf"course.{field} is -1; it must not be negative"):
        DittoSettings(**{field: -1})
