"""Records: any packets in any interleaving come back as they were, and no bytes do harm."""

from __future__ import annotations

import struct
import tracemalloc
from contextlib import nullcontext
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.errors import LinkError, LinkRefused, MessageError, RemoteProtocolError
from p2pfl.wire.frame import (
    ABORT,
    AGAIN,
    FIN,
    FIRST,
    HAVE,
    LAST,
    MAX_RECORD,
    NEXT,
    FrameReader,
    FrameWriter,
    Have,
    OversizeError,
    Resumed,
    check_packet,
    framed_size,
)
from p2pfl.wire.packet import Packet
from p2pfl.wire.transfer import LARGE_PACKET, Begun, Partial, TransferId


@dataclass(frozen=True)
class Limits:
    max_head: int = 256 * 1024
    max_message: int = 1 << 30
    max_buffers: int = 4096
    max_streams: int = 64
    max_under_way: int = 64 << 20


ROOM = MAX_RECORD - 5


def admit(head: bytes, sizes: tuple[int, ...]) -> bool:
    return True


def reader(**limits: int) -> FrameReader:
    return FrameReader(Limits(**limits), admit)


def pattern(size: int, seed: int = 0) -> memoryview:
    unit = bytes((seed + 7 * i) % 251 for i in range(251))
    return memoryview((unit * (size // 251 + 1))[:size])


def records_of(writer: FrameWriter) -> list[bytes]:
    records = []
    while parts := writer.next_record():
        records.append(b"".join(parts))
    return records


def record_list(*packets: Packet) -> list[bytes]:
    writer = FrameWriter()
    for packet in packets:
        writer.append(packet)
    return records_of(writer)


def value(packet: Packet) -> tuple[bytes, list[bytes]]:
    return packet.head, [bytes(buffer) for buffer in packet.buffers]


def first(
    stream: int = 0, msg_id: int = 0, head: int = 0, sizes: tuple[int, ...] = (), payload: bytes | memoryview = b""
) -> bytes:
    return struct.pack(f"!BIQIH{len(sizes)}Q", FIRST, stream, msg_id, head, len(sizes), *sizes) + payload


def chunk(kind: int, stream: int, payload: bytes | memoryview = b"") -> bytes:
    return struct.pack("!BI", kind, stream) + payload


sizes = st.one_of(st.integers(0, 300), st.sampled_from([ROOM - 1, ROOM, ROOM + 1, 2 * ROOM, MAX_RECORD, 200_000]))
packets = st.builds(
    lambda head, buffers, seed: Packet(bytes(pattern(head, seed)), tuple(pattern(n, seed + n) for n in buffers)),
    st.one_of(st.integers(0, 100), st.sampled_from([0, MAX_RECORD - 19, MAX_RECORD, 150_000])),
    st.lists(sizes, max_size=5),
    st.integers(0, 250),
)


@dataclass(frozen=True)
class Send:
    packet: Packet


@dataclass(frozen=True)
class Carry:
    records: int


@dataclass(frozen=True)
class Withdraw:
    which: int


steps = st.lists(
    st.one_of(packets.map(Send), st.integers(1, 4).map(Carry), st.integers(0, 10).map(Withdraw)), max_size=25
)


@settings(max_examples=120, deadline=None)
@given(steps, st.integers(2, 5))
def test_whatever_is_sent_arrives_and_what_was_withdrawn_does_not(steps: list[object], max_streams: int) -> None:
    writer, frames = FrameWriter(max_streams), reader(max_streams=max_streams)
    expected: list[Packet] = []
    arrived: list[Packet] = []

    def carry(count: int) -> None:
        for _ in range(count):
            if (parts := writer.next_record()) is None:
                return
            record = b"".join(parts)
            assert len(record) <= MAX_RECORD
            if (packet := frames.feed(record)) is not None:
                arrived.append(packet)

    for step in steps:
        match step:
            case Send(packet):
                writer.append(packet)
                expected.append(packet)
            case Carry(count):
                carry(count)
            case Withdraw(which) if which < len(expected):
                if writer.withdraw(expected[which]):
                    expected.pop(which)
    carry(10_000)
    writer.finish()
    carry(1)
    assert sorted(map(value, arrived)) == sorted(map(value, expected))
    control = [value(packet) for packet in expected if not packet.buffers]
    assert [value(packet) for packet in arrived if not packet.buffers] == control, "control packets keep their order"
    assert (writer.queued, writer.finished, frames.finished) == (0, True, True)
    assert not frames.progress()


@given(packets)
@settings(max_examples=60, deadline=None)
def test_size_on_the_wire_is_known_beforehand(packet: Packet) -> None:
    records = record_list(packet)
    assert framed_size(packet) == (len(records), sum(map(len, records)))


def test_known_records() -> None:
    assert record_list(Packet(b"hello"))[0].hex(" ", 1)[3:] == (
        "00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 05 00 00 68 65 6c 6c 6f"
    )
    bulk = Packet(b"ab", (memoryview(b""), pattern(ROOM + MAX_RECORD)))
    payload = b"ab" + bytes(bulk.buffers[1])
    cut = MAX_RECORD - 19 - 16
    assert record_list(bulk) == [
        first(0, 0, 2, (0, ROOM + MAX_RECORD), payload[:cut]),
        chunk(NEXT, 0, payload[cut : cut + ROOM]),
        chunk(LAST, 0, payload[cut + ROOM :]),
    ]


# -- large packets that had begun on a link which broke ----------------------------------------------------------------

NAME = TransferId(bytes(range(32)), 9)
LARGE = Packet(b"ab", (pattern(LARGE_PACKET), pattern(5)))


def again(
    stream: int = 0, msg_id: int = 0, head: int = 0, sizes: tuple[int, ...] = (LARGE_PACKET,), payload: bytes = b""
) -> bytes:
    fields = struct.pack(f"!BIQIH{len(sizes)}Q", AGAIN, stream, msg_id, head, len(sizes), *sizes)
    return fields + struct.pack("!32sQ", *NAME) + payload


def have(msg_id: int, received: int) -> bytes:
    return struct.pack("!BQQ", HAVE, msg_id, received)


def resuming(max_streams: int = 64, left: int = 0) -> FrameWriter:
    """A writer to which all large packets have left before, but for so many bytes."""

    def begun_before(buffers: tuple[memoryview, ...]) -> Begun:
        begun = Begun(NAME, buffers)
        begun.note(left)
        return begun

    return FrameWriter(max_streams, begun_before=begun_before)


def test_known_records_of_a_packet_that_is_sent_again() -> None:
    writer = resuming()
    writer.append(LARGE)
    assert records_of(writer) == [again(0, 0, 2, (LARGE_PACKET, 5), b"ab")]
    assert writer.queued == LARGE_PACKET + 5
    writer.go_on(Have(0, LARGE_PACKET - ROOM))
    assert records_of(writer) == [
        chunk(NEXT, 0, LARGE.buffers[0][-ROOM:]),
        chunk(LAST, 0, LARGE.buffers[1]),
    ]
    assert writer.queued == 0
    writer.answer(Resumed(3, 70_000))
    assert records_of(writer) == [have(3, 70_000)]


def test_a_reader_asks_for_what_is_missing() -> None:
    kept = Partial((memoryview(bytearray(LARGE.buffers[0])), memoryview(bytearray(5))), LARGE_PACKET)
    asked: list[object] = []

    def take(*what: object) -> Partial:
        asked.append(what)
        return kept

    frames = FrameReader(Limits(), admit, link=bytes(32), take=take)
    assert frames.feed(again(0, 0, 2, (LARGE_PACKET, 5), b"ab")) == Resumed(0, LARGE_PACKET)
    assert asked == [(NAME, (LARGE_PACKET, 5))]
    assert frames.holds(NAME)
    assert list(frames.partials()) == [(NAME, kept)], "by the name under which it first began"
    got = frames.feed(chunk(LAST, 0, LARGE.buffers[1]))
    assert isinstance(got, Packet)
    assert value(got) == value(LARGE)
    assert frames.feed(have(7, 8)) == Have(7, 8)


def test_what_is_not_there_is_sent_from_the_start() -> None:
    frames = reader()
    head = bytes(MAX_RECORD)
    writer = resuming()
    writer.append(Packet(head, LARGE.buffers))
    told = [frames.feed(record) for record in records_of(writer)]
    assert told == [None, Resumed(0, 0)]
    writer.go_on(Have(0, 0))
    got = [frames.feed(record) for record in records_of(writer)]
    assert isinstance(got[-1], Packet)
    assert value(got[-1]) == (head, value(LARGE)[1])


def test_partials_are_those_of_large_packets_whose_buffers_have_begun() -> None:
    frames = FrameReader(Limits(), admit, link=NAME.link)
    frames.feed(first(0, 0, 0, (LARGE_PACKET,), pattern(MAX_RECORD - 27)))
    frames.feed(first(1, 1, 0, (LARGE_PACKET - 1,), pattern(MAX_RECORD - 27)))
    frames.feed(first(2, 2, MAX_RECORD - 27, (LARGE_PACKET,), pattern(MAX_RECORD - 27)))
    frames.feed(first(3, 3, MAX_RECORD, (LARGE_PACKET,), pattern(MAX_RECORD - 27)))
    frames.feed(again(4, 4))
    ((name, partial),) = frames.partials()
    assert name == TransferId(NAME.link, 0)
    assert partial.received == MAX_RECORD - 27


def test_memory_is_asked_for_after_what_is_kept_has_been_taken() -> None:
    held = [LARGE_PACKET]

    def take(name: TransferId, sizes: tuple[int, ...]) -> Partial:
        held.clear()
        return Partial((memoryview(bytearray(LARGE_PACKET)),), 5)

    frames = FrameReader(Limits(), admit, lambda wanted: LARGE_PACKET - sum(held) - frames.reserved, take=take)
    assert frames.feed(again()) == Resumed(0, 5)
    assert frames.reserved == LARGE_PACKET


def test_a_writer_knows_what_may_not_have_arrived() -> None:
    writer = FrameWriter(link=NAME.link)
    for packet in (LARGE, Packet(b"", (pattern(5),)), unwanted := Packet(b"", (pattern(LARGE_PACKET),))):
        writer.append(packet)
    writer.next_record()
    assert [begun.transfer for begun in writer.begun] == [TransferId(NAME.link, 0)]
    records_of(writer)
    assert [begun.transfer.number for begun in writer.begun] == [0, 2]
    writer.append(unwanted)
    writer.next_record()
    writer.withdraw(unwanted)
    assert [begun.transfer.number for begun in writer.begun] == [0, 2], "the other end forgets it"


def test_those_that_wait_for_their_answer_do_not_stand_in_the_way() -> None:
    writer = resuming(3)
    held = [Packet(b"%d" % n, (pattern(LARGE_PACKET),)) for n in range(3)]
    for packet in held:
        writer.append(packet)
    writer.append(Packet(b"control"))
    writer.finish()
    assert [record[0] for record in records_of(writer)] == [FIRST, AGAIN, AGAIN], "one place is kept for control"
    assert not writer.finished
    writer.append(Packet(b"", (pattern(5),)))
    assert writer.next_record() is None, "for bulk there is none"
    assert writer.withdraw(held[0])
    assert [record[0] for record in records_of(writer)] == [ABORT, AGAIN]
    writer.go_on(Have(1, 10))  # it was under way when the packet was withdrawn
    for msg_id in (2, 3):
        writer.go_on(Have(msg_id, LARGE_PACKET - 1))
    assert [record[0] for record in records_of(writer)] == [LAST, LAST, FIRST, FIN]
    assert writer.queued == 0
    writer.answer(Resumed(0, 0))
    assert writer.next_record() is None, "nothing follows FIN"


@pytest.mark.parametrize(
    ("left", "received", "fits"),
    [
        *((100, LARGE_PACKET + 5 - 100, True), (100, LARGE_PACKET + 5 - 99, False), (0, LARGE_PACKET + 4, True)),
        *((0, LARGE_PACKET + 5, False), (0, 2**64 - 1, False)),
        *((LARGE_PACKET + 7, 1, False), (LARGE_PACKET + 7, 0, True)),
    ],
)
def test_more_than_was_sent_cannot_be_there(left: int, received: int, fits: bool) -> None:
    writer = resuming(left=left)
    writer.append(LARGE)
    writer.next_record()
    with nullcontext() if fits else pytest.raises(RemoteProtocolError, match="before so many were sent"):
        writer.go_on(Have(0, received))


def test_an_answer_without_a_question_is_refused() -> None:
    writer = FrameWriter()
    writer.append(LARGE)
    writer.next_record()
    for msg_id in (0, 1):
        with pytest.raises(RemoteProtocolError, match="does not wait"):
            writer.go_on(Have(msg_id, 0))


def test_an_answer_comes_once() -> None:
    writer = resuming()
    writer.append(LARGE)
    writer.next_record()
    writer.go_on(Have(0, 5))
    with pytest.raises(RemoteProtocolError, match="does not wait"):
        writer.go_on(Have(0, 5))


def test_an_answer_before_the_head_has_left_is_refused() -> None:
    writer = resuming()
    writer.append(Packet(bytes(MAX_RECORD), LARGE.buffers))
    writer.next_record()
    with pytest.raises(RemoteProtocolError, match="does not wait"):
        writer.go_on(Have(0, 0))
    assert writer.withdraw(writer._turns[0].packet)
    with pytest.raises(RemoteProtocolError, match="does not wait"):
        writer.go_on(Have(0, 0))


def test_control_goes_before_bulk_and_bulk_takes_turns() -> None:
    writer = FrameWriter()
    bulk = [Packet(b"%d" % n, (pattern(3 * MAX_RECORD, n),)) for n in range(2)]
    for packet in bulk:
        writer.append(packet)
    head = b"".join(writer.next_record() or ())
    writer.append(Packet(b"control"))
    assert b"".join(writer.next_record() or ()).endswith(b"control")
    streams = [head[1:5]] + [record[1:5] for record in records_of(writer)]
    assert streams[0::2] == [streams[0]] * len(streams[0::2])
    assert streams[1::2] == [streams[1]] * len(streams[1::2])
    assert streams[0] != streams[1]


def test_a_long_head_is_not_interleaved_with_another_control_packet() -> None:
    frames = reader()
    got = [frames.feed(r) for r in record_list(Packet(bytes(200_000)), Packet(b"next"))]
    assert [len(p.head) for p in got if p] == [200_000, 4]


def test_slices_are_not_copied() -> None:
    model = pattern(10 * MAX_RECORD)
    writer = FrameWriter()
    writer.append(Packet(b"", (model,)))
    while parts := writer.next_record():
        assert all(part.obj is model.obj for part in parts[1:] if isinstance(part, memoryview))


def test_payload_lands_in_buffers_that_were_admitted() -> None:
    asked: list[tuple[bytes, tuple[int, ...]]] = []

    def note(head: bytes, sizes: tuple[int, ...]) -> bool:
        asked.append((head, sizes))
        return True

    frames = FrameReader(Limits(), note)
    sent = Packet(b"head", (pattern(100_000, 1), pattern(0), pattern(3, 9)))
    got = [frames.feed(record) for record in record_list(sent)][-1]
    assert got is not None
    assert asked == [(b"head", (100_000, 0, 3))]
    assert value(got) == value(sent)
    assert all(buffer.readonly for buffer in got.buffers)


def test_nothing_is_admitted_before_the_head_is_complete() -> None:
    asked: list[bytes] = []

    def refuse(head: bytes, sizes: tuple[int, ...]) -> bool:
        asked.append(head)
        raise RemoteProtocolError("no")

    frames = FrameReader(Limits(), refuse)
    one, two, *_ = record_list(Packet(bytes(MAX_RECORD), (pattern(10**6),)))
    frames.feed(one)
    assert not asked
    with pytest.raises(RemoteProtocolError):
        frames.feed(two)
    assert asked == [bytes(MAX_RECORD)]


# -- memory of what is under way ---------------------------------------------------------------------------------------


def beginning(stream: int, msg_id: int, size: int) -> bytes:
    """The first record of a packet with one buffer."""
    return first(stream, msg_id, 0, (size,), bytes(min(size, MAX_RECORD - 27)))


def peak_of(frames: FrameReader, record: bytes, error: type[LinkError], words: str) -> int:
    """How much memory it takes to refuse a record."""
    tracemalloc.start()
    try:
        with pytest.raises(error, match=words):
            frames.feed(record)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_what_was_not_agreed_is_bounded_by_link_before_memory_is_taken() -> None:
    frames = FrameReader(Limits(max_under_way=10_000_000), lambda head, sizes: False)
    frames.feed(beginning(0, 0, 6_000_000))
    frames.feed(beginning(1, 1, 4_000_000))
    assert frames.reserved == 10_000_000
    assert peak_of(frames, beginning(2, 2, 100_000), OversizeError, "10100000 bytes under way") < 20_000


def test_the_bound_of_a_link_counts_what_has_ended_no_more() -> None:
    frames = FrameReader(Limits(max_under_way=10_000_000), lambda head, sizes: False)
    for number in range(5):
        frames.feed(beginning(0, number, 6_000_000))
        frames.feed(chunk(ABORT, 0))
        assert frames.reserved == 0
    for number, packet in enumerate([Packet(b"", (pattern(6_000_000, seed),)) for seed in range(5)], 5):
        (got,) = [got for record in record_list(packet) if (got := frames.feed(numbered(record, number)))]
        assert value(got) == value(packet)
        assert frames.reserved == 0


def numbered(record: bytes, msg_id: int) -> bytes:
    return record[:5] + struct.pack("!Q", msg_id) + record[13:] if record[0] == FIRST else record


def test_what_was_agreed_does_not_count_there() -> None:
    frames = FrameReader(Limits(max_under_way=1_000_000), lambda head, sizes: sizes[0] > 1_000_000)
    frames.feed(beginning(0, 0, 6_000_000))
    frames.feed(beginning(1, 1, 1_000_000))
    assert frames.reserved == 7_000_000


def test_whatever_is_under_way_is_bounded_by_what_is_to_spare_before_memory_is_taken() -> None:
    frames = FrameReader(Limits(), admit, lambda wanted: 10_000_000 - frames.reserved)
    frames.feed(beginning(0, 0, 6_000_000))
    frames.feed(beginning(1, 1, 4_000_000))
    assert peak_of(frames, beginning(2, 2, 100_000), LinkRefused, "100000 bytes are over the 0 that") < 60_000


def test_heads_that_need_many_records_count_as_well() -> None:
    frames = FrameReader(Limits(), admit, lambda wanted: 300_000 - frames.reserved)
    for number in (0, 1):
        record = first(number, number, 150_000, (), bytes(MAX_RECORD - 19))
        frames.feed(record)
    assert frames.reserved == 300_000
    frames.feed(first(2, 2, 1000, (), bytes(1000)))  # what is whole at once is not under way
    with pytest.raises(LinkRefused):
        frames.feed(first(2, 3, 150_000, (), bytes(MAX_RECORD - 19)))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 400_000)), max_size=30), st.booleans())
