"""Links between nodes that only dial out: made through a third, re-made through a fourth, bounded for whoever comes."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import orjson
import pytest

from p2pfl.crypto.identity import Identity
from p2pfl.errors import HandshakeFailed, LinkRefused, PeerUnreachable
from p2pfl.link.base import LinkLimits
from p2pfl.link.memory import MemoryNetwork
from p2pfl.link.trust import Open
from p2pfl.link.tunnel import MAX_CARRIED, MESSAGE_COST, TunnelSocket
from p2pfl.link.websocket import WebSocketTransport
from p2pfl.node.carriage import Cargo, RoomMade, Route, wrapped
from p2pfl.node.events import PeerJoined, PeerLost, PeerMisbehaved, PeerRefused, PeerUnreached, Waiting
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer
from p2pfl.node.relay import OfferTunnel, OpenTunnel, RelayDispatch, Tunnel
from p2pfl.node.settings import NodeSettings
from p2pfl.wire.codec import encode, pack
from p2pfl.wire.frame import OversizeError
from p2pfl.wire.message import Message, Request
from p2pfl.wire.tensor import Tensors, TensorSpec
from tests.node.kit import QUIET, Echo, Gated, Log, Note, Ping, Stranger, steps, until
from tests.node.tunnelling import BACKUP, HUB, Marked, Tunnelled, X, Y, Z, apart, carrier, hub, place, settled

MARKER = b"attack at dawn, and mind the gap"


class Size(Message):
    bytes: int


class Weigh(Request[Size]):
    data: Tensors


class Scales:
    """Says how much it was given."""

    @Weigh.handler
    async def weigh(self, ask: Weigh, peer: Peer) -> Size:
        return Size(ask.data.nbytes)


def marked(size: int) -> Weigh:
    data = (MARKER * (size // len(MARKER) + 1))[:size]
    return Weigh(Tensors((TensorSpec("w", "u8", (size,)),), (memoryview(data),)))


# -- to link -----------------------------------------------------------------------------------------------------------


async def test_two_that_only_dial_out_meet_through_a_third() -> None:
    network = MemoryNetwork()
    async with apart(network, hub(network), y=(Echo(), Scales())) as (x, y):
        log = Log(x)
        marks = Marked(network, MARKER)
        (peer,) = await x.meet([2])
        await steps()
        assert [joined.peer for joined in log.of(PeerJoined)] == [y.id]
        assert carrier(x, y) == carrier(y, x) == HUB.peer_id
        assert (await peer.ask(Ping(1))).n == 2
        assert (await peer.ask(marked(3_000_000))).bytes == 3_000_000
        assert marks.bytes > 6_000_000  # to who carries, and on
        assert not marks.seen
        assert peer.connection().link.channel_id == y.peer(x.id).connection().link.channel_id
        assert peer.counts().bytes_sent > 3_000_000
        assert not log.of(PeerUnreached)


async def test_the_smaller_id_dials_and_one_link_is_made_where_both_want_it() -> None:
    network = MemoryNetwork()
    carrying = hub(network)
    async with apart(network, carrying) as (x, y):
        async with asyncio.TaskGroup() as group:
            group.create_task(y.meet([1]))
            group.create_task(x.meet([2]))
        await settled()
        assert x.peer(y.id).connection().link.initiator
        assert len(carrying.relay.routes) == len(x.relay.ends) == len(y.relay.ends) == 1
        assert "1 tunnels" in repr(carrying.relay)


async def test_many_that_only_dial_out_all_meet() -> None:
    network, count = MemoryNetwork(delay=lambda *_: 0.05), 7
    carrying = hub(network, seat=count)
    async with carrying, AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(
                place(network, Identity.from_seed(bytes([seat + 10]) * 32), peers=[HUB.peer_id], seat=seat)
            )
            for seat in range(count)
        ]
        logs = [Log(node) for node in nodes]
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            for node in nodes:
                group.create_task(node.meet(set(range(count)) - {node.seat}))
        await settled()
        assert all(len(node.peers) == count for node in nodes)
        assert len(carrying.relay.routes) == count * (count - 1) / 2
        assert not any(log.of(PeerLost) for log in logs)


async def test_the_larger_dials_where_only_it_wants_to() -> None:
    network = MemoryNetwork()
    async with apart(network, hub(network)) as (x, y):
        (peer,) = await y.meet([1])
        assert peer.connection().link.initiator
        await until(lambda: x.peer(y.id).connected)


async def test_a_call_goes_through_others_too() -> None:
    network = MemoryNetwork()
    async with apart(network, hub(network)) as (x, y):
        assert [peer.id for peer in await x.call([2])] == [y.id]
        log = Log(x)
        x.members.learn([replace(y.members.own, id="nobody", seat=3)])
        assert await x.call([3]) == []
        (event,) = log.of(PeerUnreached)
        assert event.address == f"relay:{HUB.peer_id}/nobody"


async def test_who_is_no_peer_of_who_carries_is_told_of_with_the_mend() -> None:
    network = MemoryNetwork()
    async with hub(network), place(network, X, peers=[HUB.peer_id], seat=1) as x:
        await x.linked()
        x.members.learn([replace(x.members.own, id=Y.peer_id, seat=2)])
        log = Log(x)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(7):
                await x.meet([2])
        event = log.of(PeerUnreached)[0]
        assert event.address == f"relay:{HUB.peer_id}/{Y.peer_id}"
        assert event.reason == (
            f"{HUB.peer_id[:10]} opens no tunnel: it is not linked to the other end: "
            "let one of the two ends listen, or link both to one that does"
        )
        assert log.of(Waiting)[0].what == (
            "links to 1 more of the seats 2; neither this node nor 2 listens: "
            "give one of each two an address to listen at, or link both to a peer that carries for others"
        )
        assert not x.relay.ends


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (NodeSettings(relay=False), "it does not carry for others"),
        (NodeSettings(tunnels=0), "it carries too many tunnels"),
        (NodeSettings(tunnels_per_peer=0), "it carries too many tunnels"),
    ],
)
async def test_who_does_not_carry_says_so(settings: NodeSettings, reason: str) -> None:
    network = MemoryNetwork()
    async with apart(network, hub(network, settings=settings)) as (x, y):
        with pytest.raises(PeerUnreachable, match=reason):
            await x.relay.dial(f"relay:{HUB.peer_id}/{y.id}")


async def test_another_is_asked_where_one_refuses() -> None:
    network = MemoryNetwork()
    refusing = hub(network, settings=NodeSettings(relay=False))
    async with apart(network, refusing, hub(network, BACKUP, seat=9)) as (x, y):
        await x.meet([2])
        assert carrier(x, y) == BACKUP.peer_id


async def test_there_are_no_tunnels_in_tunnels() -> None:
    network = MemoryNetwork()
    async with apart(network, hub(network)) as (x, y):
        await x.meet([2])
        assert y.id not in {way.removeprefix("relay:").partition("/")[0] for way in x.relay.ways("z")}
        with pytest.raises(PeerUnreachable, match="no tunnels in tunnels"):
            await x.relay.dial(f"relay:{y.id}/{HUB.peer_id}")
        assert (await x.peer(y.id).ask(OfferTunnel(1, 1, "somebody"))).refusal == "there are no tunnels in tunnels"


async def test_no_tunnel_to_oneself_or_to_who_carries() -> None:
    network = MemoryNetwork()
    async with apart(network, hub(network)) as (x, _):
        for target in (x.id, HUB.peer_id, "nobody"):
            answer = await x.peer(HUB.peer_id).ask(OpenTunnel(target))
            assert answer == Tunnel(refusal="it is not linked to the other end")


async def test_a_transport_without_tunnels_takes_none_and_asks_for_none() -> None:
    network = MemoryNetwork()
    async with hub(network) as carrying, Node(transport=network.transport("plain"), peers=[HUB.peer_id]) as plain:
        await until(lambda: carrying.peers and plain.peers)
        assert plain.relay.ways("x") == []
        assert (await carrying.peer("plain").ask(OfferTunnel(1, 1, "x"))).refusal == "it takes no tunnels"


async def test_a_straight_link_is_not_given_up_for_one_through_others() -> None:
    network = MemoryNetwork()
    carrying = hub(network)
    async with carrying, place(network, X, peers=[HUB.peer_id]) as x, place(network, Y, peers=[HUB.peer_id]) as y:
        await until(lambda: len(carrying.peers) == 2)
        listener = await y.transport.listen(y.id, y.accept)
        x.accept(await x.transport.dial(y.id))
        await until(lambda: y.peer(x.id).connected)
        with pytest.raises(PeerUnreachable, match="it is linked to you already"):
            await x.relay.dial(f"relay:{HUB.peer_id}/{y.id}")
        assert carrier(x, y) is None
        await listener.close()


async def test_a_link_through_others_that_comes_late_is_not_taken() -> None:
    network = MemoryNetwork()
    async with apart(network, hub(network), settings=QUIET) as (x, y):
        log = Log(x)
        late = await x.relay.dial(f"relay:{HUB.peer_id}/{y.id}", y.id)
        listener = await y.transport.listen(y.id, y.accept)
        x.accept(await x.transport.dial(y.id))
        x.accept(late)
        assert carrier(x, y) is None
        assert log.of(PeerRefused)[0].reason == "there is a link that needs nobody between"
        await settled()
        assert carrier(x, y) is carrier(y, x) is None
        await listener.close()


async def test_who_can_only_be_reached_through_others_is_left_to_dial_straight() -> None:
    network = MemoryNetwork()
    carrying = hub(network)
    async with (
        carrying,
        place(network, X, peers=[HUB.peer_id], listen=X.peer_id, seat=1) as x,
        place(network, Y, peers=[HUB.peer_id], seat=2) as y,
    ):
        await until(lambda: x.members.at(2) and y.members.at(1))
        await asyncio.sleep(1)
        x.want([2])
        await asyncio.sleep(0.5)
        await y.meet([1])
        await settled()
        assert carrier(x, y) is None
        assert next(carrying.relay._numbers) == 1  # it was never asked


async def test_those_that_listen_are_asked_first() -> None:
    network = MemoryNetwork()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(hub(network))
        x = await stack.enter_async_context(place(network, X, peers=[HUB.peer_id], listen=X.peer_id))
        for n in range(10, 20):
            identity = Identity.from_seed(bytes([n]) * 32)
            await stack.enter_async_context(place(network, identity, peers=[X.peer_id]))
        await until(lambda: len(x.peers) == 11)
        orders = [x.relay.ways("z") for _ in range(20)]
        assert {ways[0] for ways in orders} == {f"relay:{HUB.peer_id}/z"}
        assert len({ways[1] for ways in orders}) > 3  # the others in any order
        assert {len(ways) for ways in orders} == {5}
        assert x.relay.ways(HUB.peer_id)[0] != f"relay:{HUB.peer_id}/{HUB.peer_id}"


@pytest.mark.parametrize("address", ["relay:nobody/z", "relay:", f"relay:{HUB.peer_id}/somebody else"])
async def test_ways_that_lead_nowhere(address: str) -> None:
    network = MemoryNetwork()
    async with apart(network, hub(network)) as (x, _):
        with pytest.raises(PeerUnreachable, match="leads nowhere from here"):
            await x.relay.dial(address, "z")
        assert "nobody" not in x._peers._known  # what is said of addresses is hearsay, and nothing is kept of it


async def test_a_straight_link_takes_the_place_of_one_through_others() -> None:
    network = MemoryNetwork()
    carrying = hub(network)
    async with apart(network, carrying, settings=QUIET) as (x, y):
        logs = Log(x), Log(y)
        await x.meet([2])
        await y.members.announce(addresses=("nowhere",))
        await asyncio.sleep(QUIET.direct_seconds + 60)
        assert {event.address for event in logs[0].of(PeerUnreached)} == {"nowhere"}
        assert carrier(x, y) == HUB.peer_id
        listener = await y.transport.listen(y.id, y.accept)
        await y.members.announce(addresses=(y.id,))
        await asyncio.sleep(QUIET.direct_seconds + 100)
        assert carrier(x, y) is carrier(y, x) is None
        assert not any(log.of(PeerLost) for log in logs)
        assert not carrying.relay.routes
        assert not x.relay.ends
        await listener.close()


async def test_a_straight_link_wins_whoever_dialled_it() -> None:
    network = MemoryNetwork()
    carrying = hub(network)
    async with apart(network, carrying, x=(Gated(),), settings=QUIET) as (x, y):
        logs = Log(x), Log(y)
        await x.meet([2])
        await until(lambda: y.peer(x.id).connected)
        asking = asyncio.create_task(y.peer(x.id).ask(Ping(1)))
        await asyncio.sleep(1)
        listener = await x.transport.listen(x.id, x.accept)
        y.accept(await y.transport.dial(x.id))  # which the larger id does
        await asyncio.sleep(20)
        assert carrier(x, y) is carrier(y, x) is None
        assert len(x.peer(y.id).connections) == 2  # the old one waits for the answer
        x._roles[-1].gate.set()
        assert (await asking).n == 2
        await settled()
        assert not carrying.relay.routes
        assert not any(log.of(PeerLost) for log in logs)
        await listener.close()


async def test_busy_handlers_do_not_hold_up_what_is_carried() -> None:
    network = MemoryNetwork()
    gated = Gated()
    carrying = hub(network, HUB, gated)
    async with apart(network, carrying, y=(Echo(),)) as (x, _):
        (peer,) = await x.meet([2])
        waiting = [asyncio.create_task(x.peer(carrying.id).ask(Ping(n))) for n in range(20)]
        await until(lambda: gated.running == 8)
        assert (await peer.ask(Ping(1))).n == 2
        await asyncio.sleep(10)
        assert peer.connected
        gated.gate.set()
        await asyncio.wait(waiting)


async def test_old_links_through_others_are_replaced_in_time() -> None:
    network = MemoryNetwork(limits=LinkLimits(renew_seconds=1000))
    async with apart(network, hub(network), settings=QUIET) as (x, y):
        logs = Log(x), Log(y)
        (peer,) = await x.meet([2])
        old = peer.connection().link.channel_id
        await asyncio.sleep(1100)
        assert peer.connection().link.channel_id != old
        assert y.peer(x.id).connection().link.channel_id == peer.connection().link.channel_id
        assert carrier(x, y) == HUB.peer_id
        assert not any(log.of(PeerLost) for log in logs)


async def test_a_new_link_to_who_carries_harms_no_tunnel() -> None:
    network = MemoryNetwork()
    carrying = hub(network, settings=QUIET)
    async with apart(network, carrying, y=(Scales(),), settings=QUIET) as (x, y):
        logs = Log(x), Log(y)
        (peer,) = await x.meet([2])
        asks = [asyncio.create_task(peer.ask(marked(2_000_000))) for _ in range(10)]
        for _ in range(5):
            await asyncio.sleep(0)
            old = x.peer(carrying.id).connection()
            x.accept(await x.transport.dial(carrying.id))
            assert x.peer(carrying.id).connection() is not old
        assert [(await ask).bytes for ask in asks] == [2_000_000] * 10
        await settled()
        assert len(x.peer(carrying.id).connections) == 1
        assert not any(log.of(PeerLost) for log in logs)


# -- to lose -----------------------------------------------------------------------------------------------------------


async def test_who_carries_is_lost_and_another_takes_over() -> None:
    network = MemoryNetwork()
    hubs = [hub(network), hub(network, BACKUP, seat=9)]
    async with apart(network, *hubs, y=(Echo(),)) as (x, y):
        logs = Log(x), Log(y)
        (peer,) = await x.meet([2])
        first = carrier(x, y)
        (other,) = {node.id for node in hubs} - {first}
        network.take_offline(first)
        await until(lambda: all(log.of(PeerLost) for log in logs))
        await settled()
        for log, far in zip(logs, (y, x), strict=True):
            (reason,) = [event.reason for event in log.of(PeerLost) if event.peer == far.id]
            assert f"{first[:10]}, which carried the link, is lost" in reason
        assert carrier(x, y) == other
        assert (await peer.ask(Ping(1))).n == 2


async def test_an_end_is_lost_and_the_other_is_told() -> None:
    network = MemoryNetwork()
    carrying = hub(network)
    async with apart(network, carrying) as (x, y):
        log = Log(y)
        await x.meet([2])
        await until(lambda: y.peer(x.id).connected)
        network.take_offline(x.id)
        await until(lambda: not y.peer(x.id).connected)
        assert not carrying.relay.routes
        assert not y.relay.ends
        assert log.of(PeerLost)[0].reason == "the connection ended without a goodbye"
        network.bring_online(x.id)
        await settled()
        assert carrier(x, y) == HUB.peer_id


async def test_who_stops_says_goodbye_through_the_tunnel() -> None:
    network, gated = MemoryNetwork(), Gated()
    carrying = hub(network)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(carrying)
        y = await stack.enter_async_context(place(network, Y, peers=[HUB.peer_id], seat=2))
        log = Log(y)
        async with place(network, X, gated, peers=[HUB.peer_id], seat=1) as x:
            await until(lambda: len(carrying.peers) == 2)
            (peer,) = await y.meet([1])
            asking = asyncio.create_task(peer.ask(Ping(1)))
            await until(lambda: gated.running)
            asyncio.get_running_loop().call_later(1, gated.gate.set)
            before = asyncio.get_running_loop().time()
        assert (await asking).n == 2  # what runs may end, as on any other link
        assert asyncio.get_running_loop().time() - before < 1.5
        (lost,) = [event for event in log.of(PeerLost) if event.peer == x.id]
        assert lost.reason == "it said goodbye: the node stops"
        await settled()
        assert not carrying.relay.routes
        assert not y.relay.ends


# -- to misbehave ------------------------------------------------------------------------------------------------------


class Raw(Tunnelled):
    """Gives the ends of its tunnels to the test."""

    sockets: list[TunnelSocket]

    async def dial_over(self, socket: TunnelSocket, relay: str, expect: str) -> Any:
        self.sockets = [*getattr(self, "sockets", ()), socket]
        raise PeerUnreachable("the test has it")

    answer_over = dial_over


async def raw_pair(
    stack: AsyncExitStack, network: MemoryNetwork, carrying: Node
) -> tuple[Node, Node, TunnelSocket, TunnelSocket]:
    await stack.enter_async_context(carrying)
    nodes = [
        await stack.enter_async_context(Node(transport=Raw(network, who), peers=[HUB.peer_id], settings=QUIET))
        for who in (X, Y)
    ]
    await until(lambda: len(carrying.peers) == 2)
    with pytest.raises(PeerUnreachable, match="the test has it"):
        await nodes[0].relay.dial(f"relay:{HUB.peer_id}/{Y.peer_id}")
    await steps()
    near, far = (node.transport.sockets[0] for node in nodes)
    return (*nodes, near, far)


@pytest.mark.parametrize("stuck", ["reader", "line"])
async def test_a_slow_reader_bounds_what_waits_where_it_is_carried(stuck: str) -> None:
    network, window = MemoryNetwork(), 500_000
    carrying = hub(network, settings=replace(QUIET, tunnel_bytes=window))
    async with AsyncExitStack() as stack:
        _, _, near, far = await raw_pair(stack, network, carrying)
        if stuck == "line":
            network.partition(HUB.peer_id, Y.peer_id)
        (route,) = carrying.relay.routes.values()
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while True:
                await near.send(bytes(5_000))
                sent += 1

        flooding = asyncio.create_task(flood())
        await asyncio.sleep(100)
        assert sent == -(-window // (5_000 + MESSAGE_COST))
        assert (route.held > window / 2) == (stuck == "line")  # 32 tells are on their way
        assert route.held <= window
        await carrying.peer(X.peer_id).ask(OfferTunnel(9, 0, ""))  # all others are served meanwhile
        if stuck == "line":
            network.heal(HUB.peer_id, Y.peer_id)
        for _ in range(3 * sent):  # and nothing is lost
            assert len(await far.receive()) == 5_000
        flooding.cancel()
        await asyncio.wait([flooding])


async def test_who_puts_in_more_than_there_is_room_for_is_struck_and_the_tunnel_ends() -> None:
    network = MemoryNetwork()
    carrying = hub(network, settings=replace(QUIET, tunnel_bytes=100_000))
    async with AsyncExitStack() as stack:
        x, _, near, _ = await raw_pair(stack, network, carrying)
        log = Log(carrying)
        near._window = 1 << 30
        for _ in range(3):
            await near.send(bytes(60_000))
        await steps()
        assert [event.peer for event in log.of(PeerMisbehaved)] == [x.id]
        assert "more than 100000 bytes were put into a tunnel" in log.of(PeerMisbehaved)[0].reason
        assert not carrying.relay.routes
        await x.peer(HUB.peer_id).tell(Cargo(1, False, 9, wrapped(b"late")))  # which may happen to anybody
        await steps()
        assert carrying.violations == 1


async def test_who_takes_out_what_is_not_there_is_struck() -> None:
    network = MemoryNetwork()
    carrying = hub(network)
    async with AsyncExitStack() as stack:
        x, _, _, far = await raw_pair(stack, network, carrying)
        log = Log(carrying)
        await x.peer(HUB.peer_id).tell(RoomMade(1, False, 5))
        await steps()
        assert "more was taken out of a tunnel than was in it" in log.of(PeerMisbehaved)[0].reason
        with pytest.raises(Exception, match="against the protocol"):
            await far.receive()


@pytest.mark.parametrize("size", [0, MAX_CARRIED + 1])
async def test_what_is_no_cargo_is_refused(size: int) -> None:
    network = MemoryNetwork()
    carrying = hub(network)
    data = wrapped(bytes(size)) if size else Tensors((), ())
    body = encode(Cargo(1, False, 0, wrapped(b"x")))
    async with carrying:
        log = Log(carrying)
        stranger = await Stranger.dial(network, "s", HUB.peer_id)
        fields = {"tunnel": 1, "onward": False, "number": 0}
        shape = [[spec.name, spec.dtype, list(spec.shape)] for spec in data.schema]
        packet = pack("tell", 1, body._replace(json=orjson.dumps(fields | {"data": {"tensors": shape, "at": 0}})))
        stranger.link.send(replace(packet, buffers=data.buffers))
        await steps()
        assert "one buffer of at most" in log.of(PeerMisbehaved)[0].reason


async def test_one_that_opens_tunnels_without_end_is_bounded() -> None:
    network = MemoryNetwork()
    carrying = hub(network, settings=replace(QUIET, tunnels_per_peer=3, tunnels=5))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(carrying)
        for who in (Y, Z):
            await stack.enter_async_context(Node(transport=Raw(network, who), peers=[HUB.peer_id], settings=QUIET))
        await until(lambda: len(carrying.peers) == 2)
        stranger = await Stranger.dial(network, "s", HUB.peer_id)
        for number in range(1, 31):
            stranger.send("ask", number, OpenTunnel.tag, {"target": (Y, Z)[number % 2].peer_id})
        await asyncio.sleep(10)
        answers = [head[3] for head in stranger.heads("reply")]
        assert len(answers) == 30
        assert sum(not answer["refusal"] for answer in answers) == 3 == len(carrying.relay.routes)
        other = await Stranger.dial(network, "t", HUB.peer_id)
        for number in range(1, 31):
            other.send("ask", number, OpenTunnel.tag, {"target": Z.peer_id})
        await asyncio.sleep(10)
        assert len(carrying.relay.routes) <= 5
        stranger.link.abort(PeerUnreachable("gone"))
        other.link.abort(PeerUnreachable("gone"))
        await asyncio.sleep(1)
        assert not carrying.relay.routes


async def test_offers_without_end_are_bounded_too() -> None:
    network = MemoryNetwork()
    async with place(network, Y, listen="y", settings=replace(QUIET, tunnels_per_peer=4)) as y:
        log = Log(y)
        stranger = await Stranger.dial(network, "s", "y")
        for number in range(1, 31):
            fields = {"tunnel": number, "window": 100, "source": f"somebody{number}"}
            stranger.send("ask", number, OfferTunnel.tag, fields)
        await asyncio.sleep(1)
        assert len(y.relay.ends) == 4
        assert [head[3]["refusal"] for head in stranger.heads("reply")][4:] == ["it has too many tunnels"] * 26
        await asyncio.sleep(10)  # nobody shakes hands
        assert not y.relay.ends
        refused = log.of(PeerRefused)
        assert {event.address for event in refused} == {f"relay:s/somebody{number}" for number in range(1, 5)}
        assert all("no handshake within 5 s" in event.reason for event in refused)


@pytest.mark.parametrize("window", [0, 1 << 40])
async def test_a_tunnel_that_cannot_be_is_not_taken(window: int) -> None:
    network = MemoryNetwork()
    async with place(network, Y, listen="y", settings=QUIET) as y:
        stranger = await Stranger.dial(network, "s", "y")
        stranger.send("ask", 1, OfferTunnel.tag, {"tunnel": 1, "window": window, "source": "z"})
        await asyncio.sleep(1)
        assert stranger.heads("reply")[0][3]["refusal"] == "it was offered a tunnel that cannot be"
        y.peer("s")
        opening = asyncio.create_task(y.relay.dial("relay:s/z"))
        await steps()
        ((_, number, _, _),) = stranger.heads("ask")[-1:]
        stranger.send("reply", number, Tunnel.tag, {"number": 1, "window": window, "refusal": ""})
        with pytest.raises(PeerUnreachable, match="a tunnel that cannot be"):
            await opening


async def test_a_carrier_that_alters_what_it_carries_delivers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    network, echo = MemoryNetwork(), Echo()
    carrying = hub(network)
    async with apart(network, carrying, y=(echo,)) as (x, y):
        logs = Log(x), Log(y)
        (peer,) = await x.meet([2])
        await asyncio.sleep(0.5)
        carry, altered = Route.carry, 0

        def alter(route: Route, source: Peer, cargo: Cargo) -> None:
            nonlocal altered
            data = bytearray(cargo.data.buffers[0])
            if source.id == x.id and not altered:
                altered, data[len(data) // 2] = 1, data[len(data) // 2] ^ 1
            carry(route, source, replace(cargo, data=wrapped(data)))

        monkeypatch.setattr("p2pfl.node.carriage.Route.carry", alter)
        await peer.tell(Note(7))
        await until(lambda: all(log.of(PeerLost) for log in logs))
        assert altered
        assert not echo.notes
        assert "they do not decrypt" in logs[1].of(PeerLost)[0].reason
        assert y.violations == x.violations == 0  # neither is blamed for what was done to its bytes
        await settled()
        await x.peer(y.id).tell(Note(8))
        await steps()
        assert echo.notes == [8]


async def test_who_does_not_answer_is_given_up() -> None:
    network = MemoryNetwork()
    async with place(network, X, listen="x", settings=QUIET) as x:
        stranger = await Stranger.dial(network, "s", "x")
        await steps()
        with pytest.raises(PeerUnreachable, match="no tunnel in time"):
            await x.relay.dial("relay:s/z")
        await steps()
        assert stranger.heads("cancel")
        opening = asyncio.create_task(x.relay.dial("relay:s/z"))
        await steps()
        stranger.send("fail", stranger.heads("ask")[-1][1], "", {"reason": "nothing here handles 'relay/open'"})
        with pytest.raises(PeerUnreachable, match="upgrade p2pfl there"):
            await opening


async def test_an_end_that_does_not_answer_is_given_up_where_it_is_carried() -> None:
    network = MemoryNetwork()
    async with hub(network, settings=QUIET) as carrying, place(network, X, peers=[HUB.peer_id], settings=QUIET) as x:
        await until(lambda: carrying.peers)
        await Stranger.dial(network, "s", HUB.peer_id)
        await steps()
        asking = asyncio.create_task(x.peer(HUB.peer_id).ask(OpenTunnel("s")))
        await asyncio.sleep(1)
        assert carrying.relay.routes
        assert (await asking).refusal == "the other end did not answer in time"
        await steps()
        assert not carrying.relay.routes
        asking = asyncio.create_task(x.peer(HUB.peer_id).ask(OpenTunnel("s")))
        await asyncio.sleep(1)
        asking.cancel()
        await asyncio.sleep(1)
        assert not carrying.relay.routes


def test_agreed_tensors_leave_cargo_alone_and_cargo_leaves_them_agreed() -> None:
    dispatch = RelayDispatch(lambda event: None)
    dispatch.schemas.add((TensorSpec("w", "f32", (10,)),))
    cargo = pack("tell", 1, encode(Cargo(1, False, 0, wrapped(bytes(100)))))
    assert not dispatch.admit(cargo.head, (100,))
    for sizes in ((MAX_CARRIED + 1,), (1, 1), ()):
        with pytest.raises(OversizeError):
            dispatch.admit(cargo.head, sizes)
    other = pack("ask", 1, encode(marked(40)))
    with pytest.raises(Exception, match="of another shape than agreed"):
        dispatch.admit(other.head, (40,))


# -- over sockets ------------------------------------------------------------------------------------------------------


def host(*roles: object, **options: Any) -> Node:
    return Node(*roles, transport=WebSocketTransport(Identity.generate(), trust=Open()), **options)


@pytest.mark.sockets
async def test_three_hosts_of_which_one_listens() -> None:
    schema = marked(20_000_000).data.schema
    async with host(listen="0", seat=0) as carrying, AsyncExitStack() as stack:
        x, y = [await stack.enter_async_context(host(Scales(), peers=carrying.addresses, seat=seat)) for seat in (1, 2)]
        for node in (carrying, x, y):
            node.agree(schema)
        async with asyncio.timeout(20):
            (peer,) = await x.meet([2])
            await until(lambda: y.peer(x.id).connected)
            assert "2 links" in repr(x.transport)
            (back,) = await y.meet([1])
            async with asyncio.TaskGroup() as group:
                answers = [group.create_task(end.ask(marked(20_000_000))) for end in (peer, back)]
        assert [answer.result().bytes for answer in answers] == [20_000_000] * 2
        assert carrier(x, y) == carrying.id
        assert carrying.peer(x.id).counts().bytes_received > 20_000_000
        assert carrying.violations == x.violations == y.violations == 0
        assert x.transport._spare() > 0


@pytest.mark.sockets
async def test_a_host_that_carries_dies_and_another_takes_over() -> None:
    settings = NodeSettings(backoff_first_seconds=0.05, backoff_most_seconds=0.1, yield_dial_seconds=0.1)
    async with AsyncExitStack() as stack:
        hubs = [await stack.enter_async_context(host(listen="0")) for _ in range(2)]
        peers = [hub.addresses[0] for hub in hubs]
        x, y = [
            await stack.enter_async_context(host(Scales(), peers=peers, seat=seat, settings=settings))
            for seat in (1, 2)
        ]
        logs = Log(x), Log(y)
        async with asyncio.timeout(20):
            await x.linked(2)
            await y.linked(2)
            (peer,) = await x.meet([2])
            await until(lambda: y.peer(x.id).connected)
            dead = next(hub for hub in hubs if hub.id == carrier(x, y))
            for connection in (connection for end in dead.peers for connection in end.connections):
                connection.link._socket.cut()
            await peer.gone()
            await x.meet([2])
            await until(lambda: y.peer(x.id).connected)
            assert (await x.peer(y.id).ask(marked(1_000_000))).bytes == 1_000_000
        for log, far in zip(logs, (y, x), strict=True):
            (reason,) = [event.reason for event in log.of(PeerLost) if event.peer == far.id]
            assert "which carried the link, is lost" in reason or "without a goodbye" in reason


@pytest.mark.sockets
async def test_a_full_house_makes_no_link_through_others() -> None:
    full = WebSocketTransport(Identity.generate(), trust=Open(), limits=LinkLimits(links=1))
    async with host(listen="0", settings=QUIET) as carrying, AsyncExitStack() as stack:
        x = await stack.enter_async_context(Node(transport=full, peers=carrying.addresses, settings=QUIET))
        y = await stack.enter_async_context(host(peers=carrying.addresses, settings=QUIET))
        await until(lambda: len(carrying.peers) == 2 and x.peers and y.peers)
        with pytest.raises(LinkRefused, match="has 1 links already"):
            await x.relay.dial(f"relay:{carrying.id}/{y.id}")
        with pytest.raises((HandshakeFailed, PeerUnreachable)):
            await y.relay.dial(f"relay:{carrying.id}/{x.id}")
        await until(lambda: not (carrying.relay.routes or x.relay.ends or y.relay.ends))


@pytest.mark.sockets
async def test_limits_hold_for_links_through_others() -> None:
    transport = WebSocketTransport(Identity.generate(), trust=Open(), limits=LinkLimits(half_open_per_host=2))
    async with Node(transport=transport, listen="0", settings=QUIET) as y, host(peers=y.addresses) as relay:
        await until(lambda: relay.peers)
        log = Log(y)
        for number in range(1, 6):
            assert not (await relay.peer(y.id).ask(OfferTunnel(number, 100, "somebody"))).refusal
        await until(lambda: len(log.of(PeerRefused)) == 3)
        assert all("comes too often over" in event.reason for event in log.of(PeerRefused))
        assert len(y.relay.ends) == 2
