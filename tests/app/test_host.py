"""The command line of a host. What hosts do together is in tests/test_end_to_end.py, with real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pfl.app.computes import ComputeOptions
from p2pfl.app.config import course_hash, from_mapping, load_config
from p2pfl.app.host import Host, LocalData, NodeOptions, host_command, own_identity, refuse_foreign_code
from p2pfl.crypto.identity import Identity
from p2pfl.errors import ConfigError, IdentityError

DIGITS = str(Path(__file__).parents[2] / "examples" / "digits.toml")


def test_a_joiner_needs_an_address_only() -> None:
    options, config, data = host_command(["--peers", "hub:7700", "--name", "north", "--data.source", "my.csv"])
    assert (options.peers, options.name, config, data) == (("hub:7700",), "north", None, LocalData("my.csv"))


@pytest.mark.parametrize("course", [["--course", DIGITS], [f"--course={DIGITS}"]])
def test_who_has_the_course_can_change_every_field_of_it(course: list[str]) -> None:
    options, config, _ = host_command(["--listen", ":7700", *course, "--train.lr", "0.5"])
    assert options.listen == (":7700",)
    assert config is not None
    assert config.train.lr == 0.5
    assert course_hash(config) != course_hash(load_config(Path(DIGITS)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --course FILE to start a course, or --peers ADDRESS to join one"),
        (["--course"], "--course needs a file"),
        (["--course", DIGITS], "nobody could reach this node: give --listen"),
        (["--course", "nowhere.toml", "--listen", ":0"], "there is no course file nowhere.toml"),
        (["--peer", "hub:7700"], "did you mean --peers?"),
        (["--peers", "hub:7700", "--seat", "first"], "--seat"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        host_command(arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def options(tmp_path: Path, **more: object) -> NodeOptions:
    return NodeOptions(identity=tmp_path / "identity.key", peers=("127.0.0.1:1",), **more)  # type: ignore[arg-type]  # by name


def test_an_identity_is_made_once(tmp_path: Path) -> None:
    Host(options(tmp_path), None, LocalData())
    made = Identity.load(tmp_path / "identity.key")
    Host(options(tmp_path), None, LocalData())
    assert Identity.load(tmp_path / "identity.key") == made


def test_nodes_of_one_folder_have_identities_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (first, held), (second, also_held) = own_identity(None), own_identity(None)
    with also_held:
        assert first.peer_id != second.peer_id
        held.close()
        again, held = own_identity(None)
        assert again == first  # who comes back finds the identity that is free
    held.close()
    assert sorted(file.name for file in Path(".p2pfl").glob("*.key")) == ["identity-2.key", "identity.key"]


def test_what_cannot_work_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--compute 'gpu' is unknown; it must be one of auto, cohort, inline"):
        Host(options(tmp_path, compute=ComputeOptions("gpu")), None, LocalData())
    with pytest.raises(ConfigError, match="'friends' is none of"):
        Host(options(tmp_path, trust=("friends",)), None, LocalData())
    with pytest.raises(IdentityError, match=r"nowhere\.key"):
        Host(options(tmp_path, network_key=tmp_path / "nowhere.key"), None, LocalData())


def test_where_a_host_keeps_its_files_is_no_part_of_the_course() -> None:
    course = {"course": {"name": "fedavg"}, "partition": {"scheme": "own"}}
    here, there = (from_mapping(course | {"data": {"source": source}}) for source in ("/data/a.csv", "./b.csv"))
    assert course_hash(here) == course_hash(there)
    assert course_hash(here) != course_hash(from_mapping(course | {"data": {"source": "digits"}}))


@pytest.mark.parametrize("field", ["name", "loss"])
def test_a_peer_does_not_choose_what_code_runs_here(field: str) -> None:
    config = from_mapping({"course": {"name": "fedavg"}, "model": {field: "os:system"}})
    with pytest.raises(ConfigError, match=f"the peer's course has model.{field} 'os:system'.*say --code os:system"):
        refuse_foreign_code(config, ())
    with pytest.raises(ConfigError):
        refuse_foreign_code(config, ("my_model:Net",))
    refuse_foreign_code(config, ("os:system",))
    refuse_foreign_code(from_mapping({"course": {"name": "fedavg"}, "model": {"name": "cnn"}}), ())
