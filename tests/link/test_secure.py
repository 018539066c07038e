import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.crypto import noise
from p2pfl.crypto.aead import aes_available
from p2pfl.crypto.identity import Identity, NetworkKey
from p2pfl.errors import ConfigError, HandshakeFailed, LinkRefused, RemoteProtocolError, UntrustedPeer, VersionMismatch
from p2pfl.link import secure
from p2pfl.link.secure import (
    MAX_HANDSHAKE,
    Handshake,
    SecuritySettings,
    Versions,
    choose_subprotocol,
    offered_subprotocols,
)
from p2pfl.link.trust import AllowList, NetworkKeyTrust, Open, Tofu, TrustPolicy

ALICE, BOB, MALLORY = (Identity.from_seed(letter * 32) for letter in (b"a", b"b", b"m"))
KEY, OTHER_KEY = NetworkKey(b"k" * 32), NetworkKey(b"o" * 32)
CHACHA = "p2pfl.v1.chachapoly"
AES = "p2pfl.v1.aesgcm"

with_and_without_key = pytest.mark.parametrize("key", [None, KEY], ids=["open network", "network key"])
needs_aes = pytest.mark.skipif(not aes_available(), reason="this processor has no AES instructions")

Both = tuple[Handshake, Handshake]


def settings(identity: Identity, key: NetworkKey | None = None, **others: object) -> SecuritySettings:
    return replace(SecuritySettings(identity=identity, trust=Open(), network_key=key), **others)


def pair(
    alice: SecuritySettings,
    bob: SecuritySettings,
    *,
    offered: Sequence[str] = (CHACHA,),
    seen: Sequence[str] | None = None,
    expect: str | None = None,
    kind: type[Handshake] = Handshake,
) -> Both:
    """Alice dials Bob; `seen` is what Bob sees of the offer; `kind` is what Alice runs."""
    chosen = choose_subprotocol(seen or offered)
    return (
        kind(alice, initiator=True, offered=offered, chosen=chosen, expect=expect, label="127.0.0.1:9000"),
        Handshake(bob, initiator=False, offered=seen or offered, chosen=chosen),
    )


def run(both: Both, change: Callable[[int, bytes], bytes] = lambda _, message: message) -> list[bytes]:
    """The handshake, with each message changed on its way; gives the messages as they were sent."""
    alice, bob = both
    sent = [alice.begin()]
    sent.append(bob.receive(change(0, sent[0])))
    sent.append(alice.receive(change(1, sent[1])))
    assert bob.receive(change(2, sent[2])) == b""
    return sent


def honest(key: NetworkKey | None = None) -> Both:
    return pair(settings(ALICE, key), settings(BOB, key))


@with_and_without_key
@pytest.mark.parametrize("offered", [(CHACHA,), pytest.param((AES, CHACHA), marks=needs_aes)])
def test_makes_a_channel(key: NetworkKey | None, offered: Sequence[str]) -> None:
    alice, bob = both = pair(
        settings(ALICE, key, caps={"role": "trainer", "gpus": 2}),
        settings(BOB, key),
        offered=offered,
        expect=BOB.peer_id,
    )
    assert not alice.done
    sizes = [len(message) for message in run(both)]
    assert all(size <= limit for size, limit in zip(sizes, MAX_HANDSHAKE, strict=True))
    assert alice.done
    assert bob.done
    here, there = alice.channel, bob.channel
    assert (here.local, here.remote, here.initiator) == (ALICE.peer_id, BOB.peer_id, True)
    assert (there.local, there.remote, there.initiator) == (BOB.peer_id, ALICE.peer_id, False)
    assert here.channel_id == there.channel_id
    assert len(here.channel_id) == 32
    assert (there.remote_caps, here.remote_caps) == ({"role": "trainer", "gpus": 2}, {})
    cipher = "AESGCM" if AES in offered else "ChaChaPoly"
    assert here.suite == there.suite == f"Noise_{'XXpsk0+psk3' if key else 'XX'}_25519_{cipher}_SHA256"
    assert there.open(here.seal(b"to Bob")) == b"to Bob"
    assert here.open(there.seal(b"to Alice")) == b"to Alice"


