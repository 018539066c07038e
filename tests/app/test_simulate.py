"""`p2pfl simulate`: a course file in, a report and a run folder out."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
import torch

from p2pfl.app.build import prepare
from p2pfl.app.cli import main
from p2pfl.app.config import from_mapping
from p2pfl.app.simulate import simulate

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = ["--topology.n", "3", "--course.rounds", "2", "--train.epochs", "1"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def run(tmp_path: Path, name: str, *more: str, course: str = "digits.toml") -> dict[str, object]:
    """The report of a run."""
    assert main(["simulate", str(EXAMPLES / course), *SMALL, "--runs", str(tmp_path), "--run", name, *more]) == 0
    report: dict[str, object] = orjson.loads((tmp_path / name / "report.json").read_bytes())
    return report


def test_the_same_file_gives_the_same_bytes_and_the_same_trace(tmp_path: Path) -> None:
    first, second = run(tmp_path, "first"), run(tmp_path, "second")
    for figure in ("model_hash", "trace", "bytes", "virtual_seconds", "metrics"):
        assert first[figure] == second[figure]
    other = run(tmp_path, "other", "--seed", "8")
    assert other["model_hash"] != first["model_hash"]
    assert other["trace"] != first["trace"]


def test_time_and_place_of_computing_do_not_change_the_model(tmp_path: Path) -> None:
    usual = run(tmp_path, "usual")
    slow = run(tmp_path, "slow", "--network.latency-ms", "500", "--network.jitter", "1", "--devices.spread", "2")
    threads = run(tmp_path, "threads", "--compute", "threads")
    assert slow["model_hash"] == usual["model_hash"] == threads["model_hash"]
    assert slow["virtual_seconds"] != usual["virtual_seconds"]


def test_json_tells_every_round_and_ends_with_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run(tmp_path, "told", "--json")
    rows = [orjson.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["round"] for row in rows if row["kind"] == "round"] == [1, 2]
    assert rows[-1]["model_hash"] == report["model_hash"]


def test_a_resolved_course_can_be_run_again(tmp_path: Path) -> None:
    first = run(tmp_path, "first")
    again = ["simulate", str(tmp_path / "first" / "course.json"), "--runs", str(tmp_path), "--run", "again"]
    assert main(again) == 0
    assert orjson.loads((tmp_path / "again" / "report.json").read_bytes())["model_hash"] == first["model_hash"]


def test_gossip_reports_means_over_all_nodes(tmp_path: Path) -> None:
    report = run(tmp_path, "gossip", "--topology.n", "4", "--topology.family", "ring", course="gossip.toml")
    rows = [orjson.loads(line) for line in (tmp_path / "gossip" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert rows[-1]["metrics"]["accuracy_min"] <= rows[-1]["metrics"]["accuracy"]
    assert report["metrics"] == rows[-1]["metrics"]


def test_a_program_can_simulate_without_a_command_line() -> None:
    config = from_mapping({"course": {"name": "fedavg", "rounds": 2}, "topology": {"n": 3}})
    rounds: list[int] = []
    outcome = simulate(prepare(config), ended=lambda done: rounds.append(done.round))
    assert rounds == [1, 2]
    assert outcome.params.shape == (2410,)
    assert outcome.packets > 0


def test_an_unknown_compute_is_a_mistake_with_its_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", str(EXAMPLES / "digits.toml"), "--compute", "gpu", "--runs", str(tmp_path)]) == 2
    assert "inline, threads" in capsys.readouterr().err
