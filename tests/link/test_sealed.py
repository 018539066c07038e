"""Links over any socket of messages: truncation and replay at every record, ends of all kinds, faults of receivers."""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from dataclasses import dataclass, field

import pytest

from p2pfl.crypto.identity import Identity
from p2pfl.errors import (
    HandshakeFailed,
    LinkClosed,
    LinkError,
    LinkRefused,
    LinkSilent,
    LinkTruncated,
    RemoteProtocolError,
)
from p2pfl.link import sealed
from p2pfl.link.base import LinkLimits
from p2pfl.link.sealed import CloseCode, SealedLink, error_of_close
from p2pfl.link.secure import Handshake, SecureChannel, SecuritySettings, offered_subprotocols
from p2pfl.link.transfers import Transfers
from p2pfl.link.trust import Open
from p2pfl.wire.frame import MAX_RECORD, FrameReader, OversizeError
from p2pfl.wire.packet import Packet
from p2pfl.wire.transfer import LARGE_PACKET
from tests.link.kit import Inbox, pattern, same


def channels() -> tuple[SecureChannel, SecureChannel]:
    offered = offered_subprotocols()
    a, b = (
        Handshake(
            SecuritySettings(identity=Identity.from_seed(bytes([seed]) * 32), trust=Open()),
            initiator=seed == 1,
            offered=offered,
            chosen=offered[0],
        )
        for seed in (1, 2)
    )
    b.receive(a.receive(b.receive(a.begin())))
    return a.channel, b.channel


class PipeEnd:
    """One end of two queues of messages, one record each."""

    def __init__(self) -> None:
        self.other: PipeEnd
        self.inbox: deque[bytes] = deque()
        self.arrived = asyncio.Event()
        self.ended: int | None = None  # the code with which the other end closed
        self.codes: list[CloseCode] = []  # with which this end was closed
        self.records_let_through = 1_000_000

    async def send(self, message: bytearray) -> None:
        if self.ended is not None:
            raise LinkTruncated("gone")
        while message:
            size = 2 + int.from_bytes(message[:2], "big")
            self.other.put(bytes(message[:size]))
            message = message[size:]
        await asyncio.sleep(0)

    def put(self, record: bytes) -> None:
        if self.records_let_through:
            self.inbox.append(record)
            self.records_let_through -= 1
        else:
            self.end(1006)
        self.arrived.set()

    def end(self, code: int) -> None:
        self.ended = self.ended or code
        self.arrived.set()

    async def receive(self) -> bytes:
        while not self.inbox:
            if self.ended is not None:
                raise error_of_close(self.ended)
            self.arrived.clear()
            await self.arrived.wait()
        return self.inbox.popleft()

    async def close(self, code: CloseCode) -> None:
        self.codes.append(code)
        self.other.end(code)
        self.end(1006)


def pipe() -> tuple[PipeEnd, PipeEnd]:
    a, b = PipeEnd(), PipeEnd()
    a.other, b.other = b, a
    return a, b


def pair(limits: LinkLimits | None = None) -> tuple[SealedLink, SealedLink, PipeEnd, PipeEnd]:
    a, b = pipe()
    near, far = channels()
    limits = limits or LinkLimits()
    return SealedLink(a, near, limits), SealedLink(b, far, limits), a, b


SESSION = [
    Packet(b"hello"),
    Packet(b"bulk", (pattern(2 * MAX_RECORD),)),
    Packet(bytes(100)),
    Packet(b"", (pattern(9),)),
]
RECORDS = 1 + 3 + 1 + 1 + 1  # with the FIN


@pytest.mark.parametrize("kept", range(RECORDS + 1))
async def test_truncation_at_every_record_boundary(kept: int) -> None:
    near, far, _, end = pair()
    end.records_let_through = kept
    inbox = Inbox()
    far.start(inbox)
    near.start(Inbox())
    for packet in SESSION:
        near.send(packet)
    await near.close()
    end.end(1006)
    error = await inbox.closed()
    assert type(error) is (LinkClosed if kept == RECORDS else LinkTruncated)
    heads = [packet.head for packet in inbox.packets]
    assert heads == [b"hello", bytes(100), b"", b"bulk"][: len(heads)]
    assert (len(heads) == len(SESSION)) == (kept >= RECORDS - 1)


