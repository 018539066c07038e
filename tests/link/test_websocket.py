"""WebSocket links over real sockets of this host: the conformance kit, every limit, and what hostile ends do."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest
import uvloop
from aiohttp import web

from p2pfl.crypto.identity import Identity, NetworkKey
from p2pfl.errors import (
    ConfigError,
    HandshakeFailed,
    LinkClosed,
    LinkError,
    LinkRefused,
    LinkTruncated,
    ListenFailed,
    PeerUnreachable,
    RemoteProtocolError,
    UntrustedPeer,
    VersionMismatch,
)
from p2pfl.link.base import Link, LinkLimits
from p2pfl.link.sealed import SealedLink
from p2pfl.link.secure import Handshake, SecureChannel, SecuritySettings, Versions, offered_subprotocols
from p2pfl.link.tls import TlsSettings
from p2pfl.link.trust import AllowList, Open, Tofu, TrustPolicy
from p2pfl.link.websocket import UNACKNOWLEDGED_MS, WebSocketTransport, _Socket
from p2pfl.wire.frame import OversizeError
from p2pfl.wire.packet import Packet
from tests.link import certificates
from tests.link.kit import (
    Check,
    Inbox,
    Pair,
    check_all_sizes,
    check_close_sends_what_is_queued,
    check_cut_is_truncation,
    link_checks,
    pattern,
    same,
)

pytestmark = pytest.mark.sockets

ALICE, BOB, MALLORY = (Identity.from_seed(bytes([n]) * 32) for n in (1, 2, 3))
STRICT = {"loopback_exempt": False}


@pytest.fixture(autouse=True)
def nothing_failed_unseen(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What the event loop and aiohttp only log would otherwise pass for success."""
    yield
    assert not [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]


def transport(identity: Identity = ALICE, trust: TrustPolicy | None = None, **options: object) -> WebSocketTransport:
    return WebSocketTransport(identity, trust=trust or Open(), **options)


class Door:
    """An open listener, and the links that it has accepted."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.links: asyncio.Queue[SealedLink] = asyncio.Queue()

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2].partition("/")[0])


@asynccontextmanager
async def listening(far: WebSocketTransport, address: str = "0") -> AsyncIterator[Door]:
    door = Door("")
    listener = await far.listen(address, door.links.put_nowait)
    door.address = listener.addresses[0]
    try:
        yield door
    finally:
        await listener.close()
        while not door.links.empty():
            await end(door.links.get_nowait())


@asynccontextmanager
async def linked(near: WebSocketTransport, far: WebSocketTransport) -> AsyncIterator[tuple[SealedLink, SealedLink]]:
    async with listening(far) as door:
        a = await near.dial(door.address)
        b = await door.links.get()
        try:
            yield a, b
        finally:
            await end(a, b)


async def end(*links: SealedLink) -> None:
    for link in links:
        link._socket.cut()  # the other end may not have been started, and would not answer
        link.abort(LinkTruncated("the test is over"))
        await link.wait_ended()


@asynccontextmanager
async def dialler_first() -> AsyncIterator[Pair]:
    async with linked(transport(ALICE), transport(BOB)) as (a, b):
        yield Pair(a, b, a._socket.cut)


@asynccontextmanager
async def over_tls(tls: TlsSettings) -> AsyncIterator[tuple[SealedLink, SealedLink]]:
    async with linked(transport(ALICE, tls=tls), transport(BOB, tls=tls)) as pair:
        yield pair


@asynccontextmanager
async def upgraded(door: Door, *protocols: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A stranger with a WebSocket, before the handshake."""
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(door.address, protocols=protocols or offered_subprotocols(), max_msg_size=0) as ws,
    ):
        yield ws


@asynccontextmanager
async def proven(door: Door) -> AsyncIterator[tuple[aiohttp.ClientWebSocketResponse, SecureChannel]]:
    """A peer with a good identity and bad manners."""
    offered = offered_subprotocols()
    async with upgraded(door, *offered) as ws:
        security = SecuritySettings(identity=MALLORY, trust=Open())
        handshake = Handshake(security, initiator=True, offered=offered, chosen=ws.protocol or "")
        await ws.send_bytes(handshake.begin())
        await ws.send_bytes(handshake.receive(await ws.receive_bytes()))
        yield ws, handshake.channel