def test_the_wire_is_that_of_the_specification() -> None:
    """An independent initiator, written out from the text, is accepted."""
    prologue = (
        b"p2pfl/1\0Noise_XX_25519_ChaChaPoly_SHA256\0\x00\x05p2pfl\x00\x01\x00\x01"
        b"\x02\x0fp2pfl.v1.aesgcm\x13p2pfl.v1.chachapoly\x13p2pfl.v1.chachapoly"
    )
    static = noise.KeyPair()
    state = noise.HandshakeState("XX", secure.CHACHAPOLY, initiator=True, prologue=prologue, s=static)
    bob = Handshake(settings(BOB), initiator=False, offered=(AES, CHACHA), chosen=CHACHA)
    payload = state.read_message(bob.receive(state.write_message()))
    statement = b"p2pfl noise id v1R" + state.payload_hash + state.rs
    assert payload == b"\x01" + BOB.public_key + BOB.sign(statement) + b"\x00\x02{}"

    def introduce(session: bytes) -> bytes:
        signature = ALICE.sign(b"p2pfl noise id v1I" + session + static.public)
        return b"\x01" + ALICE.public_key + signature + b'\x00\x07{"a":1}'

    assert bob.receive(state.write_message(introduce)) == b""
    assert bob.channel.remote == ALICE.peer_id
    assert bob.channel.remote_caps == {"a": 1}
    assert bob.channel.channel_id == state.handshake_hash


@with_and_without_key
def test_every_changed_byte_of_every_message_breaks_it(key: NetworkKey | None) -> None:
    for which, message in enumerate(run(honest(key))):
        for index in range(len(message)):
            both = honest(key)

            def change(number: int, sent: bytes, which: int = which, index: int = index) -> bytes:
                return sent[:index] + bytes([sent[index] ^ 0x80]) + sent[index + 1 :] if number == which else sent

            with pytest.raises(HandshakeFailed):
                run(both, change)
            assert not both[1].done


@with_and_without_key
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("change", [lambda m: m[:-1], lambda m: m + b"?", lambda _: b"", lambda m: m + bytes(3000)])
def test_every_changed_length_breaks_it(key: NetworkKey | None, which: int, change: Callable[[bytes], bytes]) -> None:
    both = honest(key)
    with pytest.raises(HandshakeFailed):
        run(both, lambda number, sent: change(sent) if number == which else sent)
    assert not both[1].done


@with_and_without_key
def test_replayed_messages_are_refused(key: NetworkKey | None) -> None:
    recorded = run(honest(key))
    bob = honest(key)[1]
    bob.receive(recorded[0])
    with pytest.raises(HandshakeFailed, match="does not decrypt"):
        bob.receive(recorded[2])
    assert not bob.done


def test_a_recorded_session_opens_no_other() -> None:
    first, second = honest(), honest()
    run(first)
    run(second)
    record = first[0].channel.seal(b"once")
    with pytest.raises(RemoteProtocolError):
        second[1].channel.open(record)
    assert first[0].channel.channel_id != second[0].channel.channel_id


@with_and_without_key
def test_reflected_messages_are_refused(key: NetworkKey | None) -> None:
    alice, bob = honest(key)
    first = alice.begin()
    with pytest.raises(HandshakeFailed):
        alice.receive(first)
    second = bob.receive(first)
    with pytest.raises(HandshakeFailed):
        bob.receive(second)


def test_a_dead_handshake_stays_dead() -> None:
    alice, bob = honest()
    with pytest.raises(HandshakeFailed):
        bob.begin()
    second = honest()[1].receive(alice.begin())
    with pytest.raises(HandshakeFailed):
        alice.receive(bytes(len(second)))
    with pytest.raises(HandshakeFailed):
        alice.receive(second)
    with pytest.raises(HandshakeFailed, match="not over"):
        _ = alice.channel


def test_a_message_after_the_last_is_refused() -> None:
    both = honest()
    run(both)
    for end in both:
        with pytest.raises(HandshakeFailed, match="after the last"):
            end.receive(b"more")


class Impostor(Handshake):
    """Valid Noise, and a payload made by `lie` from the session, our static key, and the honest payload."""

    lie: Callable[[bytes, bytes, bytes], bytes]

    def _introduce(self, session: bytes) -> bytes:
        return type(self).lie(session, self._settings.identity.noise_static.public, super()._introduce(session))