async def test_a_repeated_record_ends_the_link() -> None:
    near, far, _, end = pair()
    inbox, other = Inbox(), Inbox()
    far.start(inbox)
    near.start(other)
    near.send(Packet(b"pay once"))
    await end.arrived.wait()
    end.inbox.append(end.inbox[0])
    assert isinstance(await inbox.closed(), LinkTruncated), "anybody on the way can do this: it is no fault of the peer"
    assert [packet.head for packet in inbox.packets] == [b"pay once"]
    assert isinstance(await other.closed(), LinkTruncated)


@pytest.mark.parametrize(
    ("reason", "code", "told"),
    [
        (LinkRefused("a duplicate"), 4001, LinkRefused),
        (RemoteProtocolError("nonsense"), 4002, LinkTruncated),
        (OversizeError("vast"), 4003, LinkTruncated),
        (HandshakeFailed("who?"), 4000, HandshakeFailed),
        (LinkSilent("nothing heard"), 1001, LinkTruncated),
        (LinkClosed("tired of waiting"), 1000, LinkTruncated),
    ],
)
async def test_close_codes(reason: LinkError, code: int, told: type[LinkError]) -> None:
    near, far, end, _ = pair()
    inbox, other = Inbox(), Inbox()
    near.start(inbox)
    far.start(other)
    near.abort(reason)
    assert await inbox.closed() is reason
    assert type(await other.closed()) is told
    assert end.codes == [code]


@pytest.mark.parametrize(
    ("records", "code"),
    [
        ([[b"\x55"]], 4002),
        ([[b"\x02\0\0\0\0 no FIRST"]], 4002),
        ([[b"\x01" + bytes(12) + (2**20).to_bytes(4, "big") + bytes(2)]], 4003),
        ([[b"\x01" + bytes(12) + bytes(4) + b"\0\1" + (2**40).to_bytes(8, "big")]], 4003),
        ([[b"\x7f"], [b"\x7f"]], 4002),
    ],
)
async def test_what_a_proven_peer_may_not_send(records: list[list[bytes]], code: int) -> None:
    a, b = pipe()
    hostile, channel = channels()
    link, inbox = SealedLink(b, channel, LinkLimits()), Inbox()
    link.start(inbox)
    b.inbox.append(bytes(hostile.seal_message(records)))
    b.arrived.set()
    assert isinstance(await inbox.closed(), RemoteProtocolError)
    assert (b.codes, inbox.packets, inbox.announced) == ([code], [], [])
    assert a.ended == code


async def test_a_mistake_of_the_receiver_ends_the_link_and_is_reported() -> None:
    class Broken(Inbox):
        def packet_received(self, packet: Packet) -> None:
            raise KeyError("a mistake")

    near, far, _, _ = pair()
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context["exception"]))
    inbox, broken = Inbox(), Broken()
    near.start(inbox)
    far.start(broken)
    near.send(Packet(b""))
    assert "KeyError" in str(await broken.closed())
    assert isinstance(await inbox.closed(), LinkTruncated)
    assert [type(error) for error in reported] == [KeyError]


async def test_a_receiver_may_end_the_link_with_a_packet_in_its_hands() -> None:
    class Fickle(Inbox):
        def packet_received(self, packet: Packet) -> None:
            super().packet_received(packet)
            far.abort(LinkRefused("enough"))

    near, far, _, _ = pair()
    fickle = Fickle()
    near.send(Packet(b"1"))
    near.send(Packet(b"2"))
    near.start(Inbox())
    far.start(fickle)
    assert isinstance(await fickle.closed(), LinkRefused)
    assert [packet.head for packet in fickle.packets] == [b"1"]


async def test_a_message_that_was_waiting_when_another_task_ended_the_link_is_not_delivered() -> None:
    near, far, _, end = pair()
    inbox = Inbox()
    near.start(Inbox())
    far.start(inbox)
    put = end.put

    def put_and_abort(record: bytes) -> None:
        put(record)
        far.abort(LinkTruncated("elsewhere"))

    end.put = put_and_abort  # type: ignore[method-assign]  # on this one
    near.send(Packet(b"too late"))
    await inbox.closed()
    await far.wait_ended()
    assert inbox.packets == []


async def test_close_before_start_says_goodbye() -> None:
    near, far, _, _ = pair()
    inbox = Inbox()
    far.start(inbox)
    far.send(Packet(b"nobody is there"))
    await near.close()
    assert isinstance(await inbox.closed(), LinkClosed)


