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
from tests.matrix.table import COURSES as LINES
from tests.matrix.table import tables_of

DIGITS = Path(__file__).parents[2] / "examples" / "digits.toml"
# Beside the lines of the matrix: what else remembers something between rounds.
MORE = {
    "fedavg, ef21": {
        "course": {"name": "fedavg", "weights": "equal"},
        "compress": {"up": {"select": "top-k", "memory": "ef21"}, "down": {"values": "uniform", "entropy": "zlib"}},
    },
    "fedavg, secagg": {"course": {"name": "fedavg", "privacy": "secagg", "secagg": {"most_examples": 50}}},
    "fedavg, additive": {"course": {"name": "fedavg", "privacy": "additive", "secagg": {"most_examples": 50}}},
    "diloco, AdamW": {"course": {"name": "diloco"}, "train": {"optimizer": "AdamW", "lr": 0.01}},
    "gossip-diloco, momentum": {
        "course": {"name": "gossip-diloco"}, "topology": {"family": "ring", "n": 4}, "train": {"momentum": 0.9},
    },
    "gossip-learning, generalized": {
        "course": {"name": "gossip-learning", "account": "generalized", "capacity": 2},
        "topology": {"family": "full", "n": 4}, "devices": {"spread": 1.0},
    },
    "qgm, private": {"course": {"name": "qgm", "private": ["*.bias"]}, "topology": {"family": "ring", "n": 4}},
}  # fmt: skip
NAMES = [*LINES, *MORE]
ALL_AT_ONCE = ("fedavg, secagg", "fedavg, additive", "fedavgm", "pooled")  # whose cohorts are all clients


def prepared(name, rounds=5):
    """With cohorts that are not the same in every round, where there are cohorts."""
    tables = tables_of(name) if name in LINES else {"topology": {"n": 4}, "data": {"subsample": 0.1}} | MORE[name]
    tables["train"] = {"lr": 0.3, **tables.get("train", {})}
    in_rounds = name not in LINES or LINES[name].in_step
    cohorts = in_rounds and tables["topology"].get("family", "star") == "star" and name not in ALL_AT_ONCE
    some = {"fraction": 0.5} if cohorts else {}
    tables["course"] = {**tables["course"], **some, "rounds": rounds}
    return prepare(from_mapping({"seed": 3, **tables}))


@pytest.mark.parametrize("name", NAMES)
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


@pytest.mark.parametrize("name", ["fedavg", "fedavg, compressed", "scaffold", "feddyn", "hierarchical", "dpsgd"])
def test_where_rounds_are_in_step_a_checkpoint_changes_no_model(name):
    plain = simulate(prepared(name))
    paused = simulate(prepared(name), start=Checkpoint(Standing(every=1)))
    assert torch.equal(paused.params, plain.params)
    assert [done.metrics for done in paused.rounds] == [done.metrics for done in plain.rounds]
    assert paused.virtual_seconds > plain.virtual_seconds


def test_a_course_that_ends_early_ends(tmp_path):
    course = {"name": "fedavg", "rounds": 50, "target_accuracy": 0.2}
    tables = {"course": course, "topology": {"n": 7}, "data": {"subsample": 0.1}}
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
