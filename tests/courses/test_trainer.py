import torch

from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.trainer import Trainer
from p2pfl.topology.families import build
from tests.courses.kit import Played


def test_it_ends_with_the_model_that_its_server_gives_it() -> None:
    played = Played(FEDAVG, FedAvgSettings(rounds=1), build("star", 3)).play()
    assert all(isinstance(role, Trainer) for seat in (1, 2) for role in played.world.seats[seat].roles)
    assert torch.equal(played.params[1], played.params[0]) and not torch.equal(played.params[1], played.model.initial)


def test_of_a_plain_rule_nothing_lasts_from_round_to_round() -> None:
    trainer = Trainer(Played(FEDAVG, FedAvgSettings(), build("star", 3)).learner(1), 0)
    assert trainer.state() == {}
    trainer.resume({})