def says(public_key: bytes, signature: bytes, caps: bytes = b"{}", version: int = 1) -> bytes:
    return bytes([version]) + public_key + signature + len(caps).to_bytes(2, "big") + caps


def signed(session: bytes, static: bytes, role: bytes = b"I", tag: bytes = b"p2pfl noise id v1") -> bytes:
    return MALLORY.sign(tag + role + session + static)


BOGUS = bytes(32)
LIES: dict[str, Callable[[bytes, bytes, bytes], bytes]] = {
    "no signature": lambda h, s, _: says(ALICE.public_key, bytes(64)),
    "the signature of another key": lambda h, s, _: says(ALICE.public_key, signed(h, s)),
    "the signature of another session": lambda h, s, _: says(MALLORY.public_key, signed(BOGUS, s)),
    "the signature of another static key": lambda h, s, _: says(MALLORY.public_key, signed(h, BOGUS)),
    "the signature of the other role": lambda h, s, _: says(MALLORY.public_key, signed(h, s, b"R")),
    "the signature of another purpose": lambda h, s, _: says(
        MALLORY.public_key, signed(h, s, tag=b"p2pfl other id v1")
    ),
    "a key of low order": lambda h, s, _: says(bytes(32), bytes(64)),
    "another version": lambda h, s, _: says(MALLORY.public_key, signed(h, s), version=2),
    "nothing": lambda *_: b"",
    "too little": lambda h, s, honest: honest[:98],
    "a wrong length": lambda h, s, honest: honest + b" ",
    "too much": lambda h, s, _: says(MALLORY.public_key, signed(h, s), orjson.dumps({"a": "x" * 1024})),
    "no JSON": lambda h, s, _: says(MALLORY.public_key, signed(h, s), b"{"),
    "no UTF-8": lambda h, s, _: says(MALLORY.public_key, signed(h, s), b'{"a":"\xff"}'),
    "no object": lambda h, s, _: says(MALLORY.public_key, signed(h, s), b"[]"),
    "a key twice": lambda h, s, _: says(MALLORY.public_key, signed(h, s), b'{"a":1,"a":2}'),
    "blanks": lambda h, s, _: says(MALLORY.public_key, signed(h, s), b'{"a": 1}'),
    "unsorted keys": lambda h, s, _: says(MALLORY.public_key, signed(h, s), b'{"b":1,"a":2}'),
    "a large integer": lambda h, s, _: says(MALLORY.public_key, signed(h, s), b'{"a":36893488147419103232}'),
    "depth": lambda h, s, _: says(MALLORY.public_key, signed(h, s), b'{"a":' + b"[" * 400 + b"]" * 400 + b"}"),
}


@with_and_without_key
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_an_identity_is_proven_or_refused(lie: Callable[[bytes, bytes, bytes], bytes], key: NetworkKey | None) -> None:
    impostor = type("Liar", (Impostor,), {"lie": staticmethod(lie)})
    alice, bob = pair(settings(MALLORY, key), settings(BOB, key), kind=impostor)
    last = alice.receive(bob.receive(alice.begin()))
    with pytest.raises(HandshakeFailed):
        bob.receive(last)
    assert not bob.done


def test_the_impostor_of_these_tests_can_tell_the_truth() -> None:
    truth = type("Truth", (Impostor,), {"lie": staticmethod(lambda h, s, _: says(MALLORY.public_key, signed(h, s)))})
    both = pair(settings(MALLORY), settings(BOB), kind=truth)
    run(both)
    assert both[1].channel.remote == MALLORY.peer_id


def test_the_wrong_peer_is_refused_before_we_say_who_we_are() -> None:
    alice, bob = pair(settings(ALICE), settings(MALLORY), expect=BOB.peer_id)
    second = bob.receive(alice.begin())
    with pytest.raises(HandshakeFailed, match=f"{MALLORY.peer_id[:10]} answers where {BOB.peer_id[:10]} was expected"):
        alice.receive(second)
    assert not alice.done


def test_ourselves_are_refused() -> None:
    alice, again = pair(settings(ALICE), settings(ALICE))
    second = again.receive(alice.begin())
    with pytest.raises(LinkRefused, match="this node itself"):
        alice.receive(second)


