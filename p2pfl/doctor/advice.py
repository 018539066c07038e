"""What to do about what `p2pfl doctor` has found: one sentence for each thing that is wrong, with the mend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from p2pfl.doctor.finding import Finding, Trouble
from p2pfl.doctor.reach import Answer
from p2pfl.node.probing import Software

__all__ = ["CLOCK_SECONDS", "Advice", "Here", "advise", "megabits", "usual_course"]

CLOCK_SECONDS = 30.0  # by which clocks may differ
_SLOW_SECONDS = 30.0  # for one model, one way
_SLOW_BYTES = 125_000.0  # a second, where there is no model to judge by: 1 Mbit/s


class Advice(NamedTuple):
    """One sentence. `wrong`: a course would suffer; else it is as well to know."""

    sentence: str
    wrong: bool = True


@dataclass(frozen=True, slots=True)
class Here:
    """What the peers are compared with: this host, and the course that all should have."""

    peer_id: str
    software: Software
    course: str = ""


def usual_course(findings: Iterable[Finding]) -> str:
    """The hash of the course that most peers have; of several, the first."""
    hashes = [finding.description.course for finding in findings if finding.description is not None]
    return next((course for course, _ in Counter(filter(None, hashes)).most_common(1)), "")


def advise(finding: Finding, here: Here) -> list[Advice]:
    """Everything that there is to say about one peer."""
    if finding.twin:
        return [Advice(f"{finding.address} is the same node as {finding.twin}: one of the two is enough", wrong=False)]
    said = [] if finding.trouble is None else [_about_trouble(finding, finding.trouble, here)]
    if finding.trouble is None and not finding.probed:
        said.append(_about_silence(finding))
    return said + list(_about_peer(finding, here))


def _about_peer(finding: Finding, here: Here) -> Iterator[Advice]:
    yield from _about_families(finding)
    yield from _about_software(finding, here)
    yield from _about_course(finding, here)
    yield from _about_clock(finding)
    yield from _about_line(finding)
    yield from _about_doors(finding)


def _about_trouble(finding: Finding, trouble: Trouble, here: Here) -> Advice:
    if trouble is Trouble.NO_DOOR:
        return Advice(
            f"{finding.label} has no address, so that only its own dialling and relays link it to others: if they "
            "should reach it, give it --listen and open that port",
            wrong=False,
        )
    host, _, port = finding.address.rpartition("://")[2].partition("/")[0].rpartition(":")
    why = finding.error or str(trouble)
    mends = {
        Trouble.ADDRESS: f"it tells others an address that is none ({why}): correct its --listen",
        Trouble.NAME: f"the name {host} does not resolve on this host: correct it, or give the IP address",
        Trouble.REFUSED: f"the host refuses connections: start the node there with --listen 0.0.0.0:{port}, since "
        f":{port} is for that machine only, or correct the port",
        Trouble.SILENT: f"nothing answers, as with a firewall or a host that is off: open TCP port {port} there, or "
        "let that node dial this one",
        Trouble.NO_ROUTE: _no_route(finding),
        Trouble.TLS: f"TLS failed ({why}): give --tls-ca the authority of its certificate, and dial a name that the "
        "certificate has",
        Trouble.STRANGER: f"what answers is no p2pfl node, or wants TLS where we do not speak it ({why}): correct the "
        "port, or write wss://",
        Trouble.NETWORK: f"the handshake failed ({why}): give the same --network and --network-key at both ends",
        Trouble.OTHER: f"another node answers than the one that is said to be there ({why}): if its key was changed, "
        "restart who still tells the old one",
        Trouble.UNTRUSTED: f"it is not trusted here: {why}",
        Trouble.TURNED_AWAY: f"it does not trust this host: add {here.peer_id} to its --allow or --allow-file, or say "
        "--identity FILE to be one that it knows",
        Trouble.VERSION: f"no protocol version in common: {why}",
        Trouble.SELF: f"it has the identity of this command ({why}): take another --identity",
        Trouble.FULL: f"it takes no link at the moment ({why}): try again in a minute, or raise its limits",
        Trouble.LOST: f"the link did not last ({why}): see the log there, and try again",
    }
    return Advice(f"{finding.label}: {mends[trouble]}")


def _no_route(finding: Finding) -> str:
    families = sorted({knock.family for knock in finding.knocks})
    if families == ["IPv6"]:
        return "this host has no IPv6 route to it: give its IPv4 address, or IPv6 to this host"
    return "there is no route to it from this host: check the network, or a VPN that it may need"


def _about_silence(finding: Finding) -> Advice:
    return Advice(
        f"{finding.label} answers no probes, so only the link was tested ({finding.error}): if it is a node of your "
        "own program, add the role Probed to it, else bring it to this p2pfl version",
        wrong=False,
    )


def _about_families(finding: Finding) -> Iterator[Advice]:
    """Names that stand for addresses of both kinds, of which one does not work. localhost mostly does."""
    works = {knock.family for knock in finding.knocks if knock.answer is Answer.OPEN}
    fails = {knock.family for knock in finding.knocks} - works
    if works and fails and not all(knock.loopback for knock in finding.knocks):
        (bad,) = fails
        yield Advice(
            f"{finding.label}: the name stands for {bad} addresses, too, and there nothing answers: listen on both "
            f"(--listen '[::]:PORT' beside 0.0.0.0:PORT), or take the {bad} address out of the name service",
            wrong=False,
        )


def _about_software(finding: Finding, here: Here) -> Iterator[Advice]:
    if finding.description is None:
        return
    there, ours = finding.description.software, here.software
    if there.p2pfl != ours.p2pfl:
        yield Advice(f"{finding.label} runs p2pfl {there.p2pfl}, this host {ours.p2pfl}: install the same on both")
    if there.torch != ours.torch:
        yield Advice(
            f"{finding.label} has torch {there.torch}, this host {ours.torch}: courses run, but for results that are "
            "equal to the last bit install the same",
            wrong=False,
        )


def _about_course(finding: Finding, here: Here) -> Iterator[Advice]:
    course = finding.description.course if finding.description is not None else ""
    if course and here.course and course != here.course:
        yield Advice(
            f"{finding.label} plays the course {course[:8]}, not {here.course[:8]}: start it with the same file and "
            "options, or without --course to take that of its peers"
        )


def _about_clock(finding: Finding) -> Iterator[Advice]:
    offset = finding.clock_offset_seconds
    if offset is not None and abs(offset) > CLOCK_SECONDS:
        yield Advice(
            f"{finding.label}: its clock is {abs(offset):.0f} s {'ahead of' if offset > 0 else 'behind'} this host's, "
            "from which logs suffer, and TLS, but no deadline of p2pfl, as these go by monotonic time: run NTP on both"
        )


def _about_line(finding: Finding) -> Iterator[Advice]:
    if finding.rtt_seconds is not None and finding.trouble is None and (finding.down is None or finding.up is None):
        yield Advice(
            f"{finding.label}: the bandwidth was not measured to the end, as the peer has been asked for too much "
            "lately: try again in a minute",
            wrong=False,
        )
    model = finding.description.model_bytes if finding.description is not None else None
    enough = _SLOW_BYTES if model is None else model / _SLOW_SECONDS
    for rate, way in ((finding.down, "from"), (finding.up, "to")):
        if rate is not None and rate < enough:
            load = "1 MB" if model is None else f"the course's model of {model / 1e6:.1f} MB"
            yield Advice(
                f"the line {way} {finding.label} carries {megabits(rate)} Mbit/s: {load} takes "
                f"{(model or 1e6) / rate:.0f} s one way, so allow for that in deadlines, or take a smaller model",
                wrong=False,
            )


def _about_doors(finding: Finding) -> Iterator[Advice]:
    for address, why in finding.astray.items():
        yield Advice(
            f"{finding.label} tells others to dial {address}, which does not work from here ({why}): let it --listen "
            "at an address that others can dial"
        )
    if finding.dialled_back == "unreached":
        yield Advice(
            f"{finding.label} cannot dial this host at the port of --listen: open it in the firewall and forward it "
            "through NAT, or leave --listen away and rely on links that this host dials, and on relays"
        )
    elif finding.dialled_back == "busy":
        yield Advice(f"{finding.label} dials nobody back at the moment: try again in a minute", wrong=False)


def megabits(rate: float) -> str:
    """Bytes a second as Mbit/s for people.

    >>> megabits(125_000_000), megabits(150_000)
    ('1000', '1.2')
    """
    value = rate * 8 / 1e6
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 0.1 else f"{value:.3f}"