async def test_an_end_that_does_not_answer_does_not_hold_up_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "GOODBYE_SECONDS", 0.01)
    near, _, _, _ = pair()
    inbox = Inbox()
    near.start(inbox)
    await near.close()
    assert isinstance(await inbox.closed(), LinkClosed)


async def test_withdrawn_halfway_the_other_end_forgets_its_part() -> None:
    near, far, _, _ = pair()
    inbox = Inbox()
    far.start(inbox)
    near.start(Inbox())
    unwanted = Packet(b"unwanted", (pattern(50 * MAX_RECORD),))
    near.send(unwanted)
    await inbox.admission()
    assert near.withdraw(unwanted)
    near.send(Packet(b"wanted", (pattern(3),)))
    assert [packet.head for packet in await inbox.received(1)] == [b"wanted"]
    await near.close()
    assert isinstance(await inbox.closed(), LinkClosed)  # a FIN with the packet still open would have been an error


async def test_a_transfer_that_stands_still_ends_the_link() -> None:
    near, far, end, _ = pair(LinkLimits(progress_seconds=0.02))
    inbox = Inbox()
    near.start(inbox)
    other = Inbox()
    far.start(other)
    hold = asyncio.Event()
    end.other.put, put = lambda record: None if hold.is_set() else put(record), end.other.put
    near.send(Packet(b"idle links are left alone"))
    await other.received(1)
    near.send(Packet(b"stalls", (pattern(100 * MAX_RECORD),)))
    await other.admission()
    hold.set()
    error = await other.closed()
    assert isinstance(error, RemoteProtocolError)
    assert "a transfer got on by less than" in str(error)


async def test_idle_links_and_fast_transfers_are_left_alone() -> None:
    near, far, _, _ = pair(LinkLimits(progress_seconds=0.002))
    inbox = Inbox()
    far.start(inbox)
    near.start(Inbox())
    for count in range(1, 6):
        near.send(Packet(b"", (pattern(100 * MAX_RECORD),)))
        await inbox.received(count)
    assert not inbox.errors
    await near.close()


async def test_a_transfer_that_ends_between_two_looks_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: asyncio.Queue[dict[int, int]] = asyncio.Queue()
    look = SealedLink._watch_progress

    def watched(self: SealedLink, incoming: FrameReader, before: dict[int, int], due: float) -> None:
        look(self, incoming, before, due)
        looks.put_nowait(incoming.progress())

    near, far, _, end = pair(LinkLimits(progress_seconds=0.05))
    monkeypatch.setattr(SealedLink, "_watch_progress", watched)
    inbox = Inbox()
    far.start(inbox)
    held: list[bytes] = []
    end.put, put = lambda record: held.append(record) if inbox.announced else put(record), end.put
    near.start(Inbox())
    near.send(Packet(b"", (pattern(3 * MAX_RECORD),)))
    while not await looks.get():
        pass
    for record in held:
        put(record)
    await inbox.received(1)
    while not looks.empty():
        looks.get_nowait()
    for _ in range(4):
        await looks.get()
    assert not inbox.errors
    await near.close()


async def test_no_task_outlives_a_link() -> None:
    near, far, _, _ = pair()
    near.start(Inbox())
    far.start(Inbox())
    await near.close()
    await far.wait_ended()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_repr() -> None:
    near, _, _, _ = pair()
    assert repr(near) == f"<SealedLink {near.local[:10]} -> {near.remote[:10]} open>"
    near.abort(LinkTruncated(""))
    assert repr(near).endswith(" LinkTruncated>")
    await near.wait_ended()


async def test_what_was_not_agreed_is_bounded_and_what_was_is_not() -> None:
    for agreed in (True, False):
        near, far, _, end = pair(LinkLimits(max_under_way=200_000))
        inbox = Inbox(agreed=agreed)
        far.start(inbox)
        near.start(Inbox())
        near.send(Packet(b"", (pattern(300_000),)))
        if agreed:
            await inbox.received(1)
            await near.close()
        else:
            assert isinstance(await inbox.closed(), OversizeError)
            await far.wait_ended()
            assert end.codes == [CloseCode.TOO_LARGE]


async def test_a_link_that_has_ended_holds_nothing() -> None:
    near, far, _, _ = pair()
    inbox = Inbox()
    far.start(inbox)
    near.start(Inbox())
    near.send(Packet(b"", (pattern(100 * MAX_RECORD),)))
    await inbox.admission()
    assert far.reserved == 100 * MAX_RECORD
    far.abort(LinkTruncated(""))
    assert far.reserved == 0
    await far.wait_ended()
    await asyncio.sleep(0)
    assert far.reserved == 0


