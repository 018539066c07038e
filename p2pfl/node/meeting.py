"""Coming together with those who sit in given seats, and saying what it takes while that is not so."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from p2pfl.errors import LinkError
from p2pfl.link.base import Tunnelling
from p2pfl.node.events import PeerUnreached

if TYPE_CHECKING:
    from p2pfl.node.membership import Member
    from p2pfl.node.node import Node
    from p2pfl.node.peer import Peer
    from p2pfl.node.peers import Peers

__all__ = ["call", "dismiss", "linked", "meet", "missing_seats"]


async def linked(node: Node, at_least: int) -> list[Peer]:
    """See Node.linked."""
    with node.waiting("links") as reword:
        while len(peers := node.peers) < at_least:
            reword(f"{at_least - len(peers)} more peers")
            await node.change()
        return peers


async def meet(node: Node, seats: Iterable[int], at_least: int | None) -> list[Peer]:
    """See Node.meet."""
    wanted = sorted(set(seats))
    enough = len(wanted) if at_least is None else min(at_least, len(wanted))
    with node.waiting("links") as reword:
        while True:
            node.want(wanted)
            found = {seat: peer for seat in wanted if (peer := node.at(seat)) is not None}
            if len(found) >= enough:
                return list(found.values())
            missing = [seat for seat in wanted if seat not in found]
            reword(missing_seats(node, missing, enough - len(found)))
            await node.change()


async def call(node: Node, seats: Iterable[int]) -> list[Peer]:
    """See Node.call."""
    wanted = sorted(set(seats))
    async with asyncio.TaskGroup() as group:
        for seat in wanted:
            if node.at(seat) is None and (member := node.members.at(seat)) is not None:
                group.create_task(_dial(node, member))
    return [peer for seat in wanted if (peer := node.at(seat)) is not None]


async def _dial(node: Node, member: Member) -> None:
    for address in _addresses(node, member):
        try:
            node.peer(member.id).check_quarantine()
            link = await node.relay.dial(address, member.id)
        except LinkError as error:
            node.emit(PeerUnreached(address, str(error), math.inf))
        else:
            node.accept(link)
            return


def _addresses(node: Node, member: Member) -> Iterator[str]:
    yield from member.addresses
    yield from node.relay.ways(member.id)  # only if none of these will do


async def dismiss(node: Node, known: Peers, peers: Iterable[Peer]) -> None:
    """See Node.dismiss."""
    leaving = list(peers)
    async with asyncio.TaskGroup() as group:
        for peer in leaving:
            for connection in peer.connections:
                group.create_task(connection.link.close())
    await asyncio.sleep(0)  # the ends of links are told in the next turn of the loop
    for peer in leaving:
        known.forget(peer)


def missing_seats(node: Node, seats: Sequence[int], needed: int) -> str:
    """What it takes to link to `needed` more of these seats, in words."""
    unknown = [seat for seat in seats if node.members.at(seat) is None]
    silent = [seat for seat in seats if (member := node.members.at(seat)) is not None and not member.addresses]
    words = [f"links to {needed} more of the seats {_ranges(seats)}"]
    if unknown:
        words.append(f"nobody is known to sit in {_ranges(unknown)}")
    if silent and not node.addresses:
        mend = "one of each two must, give it an address to listen at"
        if isinstance(node.transport, Tunnelling):
            mend = "give one of each two an address to listen at, or link both to a peer that carries for others"
        words.append(f"neither this node nor {_ranges(silent)} listens: {mend}")
    elif silent:
        words.append(f"{_ranges(silent)} must dial this node")
    return "; ".join(words)


def _ranges(seats: Sequence[int]) -> str:
    """Seats as people write them.

    >>> _ranges([0, 1, 2, 5])
    '0-2, 5'
    """
    runs: list[list[int]] = []
    for seat in seats:
        if runs and runs[-1][1] == seat - 1:
            runs[-1][1] = seat
        else:
            runs.append([seat, seat])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
