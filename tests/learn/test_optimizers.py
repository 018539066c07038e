"""Training that goes on where the optimizer stood, against torch's own optimizer that never stops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from p2pfl.errors import ConfigError
from p2pfl.learn.model import Model, build_model
from p2pfl.learn.optimizers import Slots, is_mindful, memory_numel, optimizer_of, slots_of
from p2pfl.learn.params import bind, flatten
from p2pfl.learn.specs import ModelSpec, TrainSpec
from p2pfl.learn.tiers import fit_one
from p2pfl.learn.train import Fit
from tests.compute.kit import blobs

DATA = blobs()
KINDS = {
    "momentum": ({"momentum": 0.9}, torch.optim.SGD, {"momentum": 0.9}),
    "AdamW": ({"optimizer": "AdamW", "weight_decay": 0.1}, torch.optim.AdamW, {"weight_decay": 0.1}),
    "Adam": ({"optimizer": "Adam", "optimizer_parameters": {"amsgrad": True}}, torch.optim.Adam, {"amsgrad": True}),
    "NAdam": ({"optimizer": "NAdam"}, torch.optim.NAdam, {}),
    "Adagrad": ({"optimizer": "Adagrad"}, torch.optim.Adagrad, {}),
    "RMSprop": ({"optimizer": "RMSprop"}, torch.optim.RMSprop, {}),
}


def model_of(module: nn.Module | None = None) -> Model:
    if module is None:
        return build_model(ModelSpec("mlp", hidden=(5,)), DATA, 0)
    return Model.of(module, nn.functional.cross_entropy, *DATA.batch(DATA.train_indices[:2]))


def spec_of(steps: int = 3, **more: object) -> TrainSpec:
    """Steps of all examples, so that their order does not matter."""
    return TrainSpec(steps=steps, batch_size=24, lr=0.05, **more)


@pytest.mark.parametrize(("given", "kind", "parameters"), KINDS.values(), ids=KINDS)
def test_three_trainings_with_what_is_remembered_are_one_three_times_as_long(given, kind, parameters):
    model, spec = model_of(), spec_of(**given)
    module = model.copy().module
    bind(module, model.initial.clone())
    algorithm = kind(module.parameters(), lr=spec.lr, **parameters)
    x, y = DATA.batch(DATA.train_indices)
    for _ in range(9):
        algorithm.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        algorithm.step()
    flat, memory = model.initial, torch.empty(0)
    for seed in range(3):
        before = memory.clone()
        found = fit_one(Fit(flat, model, DATA.train, spec, seed, memory=memory))
        assert torch.equal(memory, before), "what was remembered was written to"
        flat, memory = found.params, found.memory
        assert len(memory) == memory_numel(model.layout, spec)
    torch.testing.assert_close(flat, flatten(module), rtol=0, atol=2e-6)
    anew = fit_one(Fit(model.initial, model, DATA.train, spec, 0))
    assert anew.memory is None
    fresh = fit_one(Fit(flat, model, DATA.train, spec, 0)).params
    gone_on = fit_one(Fit(flat, model, DATA.train, spec, 0, memory=memory)).params
    assert not torch.allclose(fresh, gone_on, atol=1e-4), "memory makes no difference"


def test_what_is_remembered_of_each_weight_and_of_each_parameter():
    assert slots_of(spec_of(optimizer="AdamW")) == Slots(("exp_avg", "exp_avg_sq"), ("step",))
    assert slots_of(spec_of(optimizer="SGD")) == Slots((), ())
    model = model_of()
    assert memory_numel(model.layout, spec_of(optimizer="AdamW")) == 2 * model.layout.numel + 4
    assert memory_numel(model.layout, spec_of(momentum=0.5)) == model.layout.numel
    assert memory_numel(model.layout, spec_of()) == 0
    assert [is_mindful(spec) for spec in (spec_of(), spec_of(momentum=0.5), spec_of(optimizer="Adam"))] == [0, 1, 1]


def test_running_statistics_are_no_part_of_it():
    model = model_of(nn.Sequential(nn.Linear(2, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 3)))
    spec = spec_of(optimizer="Adam")
    one = fit_one(Fit(model.initial, model, DATA.train, spec, 0, memory=torch.empty(0)))
    two = fit_one(Fit(one.params, model, DATA.train, spec, 1, memory=one.memory))
    whole = fit_one(Fit(model.initial, model, DATA.train, spec_of(6, optimizer="Adam"), 0))
    torch.testing.assert_close(two.params, whole.params, rtol=0, atol=1e-5)


@pytest.mark.parametrize("given", [{"momentum": 0.9}, {"optimizer": "AdamW"}])
def test_who_has_not_trained_remembers_what_it_did(given):
    model, nobody = model_of(), replace(DATA.train, indices=DATA.train.indices[:0])
    spec = spec_of(**given)
    for memory in (
        torch.empty(0),
        fit_one(Fit(model.initial, model, DATA.train, spec, 0, memory=torch.empty(0))).memory,
    ):
        found = fit_one(Fit(model.initial, model, nobody, TrainSpec(epochs=1, **given), 0, memory=memory))
        assert found.steps == 0
        assert torch.count_nonzero(found.memory) == torch.count_nonzero(memory)


def test_a_memory_in_no_form_to_be_kept_is_refused():
    with pytest.raises(ConfigError, match=r"^train\.optimizer Adafactor remembers '.*', which .*; choose another"):
        slots_of(spec_of(optimizer="Adafactor"))
    with pytest.raises(ConfigError, match=r"^train\.optimizer"):
        optimizer_of(spec_of(optimizer="Adm"), [torch.zeros(1, requires_grad=True)], 0.1)


def test_training_of_ones_own_cannot_be_carried_on(tmp_path):
    (tmp_path / "own.py").write_text("def fit(params, shard):\n    return params, len(shard), 0.0\n")
    model, spec = model_of(), TrainSpec(function=f"{tmp_path}/own.py:fit")
    with pytest.raises(ConfigError, match=r"set course\.carry to false$"):
        fit_one(Fit(model.initial, model, DATA.train, spec, 0, memory=torch.empty(0)))
