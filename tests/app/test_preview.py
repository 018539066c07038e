"""`p2pfl data` and `p2pfl check`."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pfl.app.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples"
BROKEN = """
from p2pfl import Message, Node, Peer, Request

class Answer(Message):
    n: int

class Question(Request[Answer]):
    n: int

class Asks:
    async def run(self, node: Node) -> None:
        for peer in node.peers:
            await peer.ask(Question(1))
"""


def test_data_are_shown_as_table_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "skew.svg"
    assert main(["data", "show", str(EXAMPLES / "digits.toml"), "--to", str(picture)]) == 0
    shown = capsys.readouterr().out
    assert "8 shards, by seat" in shown
    assert "mean total variation" in shown
    assert picture.read_text().startswith("<svg")


def test_what_clients_keep_and_how_they_see_it_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    course = tmp_path / "course.toml"
    course.write_text(
        '[course]\nname = "fedavg"\n[topology]\nn = 3\n'
        "[partition]\nholdout = 0.5\nconsistent = true\nconcepts = 2\ndrift_rounds = 4\n"
    )
    assert main(["data", "show", str(course)]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "held out" in shown
    assert "own names after 4 rounds" in shown
    assert "359" in shown, "the first of two clients holds half of 719 examples out"


def test_a_picture_of_data_is_an_svg(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", str(EXAMPLES / "digits.toml"), "--to", "skew.png"]) == 2
    assert ".svg" in capsys.readouterr().err


@pytest.mark.parametrize("course", ["fedavg", "hierarchical", "dpsgd", "adpsgd", str(EXAMPLES / "digits.toml")])
def test_shipped_courses_are_sound(course: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", course]) == 0
    assert "the message flow is sound" in capsys.readouterr().out


def test_what_nobody_handles_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = tmp_path / "broken_course.py"
    module.write_text(BROKEN)
    assert main(["check", str(module)]) == 2
    assert "Question" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["svg", "mmd"])
def test_a_flow_is_drawn(suffix: str, tmp_path: Path) -> None:
    picture = tmp_path / f"flow.{suffix}"
    assert main(["check", "fedavg", "--to", str(picture)]) == 0
    assert "Train" in picture.read_text()


def test_a_drawing_of_another_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "fedavg", "--to", "flow.gif"]) == 2
    assert "ends in .svg or .mmd" in capsys.readouterr().err


def test_a_course_that_hides_nothing_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    for file, said in (("digits", True), ("secagg", False)):
        assert main(["check", str(EXAMPLES / f"{file}.toml")]) == 0
        assert ("note: privacy is plain" in capsys.readouterr().out) == said
