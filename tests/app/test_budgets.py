from pathlib import Path
from typing import Any

import pytest
import torch

from p2pfl.app.budgets import Budgets, budgets_of, fingerprint
from p2pfl.app.config import from_mapping
from p2pfl.errors import ConfigError, PrivacySpent
from p2pfl.learn.data import Shard
from p2pfl.privacy.distributed import Distributed
from p2pfl.topology.families import build
from tests.courses.kit import dataset


def budgets(n: int = 6, family: str = "ring", **privacy: Any) -> Budgets | None:
    config = from_mapping({"course": {"name": "dpsgd", "rounds": 3}, "privacy": privacy})
    return budgets_of(config, build(family, n), range(n))


def shard(*rows: int) -> Shard:
    return Shard(dataset(), torch.tensor(rows))


def test_plain_courses_have_none() -> None:
    assert budgets() is None


def test_a_coordinator_has_the_plan_of_its_clients() -> None:
    config = from_mapping({"course": {"name": "fedavg", "rounds": 3}, "privacy": {"mode": "cdp", "epsilon": 2.0}})
    found = budgets_of(config, build("star", 5), range(1, 5))
    assert found.plans[0] == found.plans[1]
    assert not found.account(0, None, "run").owner
    assert found.account(1, shard(1, 2), "run").owner
    assert found.account(1, shard(1, 2), "run") is found.account(1, None, "other")


@pytest.mark.parametrize(("mode", "files"), [("ldp", 0), ("cdp", 1)])
def test_a_coordinator_without_noise_has_nothing_to_report(tmp_path: Path, mode: str, files: int) -> None:
    config = from_mapping({"course": {"name": "fedavg", "rounds": 3}, "privacy": {"mode": mode, "epsilon": 2.0}})
    found = budgets_of(config, build("star", 5), range(1, 5)).kept(tmp_path, 0.0)
    found.account(0, None, "run")
    assert (found.report() is None) == (mode == "ldp")
    assert len(list(tmp_path.iterdir())) == files
    found.close()


def test_shares_of_noise_are_those_of_the_model_and_of_the_cohort() -> None:
    course = {"name": "fedavg", "rounds": 3, "privacy": "secagg", "quorum": 0.8, "secagg": {"bits": 20}}
    config = from_mapping({"course": course, "privacy": {"mode": "ddp", "noise_multiplier": 2.0}})
    found = budgets_of(config, build("star", 11), range(1, 11), 650)
    assert set(found.plans) == set(range(11))
    assert found.plans[3].total == Distributed(650, 8, 1.0, 2.0, 20, 0.1, 0.05).cost() * 3


def test_all_seats_have_noise_for_the_one_that_is_worst_off() -> None:
    """In a chain, the ends have one neighbour, which may be curious."""
    found = budgets(family="chain", mode="decor", epsilon=2.0)
    assert found.plans[0].total.epsilon(6**-1.1) == pytest.approx(2.0)
    assert found.plans[2].total.epsilon(6**-1.1) < 2.0
    assert found.plans[0].multiplier == found.plans[2].multiplier


def test_noise_that_cancels_needs_links_both_ways() -> None:
    with pytest.raises(ConfigError, match="links must go both ways"):
        budgets(n=8, family="one-peer-exponential", mode="decor", epsilon=2.0)


def test_the_fingerprint_is_that_of_the_examples() -> None:
    assert fingerprint(shard(1, 2)) == fingerprint(shard(1, 2)) != fingerprint(shard(1, 3))
    assert len(fingerprint(shard(1))) == 32


def test_runs_on_the_same_data_go_on_with_one_ledger(tmp_path: Path) -> None:
    def played(run: str, data: Shard, rounds: int) -> Budgets:
        found = budgets(mode="ldp", noise_multiplier=1.0, epsilon_max=4.0).kept(tmp_path, 0.0)
        try:
            for round in range(rounds):
                found.account(0, data, run).charge(round)
        finally:
            found.close()
        return found

    played("one", shard(1, 2), 3)
    with pytest.raises(PrivacySpent):
        played("two", shard(1, 2), 3)
    assert played("two", shard(1, 3), 3).report().rounds == 3
    assert len(list(tmp_path.iterdir())) == 2


def test_a_host_has_a_limit_of_its_own(tmp_path: Path) -> None:
    found = budgets(mode="ldp", noise_multiplier=1.0).kept(tmp_path, 0.5)
    paying = found.account(0, shard(1), "run")
    try:
        with pytest.raises(PrivacySpent, match=r"of at most 0\.5,"):
            paying.charge(0)
    finally:
        found.close()
