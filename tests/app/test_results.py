"""Runs, read from what they have left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from p2pfl.app.results import Result, common_metric, read_all, summarise
from p2pfl.courses.goal import Goal
from p2pfl.errors import ConfigError


def leave(path: Path, *metrics: dict[str, float], report: dict[str, Any] | None = None, tail: str = "") -> Path:
    """A run's folder, with a line for each round of a simulation."""
    path.mkdir(parents=True)
    rows = [
        {"round": n, "virtual_seconds": 2.0 * n, "bytes": 100 * n, "participants": 3, "metrics": found}
        for n, found in enumerate(metrics, 1)
    ]
    (path / "metrics.jsonl").write_text("".join(orjson.dumps(row).decode() + "\n" for row in rows) + tail)
    (path / "course.json").write_text('{"course": {"name": "fedavg"}}')
    if report is not None:
        (path / "report.json").write_bytes(orjson.dumps(report))
    return path


def accuracies(*values: float) -> list[dict[str, float]]:
    return [{"accuracy": value} for value in values]


def test_a_run_in_one_line(tmp_path: Path) -> None:
    figures = {"bytes": 777, "virtual_seconds": 9.0, "seconds": 0.5}
    result = Result.read(leave(tmp_path / "a", *accuracies(0.5, 0.8, 0.9, 0.85), report=figures))
    one = summarise(result, Goal("accuracy"), tolerance=0.1)
    assert (one.run, one.course, one.metric, one.ended) == ("a", "fedavg", "accuracy", True)
    assert (one.best, one.best_round, one.last) == (0.9, 3, 0.85)
    assert (one.reached_round, one.reached_bytes, one.reached_virtual_seconds) == (2, 200, 4.0)
    assert (one.rounds, one.updates, one.bytes, one.virtual_seconds, one.seconds) == (4, 12, 777, 9.0, 0.5)


def test_a_target_goes_before_the_tolerance_and_may_never_be_reached(tmp_path: Path) -> None:
    result = Result.read(leave(tmp_path / "a", *accuracies(0.5, 0.8, 0.9)))
    assert summarise(result, Goal("accuracy", target=0.5), 0.0).reached_round == 1
    assert summarise(result, Goal("accuracy", target=0.95), 0.5).reached_round is None


def test_of_a_loss_the_lowest_is_the_best(tmp_path: Path) -> None:
    result = Result.read(leave(tmp_path / "a", {"loss": 2.0}, {"loss": 0.5}, {"loss": 0.75}))
    one = summarise(result, Goal("loss"), tolerance=0.0)
    assert (one.best, one.best_round, one.reached_round, one.last) == (0.5, 2, 2, 0.75)
    assert summarise(result, Goal("loss", "highest"), 0.0).best_round == 1
    assert summarise(result, Goal("loss", target=0.8), 0.0).reached_round == 2


def test_a_run_that_goes_on_is_told_by_its_last_round_and_a_torn_line_is_counted(tmp_path: Path) -> None:
    result = Result.read(leave(tmp_path / "a", *accuracies(0.5, 0.75), tail='{"round":3,"metr'))
    one = summarise(result, Goal("accuracy"), 0.0)
    assert (result.torn, one.rounds, one.bytes, one.virtual_seconds, one.seconds) == (1, 2, 200, 4.0, None)
    assert not one.ended


def test_a_metric_that_a_run_does_not_have_leaves_blanks(tmp_path: Path) -> None:
    one = summarise(Result.read(leave(tmp_path / "a", {"loss": 1.0})), Goal("accuracy"), 0.0)
    assert (one.best, one.best_round, one.last, one.reached_round) == (None, None, None, None)


def test_the_spread_is_that_of_the_last_evaluation(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = [
        {"accuracy": 0.5, "client_accuracy": 0.5, "client_accuracy_std": 0.25},
        {"accuracy": 0.5, "client_accuracy": 0.5, "client_accuracy_std": 0.125},
        {"accuracy": 0.5},
    ]
    result = Result.read(leave(tmp_path / "a", *rows))
    assert summarise(result, Goal("accuracy"), 0.0).spread == {"std": 0.125}
    assert result.metrics == ["accuracy", "client_accuracy"]
    assert result.points("client_accuracy_std", lambda row: row["round"]) == [(1, 0.25), (2, 0.125)]


def test_what_is_no_run_says_why(tmp_path: Path) -> None:
    leave(tmp_path / "runs" / "a", *accuracies(0.5))
    (tmp_path / "other").mkdir()
    leave(tmp_path / "early", tail='{"round":1,')
    with pytest.raises(ConfigError, match="nowhere is no run: there is no such folder"):
        Result.read(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"runs is no run: it holds some; give these, as in p2pfl report .*runs/\*"):
        Result.read(tmp_path / "runs")
    with pytest.raises(ConfigError, match=r"other is no run: metrics\.jsonl cannot be read"):
        Result.read(tmp_path / "other")
    with pytest.raises(ConfigError, match="early has no round yet"):
        Result.read(tmp_path / "early")


def test_runs_go_by_what_tells_their_paths_apart(tmp_path: Path) -> None:
    paths = [leave(tmp_path / node / "runs" / "run", *accuracies(0.5)) for node in ("hub", "other")]
    assert [result.name for result in read_all(paths)] == ["hub/runs/run", "other/runs/run"]
    assert [result.name for result in read_all(paths[:1])] == ["run"]


def test_runs_are_compared_by_what_most_of_them_have(tmp_path: Path) -> None:
    paths = [leave(tmp_path / str(n), {"loss": 1.0} | more) for n, more in enumerate([*accuracies(0.5), {}])]
    assert common_metric(read_all(paths[:1])) == "accuracy"
    assert common_metric(read_all(paths)) == "loss"