# -- large packets that a link left halfway ----------------------------------------------------------------------------


@dataclass
class Relinked:
    """Two nodes, and one link between them after the other."""

    limits: LinkLimits = field(default_factory=LinkLimits)
    transfers: tuple[Transfers, Transfers] = field(default_factory=lambda: (Transfers(), Transfers()))

    def link(self, kept: int = 1_000_000) -> tuple[SealedLink, SealedLink, Inbox, Inbox]:
        """A new link, of whose records from near to far so many come through before it breaks."""
        a, b = pipe()
        b.records_let_through = kept
        put = b.put

        def cut(record: bytes) -> None:
            put(record)
            if b.ended is not None:
                a.end(1006)

        b.put = cut  # type: ignore[method-assign]  # on this one
        links = [
            SealedLink(end, channel, self.limits, transfers=transfers)
            for end, channel, transfers in zip((a, b), channels(), self.transfers, strict=True)
        ]
        inboxes = Inbox(), Inbox()
        for link, inbox in zip(links, inboxes, strict=True):
            link.start(inbox)
        return links[0], links[1], *inboxes


MODEL = (pattern(20 * MAX_RECORD), pattern(7), pattern(5 * MAX_RECORD, 1))
MODEL_RECORDS = 26


async def test_a_large_packet_goes_on_upon_the_next_link_with_another_head() -> None:
    nodes = Relinked()
    near, _, *inboxes = nodes.link(kept=10)
    near.send(Packet(b"first", MODEL))
    for inbox in inboxes:
        assert isinstance(await inbox.closed(), LinkTruncated)
    assert nodes.transfers[1].reserved == sum(map(len, MODEL))
    near, _, _, inbox = nodes.link()
    again = Packet(b"another head", MODEL)
    near.send(again)
    assert same((await inbox.received(1))[0], again)
    assert inbox.announced == [(again.head, tuple(map(len, MODEL)))], "it is admitted anew"
    assert near.statistics.bytes_sent < (MODEL_RECORDS - 8) * (MAX_RECORD + 18)
    assert nodes.transfers[1].reserved == 0
    await near.close()
    assert isinstance(await inbox.closed(), LinkClosed)


async def test_a_transfer_that_goes_on_must_get_on() -> None:
    nodes = Relinked(LinkLimits(progress_seconds=0.02))
    near, _, _, inbox = nodes.link(kept=10)
    near.send(Packet(b"", MODEL))
    await inbox.closed()
    near, far, _, inbox = nodes.link()
    near._resume = lambda told: None  # type: ignore[method-assign]  # it asks, and sends nothing
    near.send(Packet(b"", MODEL))
    error = await inbox.closed()
    assert isinstance(error, RemoteProtocolError)
    assert "a transfer got on by less than" in str(error)
    assert nodes.transfers[1].reserved == sum(map(len, MODEL))
    nodes.transfers[1].make_way(0)
    assert far.reserved == 0


async def test_goodbye_is_said_behind_a_packet_that_waits_for_its_answer() -> None:
    nodes = Relinked()
    near, _, _, inbox = nodes.link(kept=10)
    near.send(Packet(b"", MODEL))
    await inbox.closed()
    near, _, _, inbox = nodes.link()
    near.send(Packet(b"", MODEL))
    await near.close()
    assert isinstance(await inbox.closed(), LinkClosed)
    assert same(inbox.packets[0], Packet(b"", MODEL))


