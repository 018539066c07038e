"""The tables of a course file: read by msgspec, offered as flags by tyro, checked when made."""

import dataclasses
import math
import subprocess
import sys

import msgspec
import pytest
import tyro

from p2pfl.errors import ConfigError
from p2pfl.learn.specs import DataSpec, ModelSpec, PartitionSpec, TrainSpec


@pytest.mark.parametrize("spec", [DataSpec(), PartitionSpec(), ModelSpec(), TrainSpec()])
def test_defaults_survive_the_way_to_a_file_and_back(spec: object) -> None:
    assert msgspec.convert(msgspec.to_builtins(spec), type(spec)) == spec


def test_tables_of_a_file() -> None:
    table = {"name": "./net.py:Net", "hidden": [64, 32], "parameters": {"p": 0.5, "sizes": [1, 2], "flag": True}}
    spec = msgspec.convert(table, ModelSpec)
    assert spec.hidden == (64, 32)
    assert spec.parameters == {"p": 0.5, "sizes": (1, 2), "flag": True}
    assert msgspec.convert({"categories": {"sex": ["m", "f"]}}, DataSpec).categories == {"sex": ("m", "f")}


@pytest.mark.parametrize("kind", [DataSpec, PartitionSpec, ModelSpec, TrainSpec])
def test_every_field_is_a_flag(kind: type) -> None:
    assert tyro.cli(kind, args=[]) == kind()


def test_flags() -> None:
    assert tyro.cli(TrainSpec, args=["--lr", "0.5", "--drop-last"]) == TrainSpec(lr=0.5, drop_last=True)
    assert tyro.cli(ModelSpec, args=["--hidden", "3", "4"]) == ModelSpec(hidden=(3, 4))


@pytest.mark.parametrize(
    ("kind", "field", "value", "words"),
    [
        (DataSpec, "source", "", "data.source is empty"),
        (DataSpec, "test_share", 1.0, "data.test_share is 1.0"),
        (DataSpec, "subsample", 0.0, "data.subsample is 0.0"),
        (DataSpec, "task", "ranking", "data.task is 'ranking'; it must be one of classification, regression"),
        (DataSpec, "missing", "guess", "data.missing is 'guess'"),
        (DataSpec, "window", 0, "data.window is 0"),
        (DataSpec, "image_size", (28,), "data.image_size is"),
        (PartitionSpec, "scheme", "iid2", "partition.scheme is 'iid2'"),
        (PartitionSpec, "shift", "blur", "partition.shift is 'blur'"),
        (PartitionSpec, "alpha", 0.0, "partition.alpha is 0.0"),
        (PartitionSpec, "alpha", math.nan, "partition.alpha is nan"),
        (PartitionSpec, "classes_per_client", 0, "partition.classes_per_client is 0"),
        (PartitionSpec, "sigma", -1.0, "partition.sigma is -1.0"),
        (PartitionSpec, "min_examples", -1, "partition.min_examples is -1"),
        (PartitionSpec, "shift_strength", 1.0, "partition.shift is none"),
        (PartitionSpec, "concepts", 0, "partition.concepts is 0"),
        (PartitionSpec, "drift_rounds", 3, "nothing drifts; set partition.shift or concepts too"),
        (ModelSpec, "name", "", "model.name is empty"),
        (ModelSpec, "hidden", (3, 0), "model.hidden is"),
        (TrainSpec, "schedule", "linear", "train.schedule is 'linear'"),
        (TrainSpec, "epochs", 0, "train.epochs is 0"),
        (TrainSpec, "batch_size", 0, "train.batch_size is 0"),
        (TrainSpec, "lr", -0.1, "train.lr is -0.1"),
        (TrainSpec, "lr", math.nan, "train.lr is nan"),
        (TrainSpec, "limit_seconds", -1.0, "train.limit_seconds is -1.0; it must not be negative"),
        (TrainSpec, "momentum", 1.0, "train.momentum is 1.0"),
        (TrainSpec, "label_smoothing", 1.0, r"train.label_smoothing is 1.0; it must lie in \[0, 1\)"),
        (TrainSpec, "precision", "half", "train.precision is 'half'"),
        (TrainSpec, "accumulate", 0, "train.accumulate is 0; it must be at least 1"),
        (TrainSpec, "sam_rho", -0.1, "train.sam_rho is -0.1; it must not be negative"),
        (TrainSpec, "sam_adaptive", True, "train.sam_adaptive is set, but train.sam_rho is 0; give a radius"),
        (TrainSpec, "optimizer_parameters", {"eps": 1}, "not for sgd"),
    ],
)
def test_mistakes_name_the_field(kind: type, field: str, value: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        kind(**{field: value})


def test_momentum_beside_another_optimizer_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match=r"train.momentum is for sgd"):
        TrainSpec(optimizer="Adam", momentum=0.9)


def test_a_tier_beside_a_function_of_one_s_own_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match=r"train.tier is plain, but train.function trains in its own way"):
        TrainSpec(function="./mine.py:fit", tier="plain")


def test_specs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainSpec().lr = 1.0  # type: ignore[misc]  # the point of the test


def test_importing_the_package_or_the_specs_loads_no_torch() -> None:
    code = "import sys, p2pfl.learn, p2pfl.learn.specs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
