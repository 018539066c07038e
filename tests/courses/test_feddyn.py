from random import Random

import pytest
import torch
from torch.nn import functional

from p2pfl.courses.durable import Durable
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.feddyn import FEDDYN, FedDynSettings, _rule
from p2pfl.courses.outbox import Outbox
from p2pfl.errors import ConfigError
from p2pfl.journal.journal import Journal
from p2pfl.learn.model import Model
from p2pfl.learn.specs import TrainSpec
from p2pfl.sim.disk import SimulatedDisk
from p2pfl.topology.families import build
from tests.courses.descent import cohort, descend, gradient
from tests.courses.kit import Played
from tests.courses.test_durable import Told
from tests.courses.test_scaffold import Normalised, slope

TRAIN = TrainSpec(lr=0.5, batch_size=8, epochs=2)


def feddyn(train=TRAIN, **settings):
    return Played(FEDDYN, FedDynSettings(**{"rounds": 4, "alpha": 0.1} | settings), build("star", 6), train=train)


def by_hand(played):
    """Algorithm 1 of the paper: the model, h, and the clients' gradients."""
    settings, w, seats = played.settings, played.model.initial, sorted(played.shards)
    alpha = settings.alpha
    h, gradients = torch.zeros_like(w), {seat: torch.zeros_like(w) for seat in seats}
    for round in range(settings.rounds):
        models = []
        for seat in (drawn := cohort(played, round)):
            found, _ = descend(played, w, seat, round, lambda v, seat=seat, w=w: alpha * (v - w) - gradients[seat])
            gradients[seat] = gradients[seat] - alpha * (found - w)
            models.append(found)
        h = h - alpha / len(seats) * sum(found - w for found in models)
        w = sum(models) / len(drawn) - h / alpha
    return w, h, gradients


def halves(played):
    """The memories of the server and of the clients."""
    server, *clients = (played.world.seats[seat].roles[0] for seat in range(played.topology.n))
    return server._central._memory, {seat: each._outbox.local._gradient for seat, each in enumerate(clients, 1)}


@pytest.mark.parametrize("alpha", [0.02, 0.5])
@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_it_is_the_loop_that_the_paper_has(fraction, alpha):
    played = feddyn(fraction=fraction, alpha=alpha).play()
    w, h, gradients = by_hand(played)
    memory, own = halves(played)
    assert torch.allclose(played.params[0], w, rtol=0, atol=1e-4)
    assert torch.allclose(memory, h, rtol=0, atol=1e-5)
    assert all(torch.allclose(own[seat], gradients[seat], rtol=0, atol=1e-5) for seat in gradients)


def test_a_client_that_comes_to_its_minimum_remembers_its_gradient():
    """g_k is the gradient of F_k where the training ended: what makes the minimum of all a fixed point."""
    played = feddyn(train=TrainSpec(lr=0.5, batch_size=1000, epochs=100), rounds=2, alpha=1.0).play()
    _, own = halves(played)
    first = feddyn(train=played.train, rounds=1, alpha=1.0).play()
    for seat in (1, 4):
        w = first.params[0]
        before = halves(first)[1][seat]
        found, _ = descend(played, w, seat, 1, lambda v, w=w, before=before: v - w - before)
        assert torch.allclose(own[seat], gradient(played, found, played.shards[seat].indices), rtol=0, atol=1e-4)


def test_many_local_steps_lead_to_the_minimum_of_all():
    shared = {"rounds": 20, "weights": "equal", "evaluate": "none"}
    averaged = slope(FEDAVG, FedAvgSettings(**shared))
    assert slope(FEDDYN, FedDynSettings(**shared, alpha=0.1)) < averaged / 3


def test_running_statistics_are_averaged_and_have_no_memory():
    played = feddyn(train=TrainSpec(lr=0.1, batch_size=8, drop_last=True))
    x, y = played.data.batch(played.data.train_indices[:4])
    played.model = Model.of(Normalised(), functional.cross_entropy, x, y)
    played.play()
    memory, _ = halves(played)
    assert len(memory) == played.model.layout.numel - 128
    assert bool((played.params[0][-64:] > 0).all()), "variances"


async def test_a_client_s_memory_survives_a_restart():
    played = feddyn()
    learner = played.learner(1)
    disk, rule = SimulatedDisk(Random(0)), _rule(learner, played.settings)

    def opened():
        return Outbox(learner, rule, Durable(Journal(disk, "run")))

    first = opened()
    await first.update(Told(), 0, rule.down.tensors(played.model.initial))
    assert first.local._gradient.norm() > 0
    assert torch.equal(opened().local._gradient, first.local._gradient)


def test_mistakes_name_the_field():
    with pytest.raises(ConfigError, match=r"course.alpha is 0; it must be above 0"):
        FedDynSettings(alpha=0)
    with pytest.raises(ConfigError, match=r"train.proximal is 0.1, and the course has course.alpha for that"):
        feddyn(train=TrainSpec(proximal=0.1)).play()
