"""A run that was cut off and resumed has the bytes of one that was not."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import orjson
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.app.build import prepare
from p2pfl.app.checkpoint import CHECKPOINT, Checkpoint, Standing
from p2pfl.app.cli import main
from p2pfl.app.config import from_mapping
from p2pfl.app.simulate import simulate
from p2pfl.errors import ConfigError

DIGITS = Path(__file__).parents[2] / "examples" / "digits.toml"
COURSES = {
    "choco": {
        "course": {"name": "choco", "restart_every": 3},
        "compress": {"up": {"select": "low-rank", "values": "sign"}},
        "topology": {"family": "ring", "n": 4},
    },
    "jwins": {"course": {"name": "jwins"}, "topology": {"family": "one-peer-exponential", "n": 4}},
    "powergossip": {"course": {"name": "powergossip", "rank": 2}, "topology": {"family": "ring", "n": 4}},
    "deepsqueeze": {
        "course": {"name": "deepsqueeze"},
        "compress": {"up": {"values": "qsgd"}},
        "topology": {"family": "ring", "n": 4},
    },
    "compressed": {
        "course": {"name": "fedavg"},
        "compress": {"up": {"select": "low-rank", "values": "sign"}, "down": {"values": "qsgd"}},
        "topology": {"n": 5},
    },
    "ef21": {
        "course": {"name": "fedavg", "weights": "equal", "fraction": 0.5},
        "compress": {"up": {"select": "top-k", "memory": "ef21"}, "down": {"values": "uniform", "entropy": "zlib"}},
        "topology": {"n": 5},
    },
    "scaffold": {"course": {"name": "scaffold", "fraction": 0.5}, "topology": {"n": 5}},
    "feddyn": {"course": {"name": "feddyn", "alpha": 0.1, "fraction": 0.5}, "topology": {"n": 5}},
    "fedprox": {"course": {"name": "fedprox", "stragglers": 0.5}, "topology": {"n": 5}},
    "fedavg": {"course": {"name": "fedavg", "fraction": 0.5, "keep": "best"}, "topology": {"n": 7}},
    "secagg": {
        "course": {"name": "fedavg", "privacy": "secagg", "secagg": {"most_examples": 50}},
        "topology": {"n": 6},
    },
    "additive": {
        "course": {"name": "fedavg", "privacy": "additive", "secagg": {"most_examples": 50}},
        "topology": {"n": 6},
    },
    "fedopt": {"course": {"name": "fedopt", "server_optimizer": "yogi", "fraction": 0.5}, "topology": {"n": 7}},
    "fedavgm": {"course": {"name": "fedavgm", "server_lr": 0.5}, "topology": {"n": 4}},
    "diloco": {
        "course": {"name": "diloco", "fraction": 0.5},
        "topology": {"n": 7},
        "train": {"optimizer": "AdamW", "lr": 0.01},
    },
    "fedswa": {"course": {"name": "fedswa", "swa_start": 0.3}, "topology": {"n": 4}},
    "fedbuff": {
        "course": {"name": "fedbuff", "goal": 2, "sampler": "grouped"},
        "devices": {"spread": 1.0},
        "topology": {"n": 6},
    },
    "ditto": {"course": {"name": "ditto", "fraction": 0.5}, "topology": {"n": 7}},
    "fedrep": {"course": {"name": "fedrep", "fraction": 0.5}, "topology": {"n": 7}},
    "fedbabu": {"course": {"name": "fedbabu", "private": ["1.bias"]}, "topology": {"n": 4}},
    "perfedavg": {"course": {"name": "perfedavg", "fraction": 0.5, "finetune_epochs": 1}, "topology": {"n": 7}},
    "ifca": {"course": {"name": "ifca", "clusters": 3, "fraction": 0.5, "evaluate": "both"}, "topology": {"n": 7}},
    "fedem": {"course": {"name": "fedem", "fraction": 0.5, "evaluate": "both"}, "topology": {"n": 7}},
    "fedproto": {"course": {"name": "fedproto", "fraction": 0.5}, "topology": {"n": 7}},
    "pfedme": {"course": {"name": "pfedme", "fraction": 0.5}, "topology": {"n": 7}},
    "apfl": {"course": {"name": "apfl", "fraction": 0.5}, "topology": {"n": 7}},
    "local": {"course": {"name": "local", "fraction": 0.5}, "topology": {"n": 7}},
    "hierarchical": {
        "course": {"name": "hierarchical"},
        "topology": {"family": "hierarchy", "n": 7, "parameters": {"edges": 2}},
    },
    "dpsgd": {"course": {"name": "dpsgd"}, "topology": {"family": "one-peer-exponential", "n": 4}},
    "plexus": {"course": {"name": "plexus", "sample": 2}, "topology": {"family": "full", "n": 5}},
    "teleportation": {"course": {"name": "teleportation", "sample": 3}, "topology": {"family": "full", "n": 5}},
    "pushsum": {"course": {"name": "pushsum"}, "topology": {"family": "exponential", "n": 5}},
    "private": {
        "course": {"name": "qgm", "private": ["*.bias"]},
        "topology": {"family": "ring", "n": 4},
    },
    "d2": {"course": {"name": "d2"}, "topology": {"family": "ring", "n": 4}},
    "gradtrack": {"course": {"name": "gradtrack"}, "topology": {"family": "ring", "n": 4}},
    "qgm": {"course": {"name": "qgm"}, "topology": {"family": "ring", "n": 4}},
    "gossip-diloco": {
        "course": {"name": "gossip-diloco"},
        "topology": {"family": "ring", "n": 4},
        "train": {"momentum": 0.9},
    },
    "relaysgd": {"course": {"name": "relaysgd"}, "topology": {"family": "chain", "n": 4}},
    "epidemic": {"course": {"name": "epidemic", "fanout": 2}, "topology": {"family": "full", "n": 4}},
    "gossip-learning": {
        "course": {"name": "gossip-learning", "account": "generalized", "capacity": 2},
        "topology": {"n": 4},
        "devices": {"spread": 1.0},
    },
    "pens": {
        "course": {"name": "pens", "selection_rounds": 3, "candidates": 3, "best": 1},
        "topology": {"n": 4},
    },
    "swift": {"course": {"name": "swift"}, "topology": {"family": "ring", "n": 4}, "devices": {"spread": 1.0}},
    "adpsgd": {"course": {"name": "adpsgd"}, "topology": {"family": "ring", "n": 4}, "devices": {"spread": 1.0}},
}  # fmt: skip


def prepared(name, rounds=5):
    train = {"lr": 0.3, **COURSES[name].get("train", {})}
    tables = {**COURSES[name], "seed": 3, "data": {"subsample": 0.1}, "train": train}
    tables["course"] = {**tables["course"], "rounds": rounds}
    return prepare(from_mapping(tables))


@pytest.mark.parametrize("name", COURSES)
@pytest.mark.parametrize("stopped_at", [0, 1])
def test_a_resumed_run_has_the_bytes_of_an_uninterrupted_one(name, stopped_at, tmp_path):
    saved: list[Checkpoint] = []
    whole = simulate(prepared(name), start=Checkpoint(Standing(every=2)), saved=saved.append)
    assert [checkpoint.standing.round for checkpoint in saved] == [2, 4]
    saved[stopped_at].save(tmp_path)
    resumed = simulate(prepared(name), start=Checkpoint.load(tmp_path))
    assert torch.equal(resumed.params, whole.params)
    assert resumed.trace == whole.trace
    assert resumed.rounds == whole.rounds[2 * (stopped_at + 1) :]
    assert (resumed.bytes, resumed.packets, resumed.virtual_seconds, resumed.reason) == (
        whole.bytes, whole.packets, whole.virtual_seconds, whole.reason
    )  # fmt: skip


@pytest.mark.parametrize("sleepers", [False, True], ids=["resident", "asleep"])
def test_a_world_in_which_nodes_come_and_go_is_resumed_with_the_same_bytes(sleepers, tmp_path):
    course = {"name": "fedavg", "rounds": 6, "quorum": 0.5, "deadline_seconds": 30.0, "min_clients": 3}
    tables = {
        "course": course, "seed": 5, "data": {"subsample": 0.1}, "world": {"profile": "phones"},
        "topology": {"n": 9}, "partition": {"scheme": "bootstrap"}, "network": {"loss_every_seconds": 40.0},
    }  # fmt: skip
    if sleepers:
        tables |= {"topology": {"n": 2001}, "course": {**course, "fraction": 0.005}}
    saved: list[Checkpoint] = []
    whole = simulate(prepare(from_mapping(tables)), start=Checkpoint(Standing(every=2)), saved=saved.append)
    saved[0].save(tmp_path)
    resumed = simulate(prepare(from_mapping(tables)), start=Checkpoint.load(tmp_path))
    assert torch.equal(resumed.params, whole.params)
    assert (resumed.trace, resumed.virtual_seconds) == (whole.trace, whole.virtual_seconds)
    assert resumed.rounds == whole.rounds[2:]
    assert resumed.train_flops == whole.train_flops


@pytest.mark.parametrize("name", ["fedavg", "compressed", "scaffold", "feddyn", "hierarchical", "dpsgd"])
def test_where_rounds_are_in_step_a_checkpoint_changes_no_model(name):
    plain = simulate(prepared(name))
    paused = simulate(prepared(name), start=Checkpoint(Standing(every=1)))
    assert torch.equal(paused.params, plain.params)
    assert [done.metrics for done in paused.rounds] == [done.metrics for done in plain.rounds]
    assert paused.virtual_seconds > plain.virtual_seconds


def test_a_course_that_ends_early_ends(tmp_path):
    tables = {**COURSES["fedavg"], "data": {"subsample": 0.1}}
    tables["course"] = {"name": "fedavg", "rounds": 50, "target_accuracy": 0.2}
    found = simulate(prepare(from_mapping(tables)), start=Checkpoint(Standing(every=1)))
    assert len(found.rounds) < 50
    assert "has reached the target" in found.reason


values = st.one_of(st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False))
tensors = st.lists(st.floats(width=32, allow_nan=False), max_size=5).map(torch.tensor)
names = st.text(st.characters(codec="ascii", categories=("L", "N", "P")), min_size=1, max_size=8)


states = st.dictionaries(names, values | tensors, min_size=1)


@given(
    st.dictionaries(st.integers(0, 10**6), st.lists(states, min_size=1, max_size=2)),
    st.builds(Standing, st.integers(0, 99), st.integers(0, 9), st.floats(0, 1e9), trace=st.text("0123abc")),
)  # fmt: skip
def test_what_is_saved_is_loaded(roles, standing):
    with TemporaryDirectory() as folder:
        Checkpoint(standing, roles).save(Path(folder))
        found = Checkpoint.load(Path(folder))
    assert found.standing == standing
    assert found.roles.keys() == roles.keys()
    for seat, states in roles.items():
        for state, again in zip(states, found.roles[seat], strict=True):
            assert {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in state.items()} == {
                k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in again.items()
            }


def test_tensors_that_share_memory_are_saved_each(tmp_path):
    shared = torch.arange(6.0)
    Checkpoint(Standing(), {0: [{"a": shared, "b": shared[2:]}]}).save(tmp_path)
    assert Checkpoint.load(tmp_path).roles[0][0]["b"].tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("damage", [b"", b"garbage" * 100, "cut", "bits"])
def test_a_damaged_file_is_one_clear_error(damage, tmp_path):
    Checkpoint(Standing(round=1), {0: [{"params": torch.ones(9)}]}).save(tmp_path)
    path = tmp_path / CHECKPOINT
    whole = path.read_bytes()
    path.write_bytes(
        damage
        if isinstance(damage, bytes)
        else whole[:-4]
        if damage == "cut"
        else whole.replace(b"standing", b"sitting_")
    )
    with pytest.raises(ConfigError, match=r"--resume: .* is damaged"):
        Checkpoint.load(tmp_path)


# -- the command -------------------------------------------------------------------------------------------------------


def command(*arguments: str) -> None:
    assert main(["simulate", *arguments]) == 0


def test_the_command_goes_on_where_the_last_checkpoint_is(tmp_path):
    small = ("--topology.n", "3", "--course.rounds", "5", "--train.epochs", "1", "--runs", str(tmp_path))
    command(str(DIGITS), *small, "--run", "whole", "--checkpoint-every", "2")
    whole = tmp_path / "whole"
    report, metrics = orjson.loads((whole / "report.json").read_bytes()), (whole / "metrics.jsonl").read_bytes()
    (whole / "metrics.jsonl").write_bytes(metrics + b'{"round":99}\n')
    command(str(whole), "--resume")
    again = orjson.loads((whole / "report.json").read_bytes())
    assert (whole / "metrics.jsonl").read_bytes() == metrics
    for figure in ("model_hash", "trace", "bytes", "packets", "virtual_seconds", "rounds", "metrics"):
        assert again[figure] == report[figure]


@pytest.mark.parametrize(
    ("arguments", "mend"),
    [
        (("digits.toml", "--resume"), "goes with the folder of a run"),
        (("run", "--resume"), "holds no checkpoint"),
        (("run", "--resume", "--train.lr", "0.77"), "leave out other options"),
        (("run", "--resume", "--network.latency-ms", "500"), "leave out other options"),
        (("run", "--resume", "--checkpoint-every", "3"), "leave out other options"),
        (("digits.toml", "--checkpoint-every", "-1"), "--checkpoint-every is -1"),
    ],
)
def test_what_cannot_be_gone_on_with(arguments, mend, tmp_path, capsys):
    command(str(DIGITS), "--topology.n", "3", "--course.rounds", "1", "--runs", str(tmp_path), "--run", "run")
    where = str(tmp_path / "run") if arguments[0] == "run" else str(DIGITS)
    assert main(["simulate", where, *arguments[1:]]) == 2
    assert mend in capsys.readouterr().err
