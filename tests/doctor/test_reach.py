"""TCP, address by address."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import pytest

from p2pfl.doctor.reach import Answer, Knock, knock
from p2pfl.link.address import Address

HUB = Address("hub.test", 7700)


def resolved(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Let every name stand for these."""

    async def getaddrinfo(*_: object, **__: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 7700)) for host in hosts]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)


def answered(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> None:
    async def connect(host: str, port: int) -> Any:
        answer = answers[f"_{host.replace('.', '_').replace(':', '_')}"]
        if isinstance(answer, float):
            await asyncio.sleep(answer)
        raise OSError(answer, "no")

    monkeypatch.setattr(asyncio, "open_connection", connect)


async def test_each_address_answers_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved(monkeypatch, "10.0.0.1", "10.0.0.2", "10.0.0.3", "fe::4", "10.0.0.1")
    answered(
        monkeypatch, _10_0_0_1=errno.ECONNREFUSED, _10_0_0_2=1e6, _10_0_0_3=errno.ETIMEDOUT, _fe__4=errno.ENETUNREACH
    )
    began = asyncio.get_running_loop().time()
    assert await knock(HUB) == [
        Knock("10.0.0.1", Answer.REFUSED),
        Knock("10.0.0.2", Answer.SILENT),
        Knock("10.0.0.3", Answer.SILENT),
        Knock("fe::4", Answer.NO_ROUTE),
    ]
    assert asyncio.get_running_loop().time() - began == 3.0


@pytest.mark.parametrize("host", ["nowhere.invalid", "a..b", "x" * 64 + ".test"])
@pytest.mark.sockets
async def test_a_name_that_is_not_known(host: str) -> None:
    assert await knock(Address(host, 7700)) == ()


@pytest.mark.sockets
async def test_open_and_refused() -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert await knock(Address("127.0.0.1", port)) == [Knock("127.0.0.1", Answer.OPEN)]
    server.close()
    await server.wait_closed()
    assert await knock(Address("127.0.0.1", port)) == [Knock("127.0.0.1", Answer.REFUSED)]


def test_families() -> None:
    assert Knock("::1", Answer.OPEN).family == "IPv6"
    assert Knock("127.0.0.1", Answer.OPEN).family == "IPv4"
    assert Knock("fe80::1%eth0", Answer.OPEN).family == "IPv6"
    assert Knock("127.0.1.1", Answer.OPEN).loopback
    assert not Knock("10.0.0.1", Answer.OPEN).loopback
