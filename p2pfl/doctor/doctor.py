"""`p2pfl doctor`: whether nodes can be reached and would work together, tested link by link, and what to do if not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from p2pfl.app.console import Display, table
from p2pfl.app.exits import Exit
from p2pfl.app.identity_options import IdentityOptions, make_transport
from p2pfl.app.options import parse
from p2pfl.app.software import own_software
from p2pfl.crypto.identity import short_id
from p2pfl.doctor.advice import Advice, Here, advise, megabits, usual_course
from p2pfl.doctor.examination import Examination, Hearsay, Place, Thoroughness
from p2pfl.doctor.finding import Finding
from p2pfl.doctor.reach import Knock, knock
from p2pfl.errors import require
from p2pfl.link.address import parse_address
from p2pfl.link.trust import Tofu
from p2pfl.node.membership import Member
from p2pfl.node.node import Node
from p2pfl.node.settings import NodeSettings

__all__ = ["DoctorOptions", "check_links", "diagnose", "doctor_command", "report"]

_COLUMNS = ["peer", "link", "round trip\nclock", "Mbit/s", "runs", "course"]


@dataclass(frozen=True, slots=True)
class DoctorOptions:
    """Test the links to other nodes: reachability, identity, versions, clocks, bandwidth; and say what to mend.

    Use the identity of this host's node while that node is not running, to see who trusts it.
    """

    peers: tuple[str, ...] = ()
    """Addresses to test, such as hub:7700."""
    all: bool = False
    """Test also whom these peers know."""
    listen: str = ""
    """Have the peers dial us back here, to see whether this host is reachable: what its node will --listen at."""
    course: Path | None = None
    """The course file that all should have. By default what most of them have."""
    seconds: float = 15.0
    """How long to stay with one peer at most."""
    megabytes: float = 8.0
    """At most so much is sent in each direction to measure bandwidth."""
    json: bool = False
    """One JSON object per peer on stdout instead of text."""
    links: Annotated[IdentityOptions, tyro.conf.arg(name="")] = field(default_factory=IdentityOptions)

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        require(bool(self.peers), "--peers is missing; name who is to be tested, such as --peers hub:7700")
        for address in (*self.peers, *filter(None, (self.listen,))):
            parse_address(address)
        require(self.seconds >= 1, f"--seconds is {self.seconds:g}; it must be at least 1")
        require(0 < self.megabytes <= 1000, f"--megabytes is {self.megabytes:g}; it must be over 0 and at most 1000")


def doctor_command(arguments: list[str]) -> int:
    """The whole command: 0 if all is well, 1 if something is wrong. Raises UserError."""
    options = parse(DoctorOptions, arguments, "p2pfl doctor")
    course = "" if options.course is None else _hash_of(options.course)
    with Display(as_json=options.json, total=len(options.peers)) as display:
        return asyncio.run(check_links(options, course, display))  # whose clock, unlike uvloop's, counts microseconds


def _hash_of(file: Path) -> str:
    from p2pfl.app.config import course_hash, load_config, with_topology  # noqa: PLC0415 - loads torch

    return course_hash(with_topology(load_config(file)))


async def check_links(options: DoctorOptions, course: str, display: Display) -> int:
    """The same in a loop that runs. `course`: the hash of the one that all should have; empty: what most of them do."""
    transport, held = make_transport(options.links)

    async def knock_at(address: str) -> Sequence[Knock]:
        return await knock(parse_address(address, tls=options.links.tls is not None))

    async with AsyncExitStack() as opened:
        opened.enter_context(held)
        members, settings = Hearsay(Member(transport.peer_id)), NodeSettings(relay=False)
        node = await opened.enter_async_context(Node(transport=transport, members=members, settings=settings))
        port = None
        if options.listen:
            listener = await transport.listen(options.listen, lambda link: node.spawn(link.close()))
            opened.push_async_callback(listener.close)
            port = parse_address(listener.addresses[0]).port
        thoroughness = Thoroughness(options.seconds, int(options.megabytes * 1e6), port)
        examination = Examination(node, knock_at, _verdict(options.links), thoroughness)
        findings = await diagnose(examination, options.peers, display, everybody=options.all)
    here = Here(transport.peer_id, own_software(), course or usual_course(findings))
    return report(findings, here, display)


def _verdict(options: IdentityOptions) -> Callable[[str], str]:
    """Says which policies have admitted who answers at an address."""
    pins = Tofu(options.known_peers).pins if "tofu" in options.policies else {}  # as they are before the first link

    def verdict(address: str) -> str:
        known = parse_address(address, tls=options.tls is not None).label in pins
        words = {"tofu": f"tofu ({'pinned' if known else 'pinned now'})"}
        return " & ".join(words.get(policy, policy) for policy in options.policies)

    return verdict


async def diagnose(
    examination: Examination, addresses: Iterable[str], display: Display, *, everybody: bool = False
) -> list[Finding]:
    """Look at those who should answer at these addresses, then, for `everybody`, at whom they know, and so on."""
    findings: list[Finding] = []
    places = [Place((address,)) for address in dict.fromkeys(addresses)]
    while places:
        total = len(findings) + len(places)

        async def look(place: Place, total: int = total) -> Finding:
            finding = await examination.of(place)
            findings.append(finding)
            display.step(len(findings), f"{len(findings)} of {total} tested", total)
            return finding

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(look(place)) for place in places]
        findings[-len(tasks) :] = [task.result() for task in tasks]  # in the order in which they were asked for
        places = examination.unmet() if everybody else []
    return findings


def report(findings: Iterable[Finding], here: Here, display: Display) -> int:
    """Show what was found, with advice; the exit code."""
    rows, sentences = [], []
    for finding in findings:
        said = advise(finding, here)
        rows.append(_row(finding))
        sentences.extend(said)
        display.row("peer", **_object(finding, said))
    display.table(table(f"links of {short_id(here.peer_id)}", _COLUMNS, rows))
    for advice in sorted(sentences, key=lambda advice: not advice.wrong):
        display.line(f"{'!' if advice.wrong else '-'} {advice.sentence}")
    wrong = sum(advice.wrong for advice in sentences)
    display.line(f"{wrong} to mend" if wrong else "all well")
    return Exit.FAILED if wrong else Exit.DONE


def _row(finding: Finding) -> list[str]:
    """Two lines in each cell, so that a row fits a terminal of 80 characters."""
    about = finding.description
    cipher = finding.suite.partition("25519_")[2].partition("_")[0]
    link = "twin" if finding.twin else str(finding.trouble or f"direct {cipher}")
    cells = [
        (finding.address, f"{short_id(finding.peer_id)} {about.name if about else ''}"),
        (link, finding.trust),
        (
            _shown(finding.rtt_seconds, lambda seconds: f"{seconds * 1000:.1f} ms"),
            _shown(finding.clock_offset_seconds, lambda seconds: f"{seconds:+.3f} s"),
        ),
        (
            _shown(finding.down, lambda rate: f"{megabits(rate)} down"),
            _shown(finding.up, lambda r: f"{megabits(r)} up"),
        ),
        (f"p2pfl {about.software.p2pfl}", f"torch {about.software.torch.partition('+')[0]}") if about else ("", ""),
        (about.course[:8], "" if about.seat is None else f"seat {about.seat}") if about else ("", ""),
    ]
    return ["\n".join(cell).strip() for cell in cells]


def _shown(value: float | None, words: Callable[[float], str]) -> str:
    return "" if value is None else words(value)


def _object(finding: Finding, advice: Iterable[Advice]) -> dict[str, object]:
    about = finding.description
    return {
        "address": finding.address,
        "peer_id": finding.peer_id,
        "link": "direct" if finding.trouble is None else str(finding.trouble),
        "error": finding.error,
        "same_as": finding.twin,
        "suite": finding.suite,
        "trust": finding.trust,
        "rtt_ms": _times(finding.rtt_seconds, 1e3),
        "clock_offset_seconds": finding.clock_offset_seconds,
        "down_mbit": _times(finding.down, 8e-6),
        "up_mbit": _times(finding.up, 8e-6),
        "dialled_back": finding.dialled_back,
        "described": None
        if about is None
        else {
            **asdict(about.software),
            "name": about.name,
            "seat": about.seat,
            "addresses": about.addresses,
            "course": about.course,
            "model_bytes": about.model_bytes,
        },
        "advice": [{"sentence": each.sentence, "wrong": each.wrong} for each in advice],
    }


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
