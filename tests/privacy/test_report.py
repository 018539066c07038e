from p2pfl.privacy.account import Account
from p2pfl.privacy.ledger import PrivacyLedger
from p2pfl.privacy.plan import plan_of
from p2pfl.privacy.report import report_of
from p2pfl.privacy.spec import PrivacySpec


def _accounts(rounds: tuple[int, ...], spec: PrivacySpec) -> list[Account]:
    plans = plan_of(spec, 100, [(1.0,) * 10] * len(rounds))
    accounts = [Account(PrivacyLedger("data"), plan, "run") for plan in plans]
    for account, many in zip(accounts, rounds, strict=True):
        for round in range(many):
            account.charge(round)
    return accounts


def test_tells_of_who_has_spent_most() -> None:
    accounts = _accounts((1, 4, 2), PrivacySpec("ldp", noise_multiplier=2.0, delta=1e-5))
    report = report_of(accounts)
    assert report.epsilon == accounts[1].ledger.spent.epsilon(1e-5)
    assert report.rounds == 4
    assert report.valid
    assert str(report) == (
        "privacy ldp: epsilon 4.377 at delta 1e-05 for a node with all its data (zero-out: a node's updates, or "
        "zeros), against everybody; 4 rounds charged, no amplification by sampling, exact Gaussian, "
        "clip 1, noise multiplier 2"
    )


def test_an_epsilon_of_noise_that_can_be_drawn_again_is_none() -> None:
    report = report_of(_accounts((1,), PrivacySpec("cdp", noise_multiplier=2.0, deterministic_noise=True)))
    assert not report.valid
    assert "NOT VALID" in str(report)
    assert "but not the coordinator" in report.view


def test_names_the_coalition() -> None:
    report = report_of(_accounts((1,), PrivacySpec("decor", noise_multiplier=2.0, colluders=3)))
    assert "any 3 of the other nodes" in report.view


def test_names_the_curious_aggregator() -> None:
    report = report_of(_accounts((1,), PrivacySpec("ddp", noise_multiplier=2.0)))
    assert report.view.startswith("a curious aggregator, and all others, as long as")
