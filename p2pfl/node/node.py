"""A node: one asyncio object with an identity, roles, and links to its peers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar, cast, runtime_checkable

from p2pfl.errors import ConfigError, UserError
from p2pfl.link.base import Link, Listener, Mountable, Transport
from p2pfl.node.dialing import Dialler
from p2pfl.node.events import Event, EventStream, Listening, Observer, PeerJoined, PeerLost, PeerRefused
from p2pfl.node.gossip import Gossip
from p2pfl.node.meeting import call, dismiss, linked, meet
from p2pfl.node.membership import MOST_CHARACTERS, Member, Membership
from p2pfl.node.parting import part
from p2pfl.node.peer import Peer, tell_all
from p2pfl.node.peers import Peers
from p2pfl.node.playing import Stage
from p2pfl.node.relay import Relay, RelayDispatch
from p2pfl.node.replies import Replies
from p2pfl.node.settings import NodeSettings
from p2pfl.node.statistics import NodeStatistics
from p2pfl.node.waits import Change, Waits
from p2pfl.wire.codec import encode
from p2pfl.wire.message import Message, Request
from p2pfl.wire.tensor import Schema

__all__ = ["Node", "Runs"]

ReplyT = TypeVar("ReplyT", bound=Message)


@runtime_checkable
class Runs(Protocol):
    """A role with something to do by itself, from top to bottom."""

    async def run(self, node: Node) -> None:
        """Do it. The node is entered; it need not be linked to anybody yet."""


@lru_cache(maxsize=1024)
def _runs(role: type) -> bool:
    return issubclass(role, Runs)  # which takes 20 us


class Node:
    """Plays roles and links to peers: `async with Node(Trainer(...), transport=..., peers=["hub:7700"]) as node`.

    It starts when the context is entered: bound, identity loaded, dialling. It never touches signals, the event loop's
    policy, logging handlers or torch's threads, and any number of nodes live in one loop.
    """

    def __init__(
        self,
        *roles: object,
        transport: Transport | None = None,
        listen: str | Sequence[str] = (),
        peers: Sequence[str] = (),
        name: str = "",
        seat: int | None = None,
        members: Membership | None = None,
        settings: NodeSettings | None = None,
    ) -> None:
        """`transport`: by default WebSockets under a fresh identity that stay on this machine and trust all who do.

        `listen`: addresses to open; `peers`: addresses to keep links to; `seat`: the place in a topology, if given.

        `members`: a table of who is who that stands already, in place of one that is gossiped.

        Raises MessageError for roles that do not fit together, ConfigError for a name that cannot be shown. Nothing is
        opened before the context is entered.
        """
        if len(name) > MOST_CHARACTERS or not name.isprintable():
            raise ConfigError(f"name is {name[:50]!r}; it must be at most {MOST_CHARACTERS} characters that print")
        self.transport: Transport = transport or _local_websockets()
        self.settings = settings or NodeSettings()
        self.id = self.transport.peer_id
        self.dispatch = RelayDispatch(self.emit)
        self.members = members or Membership(Member(self.id, name, (), seat))
        self._roles: list[object] = []
        self._listen = (listen,) if isinstance(listen, str) else tuple(listen)
        self._dial = tuple(peers)
        self._listeners: list[Listener] = []
        self._peers = Peers(self)
        self._dialler = Dialler(self)
        self._gossip = Gossip(self)
        self.relay = Relay(self)
        self.members.bind(self.stir, self._gossip.spread)
        self._waits = Waits(self, self._peers)
        self._observers: dict[Observer, None] = {}
        self._change = Change()
        self._tasks: set[asyncio.Task[None]] = set()  # of the node itself
        self._orphans: set[asyncio.Task[None]] = set()  # handlers of links that have ended
        self._stage, self._open = Stage(), False
        self._stopping = asyncio.Event()
        self._end: asyncio.Task[None] | None = None
        self.violations = 0  # of the protocol, by peers
        self.add(self.members, self.relay, *roles)

    # -- life ------------------------------------------------------------------------------------------------------

    def add(self, *roles: object) -> None:
        """Play more roles. Their handlers are there at once; what they run begins with the next call of `run`.

        Raises MessageError where two handle one message type, or two types have one tag.
        """
        self.dispatch.add(roles)
        self._roles.extend(roles)

    def agree(self, *schemas: Schema) -> None:
        """From now on take tensors of just these shapes; an announcement of others ends before memory is taken."""
        self.dispatch.schemas.update(schemas)

    async def __aenter__(self) -> Self:
        if self._open or self._stopping.is_set():
            raise UserError("a node can be entered once: make another")
        self._open = True
        self.transport.refused = lambda address, error: self.emit(PeerRefused(address, str(error)))
        try:
            for address in self._listen:
                self._listeners.append(await self.transport.listen(address, self.accept))
            if self._listeners:
                addresses = tuple(address for door in self._listeners for address in door.addresses)
                await self.members.announce(addresses=addresses)
                self.emit(Listening(addresses))
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        for address in self._dial:
            self._dialler.want_address(address)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.stop()
        finally:
            if self._end is not None and not self._end.done():  # whoever is in a hurry has cancelled us
                self._end.cancel()
                await asyncio.wait((self._end,))

    async def run(self) -> None:
        """Play the roles that have something to do, until all are through or the node stops.

        Without such a role: serve until the node stops. The first error of a role ends the others and is raised.
        """
        if not self._open:
            return
        runners = [cast("Runs", role) for role in self._roles if _runs(type(role))]  # type: ignore[arg-type]  # a class
        parts = {f"run {type(role).__name__} {index}": role.run(self) for index, role in enumerate(runners)}
        await self._stage.play(parts or {"serve": self._stopping.wait()})

    async def stop(self) -> None:
        """Let running handlers end, say goodbye to all peers, close everything. Takes at most about 5 s.

        To cancel it is to wait no longer, while the end takes its course. A node that was not entered needs no stop.
        """
        if self._open:
            self._open = False
            self._stopping.set()
            self._end = asyncio.create_task(self._shut_down(), name=f"stop {self.name}")
        if self._end is not None:
            await asyncio.shield(self._end)

    async def _shut_down(self) -> None:
        connections = [connection for peer in self._peers for connection in peer.connections]
        ending = [*self._dialler.cancel(), *self._stage.clear()]
        try:
            await part([*self._listeners, self.relay], connections, self._orphans, ending, self.settings)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.sleep(0)  # the ends of links are told in the next turn of the loop
            self._waits.stop()
            for observer in tuple(self._observers):
                observer.finish()

    @property
    def websocket(self) -> Callable[[Any], Awaitable[Any]]:
        """The door for somebody else's aiohttp application: `app.router.add_get("/p2pfl/v1", node.websocket)`.

        Raises ConfigError for a node whose transport has no such thing.
        """
        if not isinstance(self.transport, Mountable):
            raise ConfigError(f"{self.transport!r} cannot be mounted on an application; use a WebSocketTransport")
        return self.transport.handler(self.accept)

    # -- peers -----------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What we call ourselves, or the start of our id."""
        return self.members.own.name or self.id[:10]

    @property
    def seat(self) -> int | None:
        """Our place in the course's topology, once there is one."""
        return self.members.own.seat

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where others can dial us."""
        return self.members.own.addresses

    @property
    def peers(self) -> list[Peer]:
        """The peers that are linked now, by seat, then by id."""
        return self._peers.linked

    def peer(self, peer_id: str) -> Peer:
        """The peer of that id, linked or not."""
        return self._peers.of(peer_id)

    def at(self, seat: int) -> Peer | None:
        """The linked peer in that seat."""
        peer = self._peers.at(seat)
        return peer if peer is not None and peer.connected else None

    def hears(self, seat: int) -> bool:
        """Whether something may still come from who sits there; see `Peer.audible`."""
        peer = self._peers.at(seat)
        return peer is not None and peer.audible

    def want(self, seats: Iterable[int]) -> None:
        """Keep links to those who sit there, as far as they are known and can be dialled."""
        for seat in seats:
            if member := self.members.at(seat):
                self._dialler.want_peer(member)

    async def linked(self, at_least: int = 1) -> list[Peer]:
        """The linked peers, as `peers` gives them, once there are `at_least` so many."""
        return await linked(self, at_least)

    async def meet(self, seats: Iterable[int], at_least: int | None = None) -> list[Peer]:
        """Link to those who sit there; the linked ones, in the order of the seats, once they are `at_least` so many.

        Without `at_least`: once all are.
        """
        return await meet(self, seats, at_least)

    async def call(self, seats: Iterable[int]) -> list[Peer]:
        """Link to those who sit there, by one attempt each: who is linked then, by seat. See `dismiss`."""
        return await call(self, seats)

    async def dismiss(self, peers: Iterable[Peer]) -> None:
        """End the links to peers that are needed no more, and forget the peers."""
        await dismiss(self, self._peers, peers)

    def ask_all(
        self, peers: Iterable[Peer], request: Request[ReplyT], *, rejoin_seconds: float = 0.0
    ) -> Replies[ReplyT]:
        """Ask many at once; the request is encoded once. Who is lost has so long to come back. See Replies."""
        return Replies(self, dict.fromkeys(peers, request), rejoin_seconds)

    async def tell_all(self, peers: Iterable[Peer], message: Message) -> list[Peer]:
        """Tell many; the message is encoded once. Those that were not reached are given back.

        Who is behind keeps us waiting, and nobody else. Raises MessageError for a message that cannot be sent.
        """
        return await tell_all(peers, encode(message))

    def statistics(self) -> NodeStatistics:
        """Counts so far."""
        return NodeStatistics.of(self._peers.counts(), len(self.peers), self.dispatch.failures, self.violations)

    def accept(self, link: Link) -> None:
        """Take a link that a transport has made."""
        self._peers.take(link, "" if self._open else "the node has stopped")

    # -- events ----------------------------------------------------------------------------------------------------

    def events(self, size: int = 1000) -> EventStream:
        """What happens from now on. See EventStream."""
        stream = EventStream(lambda stream: self._observers.pop(stream, None), size)
        self.observe(stream)
        return stream

    def observe(self, observer: Observer) -> None:
        """Push every event to `observer`, at once. `events` is the comfortable form."""
        self._observers[observer] = None

    def emit(self, event: Event) -> None:
        """Tell all who listen; roles use it for events of their own."""
        for observer in tuple(self._observers):
            observer.push(event)

    def waiting(self, what: str) -> AbstractContextManager[Callable[[str], None]]:
        """While the block lasts, Waiting events tell of `what`; gives a function that puts it into other words."""
        return self._waits.declared(what)

    def waits(self) -> list[tuple[str, float]]:
        """What this node waits for at this moment, and since when on the loop's clock."""
        return self._waits.now()

    @property
    def changes(self) -> int:
        """How many changes there have been; see `change`."""
        return self._change.count

    async def change(self, since: int | None = None) -> None:
        """Wait until a peer came or went, the membership table changed, or a role called `stir`.

        Who awaits anything between looking and waiting gives `changes` as it was at the look, and misses nothing.
        """
        await self._change.wait(since)

    def stir(self) -> None:
        """Wake those who wait in `change`, so that they look again."""
        self._change.notify()

    # -- for peers, connections and the membership -----------------------------------------------------------------

    def joined(self, peer: Peer) -> None:
        """A peer is linked."""
        self.emit(PeerJoined(peer.id))
        self.stir()
        self._gossip.greet(peer)

    def lost(self, peer: Peer, reason: str) -> None:
        """A peer is not linked any more."""
        self.relay.lost(peer, reason)
        self.emit(PeerLost(peer.id, reason))
        self.stir()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something that ends by itself, and in any case with the node."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def adopt(self, handlers: Collection[asyncio.Task[None]]) -> None:
        """Take handlers whose link has ended: the node does not end before they do."""
        self._orphans.update(handlers)
        for task in handlers:
            task.add_done_callback(self._orphans.discard)

    def watch_waits(self) -> None:
        """Something is being asked: see after a while whether it has been answered."""
        self._waits.watch()

    def __repr__(self) -> str:
        seat = "" if self.seat is None else f" seat {self.seat}"
        where = f" on {', '.join(self.addresses)}" if self.addresses else ""
        return f"<Node {self.name}{seat}{where}, {len(self.peers)} peers>"


def _local_websockets() -> Transport:
    from p2pfl.crypto.identity import Identity  # noqa: PLC0415 - nacl, only where sockets are used
    from p2pfl.link.trust import Open  # noqa: PLC0415 - the same
    from p2pfl.link.websocket import WebSocketTransport  # noqa: PLC0415 - aiohttp, the same

    return WebSocketTransport(Identity.generate(), trust=Open())
