from __future__ import annotations

from pathlib import Path

import pytest

from p2pfl.app.config import course_hash, load_config
from p2pfl.app.node_options import LocalData, host_command
from p2pfl.errors import ConfigError

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
        (["--peers", "hub:7700", "--patience-seconds", "-1"], "--patience-seconds is -1.0; it must not be negative"),
        (["--peers", "hub:7700", "--min-cohort", "2"], "min_cohort is 2; it must be at least 3"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        host_command(arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_host_asks_of_sums_is_its_own() -> None:
    options, _, _ = host_command(
        ["--listen", ":7700", "--course", DIGITS, "--min-cohort", "7", "--sessions-per-hour", "60"]
    )
    assert (options.floors.min_cohort, options.floors.sessions_per_hour) == (7, 60)
