import torch

from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.messages import Finish, Train
from p2pfl.courses.trainer import Trainer
from p2pfl.errors import RemoteError
from p2pfl.node.node import Node
from p2pfl.topology.families import build
from tests.courses.kit import Played


def test_a_trainer_obeys_its_server_only():
    class Usurper(Trainer):
        """A client that gives orders to another one."""

        refused = None

        async def run(self, node: Node) -> None:
            (peer,) = await node.meet([2])
            try:
                await peer.ask(Train(0, self._learner.tensors(torch.zeros_like(self.params))))
            except RemoteError as error:
                self.refused = error
            await peer.tell(Finish(1, self._learner.tensors(torch.zeros_like(self.params))))
            await super().run(node)

    def recast(seat, roles):
        return (Usurper(roles[0]._learner, 0),) if seat == 1 else roles

    quiet, played = (
        Played(FEDAVG, FedAvgSettings(rounds=2), build("star", 4), recast=cast).play()
        for cast in (lambda seat, roles: roles, recast)
    )
    (usurper,) = played.world.seats[1].roles
    assert "seat 1 has no say here: that is for seat 0" in str(usurper.refused)
    assert torch.equal(played.params[2], quiet.params[2])


def test_only_a_plain_client_of_averaging_only_trains():
    plain = Played(FEDAVG, FedAvgSettings(), build("star", 3))
    assert Trainer(plain.learner(1), 0).only_trains
    tuned = Played(FEDAVG, FedAvgSettings(finetune_epochs=1, evaluate="clients"), build("star", 3))
    (trainer,) = tuned._roles(1, tuned.compute)
    assert not trainer.only_trains


def test_it_ends_with_the_model_that_its_server_gives_it() -> None:
    played = Played(FEDAVG, FedAvgSettings(rounds=1), build("star", 3)).play()
    assert all(isinstance(role, Trainer) for seat in (1, 2) for role in played.world.seats[seat].roles)
    assert torch.equal(played.params[1], played.params[0]) and not torch.equal(played.params[1], played.model.initial)


def test_of_a_plain_rule_nothing_lasts_from_round_to_round() -> None:
    trainer = Trainer(Played(FEDAVG, FedAvgSettings(), build("star", 3)).learner(1), 0)
    assert trainer.state() == {}
    trainer.resume({})
