"""Records: any packets in any interleaving come back as they were, and no bytes do harm."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.errors import LinkError, LinkRefused, MessageError, RemoteProtocolError
from p2pfl.wire.frame import (
    ABORT,
    FIN,
    FIRST,
    LAST,
    MAX_RECORD,
    NEXT,
    FrameReader,
    FrameWriter,
    OversizeError,
    check_packet,
    framed_size,
)
from p2pfl.wire.packet import Packet


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
    frames = FrameReader(Limits(), admit, lambda: 10_000_000 - frames.reserved)
    frames.feed(beginning(0, 0, 6_000_000))
    frames.feed(beginning(1, 1, 4_000_000))
    assert peak_of(frames, beginning(2, 2, 100_000), LinkRefused, "100000 bytes are over the 0 that") < 20_000


def test_heads_that_need_many_records_count_as_well() -> None:
    frames = FrameReader(Limits(), admit, lambda: 300_000 - frames.reserved)
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
    frames = FrameReader(Limits(max_under_way=most), lambda head, sizes: agreed, lambda: 2 * most - frames.reserved)
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
    "unknown kind 5": [chunk(5, 0)],
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
    st.builds(chunk, st.sampled_from([NEXT, LAST, ABORT, FIN, 5]), st.integers(0, 3), st.binary(max_size=40)),
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
