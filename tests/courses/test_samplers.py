import doctest
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import p2pfl.courses.samplers
from p2pfl.app.build import prepare
from p2pfl.app.config import from_mapping
from p2pfl.app.simulate import simulate
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.samplers import (
    SAMPLERS,
    Grouped,
    Oort,
    PowerOfChoice,
    Responsiveness,
    SamplerSpec,
    Seen,
    Uniform,
    _shuffled,
    _weighted,
)
from p2pfl.errors import ConfigError
from p2pfl.node.events import UpdateMissing
from p2pfl.sim.devices import DeviceSpec
from p2pfl.topology.families import build
from tests.courses.kit import Played
from tests.courses.test_failures import Ailing

SEATS = range(1, 13)


def everybody(seat):
    return True


def taught(sampler, seats=SEATS, seconds=lambda seat: float(seat), loss=lambda seat: 1.0, examples=lambda seat: 10):
    for seat in seats:
        sampler.note(seat, Seen(seconds(seat), examples(seat), loss(seat)))
    return sampler


def test_the_docstrings_are_true():
    assert doctest.testmod(p2pfl.courses.samplers).failed == 0


@given(st.sampled_from(SAMPLERS), st.sets(st.sampled_from(SEATS)), st.sets(st.sampled_from(SEATS)), st.randoms())
def test_a_draw_is_of_so_many_who_are_admitted_and_none_twice(name, there, known, random):
    sampler = taught(SamplerSpec(name).sampler(), sorted(known))
    for many in (0, 1, 5, 20):
        drawn = sampler.draw(SEATS, there.__contains__, many, Random(random.random()))
        assert len(drawn) == len(set(drawn)) == min(many, len(there))
        assert set(drawn) <= there


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_it_has_learned_outlives_a_restart(name):
    sampler = taught(SamplerSpec(name).sampler(), range(1, 9))
    for round in range(25):
        for seat in sampler.draw(SEATS, everybody, 3, Random(round)):
            sampler.note(seat, Seen(float(seat), 10, 1.0 / (round + seat), round))
    again = SamplerSpec(name).sampler()
    again.resume(sampler.state())
    for round in range(25, 35):
        assert again.draw(SEATS, everybody, 3, Random(round)) == sampler.draw(SEATS, everybody, 3, Random(round))
    assert again.state() == sampler.state()


def test_uniform_is_the_beginning_of_a_shuffle_and_looks_no_further():
    assert (
        Uniform().draw(SEATS, lambda seat: seat % 2 == 0, 3, Random(4))
        == [seat for seat in _shuffled(SEATS, Random(4)) if seat % 2 == 0][:3]
    )
    assert len(Uniform().draw(range(10**9), everybody, 5, Random(1))) == 5


def test_a_weighted_draw_takes_the_first_by_weight():
    counts = Counter(_weighted([1, 2, 3, 4], [1.0, 2.0, 5.0, 0.0], 1, Random(seed))[0] for seed in range(4000))
    assert [counts[seat] / 4000 for seat in (1, 2, 3, 4)] == pytest.approx([1 / 8, 2 / 8, 5 / 8, 0], abs=0.03)


@pytest.mark.parametrize(("slow", "shares"), [(False, [3 / 4, 1 / 4]), (True, [1 / 4, 3 / 4])])
def test_responsiveness_goes_by_the_root_of_the_time_in_both_directions(slow, shares):
    sampler = taught(Responsiveness(slow=slow), (1, 2), lambda seat: {1: 1.0, 2: 9.0}[seat])
    counts = Counter(sampler.draw((1, 2), everybody, 1, Random(seed))[0] for seed in range(4000))
    assert [counts[1] / 4000, counts[2] / 4000] == pytest.approx(shares, abs=0.03)


def test_groups_are_of_a_speed_and_each_comes_once():
    sampler = taught(Grouped(groups=4))
    cohorts = [sampler.draw(SEATS, everybody, 3, Random(round)) for round in range(4)]
    assert sorted(sorted(cohort) for cohort in cohorts) == [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]]


def test_power_of_choice_takes_the_highest_losses_of_the_candidates():
    sampler = taught(PowerOfChoice(candidates=100.0), loss=lambda seat: float(seat))
    assert sampler.draw(SEATS, everybody, 3, Random(0)) == [12, 11, 10]
    sampler = taught(PowerOfChoice(candidates=100.0), range(1, 12), loss=lambda seat: float(seat))
    assert sampler.draw(SEATS, everybody, 2, Random(0)) == [12, 11], "who was never asked comes first"
    few = taught(PowerOfChoice(candidates=1.0), examples=lambda seat: 1 if seat < 12 else 10**9)
    assert few.draw(SEATS, everybody, 1, Random(0)) == [12], "candidates are drawn by their examples"