async def closed_with(ws: aiohttp.ClientWebSocketResponse) -> int | None:
    """Wait until the other end closes; gives its code."""
    while (await ws.receive()).type not in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED):
        pass
    return ws.close_code


async def status_of(door: Door, *protocols: str, path: str | None = None) -> tuple[int, str]:
    """The HTTP answer to an attempt to upgrade, and the protocols that it names."""
    url = door.address if path is None else door.address.replace("/p2pfl/v1", path)
    async with aiohttp.ClientSession() as session:
        try:
            async with session.ws_connect(url, protocols=protocols):
                return 101, ""
        except aiohttp.WSServerHandshakeError as error:
            return error.status, (error.headers or {}).get("Sec-WebSocket-Protocol", "")


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def something_else(serve: Serve) -> AsyncIterator[str]:
    """A TCP server that is no node."""

    answered = asyncio.Event()
    answered.set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answered.clear()
        await serve(reader, writer)
        writer.close()
        await writer.wait_closed()
        answered.set()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await answered.wait()


# ---- conformance


@link_checks
async def test_conformance(check: Check) -> None:
    await check(dialler_first)


@pytest.mark.parametrize("check", [check_all_sizes, check_close_sends_what_is_queued, check_cut_is_truncation])
def test_conformance_under_uvloop(check: Check) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(check(dialler_first))


async def test_control_overtakes_bulk_in_both_directions() -> None:
    async with linked(transport(ALICE), transport(BOB)) as (a, b):
        at_a, at_b = Inbox(), Inbox()
        a.start(at_a)
        b.start(at_b)
        for link, inbox in ((a, at_b), (b, at_a)):
            link.send(Packet(b"bulk", (pattern(20_000_000),)))
            await inbox.admission()
            link.send(Packet(b"control"))
            assert [packet.head for packet in await inbox.received(2)] == [b"control", b"bulk"]


async def test_a_hundred_links_at_once() -> None:
    async with listening(transport(BOB, limits=LinkLimits(half_open=110))) as door:
        near = transport(ALICE)
        async with asyncio.TaskGroup() as group:
            dials = [group.create_task(near.dial(door.address)) for _ in range(110)]
        links = [dial.result() for dial in dials]
        inboxes = []
        for _ in links:
            inboxes.append(Inbox())
            (await door.links.get()).start(inboxes[-1])
        for link in links:
            link.start(Inbox())
            link.send(Packet(b"all of us"))
        for inbox in inboxes:
            await inbox.received(1)
        async with asyncio.TaskGroup() as group:
            for link in links:
                group.create_task(link.close())
        assert {type(await inbox.closed()) for inbox in inboxes} == {LinkClosed}


async def test_the_kernel_is_told_to_watch_the_connection() -> None:
    async with linked(transport(ALICE), transport(BOB)) as (a, b):
        for link in (a, b):
            connection = link._socket.transport.get_extra_info("socket")
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == UNACKNOWLEDGED_MS


async def test_nothing_is_left_behind() -> None:
    before = asyncio.all_tasks()
    near, far = transport(ALICE), transport(BOB)
    async with linked(near, far) as (a, b):
        assert (repr(near)[-8:], repr(far)[-8:]) == ("1 links>", "1 links>")
        a.start(Inbox())
        b.start(Inbox())
    await b.wait_ended()
    async with asyncio.timeout(5):
        while left := asyncio.all_tasks() - before:
            await asyncio.wait(left)
    assert (repr(near)[-8:], repr(far)[-8:]) == ("0 links>", "0 links>")


# ---- addresses, mounting, listening


async def test_listens_on_loopback_unless_told_otherwise() -> None:
    async with listening(transport(BOB)) as door:
        assert door.address == f"ws://127.0.0.1:{door.port}/p2pfl/v1"
    with pytest.raises(ConfigError):
        await transport(BOB).listen("0.0.0.0:0", lambda link: None)


async def test_all_interfaces_are_announced_by_the_name_of_the_host() -> None:
    far = transport(BOB, trust=AllowList([ALICE.peer_id]))
    async with listening(far, "0.0.0.0:0") as door:
        assert door.address == f"ws://{socket.gethostname()}:{door.port}/p2pfl/v1"