@pytest.mark.parametrize("at_dialler", [True, False])
def test_trust_is_asked_at_both_ends(at_dialler: bool) -> None:
    nobody = AllowList([MALLORY.peer_id])
    both = pair(
        settings(ALICE, trust=nobody if at_dialler else Open()), settings(BOB, trust=Open() if at_dialler else nobody)
    )
    refused = (BOB if at_dialler else ALICE).peer_id
    with pytest.raises(UntrustedPeer, match=f"{refused[:10]} is not on the allow list"):
        run(both)
    assert not both[0 if at_dialler else 1].done


def test_trust_is_asked_with_the_address_that_was_dialled() -> None:
    asked: list[tuple[str, str | None]] = []

    class Note(TrustPolicy):
        def admit(self, peer_id: str, label: str | None) -> None:
            asked.append((peer_id, label))

    run(pair(settings(ALICE, trust=Note()), settings(BOB, trust=Note())))
    assert asked == [(BOB.peer_id, "127.0.0.1:9000"), (ALICE.peer_id, None)]


def test_nothing_is_pinned_for_a_peer_that_fails_later(tmp_path) -> None:
    tofu = Tofu(tmp_path / "pins")
    alice, bob = pair(settings(ALICE, trust=tofu), settings(MALLORY), expect=BOB.peer_id)
    second = bob.receive(alice.begin())
    with pytest.raises(HandshakeFailed):
        alice.receive(second)
    assert tofu.pins == {}


@pytest.mark.parametrize(
    ("dialler", "listener", "sentence"),
    [
        (OTHER_KEY, KEY, "another network key or network name"),
        (None, KEY, "the other end has no network key, we have one"),
        (KEY, None, "the other end has a network key, we none"),
    ],
)
def test_another_network_key_is_refused_at_the_first_message_for_nothing(
    monkeypatch: pytest.MonkeyPatch, dialler: NetworkKey | None, listener: NetworkKey | None, sentence: str
) -> None:
    alice, bob = pair(settings(ALICE, dialler), settings(Identity.generate(), listener))
    first = alice.begin()
    calls: list[str] = []
    for name in ("crypto_scalarmult", "crypto_scalarmult_base"):
        monkeypatch.setattr(noise, name, lambda *_: calls.append("called"))
    with pytest.raises(HandshakeFailed, match=sentence):
        bob.receive(first)
    assert calls == []


def test_another_network_name_is_refused() -> None:
    with pytest.raises(HandshakeFailed, match="a network of another name"):
        run(pair(settings(ALICE), settings(BOB, network_name="other")))
    with pytest.raises(HandshakeFailed, match="network name"):
        run(pair(settings(ALICE, KEY), settings(BOB, KEY, network_name="other")))


def test_no_failure_tells_a_secret() -> None:
    secrets = [part for key in (KEY, OTHER_KEY) for part in (key.secret, *key.psks)]
    with pytest.raises(HandshakeFailed) as caught:
        run(pair(settings(ALICE, KEY), settings(BOB, OTHER_KEY)))
    error: BaseException | None = caught.value
    while error:
        assert not any(secret.hex() in str(error) or repr(secret)[2:-1] in str(error) for secret in secrets)
        error = error.__cause__


@needs_aes
def test_a_tampered_offer_breaks_the_handshake() -> None:
    downgraded = pair(settings(ALICE), settings(BOB), offered=(AES, CHACHA), seen=(CHACHA,))
    with pytest.raises(HandshakeFailed):
        run(downgraded)
    alice = Handshake(settings(ALICE), initiator=True, offered=(AES, CHACHA), chosen=CHACHA)
    bob = Handshake(settings(BOB), initiator=False, offered=(AES, CHACHA), chosen=AES)
    with pytest.raises(HandshakeFailed):
        run((alice, bob))


def test_what_is_offered_and_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secure, "aes_available", lambda: True)
    assert offered_subprotocols() == (AES, CHACHA)
    assert choose_subprotocol((CHACHA, AES)) == AES
    assert choose_subprotocol(("graphql-ws", CHACHA)) == CHACHA
    assert choose_subprotocol(("p2pfl.v2.aesgcm", "p2pfl.v1.aesgcm")) == AES
    assert offered_subprotocols(Versions(2, 3))[::2] == ("p2pfl.v3.aesgcm", "p2pfl.v2.aesgcm")
    monkeypatch.setattr(secure, "aes_available", lambda: False)
    assert offered_subprotocols() == (CHACHA,)
    assert choose_subprotocol((AES, CHACHA)) == CHACHA
    with pytest.raises(HandshakeFailed, match="no cipher"):
        choose_subprotocol((AES,))
    with pytest.raises(HandshakeFailed, match="cipher aesgcm was chosen, and is not available here"):
        Handshake(settings(ALICE), initiator=True, offered=(AES,), chosen=AES)


