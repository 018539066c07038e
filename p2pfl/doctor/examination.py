"""One peer after the other gets looked at: is it there, who is it, what does it run, how good is the line to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from p2pfl.doctor.finding import Finding, Trouble, trouble_of_dial, trouble_of_knocks, trouble_of_link
from p2pfl.doctor.reach import Answer, Knock
from p2pfl.errors import ConfigError, LinkError, RemoteError
from p2pfl.link.base import Link
from p2pfl.node.membership import Membership, Spread
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer
from p2pfl.node.probing import Bandwidth, Describe, Description, DialBack, time_link

__all__ = ["Examination", "Hearsay", "Place", "Thoroughness"]

_AT_ONCE = 32  # peers that are looked at side by side
_MOST_ADDRESSES = 3  # of one peer that are tried, and of those that it tells others
_LEAST_SECONDS = 1.0  # that bandwidth is measured for, however long the rest took


class Hearsay(Membership):
    """The table of a node that hears who else there is, and is no member itself: it tells nobody anything."""

    def bind(self, changed: Callable[[], None], spread: Spread) -> None:
        super().bind(changed, lambda ids, source: None)

    def greeting(self) -> Collection[str]:
        return ()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a peer may be found."""

    addresses: tuple[str, ...]  # to be tried in this order; none: it only dials out
    expect: str | None = None  # the peer id that must answer, if it is known


@dataclass(frozen=True, slots=True)
class Thoroughness:
    """How much is looked at."""

    seconds: float = 15.0  # for one peer
    most_bytes: int = 8 << 20  # to measure bandwidth, in each direction
    port: int | None = None  # at which we listen to be dialled back, if at all


class Examination:
    """All peers are looked at side by side, but bandwidth is measured of one at a time: they share our line."""

    def __init__(
        self,
        node: Node,
        knock: Callable[[str], Awaitable[Sequence[Knock]]],
        verdict: Callable[[str], str],
        thoroughness: Thoroughness,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`verdict(address)` says by which policies who answers there is trusted. `node` must be entered."""
        self._node = node
        self._knock = knock
        self._verdict = verdict
        self._thoroughness = thoroughness
        self._clock = clock
        self._line = asyncio.Lock()
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._met: dict[str, str] = {}  # peer id -> the address under which it was linked first

    async def of(self, place: Place) -> Finding:
        """Look at one peer. Ends in time, whatever the peer does; what waits for others does not count."""
        if place.expect is not None:
            self._met.setdefault(place.expect, "")
        if not place.addresses:
            return Finding("", place.expect or "", Trouble.NO_DOOR)
        finding = Finding(place.addresses[0], place.expect or "")
        async with self._places:
            peer = None
            try:
                began = asyncio.get_running_loop().time()
                async with asyncio.timeout(self._thoroughness.seconds):
                    peer = await self._link(place, finding)
                    if peer is not None:
                        await self._ask(peer, finding)
                spent = asyncio.get_running_loop().time() - began
                if peer is not None and finding.probed:
                    await self._measure(peer, finding, self._thoroughness.seconds - spent)
            except TimeoutError:
                finding.failed(Trouble.LOST if finding.suite else Trouble.SILENT, "it took too long")
            except LinkError as error:
                finding.failed(trouble_of_link(error), error)
            except RemoteError as error:
                finding.error = str(error)
            finally:
                if peer is not None:
                    await self._node.dismiss([peer])
        return finding

    def unmet(self) -> list[Place]:
        """Where those are said to be who are known by hearsay only."""
        return [
            Place(member.addresses[:_MOST_ADDRESSES], member.id)
            for member in self._node.members
            if member.id != self._node.id and member.id not in self._met
        ]

    async def _link(self, place: Place, finding: Finding) -> Peer | None:
        """A link by the first address that gives one, or None: then the finding says why there is none."""
        for address in place.addresses:
            link = await self._dial(address, place.expect, finding)
            if link is not None:
                return await self._welcome(link, place, finding)
        return None

    async def _dial(self, address: str, expect: str | None, finding: Finding) -> Link | None:
        finding.address = address
        try:
            finding.knocks = await self._knock(address)
            if (trouble := trouble_of_knocks(finding.knocks)) is not None:
                finding.failed(trouble)
                return None
            link = await self._node.transport.dial(address, expect)
        except (LinkError, ConfigError) as error:
            finding.failed(trouble_of_dial(error, expect), error)
            return None
        finding.trouble, finding.error = None, ""
        return link

    async def _welcome(self, link: Link, place: Place, finding: Finding) -> Peer | None:
        finding.peer_id, finding.suite = link.remote, link.suite or "in this process"
        finding.trust = self._verdict(finding.address)
        if place.expect is None and self._met.setdefault(link.remote, finding.address) != finding.address:
            finding.twin = self._met[link.remote]
            await link.close()
            return None
        self._node.accept(link)
        return self._node.peer(link.remote)

    async def _ask(self, peer: Peer, finding: Finding) -> None:
        finding.description = await peer.ask(Describe())
        finding.rtt_seconds, finding.clock_offset_seconds = await time_link(peer, self._clock)
        finding.astray = await self._astray(finding, finding.description)
        if self._thoroughness.port is not None:
            finding.dialled_back = (await peer.ask(DialBack(self._thoroughness.port))).outcome

    async def _astray(self, finding: Finding, description: Description) -> Mapping[str, str]:
        """Addresses that the peer tells others, and that do not work from here."""
        here = any(knock.loopback for knock in finding.knocks)
        told = [address for address in description.addresses if address != finding.address][:_MOST_ADDRESSES]
        astray = {}
        for address in told:
            try:
                knocks = await self._knock(address)
            except ConfigError:
                astray[address] = str(Trouble.ADDRESS)
                continue
            if (trouble := trouble_of_knocks(knocks)) is not None:
                astray[address] = str(trouble)
            elif not here and all(knock.loopback for knock in knocks if knock.answer is Answer.OPEN):
                astray[address] = "it leads back to whoever dials it"
        return astray

    async def _measure(self, peer: Peer, finding: Finding, seconds: float) -> None:
        assert finding.rtt_seconds is not None
        bandwidth = Bandwidth(peer, finding.rtt_seconds, self._thoroughness.most_bytes)
        async with self._line:
            try:
                await bandwidth.measure(max(_LEAST_SECONDS, seconds))
            finally:
                finding.down, finding.up = bandwidth.down, bandwidth.up
