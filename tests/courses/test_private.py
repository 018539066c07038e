"""Gossip in which a part of the model stays: recurrences by hand, in which mixing is the identity for that part."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch

from p2pfl.courses.choco import CHOCO, ChocoSettings
from p2pfl.courses.course import Place
from p2pfl.courses.d2 import D2, D2Settings
from p2pfl.courses.dfedavgm import DFEDAVGM, DfedavgmSettings
from p2pfl.courses.dpsgd import DPSGD, DpsgdSettings, Mixer
from p2pfl.courses.gossip import CaughtUp, Pull
from p2pfl.courses.gossip_diloco import GOSSIP_DILOCO, GossipDilocoSettings
from p2pfl.courses.gradtrack import GRADTRACK, GradtrackSettings
from p2pfl.courses.parts import Parts
from p2pfl.courses.private import Private, keeping, private_of
from p2pfl.courses.qgm import QGM, QgmSettings
from p2pfl.courses.relaysgd import RELAYSGD, RelaysgdSettings
from p2pfl.courses.steps import Adapt
from p2pfl.errors import ConfigError
from p2pfl.learn.data import load_dataset
from p2pfl.learn.model import build_model
from p2pfl.learn.specs import DataSpec, ModelSpec, PartitionSpec, TrainSpec
from p2pfl.sim.devices import DeviceSpec
from p2pfl.topology.families import build
from p2pfl.topology.mixing import mixing_matrix
from tests.courses.by_hand import mask_of
from tests.courses.kit import At, Played, check_course, dataset, first_models, last_models, local_training

RING = build("ring", 5)
LAYERS = ModelSpec("mlp", hidden=(6,))  # "1" is the first layer, "3" the last
ROUNDS = 4


def gossip(course, settings, topology=RING, **more):
    settings = replace(settings, **{"rounds": ROUNDS, "evaluators": 0, "private": ("3.*",)} | more.pop("own", {}))
    return Played(course, settings, topology, **{"model_spec": LAYERS, **more})


def adapt(y, x, mix, c):
    return mix(y), c


def combine(y, x, mix, c):
    return mix(x) + y - x, c


def exact_diffusion(y, x, mix, c):
    new = (mix(y + c) + y + c) / 2  # with lazy weights
    return new, new - y


def tracking(y, x, mix, c):
    u = y - x
    return mix(x + u + c), mix(c + u) - u


CASES = {
    "dpsgd": (DPSGD, DpsgdSettings(), adapt),
    "dpsgd, combine": (DPSGD, DpsgdSettings(order="combine"), combine),
    "d2": (D2, D2Settings(), exact_diffusion),
    "gradtrack": (GRADTRACK, GradtrackSettings(), tracking),
}


@pytest.mark.parametrize(("course", "settings", "step"), CASES.values(), ids=CASES)
def test_what_is_private_is_trained_and_never_mixed(course, settings, step):
    played = gossip(course, settings).play()
    w, own = mixing_matrix(RING).astype(np.float32), mask_of(played.model, "3").numpy()
    x, c = first_models(played), np.zeros_like(first_models(played))
    for round in range(ROUNDS):
        y = local_training(played, x, round)
        x, c = step(y, x, lambda z: own * z + (1 - own) * (w @ z), c)
    np.testing.assert_allclose(last_models(played), x, atol=3e-5)
    assert played.world.seats[0].roles[0].parts.numel in ((64 * 6 + 6), 2 * (64 * 6 + 6)), "and only the rest travels"


@pytest.mark.parametrize(
    ("course", "settings"),
    [
        (QGM, QgmSettings()),
        (DFEDAVGM, DfedavgmSettings()),
        (GOSSIP_DILOCO, GossipDilocoSettings()),
        (DPSGD, DpsgdSettings(signed=True)),
    ],
)
def test_it_is_a_course_like_any_other(course, settings):
    check_course(course, replace(settings, rounds=3, private=("1.bias",)), RING)


def test_models_are_measured_on_their_own_examples_and_better_there():
    data, found = load_dataset(DataSpec(), 1), {}
    for private in ((), ("3.*",)):
        played = gossip(
            DPSGD, DpsgdSettings(), build("torus", 9), own={"rounds": 20, "private": private}, data=data, seed=1,
            split=PartitionSpec("classes", classes_per_client=3), train=TrainSpec(lr=0.1, batch_size=20, momentum=0.9),
        )  # fmt: skip
        held = {}
        for seat, shard in played.shards.items():
            played.shards[seat], held[seat] = shard.split(0.25, seat)
        learner = played.learner

        def with_held(seat, compute=None, learner=learner, held=held):
            return replace(learner(seat, compute), validation=held[seat])

        played.learner = with_held
        settings = replace(played.settings, evaluators=-1, evaluate_every=20)
        played.settings = settings
        played.play()
        own = [played.metric("client_accuracy", seat) for seat in range(9)]
        assert all(len(each) == (1 if private else 0) for each in own)
        if private:
            found["private"] = np.mean(own)
        else:
            scores = [with_held(seat).evaluate(played.params[seat], held[seat]) for seat in range(9)]
            found["common"] = np.mean([asyncio.run(score).accuracy for score in scores])
    assert found["private"] > found["common"] + 0.02


# -- who comes late ----------------------------------------------------------------------------------------------------


def test_what_is_private_is_not_given_to_who_comes_late_either():
    played = gossip(DPSGD, DpsgdSettings())
    mixer = played.course.play(Place(0, RING, played.learner(0), played.settings))[0]
    assert isinstance(mixer, Mixer)
    mixer.params, mixer._round = torch.full_like(mixer.params, 7.0), 3

    answer = asyncio.run(mixer.pull(Pull(0), At(1)))
    assert answer.params is None, "it is near"
    mixer._round = 4
    given = played.learner(0).vector(asyncio.run(mixer.pull(Pull(0), At(1))).params)
    own = mask_of(played.model, "3")
    assert torch.equal(given, own * played.model.initial + (1 - own) * 7)


def test_who_was_away_keeps_what_is_its_own():
    played = gossip(DPSGD, DpsgdSettings(), own={"rounds": 30}, devices=DeviceSpec(examples_per_second=24))
    played.world.mortal = True
    own, kept, goes_on = mask_of(played.model, "3").bool(), [], []

    def recast(seat, roles):
        if seat == 1 and kept:
            roles[0].resume(kept[0])
            follow = roles[0]._follow

            def noted(lead):
                follow(lead)
                goes_on.append((lead.params, roles[0].params))

            roles[0]._follow = noted
        return roles

    played.recast = recast

    async def weather():
        await asyncio.sleep(5)
        kept.append(played.world.seats[1].roles[0].state())
        played.world.kill(1)
        await asyncio.sleep(20)
        await played.world.restart(1)

    played.play(weather())
    assert played.told(CaughtUp, 1)
    lead, params = goes_on[0]
    assert torch.equal(params[own], kept[0]["params"][own]) and torch.equal(params[~own], lead[~own])
    assert torch.equal(lead[own], played.model.initial[own])


# -- what it is made of ------------------------------------------------------------------------------------------------


def test_its_memory_is_that_of_the_algorithm_within():
    model = build_model(LAYERS, dataset(), 0)

    class Remembers(Adapt):
        memory = 1

        def restart(self):
            self.memory = 0

        def state(self):
            return {"memory": self.memory}

        def resume(self, state):
            self.memory = state["memory"]

    inner = Remembers(Parts(model))
    steps = Private(inner, model, {"3.weight"})
    steps.resume({"memory": 5, "params": model.initial})
    assert steps.state() == {"memory": 5} == inner.state()
    steps.restart()
    assert inner.memory == 0


@pytest.mark.parametrize(
    ("course", "settings"), [(CHOCO, ChocoSettings()), (RELAYSGD, RelaysgdSettings())], ids=["choco", "relaysgd"]
)
def test_where_more_than_models_is_given_it_is_refused(course, settings):
    played = gossip(course, settings, build("chain", 3))
    with pytest.raises(ConfigError, match=rf"^course\.private is set, and {settings.name} gives more than models"):
        course.play(Place(0, played.topology, played.learner(0), played.settings))


def test_patterns_name_something_and_not_all():
    model = build_model(LAYERS, dataset(), 0)
    assert private_of(model, "dpsgd", ("3.*", "1.bias")) == {"3.weight", "3.bias", "1.bias"}
    for patterns, sentence in ((("head.*",), r"^course\.private has 'head\.\*', which fits"), (("*",), "not all$")):
        with pytest.raises(ConfigError, match=sentence):
            private_of(model, "dpsgd", patterns)


def test_without_patterns_steps_are_as_they_were():
    played = gossip(DPSGD, DpsgdSettings(), own={"private": ()})
    steps = Adapt(played.learner(0).parts)
    assert keeping(steps, Place(0, RING, played.learner(0), played.settings)) is steps
