"""What goes to stdout, for people and for machines."""

from __future__ import annotations

import orjson
import pytest

from p2pfl.app.console import Display, spread_table, table


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


def test_how_many_there_are_may_become_known_later() -> None:
    display = Display(as_json=False, total=2)
    display._live = True  # as on a terminal
    display.step(1, "1 of 3", 3)
    display.step(2, "2 of 3")
    (task,) = display._progress.tasks
    assert (task.completed, task.total, task.description) == (2, 3, "2 of 3")


@pytest.mark.parametrize("as_json", [False, True])
def test_where_a_log_is_read_nothing_is_said_to_people(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with Display(as_json=as_json, total=3, quiet=True) as display:
        display.line("for people")
        display.row("round", round=1)
        display.step(1, "round 1")
        display.table(table("report", ["round"], [["1"]]))
    said = capsys.readouterr()
    assert said.out == ('{"kind":"round","round":1}\n' if as_json else "")
    assert said.err == ""


def test_json_is_nothing_but_json(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(as_json=True, total=3) as display:
        display.line("for people")
        display.row("round", round=1, metrics={"accuracy": 0.5})
        display.step(1, "round 1")
        display.table(table("report", ["round"], [["1"]]))
    lines = capsys.readouterr().out.splitlines()
    assert [orjson.loads(line) for line in lines] == [{"kind": "round", "round": 1, "metrics": {"accuracy": 0.5}}]


def test_a_spread_has_a_column_for_each_metric(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(as_json=False, total=1) as display:
        display.table(spread_table({"loss": {"std": 0.25, "min": 1.0}, "f1": {"std": 0.5}}))
    rows = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["std", "0.2500", "0.5000"] in rows and ["min", "1.0000"] in rows