def test_oort_explores_less_and_less_and_goes_for_what_is_learned_in_time():
    sampler = Oort()
    known = range(1, 7)
    taught(sampler, known, lambda seat: 1.0, lambda seat: float(seat))
    fresh = [sum(seat > 6 for seat in sampler.draw(SEATS, everybody, 5, Random(round))) for round in range(400)]
    assert sum(fresh[:10]) / 50 == pytest.approx(0.9 * (1 - 0.98**10) / (10 * 0.02), abs=0.1)
    assert sum(fresh[200:]) / 1000 == pytest.approx(0.2, abs=0.04)
    counts = Counter(seat for round in range(400) for seat in sampler.draw(known, everybody, 1, Random(round)))
    assert set(counts) == {6}, "whose loss is far above the others'"
    sampler.note(6, Seen(10.0, 10, 6.0))
    counts = Counter(seat for round in range(50) for seat in sampler.draw(known, everybody, 1, Random(round)))
    assert set(counts) == {5}, "a tenth as fast counts for a hundredth"


def test_oort_allows_more_time_when_there_is_less_to_gain():
    sampler = taught(Oort(), seconds=lambda seat: 1.0)
    before = sampler.state()["quantile"]
    for round in range(60):
        for seat in sampler.draw(SEATS, everybody, 3, Random(round)):
            sampler.note(seat, Seen(1.0, 10, 1.0 / (round + 1), round))
    assert sampler.state()["quantile"] > before


def test_of_who_gives_nothing_the_time_is_at_least_what_was_waited():
    sampler = Responsiveness()
    sampler.note(1, Seen(2.0, 10, 0.5))
    sampler.note(1, Seen(5.0, round=3))
    sampler.note(1, Seen(1.0, round=4))
    assert sampler.seen[1] == Seen(5.0, 10, 0.5, 4)


def test_who_is_late_is_slow_and_who_fails_at_once_is_not_fast():
    servers = []

    def recast(seat, roles):
        if seat == 0:
            servers.append(roles[0])
        if seat == 1:
            object.__setattr__(roles[0]._learner, "compute", Ailing(roles[0]._learner.compute, {0: OSError("full")}))
        return roles

    settings = FedAvgSettings(rounds=1, sampler="responsiveness", evaluate="none", deadline_seconds=3.0)
    devices = DeviceSpec(examples_per_second=10.0, spread=1.0)
    done = Played(FEDAVG, settings, build("star", 7), devices=devices, recast=recast).play()
    seen = servers[0]._clients.sampler.seen
    late = {f"seat {seat}" for seat, each in seen.items() if each == Seen(3.0)}
    assert late == {event.peer for event in done.told(UpdateMissing) if event.cause == "late"}
    assert 1 not in seen and len(seen) == 5 > len(late) > 0


@pytest.mark.parametrize("name", ["responsiveness", "oort"])
def test_courses_learn_who_is_slow_and_take_less_time(name):
    def seconds(sampler):
        settings = FedAvgSettings(rounds=60, fraction=0.2, sampler=sampler, evaluate="none")
        devices = DeviceSpec(examples_per_second=50.0, stragglers=0.3)
        return Played(FEDAVG, settings, build("star", 11), devices=devices).play().events[-1][0]

    assert seconds(name) < 0.8 * seconds("uniform")


def test_where_clients_sleep_only_uniform_draws():
    tables = {
        "course": {"name": "fedavg", "rounds": 1, "fraction": 0.005, "sampler": "oort"}, "topology": {"n": 2001},
        "data": {"subsample": 0.1}, "partition": {"scheme": "bootstrap"},
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"^course.sampler is 'oort', which looks at every client"):
        simulate(prepare(from_mapping(tables)))


@pytest.mark.parametrize("wrong", [{"sampler": "best"}, {"favour": "both"}, {"candidates": 0.5}, {"groups": 0}])
def test_a_wrong_setting_is_named(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"^course.{name} is"):
        FedAvgSettings(**wrong)


def test_a_successor_would_not_know_what_was_learned():
    with pytest.raises(ConfigError, match=r"course\.sampler"):
        FedAvgSettings(coordinator="elect", sampler="oort")
