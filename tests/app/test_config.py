"""Course files: every mistake is one line that names the field."""

from __future__ import annotations

import dataclasses
import typing
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.app.config import COURSES, Config, course_hash, from_mapping, load_config, to_mapping, with_topology
from p2pfl.errors import ConfigError
from p2pfl.sim.availability import AvailabilitySpec
from p2pfl.sim.devices import DeviceSpec
from p2pfl.sim.network import NetworkSpec
from p2pfl.sim.profiles import PROFILES

EXAMPLES = Path(__file__).parents[2] / "examples"
MINIMAL = {"course": {"name": "fedavg"}}


def sections(course: str) -> dict[str, type]:
    types = typing.get_type_hints(Config) | {"course": COURSES[course].settings}
    return {name: kind for name, kind in types.items() if dataclasses.is_dataclass(kind)}


FIELDS = [
    (course, section, field.name)
    for course in COURSES
    for section, kind in sections(course).items()
    for field in dataclasses.fields(kind)
    if (section, field.name) != ("course", "name") and (section == "course" or course == "fedavg")
]


def with_value(course: str, section: str, name: str, value: object) -> dict[str, Any]:
    return {"course": {"name": course}} | {
        section: {"name": course, name: value} if section == "course" else {name: value}
    }


@pytest.mark.parametrize(("course", "section", "name"), FIELDS)
def test_a_wrong_type_anywhere_is_one_line_with_the_field(course: str, section: str, name: str) -> None:
    for wrong in ({"a": {"b": 1}}, [[1.5]], None):
        with pytest.raises(ConfigError) as caught:
            from_mapping(with_value(course, section, name, wrong))
        assert str(caught.value).startswith(f"{section}.{name}"), caught.value
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("course", COURSES)
def test_a_course_needs_no_more_than_its_name(course: str) -> None:
    config = from_mapping({"course": {"name": course}})
    assert config.course.name == course


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "course.name is missing; write [course] and name = "),
        ({"course": "fedavg"}, "course.name is missing"),
        ({"course": {"name": "fedagv"}}, "course.name is 'fedagv', which is no course; did you mean fedavg?"),
        (MINIMAL | {"trian": {}}, "trian is not known; did you mean train?"),
        (MINIMAL | {"train": {"learning_rate": 1}}, "train.learning_rate is not known; "),
        (MINIMAL | {"train": {"batchsize": 1}}, "train.batchsize is not known; did you mean batch_size?"),
        (MINIMAL | {"nodes": 3}, "nodes: expected `object`, got `int`"),
        (MINIMAL | {"nodes": {"3": 3}}, "nodes.3 is 3; it must be a table, [nodes.3]"),
        (MINIMAL | {"nodes": {"3": {"trian": {}}}}, "nodes.3.trian is not known; did you mean train?"),
        (MINIMAL | {"nodes": {"3": {"train": 3}}}, "nodes[...].train: expected `object`, got `int`"),
        (MINIMAL | {"nodes": {"3": {"train": {"epoch": 1}}}}, "nodes.3: train.epoch is not known; did you mean epochs"),
        (MINIMAL | {"nodes": {"3": {"train": {"epochs": "1"}}}}, "nodes.3: train.epochs: expected `int`, got `str`"),
        (MINIMAL | {"nodes": {"3": {"train": {"epochs": 0}}}}, "nodes.3: train.epochs is 0; it must be"),
        (MINIMAL | {"nodes": {"slow": {}}}, "nodes.slow names no seats; "),
        (MINIMAL | {"train": 3}, "train is 3; it must be a table, [train]"),
        (MINIMAL | {"seed": "one"}, "seed: expected `int`, got `str`"),
        (MINIMAL | {"model": {"hidden": ["a"]}}, "model.hidden[0]: expected `int`, got `str`"),
        ({"course": {"name": "fedavg", "rounds": 0}}, "course.rounds is 0; it must be at least 1"),
        (MINIMAL | {"partition": {"scheme": "random"}}, "partition.scheme is 'random'; it must be one of iid, "),
        (
            MINIMAL | {"world": {"profile": "phone"}},
            "world.profile is 'phone', which is no profile; did you mean phones?",
        ),
        (
            MINIMAL | {"world": {"profil": "phones"}},
            "world is {'profil': 'phones'}; write [world] and profile = \"...\"",
        ),
        (MINIMAL | {"world": "phones"}, "world is 'phones'; write [world] and profile = "),
        (MINIMAL | {"world": {"profile": 3}}, "world is {'profile': 3}; write [world] and profile = "),
        (MINIMAL | {"wrold": {}}, "wrold is not known; did you mean world?"),
        (MINIMAL | {"world": {"profile": "phones"}, "network": 3}, "network is 3; it must be a table, [network]"),
        (MINIMAL | {"network": {"bandwidth_mbps": 1}}, "network.bandwidth_mbps is not known; did you mean "),
        (MINIMAL | {"availability": {"online_seconds": 9}}, "availability.online_seconds is 9.0 and "),
    ],
)
def test_mistakes_and_their_sentences(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping(given)
    assert str(caught.value).startswith(sentence)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("[course\n")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "latin.toml").write_bytes(b'[course]\nname = "\xe9"')
    (tmp_path / "list.json").write_text("[1]")
    for name, words in (
        ("none.toml", "there is no course file"), ("broken.toml", "is not TOML"), ("broken.json", "is not JSON"),
        ("latin.toml", "is not TOML"), ("list.json", "is not JSON"), ("", "there is no course file"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words) as caught:
            load_config(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_missing_topology_file_names_the_course_file(tmp_path: Path) -> None:
    (tmp_path / "course.toml").write_text('[course]\nname = "fedavg"\n[topology]\nfile = "tree-hospitals.toml"\n')
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "course.toml")
    assert str(caught.value).startswith(f"{tmp_path / 'course.toml'}: ")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_a_configuration_survives_json(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    (tmp_path / "course.json").write_bytes(msgspec.json.encode(to_mapping(config)))
    again = load_config(tmp_path / "course.json")
    assert again == config
    assert course_hash(again) == course_hash(config)


def test_the_hash_is_of_what_all_must_agree_on() -> None:
    def hashed(**tables: object) -> str:
        return course_hash(from_mapping(MINIMAL | tables))

    assert hashed() == hashed(network={"latency_ms": 1.0}) == hashed(devices={"spread": 1.0})
    assert hashed() == hashed(world={"profile": "phones"})
    assert hashed() != hashed(seed=1)
    assert hashed() != hashed(train={"lr": 0.2})
    assert hashed() != hashed(nodes={"3": {"train": {"lr": 0.2}}}) != hashed(nodes={"2": {"train": {"lr": 0.2}}})
    assert hashed(data={"source": "/here/a.csv"}) == hashed(data={"source": "there/{seat}.csv"})


KEYS = ("course", "name", "train", "model", "data", "topology", "lr", "hidden", "rounds", "parameters")


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
))  # fmt: skip
def test_whatever_is_given_it_is_a_configuration_or_a_mistake(value: object) -> None:
    for tables in (
        {"course": value},
        MINIMAL | {"train": value},
        MINIMAL | {"topology": value},
        MINIMAL | {"data": value},
        MINIMAL | {"world": value},
        MINIMAL | {"world": {"profile": "phones"}, "network": value},
    ):
        with suppress(ConfigError):
            from_mapping(tables)


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_gives_the_values_that_the_file_does_not_have(name: str) -> None:
    config = from_mapping(MINIMAL | {"world": {"profile": name}, "network": {"latency_ms": 7}})
    wanted = PROFILES[name]
    assert config.network == NetworkSpec(**{**wanted["network"], "latency_ms": 7.0})
    assert config.devices == DeviceSpec(**wanted["devices"])
    assert config.availability == AvailabilitySpec(**wanted["availability"])
    assert from_mapping(to_mapping(config)) == config, "its values are in the tables; its name is needed no more"
    assert from_mapping(MINIMAL | {"world": {"profile": ""}}) == from_mapping(MINIMAL)


def test_an_availability_trace_is_looked_for_beside_the_course_file(tmp_path: Path) -> None:
    (tmp_path / "course.toml").write_text('[course]\nname = "fedavg"\n[availability]\ntrace = "who.csv"\n')
    assert load_config(tmp_path / "course.toml").availability.trace == str(tmp_path / "who.csv")
    elsewhere = from_mapping(MINIMAL | {"availability": {"trace": "/far/who.csv"}})
    assert with_topology(elsewhere, tmp_path).availability.trace == "/far/who.csv"
