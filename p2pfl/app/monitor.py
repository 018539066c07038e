"""What operators see of a node from outside: whether it is well, and its metrics, as pages of HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Self

import orjson

from p2pfl.app.metrics import CONTENT_TYPE, NodeMetrics
from p2pfl.app.progress import CourseProgress
from p2pfl.errors import ConfigError
from p2pfl.link.address import Address, parse_address
from p2pfl.link.pages import Page, PagePort, Pages, is_loopback
from p2pfl.node.lag import LoopLag
from p2pfl.node.node import Node

__all__ = ["STUCK_SECONDS", "Monitor", "MonitorOptions"]

STUCK_SECONDS = 5.0  # a loop that was late by this has lost its links: peers end those that are silent for so long
_LATELY_SECONDS = 15.0  # how long that is held against it


@dataclass(frozen=True, slots=True)
class MonitorOptions:
    """Who may read /healthz and /metrics."""

    metrics_open: bool = False
    """Answer /healthz and /metrics on the node's own port to other machines too, not to this one only."""
    metrics_listen: str = ""
    """A port for these two alone, for a node that only dials out: :9400 is for this machine, 0.0.0.0:9400 for all who
    can reach it."""


class Monitor:
    """Watches a node, and makes its pages: `async with monitor, node, monitor.up(): ...`.

    The node's own port has them if its transport is given `pages`.
    """

    def __init__(self, node: Node, options: MonitorOptions) -> None:
        """Observes `node` from now on. Raises ConfigError for an address that is none."""
        self.progress = CourseProgress()
        node.observe(self.progress)
        self._lag = LoopLag()
        self.metrics = NodeMetrics(node, self._lag, self.progress)
        makers = {"/healthz": self._health, "/metrics": lambda: Page(self.metrics.exposition(), CONTENT_TYPE)}
        self.pages = Pages(makers, public=options.metrics_open)
        self.port: PagePort | None = None  # of the pages alone, while it is open
        self._listen = _parsed(options.metrics_listen)
        self._node = node
        self._status, self._reason = "starting", ""
        self._kept = ExitStack()

    async def __aenter__(self) -> Self:
        """Raises ListenFailed."""
        if self._listen is not None:
            whoever_reaches_it = Pages(self.pages.makers, public=not is_loopback(self._listen.host))
            self.port = await PagePort.open(self._listen, whoever_reaches_it)
        self._kept.enter_context(self._lag)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kept.close()
        if self.port is not None:
            self.port.close()

    @asynccontextmanager
    async def up(self) -> AsyncIterator[None]:
        """While the block lasts, the node is said to be well; after it, that it stops, or has failed and of what."""
        self._status = "ok"
        try:
            yield
        except Exception as error:
            self._status, self._reason = "failed", str(error)
            raise
        finally:
            if self._status == "ok":
                self._status = "stopping"

    @property
    def where(self) -> str:
        """The URL of the port that has the pages alone; empty if there is none."""
        return "" if self.port is None else self.port.address

    def _health(self) -> Page:
        node, lag, now = self._node, self._lag.longest(_LATELY_SECONDS), asyncio.get_running_loop().time()
        status = "stuck" if self._status == "ok" and lag > STUCK_SECONDS else self._status
        said = {
            "status": status,
            "reason": self._reason,
            "node": node.id,
            "name": node.name,
            "seat": node.seat,
            "round": self.progress.round,
            "peers": len(node.peers),
            "event_loop_lag_seconds": round(lag, 3),
            "waiting": [{"for": what, "seconds": round(now - since, 1)} for what, since in node.waits()],
        }
        well = HTTPStatus.OK if status == "ok" else HTTPStatus.SERVICE_UNAVAILABLE
        return Page(orjson.dumps(said) + b"\n", "application/json", well)

    def __repr__(self) -> str:
        return f"<Monitor of {self._node.name}: {self._status}{f', {self.port}' if self.port else ''}>"


def _parsed(address: str) -> Address | None:
    if not address:
        return None
    if "/" in address:
        raise ConfigError(f"--metrics-listen is {address!r}; write HOST:PORT, or :PORT for this machine only")
    return parse_address(address)