async def test_other_forms_of_address_and_paths() -> None:
    async with listening(transport(BOB), "ws://127.0.0.1:0/other/path") as door:
        link = await transport(ALICE).dial(f"ws://localhost:{door.port}/other/path", expect=BOB.peer_id)
        assert link.remote == BOB.peer_id
        await end(link)
        with pytest.raises(HandshakeFailed, match="HTTP 404"):
            await transport(ALICE).dial(f"127.0.0.1:{door.port}")


async def test_mounted_on_an_application() -> None:
    links: asyncio.Queue[Link] = asyncio.Queue()
    app = web.Application()
    app.router.add_get("/p2pfl/v1", transport(BOB, caps={"role": "server"}).handler(links.put_nowait))
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    near = await transport(ALICE).dial("{}:{}".format(*runner.addresses[0]))
    assert near.remote_caps == {"role": "server"}
    inbox, other = Inbox(), Inbox()
    near.start(inbox)
    (await links.get()).start(other)
    near.send(Packet(b"hello"))
    await other.received(1)
    await runner.cleanup()
    assert isinstance(await inbox.closed(), LinkTruncated)
    assert isinstance(await other.closed(), LinkTruncated)
    await near.close()


async def test_closing_the_door_keeps_the_links() -> None:
    accepted: asyncio.Queue[Link] = asyncio.Queue()
    listener = await transport(BOB).listen("0", accepted.put_nowait)
    assert listener.addresses[0] in repr(listener)
    near = await transport(ALICE).dial(listener.addresses[0])
    inbox = Inbox()
    (await accepted.get()).start(inbox)
    near.start(Inbox())
    idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", int(listener.addresses[0].split(":")[2][:-9]))
    await asyncio.sleep(0)
    await listener.close()
    with pytest.raises(PeerUnreachable):
        await transport(ALICE).dial(listener.addresses[0])
    near.send(Packet(b"still here"))
    await inbox.received(1)
    await near.close()
    assert isinstance(await inbox.closed(), LinkClosed)
    async with asyncio.timeout(5):
        assert await idle_reader.read() == b""
    idle_writer.close()


async def test_a_port_in_use() -> None:
    async with listening(transport(BOB)) as door:
        with pytest.raises(ListenFailed, match=rf"127\.0\.0\.1:{door.port}.*in use.*another port"):
            await transport(ALICE).listen(str(door.port), lambda link: None)


# ---- who answers, and who does not


async def test_nobody_listens() -> None:
    async with something_else(lambda reader, writer: reader.read()) as address:
        pass
    with pytest.raises(PeerUnreachable, match=rf"{re.escape(address)}.*refused.*running there"):
        await transport().dial(address)


async def test_an_unknown_host() -> None:
    with pytest.raises(PeerUnreachable, match=r"no-such-host\.invalid.*not known"):
        await transport().dial("no-such-host.invalid:9000")


