"""Benchmarks in small: those that need nothing installed do what they say, and notice if something does not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from p2pfl.app.build import prepare
from p2pfl.app.config import from_mapping
from p2pfl.app.simulate import simulate
from p2pfl.sim.report import Round
from tests.benchmarks import compare, rules
from tests.benchmarks.flood import Survived, flood, lines
from tests.benchmarks.simulation import hand
from tests.benchmarks.simulation.__main__ import main
from tests.benchmarks.simulation.drawing import draw
from tests.benchmarks.simulation.report import BASELINE, Report
from tests.benchmarks.simulation.subject import Measured, measured
from tests.benchmarks.simulation.workload import SCENARIOS, Scenario, Work

SUBJECTS = (BASELINE, "hand-batched", "p2pfl")


def small(name: str) -> Scenario:
    return replace(SCENARIOS[name], clients=6, cohort=3, rounds=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw(small("digits"), tmp_path)
    return tmp_path


def test_all_do_the_same_work(folder: Path) -> None:
    report = Report("digits", small("digits"))
    for subject in SUBJECTS:
        report.add(subject, measured(subject, folder))
    distances = [runs[0].distance for runs in report.runs.values()]
    assert distances == pytest.approx([distances[0]] * 3, rel=1e-4)
    assert distances[0] > 0.5
    assert report.problems() == []


@pytest.mark.parametrize("name", ["fem", "big"])
def test_other_scenarios_can_be_drawn(name: str, tmp_path: Path) -> None:
    scenario = replace(small(name), hidden=(8,))
    draw(scenario, tmp_path)
    work = Work.read(tmp_path)
    assert work.scenario == scenario
    assert work.plan.shape == (2, 3, scenario.epochs * scenario.examples // scenario.batch, scenario.batch)
    assert math.isfinite(work.distance(work.module().state_dict()))  # the names are those of the module
    assert [int(rows.unique().numel()) for rows in work.plan.flatten(2).flatten(0, 1)] == [scenario.examples] * 6


def test_another_order_of_batches_is_noticed(folder: Path) -> None:
    report = Report("digits", small("digits"))
    report.add(BASELINE, measured(BASELINE, folder))
    work = Work.read(folder)
    final = hand.run(replace(work, plan=work.plan.flip(2)), lambda: None)
    report.add("another", replace(report.runs[BASELINE][0], distance=work.distance(final)))
    (problem,) = report.problems()
    assert problem.startswith("another DIFFERS: ||w-w0|| is ")


def test_a_report_compares_within_a_repetition() -> None:
    report = Report("digits", small("digits"), {"flower": "the package flwr is missing"})
    for speed in (1.0, 4.0, 2.0):  # the machine is slow at times, for everybody
        report.add(BASELINE, Measured(10 * speed, 10 * speed, 0.5, 100, 2.0, 0.9))
        report.add("p2pfl", Measured(2 * speed, 5 * speed, 0.25, 80, 2.00001, 0.9))
    assert report.plain()["cpu_ratio"] == {BASELINE: 1.0, "p2pfl": 0.2}
    _, _, _, ours, flower = report.text().splitlines()
    assert ours.split() == ["p2pfl", "4.0", "0.20", "10.0", "0.50", "0.25", "80", "2.000010", "0.9000"]
    assert flower == "flower: not measured, the package flwr is missing"


def test_the_command_skips_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["digits-10", "--subjects", BASELINE, "--compute", "abacus", "--repeat", "1", "--rounds", "1"]
    assert main([*arguments, "--json", str(tmp_path / "measured.json")]) == 0
    out = capsys.readouterr().out
    assert "p2pfl abacus: not measured, p2pfl has no compute of this name" in out
    assert (tmp_path / "measured.json").stat().st_size > 100


@pytest.mark.sockets
async def test_a_flood_is_measured_and_an_honest_peer_asks_meanwhile() -> None:
    survived = await flood("bulk", peers=2, seconds=1.5)
    assert 0 < survived.before <= survived.peak
    assert survived.answers > 0


def test_a_flood_over_the_bound_is_told() -> None:
    found = {
        "within": Survived(40 << 20, 50 << 20, 40 << 20, 9, 0.1),
        "over": Survived(40 << 20, 1 << 30, 1 << 30, 0, 5.0),
    }
    _, within, over = lines(iter(found.items()), peers=10)
    assert within.split() == ["within", "42", "52", "42", "151", "ok", "9", "0.10"]
    assert "OVER" in over


@pytest.mark.parametrize("group", [rules.COORDINATED, rules.GOSSIP], ids=["coordinated", "gossip"])
def test_courses_whose_costs_are_compared_take_as_many_gradients(group: Mapping[str, object]) -> None:
    worked = {name: simulate(prepare(from_mapping(rules.tables(name, 6, 4, 1)))).train_flops for name in group}
    less = worked.pop("fedrep", None)  # of which a part is those of the head alone
    assert len(set(worked.values())) == 1
    assert less is None or less < worked["fedavg"]


def test_the_first_round_that_reaches_a_target_is_what_it_took() -> None:
    rounds = [Round(at, 2.5 * at, 0, 1, {"accuracy": accuracy}) for at, accuracy in ((1, 0.5), (2, 0.8), (3, 0.7))]
    assert compare.cost(rounds, 0.7, "rounds") == 2
    assert compare.cost(rounds, 0.7, "virtual seconds") == 5.0
    assert compare.cost(rounds, 0.9, "rounds") == math.inf
    assert compare.row("x", [2.0, math.inf, 2.5], 5.0) == "| x | 2 | never | 2.5 | 2.5 | 0.50 |"
