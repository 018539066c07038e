"""A node on this host, whatever it plays: its links, what operators and users see of it, its signals, its end.

Nothing here needs torch.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

import tyro

from p2pfl.app.console import Display
from p2pfl.app.exits import Exit, exit_of
from p2pfl.app.identity_options import IdentityOptions, make_transport
from p2pfl.app.logs import LogOptions, Patience, StderrLog
from p2pfl.app.monitor import Monitor, MonitorOptions
from p2pfl.app.patience import patience
from p2pfl.app.software import own_software
from p2pfl.errors import P2pflError, require
from p2pfl.node.events import Event, RoundEnded, RoundStarted
from p2pfl.node.node import Node
from p2pfl.node.probing import Probed

__all__ = ["Player", "Station", "StationOptions", "run_player"]


@dataclass(frozen=True, slots=True)
class StationOptions(IdentityOptions):
    """Where this node listens, whom it dials, who it is, and whom it trusts."""

    listen: tuple[str, ...] = ()
    """Addresses to listen on, such as :7700 (this machine only) or 0.0.0.0:7700. None: only dial out."""
    advertise: tuple[str, ...] = ()
    """Addresses at which others are to dial this node, where they differ from those that it listens at: behind a proxy,
    or a router that forwards a port."""
    peers: tuple[str, ...] = ()
    """Addresses of nodes to link to, such as hub:7700. One is enough: the others are learnt."""
    name: str = ""
    """What this node is called; a topology file may keep a seat for the name."""
    seat: int | None = None
    """The seat to ask for. By default a free one."""
    patience_seconds: float = 600.0
    """Once there is no link to any node of the course for so long, give up with exit code 75; 0: never. The same
    command goes on with the run."""
    json: bool = False
    """One JSON object per line on stdout instead of text."""
    logs: Annotated[LogOptions, tyro.conf.arg(name="")] = field(default_factory=LogOptions)
    monitor: Annotated[MonitorOptions, tyro.conf.arg(name="")] = field(default_factory=MonitorOptions)
    loop: Literal["uvloop", "asyncio"] = "uvloop"
    """Which event loop: uvloop is faster, asyncio is Python's own."""

    def __post_init__(self) -> None:
        sentence = f"--patience-seconds is {self.patience_seconds}; it must not be negative"
        require(self.patience_seconds >= 0, sentence)


class Station:
    """A node, its monitor and its screen, made together and ended together."""

    def __init__(
        self,
        options: StationOptions,
        *,
        rounds: int = 0,
        remembered: Callable[[str], Sequence[str]] = lambda peer_id: (),
        unsaid: tuple[type[Event], ...] = (),
    ) -> None:
        """`rounds`: that there will be, if it is known; `remembered`: more addresses to dial, where a node with this id
        has been in the run before; `unsaid`: events that are told to machines only.

        Raises UserError for keys, trust and certificates that cannot work.
        """
        self._options = options
        self._unsaid = unsaid
        self.display = Display(as_json=options.json, total=rounds, quiet=options.logs.log == "json")
        transport, held = make_transport(options)
        with held:  # it is let go again if the node cannot be made
            self._remembered = remembered(transport.peer_id)
            self.node = Node(
                transport=transport,
                listen=[_with_host(address) for address in options.listen],
                peers=[*options.peers, *self._remembered],
                name=options.name,
            )
            self.node.dispatch.expecting = True  # we learn from our peers what we are to play
            self.probed = Probed(self.node, own_software())
            self.node.add(self.probed)
            self._monitor = Monitor(self.node, options.monitor)
            transport.pages = self._monitor.pages
            self._held = held.pop_all()

    def close(self) -> None:
        """Let the identity go, of a node that is not to be in operation."""
        self._held.close()

    @asynccontextmanager
    async def up(self) -> AsyncIterator[Node]:
        """The node in operation. Raises PeersLost in the block once there has been nobody for too long."""
        with self._held, self.display, self.node.events() as events:
            watching = asyncio.create_task(self._watch(events))
            try:
                async with self._monitor, self.node as node, self._monitor.up():
                    if self._options.advertise:
                        await node.members.announce(addresses=self._options.advertise)
                    self.display.line(f"peer id {node.id}")
                    self.display.row("node", id=node.id, addresses=node.addresses, metrics=self._monitor.where)
                    async with patience(node, self._options.patience_seconds, resuming=bool(self._remembered)):
                        yield node
            finally:
                watching.cancel()

    async def _watch(self, events: Any) -> None:
        patience = Patience()
        async for event in events:
            if patience.tells(event) and not isinstance(event, (RoundEnded, RoundStarted)):
                if not isinstance(event, self._unsaid):
                    self.display.line(str(event))
                self.display.row("event", event=type(event).__name__, text=str(event))


def _with_host(address: str) -> str:
    """`:7700` is short for this machine only."""
    return f"127.0.0.1{address}" if address.startswith(":") else address


class Player(Protocol):
    """What plays a course on a station."""

    @property
    def node(self) -> Node:
        """The node that plays."""

    async def run(self) -> int:
        """Play to the end; the exit code."""


def run_player(options: StationOptions, make: Callable[[], Player]) -> int:
    """A whole process: make a player, run it, handle signals. Returns the exit code; raises UserError."""
    with StderrLog(options.logs) as log:
        try:
            player = make()
            log.follow(player.node)
            with asyncio.Runner(loop_factory=_loop_factory(options.loop)) as runner:
                return runner.run(_with_signals(player))
        except P2pflError as error:
            if not log.last_words(error):
                raise
            return exit_of(error)


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "asyncio":
        return asyncio.new_event_loop
    import uvloop  # noqa: PLC0415 - only hosts use it, and some platforms lack it

    return uvloop.new_event_loop


async def _with_signals(player: Player) -> int:
    """The first SIGINT or SIGTERM lets the node say goodbye and end with 0; the second ends it at once with 130."""
    loop = asyncio.get_running_loop()
    work = asyncio.current_task()
    assert work is not None
    asked = False

    def stop() -> None:
        nonlocal asked
        if asked:
            os._exit(Exit.INTERRUPTED)
        asked = True
        work.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        return await player.run()
    except asyncio.CancelledError:
        if not asked:
            raise
        return Exit.DONE