async def test_a_host_that_says_nothing() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with something_else(silent) as address:
        with pytest.raises(PeerUnreachable, match=r"did not answer within 0\.05 s"):
            await transport(limits=LinkLimits(upgrade_seconds=0.05)).dial(address)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=["nothing", "ssh", "a web page", "an error", "another WebSocket key", "a redirect"],
)
async def test_something_else_answers(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    async with something_else(serve) as address:
        with pytest.raises(HandshakeFailed, match=address):
            await transport().dial(address)


@asynccontextmanager
async def other_websocket(
    answer: Callable[[web.WebSocketResponse], Awaitable[object]], protocol: bool = True
) -> AsyncIterator[str]:
    async def serve(request: web.BaseRequest) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(protocols=offered_subprotocols() if protocol else ())
        await ws.prepare(request)
        await answer(ws)
        return ws

    server = web.Server(serve)
    opened = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    try:
        yield "{}:{}".format(*opened.sockets[0].getsockname())
    finally:
        opened.close()
        await server.shutdown(0.01)


async def test_a_websocket_of_something_else() -> None:
    async with other_websocket(lambda ws: ws.receive(), protocol=False) as address:
        with pytest.raises(HandshakeFailed, match="no p2pfl node"):
            await transport().dial(address)


@pytest.mark.parametrize(
    "answer",
    [
        lambda ws: ws.close(),
        lambda ws: ws.close(code=4000),
        lambda ws: ws.send_str("hello"),
        lambda ws: ws.send_bytes(b""),
        lambda ws: ws.send_bytes(bytes(96)),
        lambda ws: ws.send_bytes(bytes(3000)),
        lambda ws: ws.send_bytes(bytes(1_200_000)),
    ],
    ids=["closed", "refused", "text", "empty", "garbage", "long", "too long"],
)
async def test_garbage_in_the_handshake(answer: Callable[[web.WebSocketResponse], Awaitable[object]]) -> None:
    async with other_websocket(answer) as address:
        with pytest.raises(HandshakeFailed):
            await transport().dial(address)


async def test_a_handshake_that_does_not_go_on() -> None:
    async with other_websocket(lambda ws: ws.receive_bytes()) as address, asyncio.timeout(5):
        with pytest.raises(HandshakeFailed):
            await transport(limits=LinkLimits(handshake_seconds=0.05)).dial(address)


async def test_a_dial_that_is_cancelled_leaves_nothing() -> None:
    asked = asyncio.Event()

    async def hold(ws: web.WebSocketResponse) -> None:
        await ws.receive_bytes()
        asked.set()
        await ws.receive()

    async with other_websocket(hold) as address:
        dial = asyncio.create_task(transport().dial(address))
        await asked.wait()
        dial.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dial


# ---- identity and trust


async def test_another_peer_than_expected() -> None:
    async with listening(transport(BOB)) as door:
        with pytest.raises(HandshakeFailed, match=BOB.peer_id[:10]):
            await transport(ALICE).dial(door.address, expect=MALLORY.peer_id)
        assert door.links.empty()


async def test_ourselves() -> None:
    async with listening(transport(BOB)) as door:
        with pytest.raises(LinkRefused):
            await transport(BOB).dial(door.address)


async def test_a_dialler_that_does_not_trust_the_listener() -> None:
    async with listening(transport(BOB)) as door:
        with pytest.raises(UntrustedPeer):
            await transport(ALICE, trust=AllowList([MALLORY.peer_id])).dial(door.address)
        assert door.links.empty()


async def test_a_listener_that_does_not_trust_the_dialler_says_so_after_the_dial() -> None:
    async with listening(transport(BOB, trust=AllowList([ALICE.peer_id]))) as door:
        link, inbox = await transport(MALLORY).dial(door.address), Inbox()
        link.start(inbox)
        assert isinstance(await inbox.closed(), HandshakeFailed)
        assert door.links.empty()
        await link.close()


async def test_network_keys_must_match() -> None:
    ours, theirs = NetworkKey.generate(), NetworkKey.generate()
    async with linked(transport(ALICE, network_key=ours), transport(BOB, network_key=ours)) as (a, b):
        assert a.channel_id == b.channel_id
    async with listening(transport(BOB, network_key=ours)) as door:
        for key in (theirs, None):
            with pytest.raises(HandshakeFailed):
                await transport(ALICE, network_key=key).dial(door.address)


async def test_network_names_must_match() -> None:
    async with listening(transport(BOB, network_name="hospitals")) as door:
        with pytest.raises(HandshakeFailed):
            await transport(ALICE, network_name="banks").dial(door.address)


@pytest.mark.parametrize(("near", "far"), [((2, 3), (1, 1)), ((1, 1), (2, 3))])
async def test_versions_that_do_not_meet(near: tuple[int, int], far: tuple[int, int]) -> None:
    dialler, listener = transport(ALICE), transport(BOB)
    dialler.versions, listener.versions = Versions(*near), Versions(*far)
    async with listening(listener) as door:
        with pytest.raises(VersionMismatch, match="upgrade p2pfl"):
            await dialler.dial(door.address)
        assert door.links.empty()


async def test_a_recorded_session_is_worth_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[bytes] = []
    send = _Socket.send

    async def recording(self: _Socket, message: bytes) -> None:
        if self._session is not None:  # the dialler's end
            recorded.append(bytes(message))
        await send(self, message)

    monkeypatch.setattr(_Socket, "send", recording)
    async with listening(transport(BOB)) as door:
        link, inbox = await transport(ALICE).dial(door.address), Inbox()
        (await door.links.get()).start(inbox)
        link.send(Packet(b"transfer a hundred"))
        await link.close()
        await inbox.received(1)
        assert len(recorded) >= 3
        async with upgraded(door) as ws:
            for message in recorded:
                await ws.send_bytes(message)
            assert await closed_with(ws) == 4000
        assert door.links.empty()


# ---- limits, row by row


async def test_a_subprotocol_of_ours_is_mandatory() -> None:
    async with listening(transport(BOB)) as door:
        assert await status_of(door) == (400, "")
        assert await status_of(door, "chat") == (400, "")
        assert await status_of(door, "p2pfl.v1.rot13") == (400, "")
        assert await status_of(door, "p2pfl.v9.aesgcm") == (426, ", ".join(offered_subprotocols()))
        assert await status_of(door, *offered_subprotocols(), path="/") == (404, "")
        assert await status_of(door, *offered_subprotocols()) == (101, "")
        async with aiohttp.ClientSession() as session, session.get(door.address.replace("ws:", "http:")) as plain:
            assert plain.status == 400


@pytest.mark.parametrize("said", [b"", b"GET /p2pfl/v1 HTTP/1.1\r\nHost: x\r\nX: "], ids=["nothing", "half a request"])
async def test_upgrades_must_come_in_time(said: bytes) -> None:
    async with listening(transport(BOB, limits=LinkLimits(upgrade_seconds=0.05))) as door:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(said)
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()


async def test_handshakes_must_end_in_time() -> None:
    async with (
        listening(transport(BOB, limits=LinkLimits(handshake_seconds=0.05))) as door,
        upgraded(door) as ws,
        asyncio.timeout(5),
    ):
        assert await closed_with(ws) == 4000


@pytest.mark.parametrize(
    "messages",
    [[b""], [bytes(31)], [bytes(1025)], [bytes(32), bytes(2049)], [bytes(range(32)), bytes(200)]],
    ids=["empty", "short", "long", "long last", "forged last"],
)
async def test_handshakes_of_strangers_fail_without_a_word(messages: list[bytes]) -> None:
    async with listening(transport(BOB)) as door, upgraded(door) as ws:
        for message in messages:
            await ws.send_bytes(message)
        assert await closed_with(ws) == 4000
        assert door.links.empty()


async def test_handshakes_under_way_are_counted() -> None:
    async with (
        listening(transport(BOB, limits=LinkLimits(half_open=2))) as door,
        upgraded(door),
        upgraded(door) as second,
    ):
        assert (await status_of(door, *offered_subprotocols()))[0] == 503
        with pytest.raises(LinkRefused, match="try again later"):
            await transport(ALICE).dial(door.address)
        await second.send_bytes(b"")
        assert await closed_with(second) == 4000
        await second.close()
        async with asyncio.timeout(5):
            while (await status_of(door, *offered_subprotocols()))[0] == 503:
                pass  # until the place is free again


@pytest.mark.parametrize("exempt", [True, False])
async def test_handshakes_under_way_are_counted_by_host(exempt: bool) -> None:
    limits = LinkLimits(half_open_per_host=1, handshakes_burst=100, loopback_exempt=exempt)
    async with listening(transport(BOB, limits=limits)) as door, upgraded(door):
        assert (await status_of(door, *offered_subprotocols()))[0] == (101 if exempt else 503)


@pytest.mark.parametrize("exempt", [True, False])
async def test_a_host_may_not_come_too_often(exempt: bool) -> None:
    limits = LinkLimits(half_open_per_host=100, handshakes_burst=2, handshakes_per_second=1e-6, loopback_exempt=exempt)
    async with listening(transport(BOB, limits=limits)) as door:
        statuses = [(await status_of(door, *offered_subprotocols()))[0] for _ in range(3)]
        assert statuses == [101, 101, 101 if exempt else 429]
        if not exempt:
            with pytest.raises(LinkRefused, match="Too Many Requests"):
                await transport(ALICE).dial(door.address)


async def test_established_links_are_counted_at_both_ends() -> None:
    one = LinkLimits(links=1)
    near = transport(ALICE, limits=one)
    async with linked(near, transport(BOB)) as (a, _), listening(transport(BOB)) as elsewhere:
        with pytest.raises(LinkRefused, match="raise limits"):
            await near.dial(elsewhere.address)
        await end(a)
        await end(await near.dial(elsewhere.address))
    far = transport(BOB, limits=one)
    async with listening(far) as door:
        first = await transport(ALICE).dial(door.address)
        await door.links.get()
        with pytest.raises(LinkRefused):
            await transport(MALLORY).dial(door.address)
        await end(first)


async def hostile_end(
    limits: LinkLimits, act: Callable[[aiohttp.ClientWebSocketResponse, SecureChannel], Awaitable[object]]
) -> tuple[LinkError, int | None, Inbox]:
    """How a link ends at which a proven peer acts; with what code that peer is sent off; what was received."""
    async with listening(transport(BOB, limits=limits)) as door, proven(door) as (ws, channel):
        inbox = Inbox()
        (await door.links.get()).start(inbox)
        await act(ws, channel)
        code = await closed_with(ws)
        return await inbox.closed(), code, inbox


ALTERED = 1001  # the link has ended: who is on the way can do that to it, so nobody is blamed


@pytest.mark.parametrize(
    ("act", "code"),
    [
        (lambda ws, channel: ws.send_bytes(b"\0\1\2"), ALTERED),
        (lambda ws, channel: ws.send_bytes(channel.seal(b"x")[:-1]), ALTERED),
        (lambda ws, channel: ws.send_bytes(bytes(channel.seal(b"\x7f"))[::-1]), ALTERED),
        (lambda ws, channel: ws.send_bytes(channel.seal(b"\x55")), 4002),
        (lambda ws, channel: ws.send_bytes(channel.seal(b"\x7f") + channel.seal(b"\x7f")), 4002),
        (lambda ws, channel: ws.send_str("hello"), 4002),
        (lambda ws, channel: ws.send_bytes(channel.seal(b"\x01", bytes(12), b"\0\x10\0\0\0\0")), 4003),
        (lambda ws, channel: ws.send_bytes(channel.seal(b"\x01", bytes(17), b"\1", b"\0\1" + bytes(6))), 4003),
        (lambda ws, channel: ws.send_bytes(bytes(1_200_000)), 1009),
        (lambda ws, channel: ws._writer.send_frame(b"", 0x3), 1002),
    ],
    ids=[
        *("no record", "half a record", "a forged record", "an unknown kind", "bytes after FIN", "text"),
        *("a vast head", "a vast packet", "a vast message", "a broken frame"),
    ],
)
async def test_proven_peers_are_bounded_too(
    act: Callable[[aiohttp.ClientWebSocketResponse, SecureChannel], Awaitable[object]], code: int
) -> None:
    error, sent_off_with, inbox = await hostile_end(LinkLimits(), act)
    assert isinstance(error, LinkTruncated if code == ALTERED else RemoteProtocolError)
    assert isinstance(error, OversizeError) == (code in (4003, 1009))
    assert sent_off_with == code
    assert (inbox.packets, inbox.announced) == ([], [])


async def test_the_links_of_a_node_share_its_memory_for_what_is_under_way() -> None:
    """The link on which too much is announced is refused before memory is taken; what the others carry goes on."""
    far = transport(BOB, limits=LinkLimits(max_under_way_in_all=10_000_000))
    begun = b"\x01" + bytes(16) + b"\0\1" + (6_000_000).to_bytes(8, "big") + bytes(65_519 - 27)
    async with listening(far) as door, proven(door) as (ws, channel), proven(door) as (other, other_channel):
        inboxes = Inbox(), Inbox()
        for inbox in inboxes:
            (await door.links.get()).start(inbox)
        await ws.send_bytes(channel.seal(begun))
        await inboxes[0].admission()
        assert far._spare() == 4_000_000
        await other.send_bytes(other_channel.seal(begun))
        error = await inboxes[1].closed()
        assert isinstance(error, LinkRefused)
        assert str(error) == "6000000 bytes are over the 4000000 that are to spare for packets under way"
        assert await closed_with(other) == 4001
        assert not inboxes[0].errors
        await ws.send_bytes(channel.seal(b"\x04", bytes(4)))  # aborted, so that there is room again
        await ws.send_bytes(channel.seal(b"\x01" + bytes(11) + b"\1" + begun[13:]))
        while len(inboxes[0].announced) < 2:
            inboxes[0].changed.clear()
            await inboxes[0].changed.wait()
        assert far._spare() == 4_000_000


async def test_transfers_must_get_on() -> None:
    first = b"\x01" + bytes(16) + b"\0\1" + (10**6).to_bytes(8, "big") + bytes(65_519 - 27)
    error, code, inbox = await hostile_end(
        LinkLimits(progress_seconds=0.02), lambda ws, channel: ws.send_bytes(channel.seal(first))
    )
    assert isinstance(error, RemoteProtocolError)
    assert code == 4002
    assert inbox.announced == [(b"", (10**6,))]


class Proxy:
    """Passes on TCP connections to a port, and breaks each after so many bytes from the end that is said to send."""

    def __init__(self, port: int, cuts: list[int | None], *, dialler_sends: bool) -> None:
        self.port = port
        self.passed = 0  # bytes, from that end, on all connections
        self._cuts = cuts
        self._dialler_sends = dialler_sends

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _serve(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        far, on = await asyncio.open_connection("127.0.0.1", self.port)
        cut = self._cuts.pop(0)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(near, on, self._dialler_sends, cut))
                both.create_task(self._pass(far, back, not self._dialler_sends, cut))
        finally:
            for writer in (back, on):
                writer.transport.abort()

    async def _pass(self, source: asyncio.StreamReader, to: asyncio.StreamWriter, sends: bool, cut: int | None) -> None:
        passed = 0
        with suppress(ConnectionError):
            while data := await source.read(min(65_536, 65_536 if cut is None else max(1, cut - passed))):
                to.write(data)
                await to.drain()
                passed += len(data)
                self.passed += sends * len(data)
                if sends and passed == cut:
                    break
        to.transport.abort()


@pytest.mark.parametrize("dialler_sends", [True, False])
async def test_a_transfer_goes_on_where_the_connection_was_cut(dialler_sends: bool) -> None:
    size = 20_000_001
    model = (pattern(size), pattern(3))
    near, far = transport(ALICE), transport(BOB)
    async with listening(far) as door:
        proxy = Proxy(door.port, [7_000_003, 65_536, 9_999_999, None], dialler_sends=dialler_sends)
        async with proxy.open() as address:
            for attempt in range(4):
                ends = await near.dial(address), await door.links.get()
                sender, receiver = ends if dialler_sends else ends[::-1]
                inboxes = Inbox(), Inbox()
                sender.start(inboxes[0])
                receiver.start(inboxes[1])
                sent = Packet(b"attempt %d" % attempt, model)
                sender.send(sent)
                if attempt < 3:
                    for inbox in inboxes:
                        assert isinstance(await inbox.closed(), LinkTruncated)
                    assert not inboxes[1].packets
                    await receiver.wait_ended()
            assert same((await inboxes[1].received(1))[0], sent)
            for transport_ in (near, far):
                assert transport_._transfers.reserved == 0
                assert transport_._spare() == transport_.limits.max_under_way_in_all
            assert size < proxy.passed < 1.2 * size
            await end(*ends)


async def test_what_a_broken_link_has_left_makes_way_for_what_is_under_way() -> None:
    limits = LinkLimits(max_under_way_in_all=30_000_000)
    far = transport(BOB, limits=limits)
    async with listening(far) as door:
        link = await transport(ALICE).dial(door.address)
        inbox, other = Inbox(), Inbox()
        link.start(Inbox())
        (await door.links.get()).start(inbox)
        link.send(Packet(b"", (pattern(20_000_000),)))
        await inbox.admission()
        await end(link)
        await inbox.closed()
        assert (far._transfers.reserved, far._spare()) == (20_000_000, 10_000_000)
        async with linked(transport(MALLORY), far) as (near, _):
            (link := await transport(MALLORY).dial(door.address)).start(Inbox())
            (await door.links.get()).start(other)
            link.send(Packet(b"", (pattern(25_000_000),)))
            await other.received(1)
            assert (far._transfers.reserved, far._spare()) == (0, 30_000_000)
            await end(near, link)


async def test_a_close_without_goodbye_is_a_truncation() -> None:
    error, _, inbox = await hostile_end(
        LinkLimits(), lambda ws, channel: send_and_close(ws, channel.seal(b"\x01" + bytes(18)))
    )
    assert isinstance(error, LinkTruncated)
    assert [packet.head for packet in inbox.packets] == [b""]


async def send_and_close(ws: aiohttp.ClientWebSocketResponse, message: bytearray) -> None:
    await ws.send_bytes(message)
    await ws.close()


async def test_a_peer_that_does_not_read_cannot_keep_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pfl.link.websocket.CLOSE_SECONDS", 0.05)
    async with listening(transport(BOB)) as door, proven(door) as (ws, _):
        link, inbox = await door.links.get(), Inbox()
        link.start(inbox)
        ws._conn.transport.pause_reading()
        link.send(Packet(b"", (memoryview(bytes(50_000_000)),)))
        draining = asyncio.create_task(link.drain())
        await asyncio.sleep(0)
        link.abort(LinkTruncated("it does not read"))
        async with asyncio.timeout(5):
            await draining
            await link.wait_ended()
        assert isinstance(await inbox.closed(), LinkTruncated)
        assert link._socket.transport.get_write_buffer_size() == 0, "what it did not read is let go"
        ws._conn.transport.resume_reading()


# ---- dialling back


@pytest.mark.parametrize("spoken", [False, True], ids=["ws", "wss"])
async def test_who_dialled_us_is_dialled_back_where_it_came_from(spoken: bool, pem: TlsSettings) -> None:
    """By number, which is none of the names in its certificate."""
    tls = pem if spoken else None
    near, far = transport(ALICE, tls=tls), transport(BOB, tls=tls)
    async with linked(near, far) as (a, b), listening(near) as door:
        dialling = asyncio.create_task(far.dial_back(b, door.port))
        back = await door.links.get()
        assert (back.remote, back.initiator) == (BOB.peer_id, False)
        inbox = Inbox()
        back.start(inbox)
        assert isinstance(await inbox.closed(), LinkClosed)
        await dialling
        with pytest.raises(PeerUnreachable, match="did not come from a host that could be dialled"):
            await near.dial_back(a, door.port)  # we dialled it: that says nothing of where it is


async def test_somebody_else_at_the_port_is_not_who_dialled_us(tmp_path: Path) -> None:
    far = transport(BOB, Tofu(tmp_path / "pins.json"))
    async with linked(transport(ALICE), far) as (_, b), listening(transport(MALLORY)) as door:
        with pytest.raises(HandshakeFailed, match="answers where"):
            await far.dial_back(b, door.port)
        with pytest.raises(PeerUnreachable):
            await far.dial_back(b, 1)


async def test_dialling_back_pins_nobody(tmp_path: Path) -> None:
    near, far = transport(ALICE), transport(BOB, Tofu(tmp_path / "pins.json"))
    async with linked(near, far) as (_, b), listening(near) as door:
        dialling = asyncio.create_task(far.dial_back(b, door.port))
        (await door.links.get()).start(Inbox())
        await dialling
        assert not (tmp_path / "pins.json").exists()


# ---- TLS


@pytest.fixture
def pem(tmp_path: Path) -> TlsSettings:
    for name in ("CA", "CERTIFICATE", "KEY"):
        (tmp_path / name).write_text(getattr(certificates, name))
    return TlsSettings(tmp_path / "CERTIFICATE", tmp_path / "KEY", tmp_path / "CA")


async def test_tls_on_both_sides(pem: TlsSettings) -> None:
    async with over_tls(pem) as (a, b):
        inbox = Inbox()
        b.start(inbox)
        a.start(Inbox())
        assert a._socket.transport.get_extra_info("ssl_object").version() == "TLSv1.3"
        a.send(Packet(b"", (pattern(300_000),)))
        assert (await inbox.received(1))[0].buffers[0] == pattern(300_000)
        assert a.remote == BOB.peer_id


async def test_tls_checks_certificates(pem: TlsSettings) -> None:
    async with listening(transport(BOB, tls=pem)) as door:
        assert door.address.startswith("wss://")
        with pytest.raises(HandshakeFailed, match="TLS"):  # the system does not know this authority
            await transport(ALICE).dial(door.address)
        with pytest.raises(HandshakeFailed):  # the listener wants a certificate of the dialler
            await transport(ALICE, tls=TlsSettings(ca=pem.ca)).dial(door.address)
        with pytest.raises(HandshakeFailed):  # no TLS
            await transport(ALICE).dial(door.address.replace("wss:", "ws:"))
    without_ca = TlsSettings(pem.cert, pem.key)
    async with listening(transport(BOB, tls=without_ca)) as door:
        await end(await transport(ALICE, tls=TlsSettings(ca=pem.ca)).dial(door.address))


async def test_who_is_vouched_for_is_held_against_our_trust() -> None:
    assert transport(ALICE).admits(BOB.peer_id)
    choosy = WebSocketTransport(ALICE, trust=AllowList([BOB.peer_id]))
    assert choosy.admits(BOB.peer_id) and not choosy.admits(ALICE.peer_id)
