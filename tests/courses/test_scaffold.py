from random import Random

import pytest
import torch
from torch.nn import functional

from p2pfl.courses.durable import Durable
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.outbox import Outbox
from p2pfl.courses.scaffold import SCAFFOLD, ScaffoldSettings, _rule
from p2pfl.errors import ConfigError
from p2pfl.journal.journal import Journal
from p2pfl.learn.model import Model
from p2pfl.learn.specs import PartitionSpec, TrainSpec
from p2pfl.sim.disk import SimulatedDisk
from p2pfl.topology.families import build
from tests.courses.descent import cohort, descend, gradient
from tests.courses.kit import Normalised, Played
from tests.courses.test_durable import Told

TRAIN = TrainSpec(lr=0.5, batch_size=8, epochs=2)


def scaffold(train=TRAIN, **settings):
    return Played(SCAFFOLD, ScaffoldSettings(**{"rounds": 4} | settings), build("star", 6), train=train)


def by_hand(played):
    """Algorithm 1 of the paper with option II: the model, the server's control, and the clients'."""
    settings, x, seats = played.settings, played.model.initial, sorted(played.shards)
    c, controls = torch.zeros_like(x), {seat: torch.zeros_like(x) for seat in seats}
    for round in range(settings.rounds):
        moves, changes = [], []
        for seat in (drawn := cohort(played, round)):
            y, steps = descend(played, x, seat, round, lambda _, seat=seat, c=c: c - controls[seat])
            renewed = controls[seat] - c + (x - y) / (steps * played.train.lr)
            moves.append(y - x)
            changes.append(renewed - controls[seat])
            controls[seat] = renewed
        x = x + settings.server_lr * sum(moves) / len(drawn)
        c = c + sum(changes) / len(seats)
    return x, c, controls


def halves(played):
    """The controls of the server and of the clients."""
    server, *clients = (played.world.seats[seat].roles[0] for seat in range(played.topology.n))
    return server._central._control, {seat: each._outbox.local._control for seat, each in enumerate(clients, 1)}


@pytest.mark.parametrize("server_lr", [1.0, 0.6])
@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_it_is_the_loop_that_the_paper_has(fraction, server_lr):
    played = scaffold(fraction=fraction, server_lr=server_lr).play()
    x, c, controls = by_hand(played)
    of_all, own = halves(played)
    assert torch.allclose(played.params[0], x, rtol=0, atol=1e-5)
    assert torch.allclose(of_all, c, rtol=0, atol=1e-5)
    assert all(torch.allclose(own[seat], controls[seat], rtol=0, atol=1e-5) for seat in controls)


@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_the_server_s_control_is_the_mean_of_the_clients(fraction):
    of_all, own = halves(scaffold(fraction=fraction).play())
    assert of_all.norm() > 0.01
    assert torch.allclose(of_all, torch.stack(list(own.values())).mean(0), rtol=0, atol=1e-6)


def slope(course, settings):
    """How steep the mean of the clients' losses is where the course ends, after many local steps on skewed shards."""
    train, split = TrainSpec(lr=0.5, batch_size=1000, epochs=20), PartitionSpec("dirichlet", alpha=0.1, min_examples=4)
    played = Played(course, settings, build("star", 6), train=train, split=split).play()
    slopes = [gradient(played, played.params[0], shard.indices) for shard in played.shards.values()]
    return float(torch.stack(slopes).mean(0).norm())


def test_many_local_steps_lead_to_the_minimum_of_all():
    """Averaging stops where the clients' ways cancel out, which is somewhere else."""
    shared = {"rounds": 20, "weights": "equal", "evaluate": "none"}
    averaged = slope(FEDAVG, FedAvgSettings(**shared))
    assert slope(SCAFFOLD, ScaffoldSettings(**shared)) < averaged / 3


def test_running_statistics_are_averaged_and_have_no_control():
    played = scaffold(train=TrainSpec(lr=0.1, batch_size=8, drop_last=True))
    x, y = played.data.batch(played.data.train_indices[:4])
    played.model = Model.of(Normalised(), functional.cross_entropy, x, y)
    played.play()
    of_all, _ = halves(played)
    assert len(of_all) == played.model.layout.trainable_numel == played.model.layout.numel - 128
    assert not torch.equal(played.params[0][-128:], played.model.initial[-128:])


async def test_a_client_s_control_survives_a_restart():
    played = scaffold()
    learner = played.learner(1)
    disk, rule = SimulatedDisk(Random(0)), _rule(learner, played.settings)

    def opened():
        return Outbox(learner, rule, Durable(Journal(disk, "run")))

    sent = torch.cat((played.model.initial, torch.zeros(played.model.layout.numel)))
    first = opened()
    await first.update(Told(), 0, rule.down.tensors(sent))
    assert first.local._control.norm() > 0
    assert torch.equal(opened().local._control, first.local._control)


def test_a_client_without_examples_has_nothing_to_say_and_keeps_its_control():
    played = scaffold()
    shard = played.shards[3]
    played.shards[3] = type(shard)(shard.dataset, shard.indices[:0])
    _, own = halves(played.play())
    assert own[3].norm() == 0 < own[2].norm()


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        (TrainSpec(momentum=0.9), "scaffold, which needs plain SGD; leave out train.optimizer and train.momentum"),
        (TrainSpec(optimizer="Adam"), "scaffold, which needs plain SGD"),
        (TrainSpec(lr=0.0), "scaffold, which divides by train.lr"),
        (TrainSpec(schedule="cosine", schedule_factor=0.0), "scaffold, which divides by train.lr"),
    ],
)
def test_training_that_does_not_tell_the_mean_gradient(train, sentence):
    with pytest.raises(ConfigError, match=sentence):
        scaffold(train=train).play()


def test_the_server_has_to_move():
    with pytest.raises(ConfigError, match=r"course.server_lr is 0; it must be above 0"):
        ScaffoldSettings(server_lr=0)
