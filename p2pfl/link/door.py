"""Listening sockets. Where no file descriptors are left, a door pauses: asyncio and libuv would try without end."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress

__all__ = ["Door"]

log = logging.getLogger("p2pfl.link")
PAUSE_SECONDS = 1.0
_BACKLOG = 128
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Door:
    """Gives every connection to a new protocol: `await Door.open(factory, host, port)`."""

    def __init__(
        self,
        sockets: list[socket.socket],
        factory: Callable[[], asyncio.BaseProtocol],
        tls: ssl.SSLContext | None,
    ) -> None:
        self.sockets = sockets
        self._factory = factory
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._shaking: set[asyncio.Task[None]] = set()  # TLS handshakes under way
        self._accepting = [self._loop.create_task(self._accept(each)) for each in sockets]

    @classmethod
    async def open(
        cls, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int, tls: ssl.SSLContext | None = None
    ) -> Door:
        """Listen at all addresses of a host. Raises OSError if one cannot be had."""
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        sockets: list[socket.socket] = []
        try:
            for family, kind, protocol, _, address in dict.fromkeys(found):
                each = socket.socket(family, kind, protocol)
                sockets.append(each)
                each.setblocking(False)
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                each.bind(address)
                each.listen(_BACKLOG)
        except OSError:
            for each in sockets:
                each.close()
            raise
        return cls(sockets, factory, tls)

    def close(self) -> None:
        """Accept no more. Connections that were made stay."""
        for task in (*self._accepting, *self._shaking):
            task.cancel()
        for each in self.sockets:
            each.close()

    async def _accept(self, listening: socket.socket) -> None:
        told = False
        while True:
            try:
                connection, _ = await self._loop.sock_accept(listening)
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    continue  # whoever it was has gone again
                if not told:
                    log.warning(
                        "nobody can link to this node now (%s): raise its limit, as by ulimit -n", error.strerror
                    )
                told = True
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            told = False
            task = self._loop.create_task(self._hand_over(connection))
            self._shaking.add(task)
            task.add_done_callback(self._shaking.discard)

    async def _hand_over(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        handed = False
        try:
            with suppress(OSError):  # an end that went away, or that does not speak TLS: ssl.SSLError is one
                await self._loop.connect_accepted_socket(self._factory, connection, ssl=self._tls)
                handed = True
        finally:
            if not handed:
                connection.close()

    def __repr__(self) -> str:
        return f"<Door of {len(self.sockets)} sockets>"
