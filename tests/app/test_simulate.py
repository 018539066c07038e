"""`p2pfl simulate`: a course file in, a report and a run folder out."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import orjson
import pytest
import torch

from p2pfl.app.build import prepare
from p2pfl.app.cli import main
from p2pfl.app.config import from_mapping
from p2pfl.app.simulate import Outcome, simulate
from p2pfl.compute.cohort import Cohort
from p2pfl.learn.batches import Work
from p2pfl.learn.params import model_hash
from p2pfl.privacy.gaussian import epsilon_of
from p2pfl.sim.backlog import Backlog
from p2pfl.sim.devices import Device
from tests.matrix.places import in_memory, simulated

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


def test_the_report_tells_what_privacy_has_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    private = ["--course.weights", "equal", "--privacy.mode", "cdp", "--privacy.noise-multiplier", "2"]
    report = run(tmp_path, "private", *private)["privacy"]
    assert isinstance(report, dict)
    assert set(report) == {
        "mode", "unit", "adjacency", "delta", "sampling", "view", "accountant", "clip", "noise_multiplier", "rounds",
        "epsilon", "valid",
    }  # fmt: skip
    assert report["rounds"] == 2
    assert report["epsilon"] == epsilon_of(math.sqrt(2) / 2, report["delta"])
    assert "privacy cdp: epsilon" in capsys.readouterr().out


def test_a_private_run_is_not_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its ledgers were in memory: what was spent would be forgotten."""
    private = ["--course.weights", "equal", "--privacy.mode", "cdp", "--privacy.noise-multiplier", "2"]
    run(tmp_path, "private", *private, "--checkpoint-every", "1")
    assert main(["simulate", str(tmp_path / "private"), "--resume"]) == 2
    assert "the privacy ledgers of a simulation end with it" in capsys.readouterr().err


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
    assert outcome.train_flops == 2 * 1438 * 10_112, "each round each example, forward and backward"


def test_an_unknown_compute_is_a_mistake_with_its_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", str(EXAMPLES / "digits.toml"), "--compute", "gpu", "--runs", str(tmp_path)]) == 2
    assert "auto, cohort, inline, processes, ray, threads" in capsys.readouterr().err


def played(course: dict[str, object], profile: str, **tables: object) -> tuple[Outcome, Counter[str]]:
    """A small course in a ready-made world, on devices so slow that the world changes meanwhile; events by kind."""
    given = {
        "course": course,
        "world": {"profile": profile},
        "topology": {"n": 25},
        "data": {"subsample": 0.3},
        "partition": {"min_examples": 4},
        "model": {"name": "logistic"},
        "train": {"lr": 0.3, "batch_size": 8},
        "devices": {"examples_per_second": 0.1},
    }
    told: Counter[str] = Counter()
    setup = prepare(from_mapping(given | tables))
    return simulate(setup, told=lambda seconds, seat, event: told.update([type(event).__name__])), told


PHONES: dict[str, object] = {
    "name": "fedavg", "rounds": 12, "quorum": 0.5, "deadline_seconds": 300.0, "min_clients": 2, "evaluate": "both",
}  # fmt: skip
QUICKER = {"examples_per_second": 1.0}
CHURN = {"online_seconds": 300.0, "offline_seconds": 60.0}


@pytest.mark.parametrize("seed", range(3))
def test_federated_averaging_gets_on_with_phones_that_come_and_go(seed: int) -> None:
    outcome, told = played(PHONES, "phones", seed=seed)
    assert len(outcome.rounds) == 12 and outcome.reason == "all 12 rounds are done"
    assert told["UpdateMissing"] > 0 and told["PeerLost"] > 24
    participants = [done.participants for done in outcome.rounds]
    assert all(0 < count < 20 for count in participants) and len(set(participants)) > 1
    assert outcome.virtual_seconds < 12 * 900 + 3600


def test_sleeping_phones_come_and_go_too() -> None:
    course = PHONES | {"fraction": 0.02, "evaluate": "server"}
    bootstrap = {"scheme": "bootstrap", "examples_per_client": 10}
    outcome, told = played(course, "phones", topology={"n": 1501}, partition=bootstrap)
    assert len(outcome.rounds) == 12
    assert all(2 <= done.participants <= 20 for done in outcome.rounds), "of 30 that are called"
    assert told["PeerUnreached"] == 0, "only those are called who would wake"


@pytest.mark.parametrize(
    "course",
    [
        {"name": "hierarchical", "rounds": 5, "quorum": 0.5, "deadline_seconds": 120.0},
        {"name": "dpsgd", "rounds": 5, "deadline_seconds": 120.0},
        {"name": "dpsgd", "rounds": 5},
        {"name": "adpsgd", "rounds": 5},
    ],
    ids=lambda course: f"{course['name']}-{course.get('deadline_seconds', 0)}",
)
def test_every_course_gets_on_with_nodes_that_come_and_go(course: dict[str, object]) -> None:
    outcome, told = played(course, "hospitals", topology={"n": 8}, devices=QUICKER, availability=CHURN)
    assert len(outcome.rounds) == 5 and outcome.reason
    assert told["PeerLost"] > told["CourseEnded"]


def test_every_course_gets_on_with_links_that_break() -> None:
    """What is under way on them is lost, and they are dialled again."""
    network = {"loss_every_seconds": 200.0}
    for course in (PHONES | {"min_clients": 0}, {"name": "dpsgd", "rounds": 5, "deadline_seconds": 120.0}):
        outcome, told = played(course, "lan", topology={"n": 8}, devices=QUICKER, network=network)
        assert outcome.reason
        assert told["PeerLost"] > 20 and told["PeerJoined"] == told["PeerLost"]


