import tracemalloc
from itertools import pairwise

import nacl.bindings
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.crypto.aead import CHACHAPOLY
from p2pfl.crypto.identity import Identity
from p2pfl.crypto.noise import CipherState
from p2pfl.errors import MessageError, RemoteProtocolError
from p2pfl.link.channel import MAX_MESSAGE, MAX_RECORD, MAX_RECORDS, RECORD_OVERHEAD, REKEY_RECORDS, SecureChannel

ALICE, BOB = (Identity.from_seed(letter * 32).peer_id for letter in (b"a", b"b"))
THERE, BACK = b"1" * 32, b"2" * 32


def channels() -> tuple[SecureChannel, SecureChannel]:
    """Alice's end and Bob's."""

    def end(local: str, remote: str, keys: tuple[bytes, bytes]) -> SecureChannel:
        return SecureChannel(
            (CipherState(CHACHAPOLY, keys[0]), CipherState(CHACHAPOLY, keys[1])),
            local=local,
            remote=remote,
            initiator=local == ALICE,
            remote_caps={},
            channel_id=bytes(32),
            suite="Noise_XX_25519_ChaChaPoly_SHA256",
        )

    return end(ALICE, BOB, (THERE, BACK)), end(BOB, ALICE, (BACK, THERE))


def opened(channel: SecureChannel, message: bytes | bytearray | memoryview) -> list[bytes]:
    return [bytes(plain) for plain in channel.open_message(message)]


@pytest.mark.parametrize("size", [1, 2, 16, 1000, MAX_RECORD])
def test_records_come_through_both_ways(size: int) -> None:
    alice, bob = channels()
    plain = bytes(i % 251 for i in range(size))
    record = alice.seal(plain)
    assert len(record) == size + RECORD_OVERHEAD
    assert bob.open(record) == plain
    assert alice.open(bob.seal(plain)) == plain
    assert (alice.records_sent, alice.records_received) == (1, 1)


def test_the_bytes_are_those_of_the_format() -> None:
    alice, _ = channels()
    sealed = nacl.bindings.crypto_aead_chacha20poly1305_ietf_encrypt(b"\x02head" + b"body", b"", bytes(12), THERE)
    assert alice.seal(b"\x02", b"head", memoryview(b"body")) == len(sealed).to_bytes(2, "big") + sealed


@given(st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=4).filter(any), min_size=1, max_size=MAX_RECORDS))
def test_messages_come_through(records: list[list[bytes]]) -> None:
    alice, bob = channels()
    assert opened(bob, alice.seal_message(records)) == [b"".join(parts) for parts in records]


def test_the_largest_message_is_in_bounds() -> None:
    alice, bob = channels()
    full = bytes(MAX_RECORD)
    message = alice.seal_message([(full[:100], full[100:])] * MAX_RECORDS)
    assert len(message) == MAX_MESSAGE <= 1_100_000
    assert opened(bob, memoryview(bytes(message))) == [full] * MAX_RECORDS


def test_seals_into_a_part_of_a_buffer() -> None:
    alice, bob = channels()
    out = bytearray(200)
    first = alice.seal_into(out, b"first")
    second = alice.seal_into(memoryview(out)[first:], b"sec", b"ond")
    assert opened(bob, out[: first + second]) == [b"first", b"second"]
    assert not any(out[first + second :])


def test_what_cannot_be_sealed() -> None:
    alice, bob = channels()
    for parts in ((), (b"",), (bytes(MAX_RECORD), b"?")):
        with pytest.raises(MessageError, match="1 to 65519 bytes"):
            alice.seal(*parts)
    for count in (0, MAX_RECORDS + 1):
        with pytest.raises(MessageError, match="1 to 16 records"):
            alice.seal_message([(b"r",)] * count)
    with pytest.raises(ValueError, match="needs 33, not 10"):
        alice.seal_into(bytearray(10), b"too long for it")
    assert bob.open(alice.seal(b"no record was lost by these")) == b"no record was lost by these"


def test_a_view_holds_until_the_next_record() -> None:
    alice, bob = channels()
    one, two = alice.seal(b"one"), alice.seal(b"two")
    view = bob.open(one)
    assert view == b"one"
    assert bob.open(two) == b"two"
    assert view == b"two"


def test_replay_is_noticed() -> None:
    alice, bob = channels()
    record = alice.seal(b"once")
    bob.open(record)
    with pytest.raises(RemoteProtocolError, match="changed, dropped or repeated"):
        bob.open(record)


