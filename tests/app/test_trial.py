"""One run of a course under faults: as small as can be, reproducible, and resumed as a host would."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from p2pfl.app.trial import Trial, settled_memory
from p2pfl.courses.adpsgd import ADPSGD, AdpsgdSettings
from p2pfl.courses.course import Course
from p2pfl.courses.dpsgd import DPSGD, DpsgdSettings
from p2pfl.courses.durable import RoundCommitted
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.fedrep import FEDREP, FedRepSettings
from p2pfl.courses.partial import FEDBN, FEDPER, FedBnSettings, FedPerSettings
from p2pfl.errors import ConfigError
from p2pfl.node.events import RoundStarted
from p2pfl.sim.checkers import checked
from p2pfl.sim.history import Injected, Sent, Wrote
from p2pfl.sim.nemesis import Crash, schedule
from p2pfl.topology.families import build


@pytest.fixture(scope="module", autouse=True)
def settled() -> Iterator[None]:
    with settled_memory():
        yield


def star(rounds: int = 2) -> Trial:
    return Trial(FEDAVG, FedAvgSettings(rounds=rounds), build("star", 4), checked("fedavg"))


def test_a_run_under_no_faults_ends_with_a_model_everywhere() -> None:
    trial = star()
    found, history = trial.violations(3, ())
    assert not found
    assert sorted(history.models) == [0, 1, 2, 3]
    assert [entry.seat for entry, _ in history.of(RoundCommitted)] == [0, 0]
    assert {sent.tag for _, sent in history.of(Sent)} >= {"Train", "Update", "Finish"}
    assert {entry.seat for entry, _ in history.of(Wrote)} == {0, 1, 2, 3}
    assert history.entries[-1].seconds < 10


@pytest.mark.parametrize(
    "trial",
    [
        star(3),
        Trial(DPSGD, DpsgdSettings(), build("ring", 5), ()),
        Trial(ADPSGD, AdpsgdSettings(), build("ring", 5), ()),
    ],
    ids=lambda trial: trial.course.name,
)
def test_equal_seeds_give_equal_histories(trial: Trial) -> None:
    for seed in range(3):
        faults = schedule(seed, trial.ground)
        first, again = (trial.play(seed, faults) for _ in range(2))
        assert list(map(str, first.entries)) == list(map(str, again.entries))
        assert first.models.keys() == again.models.keys()
    assert list(map(str, first.entries)) != list(map(str, trial.play(seed + 1, faults).entries))


def test_who_is_restarted_goes_on_from_its_journal() -> None:
    trial = star(3)
    (committed,) = [entry.seconds for entry, event in trial.play(0, ()).of(RoundCommitted) if event.round == 2]
    found, history = trial.violations(0, (Crash(committed + 0.02, committed + 0.5, 0),))
    assert not found
    assert [event.round for entry, event in history.of(RoundStarted)] == [1, 2, 3, 3], "the third had begun"
    assert [entry.seconds for entry, _ in history.of(RoundStarted)][3] >= committed + 0.5
    assert [fault.begins for _, fault in history.of(Injected)] == [True, False]


def test_it_has_three_rounds_at_most_and_faults_for_three_times_as_long() -> None:
    long = Trial(FEDAVG, FedAvgSettings(rounds=100), build("star", 4), ())
    assert long.settings.rounds == 3 and star(1).settings.rounds == 1
    plain = long.play(0, ())
    assert long.ground.seconds == pytest.approx(3 * plain.entries[-1].seconds)
    assert set(long.ground.links) == {(0, 1), (0, 2), (0, 3), (1, 0), (2, 0), (3, 0)}


def test_who_leads_is_found_out() -> None:
    assert star().leading == (0,)
    assert Trial(DPSGD, DpsgdSettings(), build("ring", 5), ()).leading == ()


def test_a_course_that_cannot_run_on_a_topology_is_refused() -> None:
    with pytest.raises(ConfigError, match="topology: fedavg cannot run on <Topology ring"):
        Trial(FEDAVG, FedAvgSettings(), build("ring", 5), ())


@pytest.mark.parametrize(
    ("course", "settings"), [(FEDPER, FedPerSettings()), (FEDREP, FedRepSettings()), (FEDBN, FedBnSettings())]
)
def test_where_a_part_of_the_model_stays_it_has_parts(course: Course, settings: FedAvgSettings) -> None:
    trial = Trial(course, settings, build("star", 3), checked(course.name))
    found, history = trial.violations(1, schedule(1, trial.ground))
    assert not found and sorted(history.models) == [0, 1, 2]


def test_a_course_that_refuses_the_model_says_so() -> None:
    settings = FedPerSettings(private=("head.*",))
    with pytest.raises(ConfigError, match=r"with the small model that a course is tried with, course\.private"):
        _ = Trial(FEDPER, settings, build("star", 3), ()).ground