@pytest.mark.parametrize(
    "offered", [(), ("graphql-ws",), ("p2pfl.v0.aesgcm",), ("p2pfl.v1",), ("p2pfl.v99999.aesgcm",)]
)
def test_others_are_not_spoken_to(offered: Sequence[str]) -> None:
    with pytest.raises(HandshakeFailed, match="does not offer to speak p2pfl"):
        choose_subprotocol(offered)


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ((CHACHA,), AES),
        ((CHACHA,), ""),
        ((CHACHA, "x" * 65), CHACHA),
        ((CHACHA, "\ud800"), CHACHA),
        ((CHACHA,) * 17, CHACHA),
        (("p2pfl.v1.rot13",), "p2pfl.v1.rot13"),
        (("p2pfl.v2.chachapoly", CHACHA), "p2pfl.v2.chachapoly"),
    ],
)
def test_a_choice_must_be_one_of_ours(offered: Sequence[str], chosen: str) -> None:
    with pytest.raises(HandshakeFailed):
        Handshake(settings(ALICE), initiator=True, offered=offered, chosen=chosen)


@given(st.integers(1, 20), st.integers(0, 5), st.integers(1, 20), st.integers(0, 5))
def test_versions(low: int, more: int, their_low: int, their_more: int) -> None:
    ours, theirs = Versions(low, low + more), Versions(their_low, their_low + their_more)
    shared = {*range(ours.lowest, ours.highest + 1)} & {*range(theirs.lowest, theirs.highest + 1)}
    if shared:
        assert ours.common(theirs) == theirs.common(ours) == max(shared)
    else:
        with pytest.raises(VersionMismatch, match="here" if ours.highest < theirs.lowest else "there"):
            ours.common(theirs)


def test_a_version_mismatch_says_who_should_upgrade() -> None:
    with pytest.raises(VersionMismatch, match=r"speaks protocol versions 2 to 3, we only version 1: .* here"):
        choose_subprotocol(("p2pfl.v3.aesgcm", "p2pfl.v2.chachapoly"))
    with pytest.raises(ValueError, match="from 2 to 1"):
        Versions(2, 1)


def test_settings_that_cannot_work() -> None:
    with pytest.raises(ConfigError, match="needs a network key"):
        SecuritySettings(identity=ALICE, trust=Open() & NetworkKeyTrust())
    for name in ("", "x" * 256):
        with pytest.raises(ConfigError, match=r"^network_name: "):
            settings(ALICE, network_name=name)
    for caps, sentence in (
        ({"a": object()}, "not JSON"),
        ({"a": float("nan")}, "survive"),
        ({"a": "x" * 1024}, "1032 bytes"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            settings(ALICE, caps=caps)


@given(st.data())
def test_any_bytes_are_refused_and_nothing_else_is_raised(data: st.DataObject) -> None:
    key = data.draw(st.sampled_from([None, KEY]))
    alice, bob = honest(key)
    stage = data.draw(st.integers(0, 2))
    if stage == 0:
        end = bob
    else:
        second = bob.receive(alice.begin())
        end = alice if stage == 1 else bob
        if stage == 2:
            alice.receive(second)
    messages = data.draw(st.lists(st.binary(max_size=2500), min_size=3, max_size=3))
    with pytest.raises(HandshakeFailed):
        for message in messages:
            end.receive(message)
    assert not end.done


def test_a_flood_is_refused_unread() -> None:
    message = bytes(10_000_000)
    bob = honest()[1]
    tracemalloc.start()
    try:
        with pytest.raises(HandshakeFailed, match="too large"):
            bob.receive(message)
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()


def test_repr_is_one_line() -> None:
    alice, _ = honest()
    assert repr(alice) == "<Handshake Noise_XX_25519_ChaChaPoly_SHA256, 0 of 3 messages>"
    assert "k" * 32 not in repr(settings(ALICE, KEY))
