"""Links over WebSockets: what nodes on different hosts speak, over one port, through proxies, inside a web application.

The upgrade offers cipher suites as subprotocols, the Noise handshake takes three binary messages, then records flow.
What a stranger can make us do before the last handshake message is bounded by `LinkLimits`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from http import HTTPStatus
from weakref import WeakSet

import aiohttp
from aiohttp import WSMsgType, hdrs, web

from p2pfl.crypto.identity import Identity, NetworkKey
from p2pfl.crypto.signing import IdentitySigner, Signer
from p2pfl.errors import (
    HandshakeFailed,
    LinkError,
    LinkRefused,
    LinkTruncated,
    PeerUnreachable,
    RemoteProtocolError,
    UntrustedPeer,
    VersionMismatch,
)
from p2pfl.link.address import Address, parse_address
from p2pfl.link.admission import Doorkeeper, Turned
from p2pfl.link.base import Link, LinkLimits, MessageSocket
from p2pfl.link.channel import SecureChannel
from p2pfl.link.door import Door
from p2pfl.link.handshaking import TunnelLink, greet, return_greeting, shake
from p2pfl.link.pages import Pages, open_port, refusal, system_words
from p2pfl.link.sealed import CloseCode, SealedLink, error_of_close
from p2pfl.link.secure import VERSIONS, Handshake, SecuritySettings, choose_subprotocol, offered_subprotocols
from p2pfl.link.tls import TlsSettings
from p2pfl.link.transfers import Transfers
from p2pfl.link.trust import TrustPolicy
from p2pfl.wire.frame import OversizeError

__all__ = ["WebSocketListener", "WebSocketTransport"]

log = logging.getLogger(__name__)

MAX_MESSAGE = 1_100_000  # bytes of one WebSocket message: sixteen full records, and a little
CLOSE_SECONDS = 1.0  # how long a closing socket waits for the other end to close too
UNACKNOWLEDGED_MS = 30_000  # how long the kernel lets sent bytes go unacknowledged
WRITE_BUFFER = 256 * 1024  # bytes in the socket's buffer above which a sender waits

Accept = Callable[[Link], None]
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
WebSocket = aiohttp.ClientWebSocketResponse[bool] | web.WebSocketResponse[bool]


class WebSocketTransport:
    """How one node reaches others over sockets and is reached: who it is, whom it trusts, what it bears.

    `caps` is what it says about itself in a handshake: JSON, at most 1 KiB. Raises ConfigError.

    `pages` is what its ports answer to plain GETs, beside the links; none, unless somebody sets some.
    """

    scheme = "host:port, ws://host:port or wss://host:port"

    def __init__(
        self,
        identity: Identity,
        *,
        trust: TrustPolicy,
        network_key: NetworkKey | None = None,
        network_name: str = "p2pfl",
        tls: TlsSettings | None = None,
        limits: LinkLimits | None = None,
        caps: dict[str, object] | None = None,
    ) -> None:
        self.peer_id = identity.peer_id
        self.signer: Signer | None = IdentitySigner(identity)
        self.refused: Callable[[str, LinkError], None] | None = None
        self.pages = Pages()
        self.limits = limits or LinkLimits()
        self.versions = VERSIONS
        self._security = SecuritySettings(
            identity=identity, trust=trust, network_key=network_key, network_name=network_name, caps=caps or {}
        )
        self._tls = tls
        self._established: dict[_Socket, SealedLink] = {}
        self._tunnelled: WeakSet[TunnelLink] = WeakSet()  # until they have ended, or are forgotten
        self._transfers = Transfers()
        self._doorkeeper: Doorkeeper | None = None  # made with the first knock: it needs the loop's clock

    def admits(self, peer_id: str) -> bool:
        """What our trust says of who dials us; see Transport."""
        try:
            self._security.trust.admit(peer_id, None)
        except UntrustedPeer:
            return False
        return True

    async def dial(self, address: str, expect: str | None = None) -> SealedLink:
        """Connect and authenticate; see Transport."""
        target = parse_address(address, tls=self._tls is not None)
        return await self._dial(target, expect, target.label)

    async def dial_back(self, link: Link, port: int) -> None:
        """See whether who dialled us can be dialled; see DialsBack."""
        wire = next((wire for wire, known in self._established.items() if known is link), None)
        source = None if wire is None or link.initiator else wire.transport.get_extra_info("peername")
        if not isinstance(source, tuple):
            raise PeerUnreachable("the link did not come from a host that could be dialled")
        target = Address(source[0], port, tls=self._tls is not None)
        await (await self._dial(target, link.remote, None)).close()

    async def _dial(self, target: Address, expect: str | None, label: str | None) -> SealedLink:
        """`label` is what trust knows the place by; None: we take a peer's word for it, and `expect` must be there."""
        self._check_room()
        offered = offered_subprotocols(self.versions)
        session = self._session(target, named=label is not None)
        try:
            ws = await self._upgrade(session, target, offered)
            wire = _Socket(ws, self._established, session)
            if ws.protocol is None:
                raise HandshakeFailed(
                    f"what answers at {target} is a WebSocket, but no p2pfl node: correct the address"
                )
            handshake = Handshake(
                self._security, initiator=True, offered=offered, chosen=ws.protocol, expect=expect, label=label
            )
            return await self._shake(wire, handshake, handshake.begin())
        except BaseException:
            await session.close()
            raise

    async def listen(self, address: str, accept: Accept) -> WebSocketListener:
        """Open a port; see Transport. Only 127.0.0.1 is bound unless the address has another host."""
        where = parse_address(address, tls=self._tls is not None)
        self._security.trust.check_listen(where.host)
        tls = (self._tls or TlsSettings()).server_context() if where.tls else None
        answer = self.handler(accept)

        async def route(request: web.BaseRequest) -> web.StreamResponse:
            return await answer(request) if request.path == where.path else self.pages.answer(request)

        server = web.Server(route, keepalive_timeout=self.limits.upgrade_seconds, access_log=None)
        opened = await open_port(server, where, str(where), tls)
        return WebSocketListener(opened, server, where, self._established)

    def handler(self, accept: Accept) -> Handler:
        """To mount on an aiohttp application: `app.router.add_get("/p2pfl/v1", transport.handler(accept))`."""

        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            try:
                return await self._answer(request, accept)
            except Turned as turned:
                return refusal(turned.status)
            except VersionMismatch as error:
                self._tell_refused(request, error)
                spoken: dict[str, str] = {hdrs.SEC_WEBSOCKET_PROTOCOL: ", ".join(offered_subprotocols(self.versions))}
                return refusal(HTTPStatus.UPGRADE_REQUIRED, spoken)
            except HandshakeFailed as error:
                self._tell_refused(request, error)
                return refusal(HTTPStatus.BAD_REQUEST)

        return answer

    async def _answer(self, request: web.BaseRequest, accept: Accept) -> web.StreamResponse:
        """Upgrade, authenticate, and stay until the link has ended."""
        with self._doors.half_open(request.remote or "", len(self._links)):
            offered = _listed(request.headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, ()))
            chosen = choose_subprotocol(offered, self.versions)
            ws = web.WebSocketResponse(
                protocols=(chosen,), compress=False, max_msg_size=MAX_MESSAGE, timeout=CLOSE_SECONDS
            )
            try:
                await ws.prepare(request)
            except (OSError, aiohttp.ClientError) as error:
                raise HandshakeFailed(f"the dialler went away in the middle of the upgrade: {error}") from error
            wire = _Socket(ws, self._established)
            try:
                link = await self._shake(
                    wire, Handshake(self._security, initiator=False, offered=offered, chosen=chosen)
                )
            except LinkError as error:
                self._tell_refused(request, error)
                return ws
        try:
            accept(link)
            await link.wait_ended()
        finally:
            link.abort(LinkTruncated("the server that carried the link has stopped"))
        return ws

    def _tell_refused(self, request: web.BaseRequest, error: LinkError) -> None:
        log.info("refused %s: %s", request.remote, error)
        if self.refused is not None:
            self.refused(request.remote or "somebody", error)

    @property
    def _doors(self) -> Doorkeeper:
        if self._doorkeeper is None:
            self._doorkeeper = Doorkeeper(self.limits, asyncio.get_running_loop().time)
        return self._doorkeeper

    async def _shake(self, wire: _Socket, handshake: Handshake, message: bytes = b"") -> SealedLink:
        """See `shake`."""
        channel = await shake(wire, handshake, self.limits, message)
        link = SealedLink(wire, channel, self.limits, self._spare, self._transfers)
        self._established[wire] = link
        return link

    async def dial_over(self, socket: MessageSocket, relay: str, expect: str) -> TunnelLink:
        """Authenticate through a tunnel; see Tunnelling."""
        try:
            self._check_room()
        except LinkRefused:
            await socket.close(CloseCode.REFUSED)
            raise
        return self._tunnel(socket, relay, await greet(socket, self._security, self.limits, expect))

    async def answer_over(self, socket: MessageSocket, relay: str, expect: str) -> TunnelLink:
        """Be authenticated to through a tunnel; see Tunnelling."""
        try:
            with self._doors.half_open(f"relay:{relay}/{expect}", len(self._links)):
                channel = await return_greeting(socket, self._security, self.limits, expect)
        except Turned as turned:
            await socket.close(CloseCode.REFUSED)
            raise LinkRefused(f"{expect[:10]} comes too often over {relay[:10]}: {turned}") from turned
        return self._tunnel(socket, relay, channel)

    def _check_room(self) -> None:
        if len(self._links) >= self.limits.links:
            raise LinkRefused(f"this node has {self.limits.links} links already: close some, or raise limits.links")

    @property
    def _links(self) -> list[SealedLink]:
        """All that are open."""
        return [*self._established.values(), *(link for link in self._tunnelled if not link.ended)]

    def _tunnel(self, socket: MessageSocket, relay: str, channel: SecureChannel) -> TunnelLink:
        link = TunnelLink(socket, relay, channel, self.limits, self._spare, self._transfers)
        self._tunnelled.add(link)
        return link

    def _spare(self, wanted: int = 0) -> int:
        """Bytes of memory for packets that are under way, on any link. Counted anew: what is counted cannot leak.

        What links that broke have left behind makes way for the bytes that are wanted.
        """
        free = self.limits.max_under_way_in_all - sum(link.reserved for link in self._links)
        self._transfers.make_way(free - wanted)
        return free - self._transfers.reserved

    def _session(self, target: Address, *, named: bool) -> aiohttp.ClientSession:
        """One per link: nobody has to close a transport, and no pool of connections can run dry.

        `named`: the host is one that its certificate names, and not where a link happened to come from.
        """
        tls = (self._tls or TlsSettings()).client_context() if target.tls else None
        if tls is not None:
            tls.check_hostname = named

        async def refuse(*_: object) -> None:
            raise HandshakeFailed(f"{target} redirects elsewhere: dial where it points to, if you trust that")

        redirects = aiohttp.TraceConfig()
        redirects.on_request_redirect.append(refuse)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls or True, use_dns_cache=False),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            trace_configs=[redirects],
        )

    async def _upgrade(
        self, session: aiohttp.ClientSession, target: Address, offered: Sequence[str]
    ) -> aiohttp.ClientWebSocketResponse[bool]:
        seconds = self.limits.upgrade_seconds
        try:
            async with asyncio.timeout(seconds):
                return await session.ws_connect(
                    str(target),
                    protocols=offered,
                    compress=0,
                    max_msg_size=MAX_MESSAGE,
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS),
                )
        except TimeoutError as error:
            raise PeerUnreachable(f"{target} did not answer within {seconds:g} s: is a firewall in between?") from error
        except aiohttp.ClientConnectorDNSError as error:
            raise PeerUnreachable(f"{target}: the host name is not known: correct the address") from error
        except aiohttp.ClientSSLError as error:
            raise HandshakeFailed(f"{target}: TLS failed ({error}): check tls_ca, or the other end's cert") from error
        except aiohttp.ClientConnectorError as error:
            reason = system_words(error.os_error)
            raise PeerUnreachable(f"{target}: {reason}: is the node running there, and the port right?") from error
        except aiohttp.WSServerHandshakeError as error:
            raise self._declined(target, error) from error
        except aiohttp.ClientError as error:
            raise HandshakeFailed(
                f"what answers at {target} is no p2pfl node, or broke off ({error}): correct the address, or try later"
            ) from error

    def _declined(self, target: Address, error: aiohttp.WSServerHandshakeError) -> LinkError:
        """What an HTTP status in place of the upgrade means."""
        if error.status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
            return LinkRefused(f"{target} takes no more links now ({HTTPStatus(error.status).phrase}): try again later")
        if error.status == HTTPStatus.UPGRADE_REQUIRED and error.headers is not None:
            try:
                choose_subprotocol(_listed(error.headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, ())), self.versions)
            except HandshakeFailed as mismatch:
                return type(mismatch)(f"{target}: {mismatch}")
        return HandshakeFailed(f"{target} answered with HTTP {error.status}, not with an upgrade: correct the address")

    def __repr__(self) -> str:
        return f"<WebSocketTransport of {self._security.identity.peer_id[:10]}, {len(self._links)} links>"