def test_reordering_and_dropping_are_noticed() -> None:
    alice, bob = channels()
    _, second = alice.seal(b"1"), alice.seal(b"2")
    with pytest.raises(RemoteProtocolError):
        bob.open(second)


def test_after_a_failure_nothing_is_opened() -> None:
    alice, bob = channels()
    good = alice.seal(b"good")
    bad = bytearray(good)
    bad[-1] ^= 1
    with pytest.raises(RemoteProtocolError, match="do not decrypt"):
        bob.open(bad)
    with pytest.raises(RemoteProtocolError, match="after one that did not decrypt"):
        bob.open(good)


def test_reflection_is_noticed() -> None:
    alice, _ = channels()
    with pytest.raises(RemoteProtocolError):
        alice.open(alice.seal(b"to Bob"))


def test_every_changed_byte_is_noticed() -> None:
    record = channels()[0].seal(b"plain")
    for index in range(len(record)):
        _, bob = channels()
        changed = bytearray(record)
        changed[index] ^= 0x40
        with pytest.raises(RemoteProtocolError):
            bob.open(changed)


def test_every_cut_is_noticed_and_whole_records_before_it_are_not_opened() -> None:
    message = channels()[0].seal_message([(b"one",), (b"two",), (b"three",)])
    boundaries = {0, 21, 42, len(message)}
    for size in range(len(message)):
        _, bob = channels()
        if size in boundaries and size:
            assert len(opened(bob, message[:size])) == size // 21  # its end is missed by the frames: no FIN came
        else:
            with pytest.raises(RemoteProtocolError):
                opened(bob, message[:size])
            assert bob.records_received == 0


def test_more_records_than_allowed_are_refused() -> None:
    alice, bob = channels()
    records = [alice.seal(b"r") for _ in range(MAX_RECORDS + 1)]
    with pytest.raises(RemoteProtocolError, match="1 to 16 whole records"):
        opened(bob, b"".join(records))
    with pytest.raises(RemoteProtocolError, match="1 to 1 whole records"):
        bob.open(records[0] + records[1])
    assert bob.records_received == 0


def test_an_empty_record_is_refused() -> None:
    _, bob = channels()
    with pytest.raises(RemoteProtocolError, match="wrong length"):
        bob.open(b"\x00\x10" + CHACHAPOLY.seal(THERE, 0, b"", b""))


@given(
    st.binary(max_size=300)
    | st.lists(st.binary(min_size=17, max_size=40), max_size=20).map(
        lambda records: b"".join(len(record).to_bytes(2, "big") + record for record in records)
    )
)
def test_any_bytes_are_opened_or_refused(message: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        opened(channels()[1], message)


def test_a_claimed_length_allocates_nothing() -> None:
    _, bob = channels()
    tracemalloc.start()
    try:
        for message in (b"\xff\xff", b"\xff\xff" + bytes(100), bytes(1000), b"\x00\x11" * 500):
            with pytest.raises(RemoteProtocolError):
                opened(bob, message)
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()


def test_each_direction_takes_a_new_key_every_4096_records() -> None:
    encrypt = nacl.bindings.crypto_aead_chacha20poly1305_ietf_encrypt
    alice, bob = channels()
    keys = [THERE]
    for _ in range(2):
        keys.append(encrypt(bytes(32), b"", bytes(4) + b"\xff" * 8, keys[-1])[:32])
    for n in range(2 * REKEY_RECORDS + 1):
        record = alice.seal(b"x")
        if n % REKEY_RECORDS in (0, REKEY_RECORDS - 1):
            nonce = bytes(4) + n.to_bytes(8, "little")
            assert record[2:] == encrypt(b"x", b"", nonce, keys[n // REKEY_RECORDS])
        assert bob.open(record) == b"x"
    assert alice.records_sent == bob.records_received == 2 * REKEY_RECORDS + 1
    assert all(before != after for before, after in pairwise(keys))
    assert alice.open(bob.seal(b"the other direction has its own count")).nbytes == 37


def test_repr_is_one_line_without_keys() -> None:
    alice, bob = channels()
    assert repr(alice) == f"<SecureChannel {ALICE[:10]} -> {BOB[:10]}, Noise_XX_25519_ChaChaPoly_SHA256>"
    assert repr(bob) == f"<SecureChannel {BOB[:10]} <- {ALICE[:10]}, Noise_XX_25519_ChaChaPoly_SHA256>"
