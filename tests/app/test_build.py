"""From a configuration to what runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from p2pfl.app.build import build_topology, prepare, privacy_notes, topology_notes
from p2pfl.app.config import COURSES, TopologySpec, from_mapping, with_topology
from p2pfl.compute.inline import Inline
from p2pfl.courses.fedavg import Server, Trainer
from p2pfl.errors import ConfigError


def config(**tables: Any) -> Any:
    return with_topology(from_mapping({"course": {"name": "fedavg"}} | tables))


def test_every_seat_gets_its_roles_and_its_examples() -> None:
    setup = prepare(config(topology={"n": 5}))
    assert sorted(setup.shards) == [1, 2, 3, 4]
    assert sum(map(len, setup.shards.values())) == len(setup.dataset.train)
    assert isinstance(setup.roles(0, Inline())[0], Server)
    assert isinstance(setup.roles(1, Inline())[0], Trainer)
    assert setup.learner(0, Inline()).shard is None


def test_a_seat_trains_as_its_table_says() -> None:
    nodes = {"slow": {"train": {"epochs": 1, "lr": 0.5}}, "4": {"train": {"steps": 7}}}
    tables = {"train": {"epochs": 3}, "metrics": {"groups": {"slow": [1, 3]}}, "topology": {"n": 5}}
    setup = prepare(config(nodes=nodes, **tables))
    found = [setup.learner(seat, Inline()).train for seat in range(5)]
    assert [spec.epochs for spec in found] == [3, 1, 3, 1, 3]
    assert found[1] is found[3] and (found[1].lr, found[4].steps) == (0.5, 7)
    for wrong, sentence in [
        ({"0-2": {}}, "nodes.0-2 has seat 0, which holds no examples"),
        ({"5": {}}, "nodes.5 has seat 5, which holds no examples"),
        ({"2": {"train": {"tier": "fused"}}}, "train.tier is fused, but no linear layer is large"),
        ({"2": {"train": {"optimizer": "Adamw"}}}, "Adamw"),
    ]:
        with pytest.raises(ConfigError, match=sentence):
            prepare(config(nodes=wrong, topology={"n": 5}))


def test_equal_configurations_give_equal_parts() -> None:
    first, second = prepare(config(seed=3)), prepare(config(seed=3))
    assert torch.equal(first.model.initial, second.model.initial)
    assert all(torch.equal(first.shards[seat].indices, second.shards[seat].indices) for seat in first.shards)
    assert not torch.equal(first.model.initial, prepare(config(seed=4)).model.initial)


def test_a_holdout_is_kept_from_training() -> None:
    learner = prepare(config(partition={"holdout": 0.25})).learner(1, Inline())
    assert learner.shard is not None
    assert learner.validation is not None
    assert not set(learner.shard.indices.tolist()) & set(learner.validation.indices.tolist())


def test_a_consistent_partition_deals_the_test_part_too() -> None:
    setup = prepare(config(partition={"scheme": "classes", "consistent": True, "holdout": 0.25}))
    assert sorted(setup.tests) == sorted(setup.shards)
    assert sum(map(len, setup.tests.values())) == len(setup.dataset.test)
    learner, y = setup.learner(1, Inline()), setup.dataset.y
    parts = (learner.shard, learner.validation, learner.own_test)
    classes = [set(y[part.indices].tolist()) for part in parts if part is not None]
    assert classes == [classes[0]] * 3, "the same two classes"
    assert setup.learner(0, Inline()).own_test is None
    assert not prepare(config()).tests
    with pytest.raises(ConfigError, match=r"partition.consistent does not go with scheme bootstrap"):
        config(partition={"scheme": "bootstrap", "consistent": True})


def test_models_lie_openly_where_clients_only_train() -> None:
    """As names, shapes and strides, for clients without torch."""
    others = COURSES.keys() - {"fedbn"}  # which is for models with batch normalisation
    plain = {name for name in others if prepare(config(course={"name": name})).plain_layout}
    assert plain == {"fedavg", "fedopt", "fedavgm", "fedswa", "fedasync", "diloco"}
    assert prepare(config()).plain_layout == prepare(config()).model.layout.schema
    assert not prepare(config(course={"name": "fedavg", "coordinator": "elect"})).plain_layout
    assert not prepare(config(compress={"down": {"values": "float16"}})).plain_layout


def test_own_files_are_read_by_seat(tmp_path: Path) -> None:
    for seat in (1, 2):
        rows = "\n".join(f"{n % 2},{n},{seat}" for n in range(10 * seat))
        (tmp_path / f"site-{seat}.csv").write_text(f"label,a,b\n{rows}\n")
    source = str(tmp_path / "site-{seat}.csv")
    data = {"source": source, "labels": ["0", "1"]}
    tables = {"data": data, "partition": {"scheme": "own"}, "model": {"name": "logistic"}, "topology": {"n": 3}}
    setup = prepare(config(**tables))
    assert {seat: len(shard) for seat, shard in setup.shards.items()} == {1: 8, 2: 16}
    assert list(prepare(config(**tables), seat=2).shards) == [2]


@pytest.mark.parametrize(
    ("course", "spec", "words"),
    [
        ("fedavg", TopologySpec(family="ring", n=4), "as in a star"),
        ("hierarchical", TopologySpec(family="ring", n=4), "tree"),
        ("adpsgd", TopologySpec(family="exponential", n=8), "both ways"),
        ("dpsgd", TopologySpec(family="rng", n=8), "ring"),
        ("dpsgd", TopologySpec(family="torus", n=16, parameters={"row": 4}), "rows"),
    ],
)
def test_a_course_says_what_it_cannot_run_on(course: str, spec: TopologySpec, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_topology(spec, COURSES[course])


def test_a_file_is_taken_by_name_and_travels_as_text() -> None:
    found = config(topology={"file": "three-hospitals"})
    assert "hospital-north" in found.topology.text
    assert prepare(found).topology.n == 4


def test_notes_are_for_topology_files() -> None:
    assert topology_notes(config()) == []
    slow = with_topology(from_mapping({"course": {"name": "dpsgd", "rounds": 3}, "topology": {"file": "ring-16"}}))
    assert any("133 rounds" in note for note in topology_notes(slow))


@pytest.mark.parametrize(
    ("course", "privacy", "notes"),
    [({}, {}, 1), ({"privacy": "secagg"}, {}, 0), ({}, {"mode": "cdp", "epsilon": 2.0}, 0)],
)
def test_who_hides_nothing_is_told_so(course: dict[str, str], privacy: dict[str, Any], notes: int) -> None:
    found = privacy_notes(from_mapping({"course": {"name": "fedavg", **course}, "privacy": privacy}))
    assert len(found) == notes
    assert all("can learn of its examples" in note for note in found)
    assert len(privacy_notes(from_mapping({"course": {"name": "dpsgd"}}))) == 1