class WebSocketListener:
    """An open port."""

    def __init__(
        self,
        opened: Door,
        server: web.Server,
        where: Address,
        established: Iterable[_Socket],
    ) -> None:
        self.addresses = tuple(_dialable(where, bound.getsockname()) for bound in opened.sockets)
        self._opened = opened
        self._server = server
        self._established = established

    async def close(self) -> None:
        """Accept no more; see Listener. Handshakes under way are broken off."""
        self._opened.close()
        carrying = {wire.transport for wire in self._established}
        for connection in self._server.connections:
            if connection.transport not in carrying:
                connection.force_close()

    def __repr__(self) -> str:
        return f"<WebSocketListener {' '.join(self.addresses)}>"


class _Socket:
    """A WebSocket of aiohttp, of either end, as a MessageSocket."""

    def __init__(
        self,
        ws: WebSocket,
        established: dict[_Socket, SealedLink],
        session: aiohttp.ClientSession | None = None,
    ) -> None:
        assert ws._writer is not None
        # aiohttp closes politely only: a peer that does not read could hold the socket, and what it holds, for ever
        self.transport = ws._writer.transport
        self.transport.set_write_buffer_limits(WRITE_BUFFER)
        self._ws = ws
        self._established = established
        self._session = session
        _tune(ws.get_extra_info("socket"))

    async def send(self, message: bytes | bytearray) -> None:
        try:
            await self._ws.send_bytes(message)  # type: ignore[arg-type]  # any bytes-like works, and is not copied
        except (OSError, aiohttp.ClientError) as error:
            raise LinkTruncated(f"the connection ended without a goodbye: {error}") from error

    async def receive(self) -> bytes:
        message = await self._ws.receive()
        if message.type is WSMsgType.BINARY:
            data: bytes = message.data
            return data
        if message.type is WSMsgType.TEXT:
            raise RemoteProtocolError("a text message, where all are binary")
        if message.type is WSMsgType.ERROR and isinstance(message.data, aiohttp.WebSocketError):
            kind = OversizeError if message.data.code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG else RemoteProtocolError
            raise kind(f"the WebSocket protocol was broken: {message.data}")
        raise error_of_close(self._ws.close_code)

    async def close(self, code: CloseCode) -> None:
        self._established.pop(self, None)
        polite = False
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._ws.close(code=code)
                    polite = True
        finally:
            if not polite:
                self.cut()
            if self._session is not None:
                await self._session.close()

    def cut(self) -> None:
        """Drop the connection, with what is still to be sent."""
        with suppress(AttributeError):  # asyncio's, from a transport that had flushed and lost its connection already
            self.transport.abort()


def _tune(connection: socket.socket | None) -> None:
    if connection is None:
        return
    with suppress(OSError):  # it may have been closed meanwhile
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)


def _listed(headers: Iterable[str]) -> list[str]:
    return [name.strip() for header in headers for name in header.split(",") if name.strip()]


def _dialable(where: Address, name: tuple[str, int]) -> str:
    host, port = name[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = socket.gethostname()
    return str(replace(where, host=host, port=port))