def test_the_same_world_comes_about_from_the_same_seed_only() -> None:
    traces = [played(PHONES | {"rounds": 4}, "phones", seed=seed)[0].trace for seed in (1, 1, 2)]
    assert traces[0] == traces[1] != traces[2]


def test_a_file_says_who_is_there(tmp_path: Path) -> None:
    trace = tmp_path / "who.csv"
    trace.write_text("seat,seconds,online\n" + "".join(f"{seat},{100 * seat},0\n" for seat in range(2, 9)))
    course = PHONES | {"rounds": 18, "quorum": 1.0, "evaluate": "server"}
    outcome, _ = played(course, "lan", topology={"n": 9}, devices=QUICKER, availability={"trace": str(trace)})
    counts = [done.participants for done in outcome.rounds]
    assert counts == sorted(counts, reverse=True) and counts[-1] == 1 and counts[0] >= 6


def test_the_time_to_each_accuracy_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--course.rounds", "4", "--course.target-accuracy", "0.83")
    report = run(tmp_path, "text", *options)
    reached = report["seconds_to_accuracy"]
    assert isinstance(reached, dict)
    assert {"0.5", "0.8"} <= set(reached) <= {"0.5", "0.8", "0.83", "0.9", "0.95"}
    assert f"accuracy 0.5 after {reached['0.5']:.2f} s, 0.8 after {reached['0.8']:.2f} s" in capsys.readouterr().out
    run(tmp_path, "json", *options, "--json")
    rows = [orjson.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[-1]["seconds_to_accuracy"] == reached
    first = next(row for row in rows if row["kind"] == "round" and row["metrics"]["accuracy"] >= 0.8)
    assert reached["0.8"] == first["virtual_seconds"]


def test_metrics_of_the_users_own_and_their_spread_are_in_the_files_of_a_run(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def share(outputs, targets):\n    return (outputs.argmax(1) == targets).float().mean()\n")
    more = ("--course.evaluate", "both", "--course.best-by", "share", "--metrics.own", f"{mine}:share")
    report = run(tmp_path, "own", *more, "--metrics.clients", "fairness", "each")
    metrics = report["metrics"]
    assert isinstance(metrics, dict)
    assert metrics["share"] == pytest.approx(metrics["accuracy"])
    assert metrics["client_share_std"] == pytest.approx(metrics["client_accuracy_std"], abs=1e-6)
    rows = [orjson.loads(line) for line in (tmp_path / "own" / "clients.jsonl").read_text().splitlines()]
    assert [(row["round"], row["seat"]) for row in rows] == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_groups_have_seats_that_hold_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--metrics.clients", "groups", "--metrics.groups", "north", "0", "1", "--runs", str(tmp_path)]
    assert main(["simulate", str(EXAMPLES / "digits.toml"), *given]) == 2
    assert "metrics.groups: north has seat 0, which holds no examples" in capsys.readouterr().err


ADAPTIVE = [
    {"name": "fedavg"},
    {"name": "fedprox", "mu": 0.1},
    {"name": "fednova"},
    {"name": "scaffold"},
    {"name": "fedbuff", "goal": 2},
    {"name": "dpsgd"},
]


def uneven(course: dict[str, object], **tables: object) -> dict[str, object]:
    """A course on devices that are not equally fast."""
    family = "ring" if course["name"] == "dpsgd" else "star"
    return {
        "course": {"rounds": 2, **course}, "topology": {"n": 4, "family": family}, "data": {"subsample": 0.1},
        "devices": {"spread": 1.0, "examples_per_second": 100.0}, "seed": 3, **tables,
    }  # fmt: skip


@pytest.mark.parametrize("course", ADAPTIVE, ids=lambda course: str(course["name"]))
def test_slow_devices_do_what_they_get_through_in_the_time(course: dict[str, object]) -> None:
    seconds, train = 0.4, {"epochs": 3, "batch_size": 8}
    whole = prepare(from_mapping(uneven(course, train=train)))
    nodes, steps = {}, []
    for seat, shard in whole.shards.items():
        speed = Device(whole.config.devices, 3, seat, Backlog(Cohort())).examples_per_second
        full = Work.of(len(shard), whole.config.train).steps
        steps.append(min(full, max(1, int(seconds * speed / 8))))
        if 3 * len(shard) > seconds * speed:
            nodes[str(seat)] = {"train": {"steps": steps[-1]}}
    assert len(set(steps)) > 1 and len(nodes) > 1
    timed = simulate(prepare(from_mapping(uneven(course, train={**train, "within_seconds": seconds}))))
    told = simulate(prepare(from_mapping(uneven(course, train=train, nodes=nodes))))
    assert torch.equal(timed.params, told.params) and timed.virtual_seconds == told.virtual_seconds
    assert timed.virtual_seconds < simulate(whole).virtual_seconds


def test_seats_that_train_otherwise_do_so_over_links_too() -> None:
    nodes = {"1": {"train": {"steps": 1}}, "2-3": {"train": {"epochs": 2, "momentum": 0.5}}}
    setup, usual = (prepare(from_mapping(uneven({"name": "fednova"}, **more))) for more in ({"nodes": nodes}, {}))
    there = simulated(setup)
    assert there == in_memory(setup) != simulated(usual)
    assert there[0] == model_hash(simulate(setup).params)
