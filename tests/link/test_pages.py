"""Pages beside links on one port, and on a port of their own: who may read them, and who sees that there are any."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from p2pfl.crypto.identity import Identity
from p2pfl.errors import ListenFailed
from p2pfl.link.address import Address, parse_address
from p2pfl.link.pages import Page, PagePort, Pages, is_loopback, refusal, system_words
from p2pfl.link.tls import TlsSettings
from p2pfl.link.trust import Open
from p2pfl.link.websocket import WebSocketTransport
from tests.link import certificates

WELL = Page(b"well\n", "text/plain")
ILL = Page(b"ill\n", "text/plain", HTTPStatus.SERVICE_UNAVAILABLE)
HERE = {"Host": "127.0.0.1:7700"}


def given(*, public: bool = False) -> Pages:
    return Pages({"/well": lambda: WELL, "/ill": lambda: ILL}, public=public)


def asked(remote: str, headers: dict[str, str] = HERE, method: str = "GET", path: str = "/well") -> web.BaseRequest:
    return make_mocked_request(method, path, headers=headers).clone(remote=remote)


@pytest.mark.parametrize(
    ("remote", "headers", "status"),
    [
        ("127.0.0.1", HERE, 200),
        ("127.8.8.8", {"Host": "localhost:7700"}, 200),
        ("::1", {"Host": "[::1]:7700"}, 200),
        ("::ffff:127.0.0.1", HERE, 200),
        ("192.0.2.1", HERE, 404),
        ("2001:db8::1", HERE, 404),
        ("", HERE, 404),
        ("127.0.0.1", {"Host": "rebound.example:7700"}, 404),  # a page of that site, in a browser on this machine
        ("127.0.0.1", {"Host": "127.0.0.1.example"}, 404),
        ("127.0.0.1", {"Host": "[127.0.0.1"}, 404),
        ("127.0.0.1", {}, 404),
        ("127.0.0.1", HERE | {"X-Forwarded-For": "192.0.2.1"}, 404),
        ("127.0.0.1", HERE | {"Forwarded": "for=192.0.2.1"}, 404),
        ("127.0.0.1", HERE | {"Via": "1.1 proxy"}, 404),
    ],
)
def test_unless_they_are_public_pages_are_for_this_machine(remote: str, headers: dict[str, str], status: int) -> None:
    assert given().answer(asked(remote, headers)).status == status
    assert given(public=True).answer(asked(remote, headers)).status == 200


def test_to_others_pages_and_what_is_none_look_alike() -> None:
    page, nothing = (given().answer(asked("192.0.2.1", path=path)) for path in ("/well", "/none"))
    assert (page.status, page.body, dict(page.headers)) == (nothing.status, nothing.body, dict(nothing.headers))


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("HEAD", 200), ("POST", 405), ("DELETE", 405)])
def test_pages_are_read_only(method: str, status: int) -> None:
    assert given().answer(asked("127.0.0.1", method=method)).status == status


def test_without_pages_there_are_none() -> None:
    assert Pages().answer(asked("127.0.0.1")).status == 404
    assert Pages(public=True).answer(asked("127.0.0.1")).status == 404


def test_a_page_is_not_kept_by_whoever_passes_it_on() -> None:
    answer = given().answer(asked("127.0.0.1", path="/ill"))
    assert (answer.status, answer.body) == (503, b"ill\n")
    assert answer.headers["Content-Type"] == "text/plain"
    assert answer.headers["Cache-Control"] == "no-store"


def test_a_refusal_ends_the_connection() -> None:
    assert refusal(HTTPStatus.NOT_FOUND).keep_alive is False
    assert (
        refusal(HTTPStatus.UPGRADE_REQUIRED, {"Sec-WebSocket-Protocol": "x"}).headers["Sec-WebSocket-Protocol"] == "x"
    )


def test_words_of_the_system() -> None:
    assert system_words(OSError(98, "[Errno 98] error while attempting to bind on ...")) == "Address already in use"
    assert system_words(OSError("no number")) == "no number"


@pytest.mark.parametrize(
    ("host", "holds"), [("localhost", True), ("127.0.0.1", True), ("::1", True), ("0.0.0.0", False), ("hub", False)]
)
def test_loopback(host: str, holds: bool) -> None:
    assert is_loopback(host) is holds


@asynccontextmanager
async def getting(**options: object) -> AsyncIterator[Callable[[str], object]]:
    connector = aiohttp.TCPConnector(**options)  # type: ignore[arg-type]  # by name
    async with aiohttp.ClientSession(connector=connector) as session:

        async def get(url: str) -> tuple[int, bytes]:
            async with session.get(url) as response:
                return response.status, await response.read()

        yield get


@pytest.mark.sockets
async def test_a_port_of_their_own() -> None:
    port = await PagePort.open(parse_address(":0"), given())
    try:
        assert repr(port) == f"<PagePort {port.address}>"
        async with getting() as get:
            assert await get(f"{port.address}/well") == (200, b"well\n")
            assert await get(f"{port.address}/ill") == (503, b"ill\n")
            assert (await get(f"{port.address}/p2pfl/v1"))[0] == 404
            where = Address("127.0.0.1", int(port.address.rpartition(":")[2]))
            with pytest.raises(
                ListenFailed, match=rf"^cannot listen at {port.address}: Address already in use: choose"
            ):
                await PagePort.open(where, given())
    finally:
        port.close()
    async with getting() as get:
        with pytest.raises(aiohttp.ClientConnectorError):
            await get(f"{port.address}/well")


@pytest.mark.sockets
async def test_a_visitor_that_keeps_its_connection_does_not_keep_the_port() -> None:
    port = await PagePort.open(parse_address(":0"), given())
    async with getting() as get:
        assert (await get(f"{port.address}/well"))[0] == 200
        port.close()
        with pytest.raises(aiohttp.ClientError):
            await get(f"{port.address}/well")
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.sockets
@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
async def test_beside_links_on_one_port(secured: bool, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_text(certificates.CERTIFICATE)
    key.write_text(certificates.KEY)
    transport = WebSocketTransport(Identity.generate(), trust=Open(), tls=TlsSettings(cert, key) if secured else None)
    listener = await transport.listen("127.0.0.1:0", lambda link: None)
    try:
        [address] = listener.addresses
        root = address.replace("ws", "http", 1).removesuffix("/p2pfl/v1")
        async with getting(ssl=not secured) as get:
            assert (await get(f"{root}/well"))[0] == 404
            transport.pages = given()
            assert await get(f"{root}/well") == (200, b"well\n")
            assert (await get(f"{root}/p2pfl/v1"))[0] == 400  # which is for links alone
    finally:
        await listener.close()
