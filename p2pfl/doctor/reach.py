"""How far a TCP connection gets, by each of the addresses that a name stands for: the first thing to know of a link."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from p2pfl.link.address import Address

__all__ = ["Answer", "Knock", "knock"]

_SECONDS = 3.0  # without an answer, until an address counts as silent
_MOST = 8  # addresses of one name


class Answer(StrEnum):
    """What became of a connection."""

    OPEN = "open"
    REFUSED = "refused"
    SILENT = "silent"
    NO_ROUTE = "no route"


@dataclass(frozen=True, slots=True)
class Knock:
    """One address, by number, and what answered there."""

    host: str
    answer: Answer

    @property
    def family(self) -> str:
        """For people: "IPv4" or "IPv6"."""
        return f"IPv{ipaddress.ip_address(self.host).version}"

    @property
    def loopback(self) -> bool:
        """Whether it leads back to this machine."""
        return ipaddress.ip_address(self.host).is_loopback


async def knock(target: Address) -> Sequence[Knock]:
    """Connect to each address of the host at once, and hang up. Empty: the name is not known. Takes at most 3 s more
    than to resolve it.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # UnicodeError: a label of the name is empty or too long
        return ()
    hosts = list(dict.fromkeys(str(place[0]) for *_, place in found))[:_MOST]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_answer(host, target.port)) for host in hosts]
    return [Knock(host, task.result()) for host, task in zip(hosts, tasks, strict=True)]


async def _answer(host: str, port: int) -> Answer:
    try:
        async with asyncio.timeout(_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return Answer.SILENT
    except OSError as error:
        return _MEANING.get(error.errno or 0, Answer.NO_ROUTE)
    writer.transport.abort()
    return Answer.OPEN


_MEANING = {errno.ECONNREFUSED: Answer.REFUSED, errno.ECONNRESET: Answer.REFUSED, errno.ETIMEDOUT: Answer.SILENT}
