"""The halves of an algorithm in the roles: what goes down and up, and states that survive."""

from random import Random

import torch

from p2pfl.courses.durable import Durable
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings, Server, Trainer
from p2pfl.courses.outbox import Outbox
from p2pfl.courses.parts import Parts
from p2pfl.courses.rules import Averaging, Rule, Trained, Training, averaging
from p2pfl.journal.journal import Journal
from p2pfl.sim.disk import SimulatedDisk
from p2pfl.topology.families import build
from tests.courses.kit import Played
from tests.courses.test_durable import Told


class Counting(Training):
    """Sends its seat and how often it has trained along with the model that it got, untrained."""

    stateful = True

    def __init__(self):
        self.rounds = 0

    async def train(self, learner, received, round):
        self.rounds += 1
        params, note = rule(learner).down.split(received).values()
        up = torch.cat((params + 1, torch.tensor([float(learner.seat), float(self.rounds), float(note[0])])))
        return Trained(up, 1, 0.0)

    async def personal(self, learner, params):
        return params * 0 + self.rounds

    def state(self):
        return {"rounds": self.rounds}

    def resume(self, state):
        self.rounds = int(state.get("rounds", 0))


class Noting(Averaging):
    """Sends the sum of all shares so far along, and keeps what came with the mean."""

    def __init__(self):
        self.shares, self.notes = 0.0, []

    def broadcast(self, params, round):
        return torch.cat((params, torch.tensor([self.shares])))

    def absorb(self, params, mean, share, round):
        self.shares += share
        self.notes.append(mean[-3:].tolist())
        return mean[:-3].clone()

    def state(self):
        return {"shares": self.shares}

    def resume(self, state):
        self.shares = float(state["shares"])


def rule(learner):
    return Rule(Parts(learner.model, note=1), Parts(learner.model, notes=3), Noting, Counting)


def recast(seat, roles):
    (role,) = roles
    learner = role._learner
    if seat == 0:
        return (Server(learner, role._settings, (1, 2, 3, 4), rule=rule(learner)),)
    return (Trainer(learner, 0, rule=rule(learner)),)


def test_what_goes_down_and_up_is_the_rule_s():
    settings = FedAvgSettings(rounds=3, fraction=0.5, weights="equal", evaluate="none")
    played = Played(FEDAVG, settings, build("star", 5), recast=recast).play()
    (server,) = played.world.seats[0].roles
    assert torch.allclose(server.params, played.model.initial + 3)
    assert [note[2] for note in server._central.notes] == [0.0, 0.5, 1.0]
    assert server.state()["central.shares"] == 1.5
    trained = [played.world.seats[seat].roles[0]._outbox.local.rounds for seat in range(1, 5)]
    assert sum(trained) == 6
    for seat in range(1, 5):
        assert set(played.params[seat].tolist()) == {trained[seat - 1]}, "each ends with what serves it"


def test_the_server_s_half_survives_a_checkpoint():
    played = Played(FEDAVG, FedAvgSettings(), build("star", 3))
    learner = played.learner(0)
    server = Server(learner, played.settings, (1, 2), rule=rule(learner))
    server._central.shares = 2.5
    other = Server(learner, played.settings, (1, 2), rule=rule(learner))
    other.resume(server.state())
    assert other._central.shares == 2.5


async def test_the_client_s_half_survives_a_restart_and_counts_a_round_once():
    learner = Played(FEDAVG, FedAvgSettings(), build("star", 3)).learner(1)
    disk, asked = SimulatedDisk(Random(0)), rule(learner)

    def opened():
        return Outbox(learner, asked, Durable(Journal(disk, "run")))

    async def update(outbox, round):
        sent = asked.down.tensors(torch.zeros(asked.down.numel))
        found = await outbox.update(Told(), round, sent)
        return asked.up.split(asked.up.vector(found.params))["notes"].tolist()

    first = opened()
    assert await update(first, 0) == [1.0, 1.0, 0.0]
    assert await update(first, 0) == [1.0, 1.0, 0.0], "it is asked again"
    second = opened()
    assert await update(second, 0) == [1.0, 1.0, 0.0], "it was killed, and is asked again"
    assert await update(second, 1) == [1.0, 2.0, 0.0]
    assert opened().local.rounds == 2


async def test_without_a_journal_too_who_remembers_counts_a_round_once():
    learner = Played(FEDAVG, FedAvgSettings(), build("star", 3)).learner(1)
    asked = rule(learner)
    outbox = Outbox(learner, asked, Durable(None))
    sent = asked.down.tensors(torch.zeros(asked.down.numel))
    one, two = [await outbox.update(Told(), 0, sent) for _ in range(2)]
    assert one is two
    assert outbox.local.rounds == 1


def test_federated_averaging_is_the_rule_by_default():
    learner = Played(FEDAVG, FedAvgSettings(), build("star", 3)).learner(1)
    found = averaging(learner)
    assert found.down.schema == found.up.schema == learner.schema
    params, mean = torch.zeros(3), torch.ones(3)
    central = found.central()
    assert central.broadcast(params, 0) is params
    assert central.absorb(params, mean, 1.0, 0) is mean
    assert not found.local().stateful
