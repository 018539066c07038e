from dataclasses import replace

import pytest

from p2pfl.courses.ditto import DITTO, DittoSettings
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.hierarchical import HIERARCHICAL, HierarchicalSettings
from p2pfl.errors import ConfigError
from p2pfl.learn.specs import TrainSpec
from p2pfl.topology.families import build
from tests.courses.by_hand import LR, WHOLE, descend, is_close, small
from tests.courses.kit import Played


def test_the_global_model_is_tuned_for_each_client_and_knows_nothing_of_it():
    settings = FedAvgSettings(rounds=2, evaluate="both")
    plain = small(FEDAVG, settings).play()
    found = small(FEDAVG, replace(settings, finetune_epochs=3)).play()
    assert found.params[0].equal(plain.params[0])
    for seat, shard in found.shards.items():
        assert is_close(found.params[seat], descend(found.model, plain.params[0], shard, 3))
    assert found.metric("client_loss")[-1] < found.metric("loss")[-1]
    assert found.metric("loss") == plain.metric("loss")


def test_a_learning_rate_of_its_own():
    found = small(FEDAVG, FedAvgSettings(rounds=1, finetune_epochs=2, finetune_lr=2 * LR)).play()
    for seat, shard in found.shards.items():
        assert is_close(found.params[seat], descend(found.model, found.params[0], shard, 2, 2.0))


def test_any_course_can_be_tuned():
    settings = DittoSettings(rounds=2)
    own = small(DITTO, settings).play()
    found = small(DITTO, replace(settings, finetune_epochs=2)).play()
    for seat, shard in found.shards.items():
        assert is_close(found.params[seat], descend(found.model, own.params[seat], shard, 2))


def test_clients_below_an_edge_are_tuned():
    topology = build("hierarchy", 7)
    settings = HierarchicalSettings(rounds=1, finetune_epochs=2, evaluate="clients")
    found, plain = (
        Played(HIERARCHICAL, each, topology, train=WHOLE).play()
        for each in (settings, replace(settings, finetune_epochs=0))
    )
    assert found.params[0].equal(plain.params[0])
    assert found.metric("client_loss")[-1] < plain.metric("client_loss")[-1]


def test_settings():
    assert FedAvgSettings().finetuning(TrainSpec()) is None
    with pytest.raises(ConfigError, match=r"course.finetune_epochs is -1; it must not be negative"):
        FedAvgSettings(finetune_epochs=-1)
    with pytest.raises(ConfigError, match=r"course.finetune_epochs is 1; with course.coordinator = 'elect' it must be"):
        FedAvgSettings(coordinator="elect", finetune_epochs=1)
