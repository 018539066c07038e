import pytest
import torch

from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.fedswa import FEDSWA, FedSwaSettings, RunningAverage
from p2pfl.errors import ConfigError
from p2pfl.topology.families import build
from tests.courses.kit import Played


def averaged(rounds, **settings):
    return Played(FEDSWA, FedSwaSettings(rounds=rounds, evaluate="none", **settings), build("star", 4)).play()


def test_the_result_is_the_mean_of_the_last_models_of_federated_averaging():
    models = {
        rounds: Played(FEDAVG, FedAvgSettings(rounds=rounds, evaluate="none"), build("star", 4)).play().params[0]
        for rounds in range(1, 7)
    }
    for held in averaged(6, swa_start=0.5).params:
        torch.testing.assert_close(held, (models[4] + models[5] + models[6]) / 3)
    torch.testing.assert_close(averaged(6, swa_start=0.5, swa_every=2).params[0], (models[4] + models[6]) / 2)
    assert torch.equal(averaged(3, swa_start=0.9).params[0], models[3]), "the average of one"


def test_the_average_is_exact_and_survives():
    settings = FedSwaSettings(rounds=8, swa_start=0.25, swa_every=2)
    server, params = RunningAverage(settings), torch.zeros(1)
    found, sent = [], []
    for round in range(8):
        other = RunningAverage(settings)
        other.resume(server.state())
        server = other
        sent.append(server.broadcast(params, round).item())
        params = server.absorb(params, torch.tensor([2.0**round]), 1.0, round)
        found.append(params.item())
    assert sent == [0, 1, 2, 4, 8, 16, 32, 64], "training goes on as if nothing were averaged"
    assert found == pytest.approx([1, 2, 4, 4, (4 + 16) / 2, (4 + 16) / 2, (4 + 16 + 64) / 3, (4 + 16 + 64) / 3])


@pytest.mark.parametrize("wrong", [{"swa_start": 1.0}, {"swa_start": -0.1}, {"swa_every": 0}, {"quorum": 0.0}])
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ConfigError, match=rf"course\.{next(iter(wrong))} is .*; it must"):
        FedSwaSettings(**wrong)
