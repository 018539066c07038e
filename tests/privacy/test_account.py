import pytest

from p2pfl.errors import PrivacySpent
from p2pfl.privacy.account import Account
from p2pfl.privacy.ledger import PrivacyLedger
from p2pfl.privacy.plan import Plan, plan_of
from p2pfl.privacy.spec import PrivacySpec


def _plan(rounds: int = 10, **given: object) -> Plan:
    spec = PrivacySpec("cdp", noise_multiplier=2.0, **given)
    return plan_of(spec, 100, [(1.0,) * rounds])[0]


def test_a_round_that_is_played_again_is_paid_for_again() -> None:
    account = Account(PrivacyLedger("data"), _plan(), "run")
    for round in (0, 1, 1, 2):
        account.charge(round)
    assert account.ledger.spent.mu_squared == 1.0


def test_runs_with_the_same_data_share_a_budget() -> None:
    """T-D8, over runs."""
    plan, ledger = _plan(4, epsilon_max=3.0), PrivacyLedger("data")
    for round in range(4):
        Account(ledger, plan, "first").charge(round)
    second = Account(ledger, plan, "second")
    with pytest.raises(PrivacySpent, match="the privacy budget is spent: round"):
        for round in range(4):
            second.charge(round)
    assert ledger.spent.epsilon(plan.delta) <= 3.0


def test_the_hosts_own_limit_counts_too() -> None:
    plan = _plan(epsilon_max=50.0)
    account = Account(PrivacyLedger("data"), plan, "run", most=1.0)
    with pytest.raises(PrivacySpent, match="of at most 1,"):
        for round in range(10):
            account.charge(round)


@pytest.mark.parametrize("mechanism", ["independent", "tree"])
def test_nobody_takes_part_more_often_than_allowed(mechanism: str) -> None:
    plan = _plan(participations=2, mechanism=mechanism)
    owner, leader = (Account(PrivacyLedger("data"), plan, "run", owner=owner) for owner in (True, False))
    for round in (3, 5):
        owner.charge(round)
    with pytest.raises(PrivacySpent, match=r"taken part in 2 rounds, and privacy\.participations allows 2"):
        owner.charge(7)
    assert owner.ledger.spent == plan.total
    for round in range(8):
        leader.charge(round)  # with other clients


def test_a_tree_bounds_replays_too() -> None:
    account = Account(PrivacyLedger("data"), _plan(4, mechanism="tree"), "run")
    for round in range(4):
        account.charge(round)
    with pytest.raises(PrivacySpent):
        account.charge(3)
