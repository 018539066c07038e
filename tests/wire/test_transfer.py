"""One packet on its way: it can be told from others, held back, and gone on with at any byte."""

from __future__ import annotations

import gc

from hypothesis import given
from hypothesis import strategies as st

from p2pfl.wire.packet import Packet
from p2pfl.wire.transfer import LARGE_PACKET, Begun, Incoming, Outgoing, Partial, TransferId

NAME = TransferId(bytes(32), 0)
sizes = st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any)


def buffers_of(sizes: list[int]) -> tuple[memoryview, ...]:
    payload = memoryview(bytes(range(100)))
    return tuple(payload[sum(sizes[:n]) : sum(sizes[: n + 1])] for n in range(len(sizes)))


def all_of(outgoing: Outgoing, room: int) -> bytes:
    record: list[bytes | memoryview] = []
    while outgoing.ready:
        outgoing.fill(record, room)
    assert all(record), "no empty pieces"
    return b"".join(record)


@given(st.binary(max_size=8), sizes, st.integers(1, 9))
def test_payload_leaves_in_order_in_pieces_of_any_size(head: bytes, sizes: list[int], room: int) -> None:
    outgoing = Outgoing(Packet(head, buffers_of(sizes)))
    assert all_of(outgoing, room) == head + bytes(range(sum(sizes)))
    assert outgoing.left == 0


@given(st.binary(max_size=8), sizes, st.integers(1, 9), st.data())
def test_held_back_the_head_leaves_and_then_what_is_missing(
    head: bytes, sizes: list[int], room: int, data: st.DataObject
) -> None:
    outgoing = Outgoing(Packet(head, buffers_of(sizes)))
    outgoing.hold()
    assert all_of(outgoing, room) == head
    received = data.draw(st.integers(0, sum(sizes) - 1))
    outgoing.go_on(received)
    assert outgoing.left == sum(sizes) - received
    assert all_of(outgoing, room) == bytes(range(received, sum(sizes)))


@given(st.binary(max_size=8), sizes, st.integers(1, 9), st.data())
def test_any_part_is_gone_on_with(head: bytes, sizes: list[int], room: int, data: st.DataObject) -> None:
    received = data.draw(st.integers(0, sum(sizes) - 1))
    payload = bytes(range(sum(sizes)))
    kept = Partial(tuple(memoryview(bytearray(buffer)) for buffer in buffers_of(sizes)), received)
    flat = [(buffer, at) for buffer in kept.buffers for at in range(buffer.nbytes)]
    for buffer, at in flat[received:]:
        buffer[at] = 255  # it has not arrived
    incoming = Incoming(3, len(head), tuple(sizes), NAME)
    waiting = memoryview(head)
    while True:
        incoming.write(waiting[:room], lambda incoming: kept)
        waiting = waiting[room:]
        if not incoming.resumes:
            break
        assert incoming.ready == len(waiting)
    assert (incoming.left, incoming.ready) == (sum(sizes) - received,) * 2
    for at in range(received, len(payload), room):
        incoming.write(memoryview(payload)[at : at + room], lambda incoming: None)
    packet = incoming.packet()
    assert (packet.head, b"".join(packet.buffers)) == (head, payload)
    assert [buffer.nbytes for buffer in packet.buffers] == sizes
    assert incoming.received == len(head) + len(payload) - received, "progress is what came on this link"
    assert incoming.reserved == len(head) + len(payload)


def test_what_a_packet_leaves_behind() -> None:
    incoming = Incoming(0, 2, (LARGE_PACKET,))
    for payload, left in ((b"h", None), (b"h", None), (bytes(70), 70), (bytes(30), 100)):
        incoming.write(memoryview(payload), lambda incoming: None)
        partial = incoming.partial
        assert (partial and partial.received) == left
    assert partial is not None
    assert partial.sizes == (LARGE_PACKET,)
    small = Incoming(0, 0, (LARGE_PACKET - 1,))
    small.write(memoryview(bytes(100)), lambda incoming: None)
    assert small.partial is None


def test_a_packet_is_known_by_its_very_buffers() -> None:
    buffers = (memoryview(b"same"), memoryview(b"bytes"))
    begun = Begun(NAME, buffers)
    assert begun.has((buffers[0], buffers[1]))
    assert not begun.has(buffers[:1])
    assert not begun.has(buffers[::-1])
    assert not begun.has((memoryview(b"same"), memoryview(b"bytes")))


def test_it_is_known_how_much_of_it_has_left() -> None:
    begun = Begun(NAME, buffers_of([4, 6]))
    for left, sent in ((14, 0), (10, 0), (7, 3), (12, 3), (0, 10)):  # the third time on another link, with a head again
        begun.note(left)
        assert begun.sent == sent


def test_and_does_not_keep_them() -> None:
    first, second = memoryview(b"a"), memoryview(b"b")
    begun = Begun(NAME, (first, second))
    assert begun.alive
    del second
    gc.collect()
    assert not begun.alive
    assert not begun.has((first, memoryview(b"b")))
