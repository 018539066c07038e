from p2pfl.wire.packet import Packet


def test_size_is_that_of_head_and_buffers() -> None:
    assert Packet(b"head").size == 4
    assert Packet(b"head", (memoryview(bytes(10)), memoryview(bytearray(3)))).size == 17


def test_size_counts_bytes_not_items() -> None:
    assert Packet(b"", (memoryview(bytes(16)).cast("d"),)).size == 16


def test_equal_bytes_are_two_packets() -> None:
    first, second = Packet(b"same"), Packet(b"same")
    assert first != second
    assert len({first, second}) == 2  # so that a link can withdraw one of them


def test_repr_is_one_line_without_contents() -> None:
    shown = repr(Packet(b"secret", (memoryview(bytes(10)),)))
    assert shown == "<Packet 6 B head, 1 buffers, 16 B>"
