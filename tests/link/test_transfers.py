"""What was under way goes on upon the next link: any cuts at any byte, at both ends, with exact memory."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from p2pfl.errors import LinkError, LinkTruncated
from p2pfl.link.base import LinkLimits
from p2pfl.link.transfers import KEPT_PER_PEER, KEPT_SECONDS, Transfers
from p2pfl.wire.frame import FrameReader, FrameWriter
from p2pfl.wire.packet import Packet
from p2pfl.wire.transfer import LARGE_PACKET, Begun, Partial, TransferId

PEER = "peer"


@dataclass(eq=False)
class Timer:
    timers: list[Timer]
    seconds: float
    call: Callable[[], object]

    def cancel(self) -> None:
        self.timers.remove(self)


@dataclass
class Clock:
    """Timers that run when they are told to."""

    timers: list[Timer] = field(default_factory=list)

    def later(self, seconds: float, call: Callable[[], object]) -> Timer:
        self.timers.append(Timer(self.timers, seconds, call))
        return self.timers[-1]

    def run(self) -> None:
        for timer in list(self.timers):
            timer.call()


@dataclass(eq=False)
class Carrying:
    """A link on which some packets are on their way in."""

    remote: str = PEER
    names: list[TransferId] = field(default_factory=list)
    transfers: Transfers | None = None
    error: LinkError | None = None

    def carries(self, transfer: TransferId) -> bool:
        return transfer in self.names

    def abort(self, error: LinkError) -> None:
        self.error = error
        assert self.transfers is not None
        self.transfers.ended(self, [(name, part(10)) for name in self.names], ())


def name(number: int = 0) -> TransferId:
    return TransferId(bytes([7]) * 32, number)


def part(received: int, *sizes: int) -> Partial:
    return Partial(tuple(memoryview(bytearray(size)) for size in sizes or (100,)), received)


def test_what_came_is_given_once() -> None:
    transfers, link = Transfers(Clock().later), Carrying()
    kept = part(40)
    transfers.ended(Carrying(), [(name(), kept)], ())
    assert transfers.reserved == 100
    assert transfers.take(link, name(1), (100,)) is None
    assert transfers.take(link, name(), (100,)) is kept
    assert transfers.take(link, name(), (100,)) is None
    assert transfers.reserved == 0


def test_only_the_same_peer_and_the_same_sizes_get_it() -> None:
    transfers = Transfers(Clock().later)
    transfers.ended(Carrying(), [(name(), part(40, 50, 50))], ())
    assert transfers.take(Carrying("somebody else"), name(), (50, 50)) is None
    assert transfers.reserved == 100
    assert transfers.take(Carrying(), name(), (100,)) is None
    assert transfers.reserved == 0, "who asks for other sizes will not ask for these"


def test_it_is_kept_for_two_minutes() -> None:
    clock = Clock()
    transfers = Transfers(clock.later)
    transfers.ended(Carrying(), [(name(), part(40)), (name(1), part(41))], ())
    assert [timer.seconds for timer in clock.timers] == [KEPT_SECONDS] * 2
    transfers.take(Carrying(), name(), (100,))
    assert len(clock.timers) == 1
    clock.run()
    assert (transfers.reserved, clock.timers) == (0, [])


async def test_on_the_clock_of_the_loop_by_default() -> None:
    transfers = Transfers()
    transfers.ended(Carrying(), [(name(), part(40))], ())
    assert repr(transfers) == "<Transfers 1 kept, 100 B; 0 may go on>"
    assert transfers.take(Carrying(), name(), (100,)) is not None  # and the timer is cancelled


def test_a_peer_has_so_many_kept_and_loses_its_own_oldest() -> None:
    transfers = Transfers(Clock().later)
    transfers.ended(Carrying("other"), [(name(), part(1))], ())
    transfers.ended(Carrying(), [(name(number), part(1)) for number in range(KEPT_PER_PEER + 2)], ())
    assert transfers.reserved == 100 * (KEPT_PER_PEER + 1)
    assert [transfers.take(Carrying(), name(number), (100,)) is None for number in range(4)] == [1, 1, 0, 0]
    assert transfers.take(Carrying("other"), name(), (100,)) is not None


def test_of_one_packet_the_longer_part_stays() -> None:
    transfers, long = Transfers(Clock().later), part(60)
    for partial in (part(40), long, part(50)):
        transfers.ended(Carrying(), [(name(), partial)], ())
    assert transfers.reserved == 100
    assert transfers.take(Carrying(), name(), (100,)) is long


def test_the_oldest_make_way() -> None:
    transfers = Transfers(Clock().later)
    transfers.ended(Carrying(), [(name(number), part(1)) for number in range(3)], ())
    transfers.make_way(250)
    assert transfers.reserved == 200
    assert transfers.take(Carrying(), name(0), (100,)) is None
    transfers.make_way(-1)
    assert transfers.reserved == 0


def test_a_link_whose_end_was_not_noticed_ends_when_its_packet_goes_on_elsewhere() -> None:
    transfers = Transfers(Clock().later)
    old = Carrying(names=[name()], transfers=transfers)
    bystanders = [Carrying(names=[name(1)]), Carrying("other", [name()])]
    new = Carrying(names=[name()])
    for link in (old, *bystanders, new):
        transfers.opened(link)
    partial = transfers.take(new, name(), (100,))
    assert partial is not None
    assert isinstance(old.error, LinkTruncated)
    assert [link.error for link in (*bystanders, new)] == [None] * 3


def test_ours_go_on_once_to_the_same_peer_with_the_same_buffers() -> None:
    transfers = Transfers()
    buffers, others = (memoryview(b"a"), memoryview(b"b")), (memoryview(b"a"), memoryview(b"b"))
    begun = [Begun(name(5), buffers), Begun(name(6), buffers)]
    transfers.ended(Carrying(), (), begun)
    assert transfers.begun_before("other", buffers) is None
    assert transfers.begun_before(PEER, others) is None
    assert transfers.begun_before(PEER, buffers[:1]) is None
    assert [transfers.begun_before(PEER, buffers) for _ in range(3)] == [*begun, None]


def test_what_nobody_can_send_again_is_not_remembered() -> None:
    transfers = Transfers()
    for number in range(10):
        transfers.ended(Carrying(), (), [Begun(name(number), (memoryview(bytearray(5)),))])
    gc.collect()
    transfers.ended(Carrying(), (), ())
    assert repr(transfers) == "<Transfers 0 kept, 0 B; 0 may go on>"


# -- two nodes, whose links break at any byte --------------------------------------------------------------------------


class End:
    """One end of a link, as SealedLink puts it together, over a list of records."""

    def __init__(self, node: Node, link: bytes) -> None:
        self.node = node
        self.remote = PEER
        self.ended = False
        self.arriving: list[bytes] = []  # records that the other end has sent
        self.writer = FrameWriter(16, link, lambda buffers: node.transfers.begun_before(PEER, buffers))
        self.reader = FrameReader(
            LinkLimits(), lambda head, sizes: True, node.spare, link, lambda *sent: node.transfers.take(self, *sent)
        )
        node.links.append(self)
        node.transfers.opened(self)

    @property
    def reserved(self) -> int:
        return 0 if self.ended else self.reader.reserved

    def carries(self, transfer: TransferId) -> bool:
        return self.reader.holds(transfer)

    def abort(self, error: LinkError) -> None:
        assert not self.ended
        self.ended = True
        self.node.links.remove(self)
        self.node.transfers.ended(self, self.reader.partials(), self.writer.begun)

    def feed(self, record: bytes) -> None:
        match self.reader.feed(record):
            case Packet() as packet:
                self.node.arrived.append(packet)
            case None:
                pass
            case told:
                self.writer.go_on(told) if type(told).__name__ == "Have" else self.writer.answer(told)


MEMORY = 64 << 20
UNIT = bytes(range(249))


class Node:
    def __init__(self) -> None:
        self.clock = Clock()
        self.transfers = Transfers(self.clock.later)
        self.links: list[End] = []
        self.arrived: list[Packet] = []
        self.sending: dict[bytes, Packet] = {}  # by what their heads end with, until they have arrived
        self.sent: Counter[bytes] = Counter()  # bytes of buffers that left, by packet
        self.lost: Counter[bytes] = Counter()  # of those, what a link took with it

    def spare(self, wanted: int) -> float:
        free = MEMORY - sum(link.reserved for link in self.links)
        self.transfers.make_way(free - wanted)
        return free - self.transfers.reserved


def payload(record: list[bytes | memoryview], packets: dict[bytes, Packet]) -> tuple[bytes, int] | None:
    """Of which packet a record carries buffers, and how many bytes of them."""
    views = [piece for piece in record if isinstance(piece, memoryview)]
    for key, packet in packets.items():
        memory = [buffer.obj for buffer in packet.buffers]
        if size := sum(view.nbytes for view in views if any(view.obj is known for known in memory)):
            return key, size
    return None


class Links(RuleBasedStateMachine):
    """Two nodes send packets to each other over a link that breaks; what was not delivered is sent again."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes = Node(), Node()
        self.made = 0  # packets
        self.generation = 0  # of links
        self.received: tuple[dict[bytes, bytes], dict[bytes, bytes]] = {}, {}
        self.link()

    def link(self) -> None:
        channel = self.generation.to_bytes(32, "big")
        self.generation += 1
        self.ends = End(self.nodes[0], channel), End(self.nodes[1], channel)
        self.flight: tuple[list[tuple[bytes, int]], list[tuple[bytes, int]]] = [], []  # owner and bytes of each record
        for end in self.ends:
            for key, packet in list(end.node.sending.items()):
                end.node.sending[key] = again = Packet(b"again %d, " % self.generation + key, packet.buffers)
                end.writer.append(again)

    @rule(
        side=st.integers(0, 1),
        sizes=st.sampled_from(
            [
                (1_300_001,),
                (LARGE_PACKET, 0, 70_000),
                (0, 400_000, 700_001),
                (1, LARGE_PACKET - 1),
                (70_000,),
                (0,),
                (),
            ]
        ),
        head=st.sampled_from([0, 30, 70_000]),
    )
    def send(self, side: int, sizes: tuple[int, ...], head: int) -> None:
        node = self.nodes[side]
        if len(node.sending) >= KEPT_PER_PEER:
            return
        self.made += 1
        key = b"%d" % self.made + bytes(head)
        buffers = tuple(memoryview((bytes([self.made % 256, n]) + UNIT) * 5300)[:size] for n, size in enumerate(sizes))
        node.sending[key] = packet = Packet(b"first, " + key, buffers)
        self.ends[side].writer.append(packet)

    @rule(side=st.integers(0, 1), which=st.integers(0, 15))
    def withdraw(self, side: int, which: int) -> None:
        node = self.nodes[side]
        for key, packet in list(node.sending.items())[which : which + 1]:
            if self.ends[side].writer.withdraw(packet):
                del node.sending[key]

    @rule(side=st.integers(0, 1), count=st.integers(1, 30))
    def leave(self, side: int, count: int) -> None:
        """Records leave an end, and are in flight."""
        end, node = self.ends[side], self.nodes[side]
        for _ in range(count):
            record = end.writer.next_record()
            if record is None:
                return
            key, size = payload(record, node.sending) or (b"", 0)
            node.sent[key] += size
            self.flight[side].append((key, size))
            self.ends[1 - side].arriving.append(b"".join(record))

    @rule(side=st.integers(0, 1), count=st.integers(1, 30))
    def arrive(self, side: int, count: int) -> None:
        """Records from an end come in at the other."""
        other = self.ends[1 - side]
        for _ in range(min(count, len(other.arriving))):
            other.feed(other.arriving.pop(0))
            self.flight[side].pop(0)
        self.check(1 - side)

    def check(self, side: int) -> None:
        """What has arrived at an end is what was sent, and is sent no more."""
        arrived, sender = self.nodes[side].arrived, self.nodes[1 - side]
        while arrived:
            packet = arrived.pop()
            key = packet.head.partition(b", ")[2]
            sent = sender.sending.pop(key)
            assert packet.head == sent.head
            assert [bytes(buffer) for buffer in packet.buffers] == [bytes(buffer) for buffer in sent.buffers]
            size = sum(buffer.nbytes for buffer in sent.buffers)
            if size >= LARGE_PACKET:
                assert sender.sent[key] == size + sender.lost[key], "only what was lost is sent twice"

    @rule(leave=st.tuples(*[st.integers(1, 30)] * 2), arrive=st.tuples(*[st.integers(1, 30)] * 2))
    def flow(self, leave: tuple[int, int], arrive: tuple[int, int]) -> None:
        for side in (0, 1):
            self.leave(side, leave[side])
            self.arrive(side, arrive[side])

    @precondition(lambda self: any(end.reader.reserved for end in self.ends) or any(self.flight))
    @rule(reached=st.tuples(st.floats(0, 1), st.floats(0, 1)), notice=st.sampled_from(["both", "0 late", "1 late"]))
    def cut(self, reached: tuple[float, float], notice: str) -> None:
        """The link breaks; of the bytes in flight some still come in. One end may notice when the other is back."""
        for side in (0, 1):
            other = self.ends[1 - side]
            left = int(reached[side] * sum(len(record) + 2 for record in other.arriving))
            while other.arriving and (left := left - len(other.arriving[0]) - 2) >= 0:
                self.arrive(side, 1)
            for key, size in self.flight[side]:
                self.nodes[side].lost[key] += size
        for side, end in enumerate(self.ends):
            if notice != f"{side} late" or end.node.sending:  # who sends again has noticed
                end.abort(LinkTruncated("cut"))
        self.link()

    @invariant()
    def memory_is_counted(self) -> None:
        for node in self.nodes:
            kept = sum(sum(kept.partial.sizes) for kept in node.transfers._kept.values())
            assert node.transfers.reserved == kept
            assert node.spare(0) == MEMORY - kept - sum(link.reader.reserved for link in node.links)
            assert len(node.clock.timers) == len(node.transfers._kept)
        for end in self.ends:
            assert end.writer.queued >= 0

    def teardown(self) -> None:
        """All arrives in the end, and nothing is kept."""
        while any(node.sending for node in self.nodes) or any(self.flight):
            for side in (0, 1):
                self.leave(side, 50)
                self.arrive(side, 50)
        for node, end in zip(self.nodes, self.ends, strict=True):
            for late in [link for link in node.links if link is not end]:
                late.abort(LinkTruncated("silence"))
            assert not node.sending
            assert (end.writer.queued, end.reader.reserved) == (0, 0)
            node.clock.run()  # what was withdrawn while a link broke
            assert (node.transfers.reserved, node.spare(0)) == (0, MEMORY)


TestLinks = Links.TestCase
TestLinks.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
