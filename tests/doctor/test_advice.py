"""Every sentence that the doctor has, with what provokes it. That real links provoke it is seen in test_doctor.py."""

from __future__ import annotations

from typing import Any

import pytest

from p2pfl.doctor.advice import Here, advise, megabits, usual_course
from p2pfl.doctor.finding import Finding, Trouble
from p2pfl.doctor.reach import Answer, Knock
from p2pfl.node.probing import Description, Software

OURS = Software("0.1.0", "1", "3.11.7", "2.13.0", "Linux")
HERE = Here("me-in-full", OURS, "course-of-all")
V4, V6 = Knock("10.0.0.1", Answer.OPEN), Knock("fd00::1", Answer.REFUSED)


def described(software: Software = OURS, course: str = "course-of-all", model_bytes: int | None = None) -> Description:
    return Description(software, "north", 0, ("ws://north:7700/p2pfl/v1",), course, model_bytes)


def healthy(**changes: Any) -> Finding:
    facts: dict[str, Any] = {
        "address": "north:7700", "peer_id": "abcdefghijkl", "knocks": (V4,), "suite": "Noise", "trust": "open",
        "description": described(), "rtt_seconds": 0.01, "clock_offset_seconds": 0.1, "down": 1e7, "up": 1e7,
    }  # fmt: skip
    return Finding(**facts | changes)


def test_of_a_healthy_peer_there_is_nothing_to_say() -> None:
    assert advise(healthy(), HERE) == []
    assert advise(healthy(dialled_back="reached"), HERE) == []


TROUBLES = {
    Trouble.NO_DOOR: "give it --listen",
    Trouble.ADDRESS: "correct its --listen",
    Trouble.NAME: "the name north does not resolve on this host",
    Trouble.REFUSED: "start the node there with --listen 0.0.0.0:7700",
    Trouble.SILENT: "a firewall or a host that is off: open TCP port 7700 there",
    Trouble.NO_ROUTE: "check the network, or a VPN",
    Trouble.TLS: "give --tls-ca the authority of its certificate",
    Trouble.STRANGER: "correct the port, or write wss://",
    Trouble.NETWORK: "give the same --network and --network-key at both ends",
    Trouble.OTHER: "another node answers",
    Trouble.UNTRUSTED: "it is not trusted here: because",
    Trouble.TURNED_AWAY: "add me-in-full to its --allow",
    Trouble.VERSION: "no protocol version in common: because",
    Trouble.SELF: "take another --identity",
    Trouble.FULL: "try again in a minute",
    Trouble.LOST: "see the log there",
}


@pytest.mark.parametrize("trouble", Trouble)
def test_every_trouble_has_a_mend(trouble: Trouble) -> None:
    (advice,) = advise(Finding("north:7700", "abcdefghijkl", trouble, "because", (V4,)), HERE)
    assert TROUBLES[trouble] in advice.sentence
    assert "(abcdefghij)" in advice.sentence
    assert "\n" not in advice.sentence
    assert advice.wrong is (trouble is not Trouble.NO_DOOR)


@pytest.mark.parametrize("address", ["north:7700", "ws://north:7700", "wss://north:7700/path"])
def test_host_and_port_are_named_however_the_address_is_written(address: str) -> None:
    (advice,) = advise(Finding(address, trouble=Trouble.NAME), HERE)
    assert "the name north does" in advice.sentence


def test_without_ipv6() -> None:
    (advice,) = advise(Finding("[fd00::1]:7700", trouble=Trouble.NO_ROUTE, knocks=(V6,)), HERE)
    assert "no IPv6 route to it: give its IPv4 address" in advice.sentence


OLD, OTHER_TORCH = Software("0.0.9", "1", "3.12", "2.13.0", "Mac"), Software("0.1.0", "1", "3.11", "2.10", "Linux")
WRONG = {
    "runs p2pfl 0.0.9, this host 0.1.0: install the same on both": {"description": described(OLD)},
    "plays the course another-, not course-o: start it": {"description": described(course="another-course")},
    "is 31 s ahead of this host's, from which logs suffer": {"clock_offset_seconds": 31.0},
    "is 40 s behind this host's": {"clock_offset_seconds": -40.0},
    "by monotonic time: run NTP on both": {"clock_offset_seconds": 31.0},
    "dial ws://inside:1, which does not work from here (unknown name)": {"astray": {"ws://inside:1": "unknown name"}},
    "cannot dial this host at the port of --listen: open it in the firewall": {"dialled_back": "unreached"},
    "the link did not last": {"trouble": Trouble.LOST},
}
WORTH_KNOWING = {
    "has torch 2.10, this host 2.13.0": {"description": described(OTHER_TORCH)},
    "the line from north (abcdefghij) at north:7700 carries 0.4 Mbit/s: 1 MB takes 20 s one way": {"down": 5e4},
    "the line to north (abcdefghij) at north:7700 carries 0.4 Mbit/s": {"up": 5e4},
    "the course's model of 40.0 MB takes 40 s one way": {"description": described(model_bytes=40_000_000), "up": 1e6},
    "the bandwidth was not measured to the end": {"up": None},
    "dials nobody back at the moment": {"dialled_back": "busy"},
    "the name stands for IPv6 addresses, too, and there nothing answers": {"knocks": (V6, V4)},
    "answers no probes": {"description": None, "rtt_seconds": None, "error": "nothing here handles"},
    "is the same node as hub:7700": {"twin": "hub:7700"},
}


@pytest.mark.parametrize("sentence", [*WRONG, *WORTH_KNOWING])
def test_one_thing_that_is_amiss_is_one_sentence(sentence: str) -> None:
    (advice,) = advise(healthy(**(WRONG | WORTH_KNOWING)[sentence]), HERE)
    assert sentence in advice.sentence
    assert "\n" not in advice.sentence
    assert advice.wrong is (sentence in WRONG)


@pytest.mark.parametrize(
    "changes",
    [
        {"clock_offset_seconds": 29.0},
        {"knocks": (Knock("127.0.0.1", Answer.OPEN), Knock("::1", Answer.REFUSED))},  # localhost
        {"description": described(course="")},  # it has none yet
        {"description": described(model_bytes=1000), "up": 5e4},  # a small model on a slow line
        {"down": None, "up": None, "rtt_seconds": None},  # not asked
    ],
)
def test_what_is_no_trouble(changes: dict[str, Any]) -> None:
    assert advise(healthy(**changes), HERE) == []


def test_without_a_course_of_ours_all_are_right() -> None:
    assert advise(healthy(description=described(course="any")), Here("me", OURS)) == []


def test_the_usual_course_is_that_of_most() -> None:
    courses = ["b", "", "a", "", "", "a"]
    findings = [healthy(description=described(course=course)) for course in courses]
    assert usual_course([Finding("x"), *findings]) == "a"
    assert usual_course(findings[:3]) == "b"
    assert usual_course([Finding("x")]) == ""


def test_megabits() -> None:
    assert [megabits(rate) for rate in (1e9, 2e5, 12_000.0, 500.0)] == ["8000", "1.6", "0.096", "0.004"]
