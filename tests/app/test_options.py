"""Options from dataclasses, and their mistakes in one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from p2pfl.app.options import parse, parse_options
from p2pfl.app.simulate import SimulateOptions
from p2pfl.errors import ConfigError

DIGITS = str(Path(__file__).parents[2] / "examples" / "digits.toml")


@dataclass(frozen=True)
class Few:
    size: int = 3
    """How large."""
    names: tuple[str, ...] = ()


def test_options_are_fields() -> None:
    assert parse(Few, ["--size", "5", "--names", "a", "b"], "few") == Few(5, ("a", "b"))
    assert parse(Few, [], "few", Few(7)) == Few(7)


@pytest.mark.parametrize("arguments", [["--sise", "5"], ["--size", "five"], ["stray"], ["--size"]])
def test_a_mistake_is_one_sentence(arguments: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Few, arguments, "few")
    assert "\n" not in str(caught.value)
    assert "--size" in str(caught.value) or "few --help" in str(caught.value)


def test_help_ends_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(Few, ["--help"], "few")
    assert not end.value.code
    assert "How large." in capsys.readouterr().out


def test_a_course_file_comes_first_and_its_values_are_defaults() -> None:
    options = parse_options(SimulateOptions, [DIGITS, "--train.lr", "0.05", "--model.hidden", "16", "8"], "simulate")
    assert options.config.train.lr == 0.05
    assert options.config.model.hidden == (16, 8)
    assert options.config.seed == 7  # the file's


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "a course file is missing"),
        (["--help"], "give a course file first"),
        (["nowhere.toml"], "there is no course file nowhere.toml"),
        ([DIGITS, "--train.lrr", "1"], "did you mean --train.lr?"),
        ([DIGITS, "--course.rounds", "0"], "course.rounds is 0; it must be at least 1"),
        ([DIGITS, "--train.momentum", "1.5"], "train.momentum is 1.5"),
    ],
)
def test_mistakes_with_a_course_file(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_options(SimulateOptions, arguments, "simulate")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