@settings(max_examples=100, deadline=None)
def test_bounds_hold_whatever_is_begun_and_aborted(steps: list[tuple[int, int]], agreed: bool) -> None:
    most = 1_000_000
    frames = FrameReader(
        Limits(max_under_way=most), lambda head, sizes: agreed, lambda wanted: 2 * most - frames.reserved
    )
    held: dict[int, int] = {}
    msg_id = 0
    for stream, size in steps:
        if stream in held:
            frames.feed(chunk(ABORT, stream))
            del held[stream]
            continue
        refused = sum(held.values()) + size > (2 * most if agreed else most)
        try:
            frames.feed(beginning(stream, msg_id, size))
        except (OversizeError, LinkRefused):
            assert refused
            return
        assert not refused
        msg_id += 1
        if size > MAX_RECORD - 27:
            held[stream] = size
        assert frames.reserved == sum(held.values())


def test_progress_tells_how_far_transfers_are() -> None:
    frames = reader()
    one, *_ = record_list(Packet(b"h", (pattern(10**6),)))
    frames.feed(one)
    assert frames.progress() == {0: len(one) - 19 - 8}


FULL_FIRST = first(0, 0, 0, (10**6,), pattern(MAX_RECORD - 27))

FORBIDDEN: dict[str, list[bytes]] = {
    "an empty record": [b""],
    "unknown kind 0": [b"\0"],
    "unknown kind 7": [chunk(7, 0)],
    "a ping, which is the session's": [b"\x10" + bytes(8)],
    "FIRST cut short": [first()[:-1]],
    "FIRST with its sizes cut short": [first(sizes=(1, 2))[:-3]],
    "a stream over the limit": [first(stream=64)],
    "a stream used twice": [FULL_FIRST, first(0, 1)],
    "a packet number left out": [first(msg_id=1)],
    "a packet number again": [first(), first()],
    "FIRST with too little payload": [first(head=2, payload=b"x")],
    "FIRST with too much payload": [first(head=2, payload=b"xyz")],
    "FIRST that is not full": [first(0, 0, 0, (10**6,), pattern(MAX_RECORD - 28))],
    "an empty FIRST": [first(0, 0, 0, (10**6,))],
    "NEXT without FIRST": [chunk(NEXT, 0, pattern(ROOM))],
    "LAST without FIRST": [chunk(LAST, 0, b"x")],
    "NEXT after the end": [first(head=1, payload=b"x"), chunk(NEXT, 0, pattern(ROOM))],
    "NEXT cut short": [FULL_FIRST, b"\x02\0\0"],
    "an empty NEXT": [FULL_FIRST, chunk(NEXT, 0)],
    "a tiny NEXT": [FULL_FIRST, chunk(NEXT, 0, b"x")],
    "LAST too early": [FULL_FIRST, chunk(LAST, 0, pattern(ROOM))],
    "NEXT where LAST belongs": [first(0, 0, 0, (MAX_RECORD,), pattern(MAX_RECORD - 27)), chunk(NEXT, 0, pattern(27))],
    "LAST too long": [first(0, 0, 0, (MAX_RECORD,), pattern(MAX_RECORD - 27)), chunk(LAST, 0, pattern(28))],
    "LAST too short": [first(0, 0, 0, (MAX_RECORD,), pattern(MAX_RECORD - 27)), chunk(LAST, 0, pattern(26))],
    "ABORT without FIRST": [chunk(ABORT, 0)],
    "ABORT with a body": [FULL_FIRST, chunk(ABORT, 0, b"x")],
    "NEXT after ABORT": [FULL_FIRST, chunk(ABORT, 0), chunk(NEXT, 0, pattern(ROOM))],
    "FIN with a body": [bytes([FIN, 0])],
    "AGAIN for what is small": [again(sizes=(LARGE_PACKET - 1,))],
    "AGAIN for no buffers": [again(sizes=())],
    "AGAIN cut short": [again()[:-1]],
    "AGAIN with the beginning of its buffers": [again(payload=b"x")],
    "AGAIN without its head": [again(head=1)],
    "a tiny NEXT of a head that is sent again": [
        again(head=MAX_RECORD, payload=bytes(MAX_RECORD - 67)),
        chunk(NEXT, 0, bytes(66)),
    ],
    "LAST with the end of a head that is sent again": [
        again(head=MAX_RECORD, payload=bytes(MAX_RECORD - 67)),
        chunk(LAST, 0, bytes(67)),
    ],
    "HAVE cut short": [have(0, 0)[:-1]],
    "HAVE with bytes too many": [have(0, 0) + b"x"],
    "FIN while a packet is under way": [FULL_FIRST, bytes([FIN])],
    "a record after FIN": [bytes([FIN]), first()],
    "FIN twice": [bytes([FIN]), bytes([FIN])],
}


