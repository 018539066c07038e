"""Pages that a port answers to plain GETs, beside the links that it takes: health and metrics, for who runs the node.

What they say is made by whoever gives them; here is only who may read them.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from p2pfl.errors import ListenFailed
from p2pfl.link.address import Address
from p2pfl.link.door import Door

__all__ = ["Page", "PagePort", "Pages", "is_loopback", "open_port", "refusal", "system_words"]

KEEPALIVE_SECONDS = 10.0  # how long a connection stays open for another GET
_OF_PROXIES = (hdrs.FORWARDED, hdrs.X_FORWARDED_FOR, hdrs.VIA)


@dataclass(frozen=True, slots=True)
class Page:
    """One answer, for no longer than the moment."""

    body: bytes
    content_type: str
    status: HTTPStatus = HTTPStatus.OK


@dataclass(frozen=True, slots=True)
class Pages:
    """What makes the page of each path, when it is asked for, on the event loop.

    Unless they are `public`, they are answered to this machine only; to others it looks as if there were none. A proxy
    on this machine is not this machine, nor is a browser here that some site has sent, under the site's name.
    """

    makers: Mapping[str, Callable[[], Page]] = field(default_factory=dict)
    public: bool = False

    def answer(self, request: web.BaseRequest) -> web.Response:
        """The page, or why there is none."""
        maker = self.makers.get(request.path)
        if maker is None or not (self.public or _is_from_here(request)):
            return refusal(HTTPStatus.NOT_FOUND)
        if request.method not in (hdrs.METH_GET, hdrs.METH_HEAD):
            return refusal(HTTPStatus.METHOD_NOT_ALLOWED)
        page = maker()
        headers = {hdrs.CONTENT_TYPE: page.content_type, hdrs.CACHE_CONTROL: "no-store"}
        return web.Response(body=page.body, status=page.status, headers=headers)


class PagePort:
    """An open port that has pages and nothing else."""

    def __init__(self, opened: Door, server: web.Server) -> None:
        host, port = opened.sockets[0].getsockname()[:2]
        self.address = f"http://{Address(host, port).label}"
        self._opened = opened
        self._server = server

    @classmethod
    async def open(cls, where: Address, pages: Pages) -> PagePort:
        """Raises ListenFailed."""

        async def answer(request: web.BaseRequest) -> web.Response:
            return pages.answer(request)

        server = web.Server(answer, keepalive_timeout=KEEPALIVE_SECONDS, access_log=None)
        return cls(await open_port(server, where, f"http://{where.label}"), server)

    def close(self) -> None:
        """Answer no more; a visitor that keeps its connection for later does not keep us."""
        self._opened.close()
        for connection in self._server.connections:
            connection.force_close()

    def __repr__(self) -> str:
        return f"<PagePort {self.address}>"


async def open_port(server: web.Server, where: Address, url: str, tls: ssl.SSLContext | None = None) -> Door:
    """Let a server of aiohttp listen. Raises ListenFailed, which speaks of the `url`."""
    try:
        return await Door.open(server, where.host, where.port, tls)
    except OSError as error:
        raise ListenFailed(f"cannot listen at {url}: {system_words(error)}: choose another port or host") from error


def system_words(error: OSError) -> str:
    """What the system says of an error: asyncio's words repeat the address and hide the reason."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)


def refusal(status: HTTPStatus, headers: Mapping[str, str] | None = None) -> web.Response:
    """No more than a status, after which the connection ends."""
    response = web.Response(status=status, headers=headers)
    response.force_close()
    return response


def _is_from_here(request: web.BaseRequest) -> bool:
    forwarded = any(name in request.headers for name in _OF_PROXIES)
    return not forwarded and is_loopback(request.remote or "") and is_loopback(_named_host(request))


def _named_host(request: web.BaseRequest) -> str:
    """What the client believes to be talking to."""
    try:
        return urlsplit(f"//{request.headers.get(hdrs.HOST, '')}").hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether a host, by address or as localhost, can only be this machine."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if address.version == 6 else None
    return (mapped or address).is_loopback
