"""`p2pfl report`: the command."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import orjson
import pytest

from p2pfl.app.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def as_wide_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing says how wide a line may be."""
    monkeypatch.delenv("COLUMNS", raising=False)


def leave(path: Path, *accuracies: float, run: str = "", **more: float) -> str:
    path.mkdir(parents=True)
    rows = [{"round": n, "participants": 2, "metrics": {"accuracy": a, **more}} for n, a in enumerate(accuracies, 1)]
    (path / "metrics.jsonl").write_text("".join(orjson.dumps(row).decode() + "\n" for row in rows))
    (path / "course.json").write_text('{"course": {"name": "dpsgd"}}')
    (path / "report.json").write_text('{"seconds": 1.5, "bytes_sent": 2000000}')
    if run:
        (path / "run.json").write_bytes(orjson.dumps({"run": run}))
    return str(path)


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    return [leave(tmp_path / "a", 0.5, 0.75, 0.7), leave(tmp_path / "b", 0.875, 0.25)]


def shown(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    lines = capsys.readouterr().out.splitlines()
    return [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines if line[:1] in "│┃"]


def test_the_table_has_a_line_for_each_run(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *runs, "--tolerance", "0.1"]) == 0
    assert shown(capsys) == [
        ["run", "course", "best", "in round", "last", "within 0.1 of best", "rounds", "updates", "MB", "real s"],
        ["a", "dpsgd", "0.7500", "2", "0.7000", "2", "3", "6", "2.00", "1.50"],
        ["b", "dpsgd", "0.8750", "1", "0.2500", "1", "2", "4", "2.00", "1.50"],
    ]


def test_json_csv_and_page(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "page.html", tmp_path / "all.csv"]
    assert main(["report", *runs, "--json", "--target", "0.75", "--html", str(files[0]), "--csv", str(files[1])]) == 0
    rows = [orjson.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["run"], row["reached_round"]) for row in rows] == [("a", 2), ("b", 1)]
    assert "reaches 0.75" in files[0].read_text()
    told = list(csv.DictReader(io.StringIO(files[1].read_text())))
    assert [(row["run"], row["best"], row["virtual_seconds"]) for row in told] == [
        ("a", "0.75", ""),
        ("b", "0.875", ""),
    ]
    assert main(["report", *runs, "--csv", "-", "--target", "0.75"]) == 0
    assert capsys.readouterr().out == files[1].read_text()


def test_nodes_of_one_run_tell_how_even_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [leave(tmp_path / str(n), 0.1, accuracy, run="r1") for n, accuracy in enumerate((0.5, 0.75))]
    assert main(["report", *nodes, leave(tmp_path / "alone", 0.5, run="r2")]) == 0
    cells = shown(capsys)
    assert ["std", "0.1250"] in cells and ["min", "0.5000"] in cells


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--metric", "f1"], "--metric is 'f1', which no round of these runs has; take one of ['accuracy']"),
        (["--tolerance", "-1"], "--tolerance is -1.0; it must not be negative"),
        (["--html", "/nowhere/page.html"], "--html: /nowhere/page.html cannot be written"),
        (["/nowhere"], "/nowhere is no run: there is no such folder"),
    ],
)
def test_mistakes(runs: list[str], more: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *runs, *more]) == 2
    assert sentence in capsys.readouterr().err


def test_a_torn_line_is_told(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with (Path(runs[0]) / "metrics.jsonl").open("a") as file:
        file.write('{"round": 4, "met')
    assert main(["report", *runs]) == 0
    assert re.search(r"note: 1 lines of .*a/metrics\.jsonl cannot be read", capsys.readouterr().err)


def test_what_is_too_wide_goes_down_instead_of_across(
    runs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("p2pfl.app.console._WIDE", 60)
    assert main(["report", *runs]) == 0
    assert shown(capsys)[:3] == [["run", "a", "b"], ["course", "dpsgd", "dpsgd"], ["best", "0.7500", "0.8750"]]


def test_the_readme_shows_what_its_commands_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Measuring and comparing\n")[2]
    commands, _, rest = text.partition("```\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for line in commands.strip().splitlines():
        _, name, *arguments = line.split()
        shorter = ["--course.rounds", "2"] if name == "simulate" else []
        assert main([name, *arguments, *shorter]) == 0
    table = capsys.readouterr().out.partition("by accuracy\n")[2]
    names = [re.split("[│┃]", line)[1].strip() for line in rest.partition("```")[0].splitlines() if line[:1] in "│┃"]
    assert [cell.strip() for cell in re.split("[│┃]", table.splitlines()[1])[1:-1]] == names
    assert (tmp_path / "compare.html").is_file()
