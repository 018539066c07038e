from __future__ import annotations

import pytest

from p2pfl.errors import JournalError
from p2pfl.journal.certificate import Certificate, Contribution

ROUND = Certificate("run", 3, 1, "abc", (Contribution(1, "peer", "def", 2.0), Contribution(2, "other", "012", 1.5)))


def test_signatures_are_not_part_of_what_is_signed() -> None:
    signed = ROUND.signed("peer", "sig")
    assert signed.signatures == {"peer": "sig"}
    assert signed.statement == ROUND.statement
    assert signed.digest == ROUND.digest


@pytest.mark.parametrize(
    "other",
    [
        Certificate("ruN", 3, 1, "abc", ROUND.contributions),
        Certificate("run", 4, 1, "abc", ROUND.contributions),
        Certificate("run", 3, 2, "abc", ROUND.contributions),
        Certificate("run", 3, 1, "abd", ROUND.contributions),
        Certificate("run", 3, 1, "abc", ROUND.contributions[:1]),
    ],
)
def test_everything_else_is(other: Certificate) -> None:
    assert other.statement != ROUND.statement
    assert other.digest != ROUND.digest


def test_it_survives_json() -> None:
    signed = ROUND.signed("peer", "sig")
    assert Certificate.of(signed.plain()) == signed


@pytest.mark.parametrize(
    "plain", [None, {}, [], {**ROUND.plain(), "round": "3"}, {**ROUND.plain(), "contributions": [1]}]
)
def test_what_is_no_certificate_is_refused(plain: object) -> None:
    with pytest.raises(JournalError, match="no certificate"):
        Certificate.of(plain)
