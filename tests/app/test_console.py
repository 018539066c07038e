"""What goes to stdout, for people and for machines."""

from __future__ import annotations

import orjson
import pytest

from p2pfl.app.console import Display, table


def test_text_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(as_json=False, total=3) as display:
        display.line("round 1 [bold]is not markup[/bold]")
        display.row("round", round=1)
        display.step(1, "round 1")
        display.table(table("report", ["round"], [["1"]]))
    shown = capsys.readouterr().out
    assert "round 1 [bold]is not markup[/bold]\n" in shown
    assert "report" in shown
    assert "{" not in shown
    assert "\x1b" not in shown  # not a terminal: no colours, no bar


def test_json_is_nothing_but_json(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(as_json=True, total=3) as display:
        display.line("for people")
        display.row("round", round=1, metrics={"accuracy": 0.5})
        display.step(1, "round 1")
        display.table(table("report", ["round"], [["1"]]))
    lines = capsys.readouterr().out.splitlines()
    assert [orjson.loads(line) for line in lines] == [{"kind": "round", "round": 1, "metrics": {"accuracy": 0.5}}]
