"""What stands in the way, from what answered. Real links that fail in these ways are in test_doctor.py."""

from __future__ import annotations

import pytest

from p2pfl.doctor.finding import Finding, Trouble, trouble_of_dial, trouble_of_knocks, trouble_of_link
from p2pfl.doctor.reach import Answer, Knock
from p2pfl.errors import (
    ConfigError,
    HandshakeFailed,
    LinkError,
    LinkRefused,
    LinkToSelf,
    LinkTruncated,
    PeerUnreachable,
    UntrustedPeer,
    VersionMismatch,
)
from p2pfl.node.probing import Description, Software

OPEN, REFUSED, SILENT, NO_ROUTE = (Knock("10.0.0.1", answer) for answer in Answer)


@pytest.mark.parametrize(
    ("knocks", "trouble"),
    [
        ([], Trouble.NAME),
        ([REFUSED, OPEN], None),
        ([NO_ROUTE, REFUSED, SILENT], Trouble.REFUSED),
        ([NO_ROUTE, SILENT], Trouble.SILENT),
        ([NO_ROUTE], Trouble.NO_ROUTE),
    ],
)
def test_the_answer_that_says_most_counts(knocks: list[Knock], trouble: Trouble | None) -> None:
    assert trouble_of_knocks(knocks) is trouble


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (ConfigError("x"), Trouble.ADDRESS),
        (UntrustedPeer("x"), Trouble.UNTRUSTED),
        (VersionMismatch("x"), Trouble.VERSION),
        (HandshakeFailed("x"), Trouble.NETWORK),
        (HandshakeFailed("aaa answers where bbbbbbbbbb was expected"), Trouble.OTHER),
        (UntrustedPeer("aaa answers at memory:x, where bbbbbbbbbbcc was expected"), Trouble.OTHER),
        (LinkToSelf("x"), Trouble.SELF),
        (LinkRefused("x"), Trouble.FULL),
        (PeerUnreachable("x"), Trouble.SILENT),
        (LinkTruncated("x"), Trouble.LOST),
    ],
)
def test_kinds_of_errors(error: LinkError, trouble: Trouble) -> None:
    assert trouble_of_dial(error, "bbbbbbbbbbcc") is trouble


def test_who_ends_a_good_link_in_its_first_moment_does_not_trust_us() -> None:
    assert trouble_of_link(HandshakeFailed("x")) is Trouble.TURNED_AWAY
    assert trouble_of_link(LinkRefused("x")) is Trouble.FULL
    assert trouble_of_link(LinkTruncated("x")) is Trouble.LOST


def test_labels() -> None:
    finding = Finding("hub:7700")
    assert finding.label == "hub:7700"
    finding.peer_id = "abcdefghijklmno"
    assert finding.label == "(abcdefghij) at hub:7700"
    finding.description = Description(Software("", "", "", "", ""), "north", None, (), "", None)
    assert finding.label == "north (abcdefghij) at hub:7700"
    assert Finding("", "abcdefghijklmno").label == "(abcdefghij)"
