"""A node: one asyncio object with an identity, roles, and links to its peers."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

from p2pfl.errors import LinkError, MessageError
from p2pfl.link.base import Link, Listener, Transport
from p2pfl.node.dialing import Dialler
from p2pfl.node.dispatch import Dispatch
from p2pfl.node.events import (
    Event, EventStream, Listening, Observer, PeerJoined, PeerLost, PeerMisbehaved, PeerRefused, Waiting,
)  # fmt: skip
from p2pfl.node.membership import Member, Membership, Roster
from p2pfl.node.peer import Peer
from p2pfl.node.replies import Replies
from p2pfl.node.settings import NodeSettings
from p2pfl.wire.codec import encode
from p2pfl.wire.message import Message, Request
from p2pfl.wire.tensor import Schema

__all__ = ["Node", "NodeStatistics", "Runs"]

ReplyT = TypeVar("ReplyT", bound=Message)


@runtime_checkable
class Runs(Protocol):
    """A role with something to do by itself, from top to bottom."""

    async def run(self, node: Node) -> None: ...


@dataclass(frozen=True, slots=True)
class NodeStatistics:
    """Counts since the node was made; bytes as they crossed the wire."""

    peers: int
    messages_sent: int
    messages_received: int
    bytes_sent: int
    bytes_received: int
    handler_failures: int
    violations: int


class Node:
    """Plays roles and links to peers: `async with Node(Trainer(...), transport=..., peers=["hub:7700"]) as node`.

    It starts when the context is entered: bound, identity loaded, dialling. It never touches signals, the event loop's
    policy, logging handlers or torch's threads, and any number of nodes live in one loop.
    """

    def __init__(
        self,
        *roles: object,
        transport: Transport,
        listen: str | Sequence[str] = (),
        peers: Sequence[str] = (),
        name: str = "",
        seat: int | None = None,
        members: Membership | None = None,
        settings: NodeSettings | None = None,
    ) -> None:
        """`listen`: addresses to open; `peers`: addresses to keep links to; `seat`: the place in a topology, if given.

        `members`: a table of who is who that stands already, in place of one that is gossiped.

        Raises MessageError for roles that do not fit together. Nothing is opened before the context is entered.
        """
        self.transport = transport
        self.settings = settings or NodeSettings()
        self.id = transport.peer_id
        self.dispatch = Dispatch(self.emit)
        self.members = members or Membership(Member(self.id, name, (), seat))
        self.members.bind(self.stir, self._pass_on)
        self._roles: list[object] = []
        self._listen = (listen,) if isinstance(listen, str) else tuple(listen)
        self._dial = tuple(peers)
        self._listeners: list[Listener] = []
        self._peers: dict[str, Peer] = {}
        self._rng = random.Random(self.id)
        self._dialler = Dialler(self, self._rng)
        self._observers: dict[Observer, None] = {}
        self._waits: dict[object, tuple[str, float]] = {}
        self._reporter: asyncio.TimerHandle | None = None
        self._changed: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._open = False
        self._violations = 0
        self.add(self.members, *roles)

    # -- life ------------------------------------------------------------------------------------------------------

    def add(self, *roles: object) -> None:
        """Play more roles. Raises MessageError where two handle one message type, or two types have one tag."""
        self.dispatch.add(roles)
        self._roles.extend(roles)

    def agree(self, *schemas: Schema) -> None:
        """From now on take tensors of just these shapes; an announcement of others ends before memory is taken."""
        self.dispatch.schemas.update(schemas)

    async def __aenter__(self) -> Self:
        if self._open or self._stopping.is_set():
            raise MessageError("a node can be entered once; make another")
        self._open = True
        self.transport.refused = self._refused
        try:
            for address in self._listen:
                self._listeners.append(await self.transport.listen(address, self.accept))
        except BaseException:
            await self._shut_doors()
            self._open = False
            raise
        if self._listeners:
            addresses = tuple(address for door in self._listeners for address in door.addresses)
            await self.members.announce(addresses=addresses)
            self.emit(Listening(addresses))
        for address in self._dial:
            self._dialler.want_address(address)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def run(self) -> None:
        """Play the roles that have something to do, until all are through or the node stops.

        Without such a role: serve until the node stops. The first error of a role ends the others and is raised.
        """
        runners = [role for role in self._roles if isinstance(role, Runs)]
        stopped = asyncio.create_task(self._stopping.wait())
        playing = asyncio.create_task(self._play(runners)) if runners else stopped
        try:
            await asyncio.wait((stopped, playing), return_when=asyncio.FIRST_COMPLETED)
            if playing is not stopped and playing.done():
                playing.result()
        finally:
            for task in (stopped, playing):
                task.cancel()
            await asyncio.wait((stopped, playing))

    async def _play(self, runners: Iterable[Runs]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for role in runners:
                    group.create_task(role.run(self), name=f"run {type(role).__name__}")
        except BaseExceptionGroup as errors:
            if len(errors.exceptions) == 1:
                raise errors.exceptions[0] from None
            raise

    async def stop(self) -> None:
        """Let running handlers end, say goodbye to all peers, close everything. Takes at most about 5 s."""
        if not self._open:
            return
        self._open = False
        self._stopping.set()
        await self._shut_doors()
        await self._dialler.stop()
        connections = [connection for peer in self._peers.values() for connection in peer.connections]
        if connections:
            await self._part(connections)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._reporter is not None:
            self._reporter.cancel()
        for observer in tuple(self._observers):
            observer.finish()

    async def _part(self, connections: list[Any]) -> None:
        goodbyes = [asyncio.create_task(connection.finish("the node stops")) for connection in connections]
        _, late = await asyncio.wait(goodbyes, timeout=self.settings.drain_seconds)
        for connection in connections:
            connection.cancel_handlers()
        if late:
            _, late = await asyncio.wait(late, timeout=self.settings.close_seconds)
        for task in late:
            task.cancel()
        for connection in connections:
            connection.link.abort(LinkError("the node has stopped"))
        if late:
            await asyncio.wait(late)

    async def _shut_doors(self) -> None:
        doors, self._listeners = self._listeners, []
        for door in doors:
            await door.close()

    # -- peers -----------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
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
        linked = (peer for peer in self._peers.values() if peer.connected)
        return sorted(linked, key=lambda peer: (peer.seat is None, peer.seat, peer.id))

    def peer(self, peer_id: str) -> Peer:
        """The peer of that id, linked or not."""
        peer = self._peers.get(peer_id)
        if peer is None:
            peer = self._peers[peer_id] = Peer(self, peer_id)
        return peer

    def at(self, seat: int) -> Peer | None:
        """The linked peer in that seat."""
        member = self.members.at(seat)
        peer = self._peers.get(member.id) if member else None
        return peer if peer is not None and peer.connected else None

    def want(self, seats: Iterable[int]) -> None:
        """Keep links to those who sit there, as far as they are known and can be dialled."""
        for seat in seats:
            member = self.members.at(seat)
            if member is not None and member.addresses:
                self._dialler.want_peer(member)

    async def meet(self, seats: Iterable[int], at_least: int | None = None) -> list[Peer]:
        """Link to those who sit there; those who are linked, in the order of the seats, once they are `at_least` so many.

        Without `at_least`: all of them.
        """
        wanted = sorted(set(seats))
        enough = len(wanted) if at_least is None else min(at_least, len(wanted))
        with self.waiting("") as reword:
            while True:
                self.want(wanted)
                found = {seat: peer for seat in wanted if (peer := self.at(seat)) is not None}
                if len(found) >= enough:
                    return list(found.values())
                missing = _ranges([seat for seat in wanted if seat not in found])
                reword(f"links to {enough - len(found)} more of the seats {missing}")
                await self.change()

    def ask_all(self, peers: Iterable[Peer], request: Request[ReplyT]) -> Replies[ReplyT]:
        """Ask many at once; the request is encoded once. See Replies."""
        return Replies(self, peers, request)

    async def tell_all(self, peers: Iterable[Peer], message: Message) -> list[Peer]:
        """Tell many; the message is encoded once. Those that were not reached are given back."""
        body = encode(message)
        sent, behind, missed = [], [], []
        for peer in peers:
            try:
                connection = peer.connection()
            except LinkError:
                missed.append(peer)
                continue
            if connection.session.tells_left:
                connection.tell_now(body)
                sent.append(connection)
            else:
                behind.append((peer, connection))
        for peer, connection in behind:
            try:
                await connection.tell(body)
            except LinkError:
                missed.append(peer)
        for connection in sent:
            await connection.link.drain()
        return missed

    def statistics(self) -> NodeStatistics:
        """Counts so far."""
        sums = [0, 0, 0, 0]
        for peer in self._peers.values():
            s = peer.statistics()
            counts = (s.messages_sent, s.messages_received, s.bytes_sent, s.bytes_received)
            sums = [a + b for a, b in zip(sums, counts, strict=True)]
        linked = sum(peer.connected for peer in self._peers.values())
        return NodeStatistics(linked, *sums, self.dispatch.failures, self._violations)

    def accept(self, link: Link) -> None:
        """Take a link that a transport has made."""
        if not self._open:
            link.abort(LinkError("the node has stopped"))
            return
        self.peer(link.remote).attach(link)

    # -- events ----------------------------------------------------------------------------------------------------

    def events(self, size: int = 1000) -> EventStream:
        """What happens from now on. See EventStream."""
        stream = EventStream(self._observers.pop, size)
        self.observe(stream)
        return stream

    def observe(self, observer: Observer) -> None:
        """Push every event to `observer`, at once. `events` is the comfortable form."""
        self._observers[observer] = None

    def emit(self, event: Event) -> None:
        """Tell all who listen; roles use it for events of their own."""
        for observer in self._observers:
            observer.push(event)

    @contextmanager
    def waiting(self, what: str) -> Iterator[Callable[[str], None]]:
        """While the block lasts, a Waiting event tells periodically that this node waits for `what`.

        Gives a function that puts it into other words.
        """
        key = object()
        since = asyncio.get_running_loop().time()

        def reword(words: str) -> None:
            self._waits[key] = (words, since)

        reword(what)
        self.watch_waits()
        try:
            yield reword
        finally:
            del self._waits[key]

    async def change(self) -> None:
        """Wait until a peer came or went, the membership table changed, or a role called `stir`."""
        if self._changed is None or self._changed.done():
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._changed)

    def stir(self) -> None:
        """Wake those who wait in `change`, so that they look again."""
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    # -- for peers, connections and the membership -----------------------------------------------------------------

    def joined(self, peer: Peer) -> None:
        self.emit(PeerJoined(peer.id))
        self.stir()
        self.spawn(self._greet(peer))

    def lost(self, peer: Peer, error: LinkError) -> None:
        self.emit(PeerLost(peer.id, str(error)))
        self.stir()

    def misbehaved(self, peer: Peer, reason: str) -> None:
        self._violations += 1
        self.emit(PeerMisbehaved(peer.id, reason))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something that ends by itself, and in any case with the node."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def watch_waits(self) -> None:
        """Something is being waited for: look again after a while whether it still is."""
        if self._reporter is None and math.isfinite(self.settings.report_seconds):
            loop = asyncio.get_running_loop()
            self._reporter = loop.call_later(self.settings.report_seconds, self._report_waits)

    def waits(self) -> list[tuple[str, float]]:
        """What this node waits for at this moment, and since when on the loop's clock."""
        now = asyncio.get_running_loop().time()
        asked: dict[str, tuple[list[str], float]] = {}
        for peer in self.peers:
            for connection in peer.connections:
                for tag, since in connection.open_asks():
                    names, first = asked.get(tag, ([], now))
                    asked[tag] = ([*names, peer.name], min(first, since))
        answers = [(f"answers to {tag} from {_some(names)}", since) for tag, (names, since) in asked.items()]
        return [*self._waits.values(), *answers]

    def _report_waits(self) -> None:
        self._reporter = None
        now = asyncio.get_running_loop().time()
        waits = self.waits()
        for what, since in waits:
            if now - since >= 0.99 * self.settings.report_seconds:
                self.emit(Waiting(what, now - since))
        if waits and self._open:
            self.watch_waits()

    async def _greet(self, peer: Peer) -> None:
        roster = self.members.everything()
        if roster is not None:
            await self._pass_on(roster, None, [peer])

    async def _pass_on(self, roster: Roster, source: Peer | None, to: Iterable[Peer] | None = None) -> None:
        others = [peer for peer in (self.peers if to is None else to) if peer is not source]
        if others:
            await self.tell_all(others, roster)

    def _refused(self, address: str, error: LinkError) -> None:
        self.emit(PeerRefused(address, str(error)))

    def __repr__(self) -> str:
        seat = "" if self.seat is None else f" seat {self.seat}"
        where = f" on {', '.join(self.addresses)}" if self.addresses else ""
        linked = sum(peer.connected for peer in self._peers.values())
        return f"<Node {self.name}{seat}{where}, {linked} peers>"


def _some(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _ranges(seats: Sequence[int]) -> str:
    """Seats as people write them.

    >>> _ranges([0, 1, 2, 5])
    '0-2, 5'
    """
    runs: list[list[int]] = []
    for seat in seats:
        if runs and runs[-1][1] == seat - 1:
            runs[-1][1] = seat
        else:
            runs.append([seat, seat])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