@pytest.mark.parametrize("records", FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_forbidden(records: list[bytes]) -> None:
    frames = reader()
    for record in records[:-1]:
        frames.feed(record)
    with pytest.raises(RemoteProtocolError):
        frames.feed(records[-1])


@pytest.mark.parametrize(
    "record", [first(head=101), first(sizes=(600, 500)), first(sizes=(2**64 - 1,)), first(sizes=(0,) * 4)], ids=range(4)
)
def test_over_the_limits(record: bytes) -> None:
    frames = reader(max_head=100, max_message=1000, max_buffers=3)
    with pytest.raises(OversizeError):
        frames.feed(record)


@pytest.mark.parametrize(
    "packet",
    [Packet(bytes(101)), Packet(b"", (pattern(600), pattern(500))), Packet(b"", (pattern(0),) * 4)],
)
def test_what_a_peer_would_refuse_is_not_sent(packet: Packet) -> None:
    with pytest.raises(MessageError):
        check_packet(packet, Limits(max_head=100, max_message=1000, max_buffers=3))


def test_the_most_streams_that_a_writer_opens_are_those_that_a_reader_takes() -> None:
    writer, frames = FrameWriter(4), reader(max_streams=4)
    sent = [Packet(b"%d" % n, (pattern(100_000 + n),)) for n in range(20)]
    for packet in sent:
        writer.append(packet)
    most, got = 0, []
    for turn in range(200):
        if turn % 5 == 0:
            writer.append(Packet(bytes(70_000)))
        if (parts := writer.next_record()) is None:
            break
        got.append(frames.feed(b"".join(parts)))
        most = max(most, len(frames.progress()))
    assert most == 4
    assert sum(packet is not None and bool(packet.buffers) for packet in got) == len(sent)


hostile = st.one_of(
    st.binary(max_size=60),
    st.builds(
        first,
        st.integers(0, 70),
        st.integers(0, 3),
        st.integers(0, 2**32 - 1),
        st.lists(st.integers(0, 2**64 - 1), max_size=3).map(tuple),
        st.binary(max_size=40),
    ),
    st.builds(again, st.integers(0, 3), st.integers(0, 3), st.integers(0, 5), payload=st.binary(max_size=5)),
    st.builds(have, st.integers(0, 3), st.integers(0, 2**64 - 1)),
    st.builds(chunk, st.sampled_from([NEXT, LAST, ABORT, FIN, 7]), st.integers(0, 3), st.binary(max_size=40)),
    st.sampled_from([FULL_FIRST, chunk(NEXT, 0, pattern(ROOM)), chunk(ABORT, 0)]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(hostile, max_size=8))
def test_arbitrary_records_raise_nothing_else_and_hold_little(records: list[bytes]) -> None:
    asked: list[int] = []

    def bounded(head: bytes, sizes: tuple[int, ...]) -> bool:
        if sum(sizes) > 2_000_000:
            raise RemoteProtocolError("too much")
        asked.append(sum(sizes))
        return admit(head, sizes)

    frames = FrameReader(Limits(), bounded)
    tracemalloc.start()
    try:
        for record in records:
            frames.feed(record)
    except RemoteProtocolError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < sum(asked) + 2 * sum(map(len, records)) + 100_000


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 200)), max_size=40), st.integers(0, 2**32))
def test_what_control_takes_up_is_counted_and_given_back(packets: list[tuple[bool, int]], seed: int) -> None:
    writer, queued, rng = FrameWriter(), [], Random(seed)
    for bulk, size in packets:
        packet = Packet(bytes(size), (memoryview(bytes(10)),) if bulk else ())
        writer.append(packet)
        queued.append(packet)
        if rng.random() < 0.3:
            writer.withdraw(rng.choice(queued))
        if rng.random() < 0.3:
            writer.next_record()
        assert writer.control == sum(len(each.packet.head) + 512 for each in writer._control)
    while writer.next_record():
        pass
    assert (writer.control, writer.queued) == (0, 0)