@pytest.mark.parametrize("head", [0, 100, MAX_RECORD - 19 - 24 - 40, 3 * MAX_RECORD])
async def test_cut_at_every_record_of_a_packet_that_goes_on_again_and_again(head: int) -> None:
    nodes = Relinked()
    records = 1 + max(0, -(-(head - (MAX_RECORD - 19 - 24 - 40)) // (MAX_RECORD - 5)))  # of a head that is sent again
    for attempt in range(100):
        near, _, _, inbox = nodes.link(kept=records + 1)  # and one of the buffers
        sent = Packet(bytes([attempt]) * head, MODEL)
        near.send(sent)
        await inbox._until(lambda inbox=inbox: bool(inbox.packets or inbox.errors))
        if inbox.packets:
            break
        assert isinstance(await inbox.closed(), LinkTruncated)
    assert same(inbox.packets[0], sent)
    assert attempt + 1 in (MODEL_RECORDS - 1, MODEL_RECORDS)  # the first one had buffers beside its head
    await near.close()


async def test_what_nobody_had_begun_waits_for_no_answer() -> None:
    near, far, _, _ = pair()
    inbox, other = Inbox(), Inbox()
    far.start(inbox)
    near.start(other)
    for count in (1, 2):  # the same buffers again, on the same link
        near.send(Packet(b"", MODEL))
        await inbox.received(count)
    assert far.statistics.bytes_sent == 0
    await near.close()


async def test_small_packets_start_anew() -> None:
    nodes = Relinked()
    small = (pattern(LARGE_PACKET - 1),)
    near, _, _, inbox = nodes.link(kept=5)
    near.send(Packet(b"", small))
    await inbox.closed()
    assert nodes.transfers[1].reserved == 0
    near, far, _, inbox = nodes.link()
    near.send(Packet(b"", small))
    await inbox.received(1)
    assert far.statistics.bytes_sent == 0
    await near.close()


async def test_who_has_forgotten_says_so_and_gets_it_all() -> None:
    nodes = Relinked()
    near, _, _, inbox = nodes.link(kept=5)
    near.send(Packet(b"", MODEL))
    await inbox.closed()
    nodes.transfers[1].make_way(0)
    near, far, _, inbox = nodes.link()
    near.send(Packet(b"", MODEL))
    assert same((await inbox.received(1))[0], Packet(b"", MODEL))
    assert far.statistics.bytes_sent == 2 + 17 + 16, "one record"
    await near.close()


async def test_a_link_that_seems_open_ends_when_its_packet_goes_on_elsewhere() -> None:
    nodes = Relinked()
    near, far, _, inbox = nodes.link()
    near.send(Packet(b"", MODEL))
    await inbox.admission()
    far._socket.end, far._socket.ended = lambda code: None, None  # type: ignore[attr-defined]  # deaf to the cut
    near.abort(LinkTruncated("cut"))
    assert not inbox.errors
    near, _, _, other = nodes.link()
    near.send(Packet(b"", MODEL))
    assert same((await other.received(1))[0], Packet(b"", MODEL))
    assert isinstance(await inbox.closed(), LinkTruncated)
    assert inbox.packets == []
    await near.close()


async def test_a_packet_that_waits_for_its_answer_can_be_withdrawn() -> None:
    nodes = Relinked()
    near, _, _, inbox = nodes.link(kept=5)
    near.send(Packet(b"", MODEL))
    await inbox.closed()
    near, _, _, inbox = nodes.link()
    unwanted = Packet(b"unwanted", MODEL)
    near.send(unwanted)
    await inbox.admission()
    assert near.withdraw(unwanted)
    assert near._outgoing.queued == 0
    wanted = Packet(b"wanted", MODEL)
    near.send(wanted)
    assert same((await inbox.received(1))[0], wanted)
    await near.close()
    assert isinstance(await inbox.closed(), LinkClosed)


async def test_memory_of_what_was_left_is_asked_for_anew_and_refused() -> None:
    nodes = Relinked()
    near, _, _, inbox = nodes.link(kept=5)
    near.send(Packet(b"", MODEL))
    await inbox.closed()
    near, far, _, inbox = nodes.link()
    inbox.refuse_admission = True
    near.send(Packet(b"", MODEL))
    assert isinstance(await inbox.closed(), RemoteProtocolError)
    assert far.reserved == 0
    assert nodes.transfers[1].reserved == sum(map(len, MODEL)), "until it expires: nobody has had it"
    nodes.transfers[1].make_way(0)


@pytest.mark.parametrize("told", [0, 10**6, 2**63])
async def test_an_answer_that_was_not_asked_for_ends_the_link(told: int) -> None:
    a, b = pipe()
    hostile, channel = channels()
    link, inbox = SealedLink(b, channel, LinkLimits()), Inbox()
    link.start(inbox)
    link.send(Packet(b"", MODEL))
    await a.arrived.wait()
    b.put(bytes(hostile.seal(struct.pack("!BQQ", 6, 0, told))))
    assert isinstance(await inbox.closed(), RemoteProtocolError)
    assert b.codes == [CloseCode.PROTOCOL]


async def test_links_with_keys_are_to_be_replaced_after_a_day() -> None:
    near, far, _, _ = pair()
    assert near.renew_at == far.renew_at == pytest.approx(asyncio.get_running_loop().time() + 86_400, abs=10)
