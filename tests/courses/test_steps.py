"""The pieces of which algorithms of the D-PSGD family are made, and how the Mixer plays them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from p2pfl.courses.dpsgd import Mixer, MixingSettings, Model, mixing
from p2pfl.courses.gossip import Lead
from p2pfl.courses.parts import Parts
from p2pfl.courses.steps import Adapt, Combine
from p2pfl.errors import ConfigError, RemoteProtocolError
from p2pfl.learn.specs import TrainSpec
from p2pfl.topology.families import build
from tests.courses.kit import Played, first_models, last_models

X, Y = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])


def test_models_that_were_trained_are_mixed():
    steps = Adapt(None)
    assert steps.give(X, Y) is Y and steps.to(Y, 3) is Y and steps.shown(Y) is Y
    assert steps.take(X, Y, mixed := torch.zeros(2), {}) is mixed
    assert not steps.state()


def test_the_weight_of_what_does_not_come_stays_or_is_shared():
    row = {1: 0.25, 2: 0.25}
    assert Adapt(None).received(row, {1}) == {1: 0.25}
    assert Combine(None, "renormalise").received(row, {1}) == {1: pytest.approx(1 / 3)}


def test_models_that_training_began_with_are_mixed():
    steps = Combine(None)
    assert steps.give(X, Y) is X
    assert steps.take(X, Y, torch.tensor([10.0, 10.0]), {}).tolist() == [12.0, 13.0]


class Counted(Adapt):
    """Gives each neighbour the model, and beside it the number of its seat, which is mixed too."""

    apart = True

    def __init__(self, place):
        super().__init__(Parts(place.learner.model, seat=1))
        self.restarted, self.heard = 0, {}

    def give(self, params, trained):
        return self.parts.join(params=trained, seat=torch.full((1,), -1.0))

    def to(self, shared, seat):
        return self.parts.join(params=self.parts.split(shared)["params"], seat=torch.full((1,), float(seat)))

    def take(self, params, trained, mixed, heard):
        self.heard = dict(heard)
        return self.parts.split(mixed)["params"].clone()

    def check(self, vector):
        if vector[-1] > 100:
            raise RemoteProtocolError("there is no such seat")

    def shown(self, vector):
        return self.parts.split(vector)["params"]

    def restart(self):
        self.restarted += 1

    def state(self):
        return {"restarted": self.restarted}

    def resume(self, state):
        self.restarted = state["restarted"]


def played(**more):
    return Played(mixing("counted", MixingSettings, Counted), MixingSettings(rounds=2), build("ring", 4), **more)


def mixer_of(ours):
    learner = ours.learner(0)
    return Mixer(learner, ours.settings, ours.topology, steps=Counted(SimpleNamespace(learner=learner)))


def test_each_neighbour_is_given_its_own():
    ours = played(train=TrainSpec(lr=0.0)).play()
    for seat in range(4):
        (mixer,) = ours.world.seats[seat].roles
        assert {int(vector[-1]) for vector in mixer._steps.heard.values()} == {seat}
        assert set(mixer._steps.heard) == set(ours.topology.neighbors(seat))
    np.testing.assert_allclose(last_models(ours), first_models(ours), atol=1e-6)
    assert all(distance == 0 for distance in ours.metric("consensus_distance")), "between models, of what is given"


def test_what_no_honest_neighbour_gives_is_refused():
    ours = played()
    mixer = mixer_of(ours)

    class At:
        seat, label = 1, "seat 1"

    bad = mixer._steps.parts.join(params=ours.model.initial, seat=torch.full((1,), 101.0))
    with pytest.raises(RemoteProtocolError, match="no such seat"):
        mixer.model(Model(0, mixer._steps.parts.tensors(bad)), At())
    assert not mixer._mailbox


def test_what_steps_remember_is_in_the_state_of_the_role():
    ours = played()
    mixer = mixer_of(ours)
    mixer.resume({"params": ours.model.initial, "round": 1, "restarted": 7})
    assert mixer.state()["restarted"] == 7 and mixer.state()["round"] == 1


def test_who_goes_on_with_the_model_of_a_neighbour_begins_anew():
    ours = played()
    mixer = mixer_of(ours)
    mixer._follow(Lead(1, ours.model.initial))
    assert mixer._steps.restarted == 1


def test_a_deadline_must_not_be_negative():
    with pytest.raises(ConfigError, match=r"^course\.deadline_seconds is -1"):
        MixingSettings(deadline_seconds=-1)
