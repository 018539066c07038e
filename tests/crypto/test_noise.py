from collections.abc import Callable
from itertools import cycle
from typing import Any

import nacl.bindings
import pytest

from p2pfl.crypto import noise
from p2pfl.crypto.aead import AESGCM, CHACHAPOLY, Aead, aes_available
from p2pfl.crypto.noise import PATTERNS, CipherState, HandshakeState, KeyPair, dh, hkdf
from p2pfl.errors import HandshakeFailed, LinkError, RemoteProtocolError
from tests.crypto.vectors import load, wycheproof

CIPHERS = {"AESGCM": AESGCM, "ChaChaPoly": CHACHAPOLY}
PSKS = {"XX": (), "XXpsk3": (b"3" * 32,), "XXpsk0+psk3": (b"0" * 32, b"3" * 32)}

patterns = pytest.mark.parametrize("pattern", PATTERNS)
needs_aes = pytest.mark.skipif(not aes_available(), reason="this processor has no AES instructions")
ciphers = pytest.mark.parametrize(
    "aead", [pytest.param(AESGCM, marks=needs_aes), CHACHAPOLY], ids=lambda aead: aead.name
)


def pair(pattern: str, aead: Aead = CHACHAPOLY) -> tuple[HandshakeState, HandshakeState]:
    """Two ends that will agree."""
    made = [
        HandshakeState(pattern, aead, initiator=initiator, prologue=b"p", s=KeyPair(), psks=PSKS[pattern])
        for initiator in (True, False)
    ]
    return made[0], made[1]


def run(initiator: HandshakeState, responder: HandshakeState) -> None:
    responder.read_message(initiator.write_message())
    initiator.read_message(responder.write_message())
    responder.read_message(initiator.write_message())


def replay_vector(vector: dict[str, Any]) -> None:
    """Both ends with the vector's keys give its bytes, and read them back."""
    _, pattern, _, cipher, _ = vector["protocol_name"].split("_")
    ends = []
    for side in ("init", "resp"):
        keys = {
            name: KeyPair(bytes.fromhex(vector[f"{side}_{long}"]))
            for name, long in (("s", "static"), ("e", "ephemeral"))
        }
        psks = [bytes.fromhex(psk) for psk in vector.get(f"{side}_psks", ())]
        prologue = bytes.fromhex(vector[f"{side}_prologue"])
        ends.append(
            HandshakeState(pattern, CIPHERS[cipher], initiator=side == "init", prologue=prologue, psks=psks, **keys)
        )
    sending, receiving = ends
    messages = [(bytes.fromhex(each["payload"]), bytes.fromhex(each["ciphertext"])) for each in vector["messages"]]
    for payload, expected in messages[:3]:
        assert sending.write_message(payload) == expected
        assert receiving.read_message(expected) == payload
        sending, receiving = receiving, sending
    assert ends[0].handshake_hash == ends[1].handshake_hash
    if "handshake_hash" in vector:
        assert ends[0].handshake_hash.hex() == vector["handshake_hash"]
    splits = {True: ends[0].split(), False: ends[1].split()}
    for from_initiator, (payload, expected) in zip(cycle((False, True)), messages[3:], strict=False):
        sealed = bytearray(len(payload) + 16)
        splits[from_initiator][0].seal_into(payload, sealed)
        assert sealed == expected
        assert splits[not from_initiator][1].decrypt_with_ad(b"", expected) == payload


KNOWN_ANSWER = {
    "protocol_name": "Noise_XX_25519_ChaChaPoly_SHA256",
    "init_prologue": "4a6f686e2047616c74",
    "resp_prologue": "4a6f686e2047616c74",
    "init_static": "e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1",
    "init_ephemeral": "893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a",
    "resp_static": "4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893",
    "resp_ephemeral": "bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b",
}
PAYLOADS = ("4c756477696720766f6e204d69736573", "4d757272617920526f746862617264", "462e20412e20486179656b")
MESSAGE_1 = "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c79444c756477696720766f6e204d69736573"
MESSAGE_3 = (
    "c7195ffacac1307ff99046f219750fc47693e23c3cb08b89c2af808b444850a80ae475b9df0f169ae80a89be0865b57f58c9fea0d4ec82a2"
    "86427402f113e4b6ae769a1d95941d49b25030"
)
HANDSHAKE_HASH = "c8e5f64e846193be2a834104c2a009868d6c9f3bd3c186299888b488b2f1f58e"


def test_known_answer() -> None:
    ends = [
        HandshakeState(
            "XX",
            CHACHAPOLY,
            initiator=side == "init",
            prologue=bytes.fromhex(KNOWN_ANSWER[f"{side}_prologue"]),
            s=KeyPair(bytes.fromhex(KNOWN_ANSWER[f"{side}_static"])),
            e=KeyPair(bytes.fromhex(KNOWN_ANSWER[f"{side}_ephemeral"])),
        )
        for side in ("init", "resp")
    ]
    sent = []
    for (sending, receiving), payload in zip((ends, ends[::-1], ends), PAYLOADS, strict=True):
        sent.append(sending.write_message(bytes.fromhex(payload)))
        assert receiving.read_message(sent[-1]).hex() == payload
    assert (sent[0].hex(), sent[2].hex()) == (MESSAGE_1, MESSAGE_3)
    assert ends[0].handshake_hash.hex() == ends[1].handshake_hash.hex() == HANDSHAKE_HASH


def test_public_vectors() -> None:
    vectors = load("noise.json")["vectors"]
    usable = [vector for vector in vectors if "AESGCM" not in vector["protocol_name"] or aes_available()]
    for vector in usable:
        replay_vector(vector)
    assert len(usable) >= 7


@patterns
@ciphers
def test_both_ends_agree(pattern: str, aead: Aead) -> None:
    initiator, responder = pair(pattern, aead)
    run(initiator, responder)
    assert initiator.finished
    assert responder.finished
    assert initiator.handshake_hash == responder.handshake_hash
    assert initiator.rs == responder.s.public
    assert responder.rs == initiator.s.public
    (out, back), (back_out, back_in) = initiator.split(), responder.split()
    assert back_in.decrypt_with_ad(b"", out.encrypt_with_ad(b"", b"there")) == b"there"
    assert back.decrypt_with_ad(b"", back_out.encrypt_with_ad(b"", b"and back")) == b"and back"


def test_a_payload_can_sign_the_hash_before_it() -> None:
    initiator, responder = pair("XX")
    responder.read_message(initiator.write_message(lambda session: session))
    payload = initiator.read_message(responder.write_message(lambda session: session))
    assert payload == initiator.payload_hash == responder.payload_hash
    assert payload != initiator.handshake_hash


def noiseprotocol_end(pattern: str, aead: Aead, initiator: bool) -> tuple[Any, ...]:
    connection = pytest.importorskip("noise.connection", reason="needs the oracle extra")
    other = connection.NoiseConnection.from_name(f"Noise_{pattern}_25519_{aead.name}_SHA256".encode())
    if PSKS[pattern]:
        other.set_psks(psks=list(PSKS[pattern]))
    other.set_prologue(b"p")
    other.set_as_initiator() if initiator else other.set_as_responder()
    other.set_keypair_from_private_bytes(connection.Keypair.STATIC, b"s" * 32)
    other.start_handshake()
    return other.write_message, other.read_message, other.get_handshake_hash, other.encrypt, other.decrypt


def dissononce_end(pattern: str, aead: Aead, initiator: bool) -> tuple[Any, ...]:
    pytest.importorskip("dissononce", reason="needs the oracle extra")
    from dissononce.cipher.aesgcm import AESGCMCipher
    from dissononce.cipher.chachapoly import ChaChaPolyCipher
    from dissononce.dh.private import PrivateKey
    from dissononce.dh.x25519.x25519 import X25519DH
    from dissononce.hash.sha256 import SHA256Hash
    from dissononce.processing.handshakepatterns.interactive.XX import XXHandshakePattern
    from dissononce.processing.impl.cipherstate import CipherState as OtherCipherState
    from dissononce.processing.impl.handshakestate import HandshakeState as OtherHandshakeState
    from dissononce.processing.impl.symmetricstate import SymmetricState
    from dissononce.processing.modifiers.psk import PSKPatternModifier

    modified = XXHandshakePattern()
    for place in (int(name) for name in pattern[2:].replace("psk", "").split("+") if name):
        modified = PSKPatternModifier(place).modify(modified)
    cipher = AESGCMCipher() if aead is AESGCM else ChaChaPolyCipher()
    other = OtherHandshakeState(SymmetricState(OtherCipherState(cipher), SHA256Hash()), X25519DH())
    other.initialize(
        modified, initiator, b"p", s=X25519DH().generate_keypair(PrivateKey(b"s" * 32)), psks=PSKS[pattern]
    )
    split: list[Any] = []

    def write(payload: bytes = b"") -> bytes:
        buffer = bytearray()
        split.extend(other.write_message(payload, buffer) or ())
        return bytes(buffer)

    def read(message: bytes) -> bytes:
        buffer = bytearray()
        split.extend(other.read_message(message, buffer) or ())
        return bytes(buffer)

    out, back = (0, 1) if initiator else (1, 0)
    return (
        write,
        read,
        other.symmetricstate.get_handshake_hash,
        lambda plain: split[out].encrypt_with_ad(b"", plain),
        lambda sealed: split[back].decrypt_with_ad(b"", sealed),
    )


@patterns
@ciphers
@pytest.mark.parametrize("initiator", [True, False], ids=["we dial", "they dial"])
@pytest.mark.parametrize("library", [noiseprotocol_end, dissononce_end])
def test_interoperates(library: Callable[..., tuple[Any, ...]], initiator: bool, aead: Aead, pattern: str) -> None:
    write, read, handshake_hash, encrypt, decrypt = library(pattern, aead, not initiator)
    ours = HandshakeState(pattern, aead, initiator=initiator, prologue=b"p", s=KeyPair(), psks=PSKS[pattern])
    for index, payload in enumerate((b"", b"second", b"third")):
        if (index % 2 == 0) is initiator:
            assert read(ours.write_message(payload)) == payload
        else:
            assert ours.read_message(bytes(write(payload))) == payload
    assert handshake_hash() == ours.handshake_hash
    out, back = ours.split()
    assert decrypt(out.encrypt_with_ad(b"", b"to you")) == b"to you"
    assert back.decrypt_with_ad(b"", bytes(encrypt(b"to me"))) == b"to me"


def test_a_failed_handshake_is_dead() -> None:
    initiator, responder = pair("XX")
    responder.read_message(initiator.write_message())
    message = responder.write_message()
    with pytest.raises(HandshakeFailed, match="does not decrypt"):
        initiator.read_message(message[:-1] + b"?")
    with pytest.raises(HandshakeFailed, match="after a failure"):
        initiator.read_message(message)
    with pytest.raises(HandshakeFailed, match="after a failure"):
        initiator.write_message()
    with pytest.raises(HandshakeFailed, match="not over"):
        initiator.split()


def test_out_of_turn() -> None:
    initiator, responder = pair("XX")
    for call in (lambda: responder.write_message(), lambda: initiator.read_message(bytes(32))):
        with pytest.raises(HandshakeFailed, match="out of turn"):
            call()
    run(initiator, responder)
    with pytest.raises(HandshakeFailed, match="out of turn"):
        responder.write_message()


@patterns
def test_every_truncation_is_refused(pattern: str) -> None:
    initiator, _ = pair(pattern)
    message = initiator.write_message()
    for size in range(len(message)):
        fresh = pair(pattern)[1]
        with pytest.raises(HandshakeFailed):
            fresh.read_message(message[:size])


def test_a_public_key_of_low_order_is_refused() -> None:
    _, responder = pair("XX")
    responder.read_message(bytes(32))
    with pytest.raises(HandshakeFailed, match="low order"):
        responder.write_message()


def test_psks_are_counted() -> None:
    for psks in ((), (bytes(32),), (bytes(32), bytes(31))):
        with pytest.raises(ValueError, match="pre-shared"):
            HandshakeState("XXpsk0+psk3", CHACHAPOLY, initiator=True, prologue=b"", s=KeyPair(), psks=psks)


@ciphers
def test_rekey_is_that_of_the_specification(aead: Aead) -> None:
    encrypt = {
        "AESGCM": nacl.bindings.crypto_aead_aes256gcm_encrypt,
        "ChaChaPoly": nacl.bindings.crypto_aead_chacha20poly1305_ietf_encrypt,
    }[aead.name]
    cipher = CipherState(aead, b"k" * 32)
    cipher.n = 7
    cipher.rekey()
    assert cipher.k == encrypt(bytes(32), b"", bytes(4) + b"\xff" * 8, b"k" * 32)[:32]
    assert cipher.n == 7


def test_the_last_nonce_is_never_used() -> None:
    cipher = CipherState(CHACHAPOLY, b"k" * 32)
    cipher.n = 2**64 - 2
    cipher.encrypt_with_ad(b"", b"the last")
    with pytest.raises(LinkError, match="dial again"):
        cipher.encrypt_with_ad(b"", b"one too many")


def test_a_forgery_does_not_count() -> None:
    sending, receiving = CipherState(CHACHAPOLY, b"k" * 32), CipherState(CHACHAPOLY, b"k" * 32)
    sealed = sending.encrypt_with_ad(b"", b"plain")
    with pytest.raises(RemoteProtocolError):
        receiving.decrypt_with_ad(b"", bytes(21))
    assert receiving.decrypt_with_ad(b"", sealed) == b"plain"


def test_without_a_key_bytes_pass() -> None:
    cipher = CipherState(CHACHAPOLY)
    assert cipher.encrypt_with_ad(b"", b"as is") == cipher.decrypt_with_ad(b"", b"as is") == b"as is"
    with pytest.raises(ValueError, match="no key"):
        cipher.seal_into(b"", bytearray(16))


def test_wycheproof_x25519() -> None:
    counts = {"equal": 0, "refused": 0}
    for _, test in wycheproof("x25519"):
        try:
            shared = dh(bytes.fromhex(test["private"]), bytes.fromhex(test["public"]))
        except HandshakeFailed:
            assert test["result"] != "valid"
            counts["refused"] += 1
        else:
            assert test["result"] != "invalid"
            assert shared.hex() == test["shared"]
            counts["equal"] += 1
    assert counts == {"equal": 487, "refused": 31}


def test_wycheproof_hkdf_sha256() -> None:
    counts = {"valid": 0, "invalid": 0}
    for _, test in wycheproof("hkdf_sha256"):
        salt, ikm, info = (bytes.fromhex(test[name]) for name in ("salt", "ikm", "info"))
        counts[test["result"]] += 1
        if test["result"] == "valid":
            assert hkdf(salt, ikm, info, test["size"]).hex() == test["okm"]
        else:
            with pytest.raises(ValueError, match="at most"):
                hkdf(salt, ikm, info, test["size"])
    assert counts == {"valid": 83, "invalid": 3}


def test_an_outsider_costs_no_multiplication(monkeypatch: pytest.MonkeyPatch) -> None:
    initiator, _ = pair("XX")
    outsider = HandshakeState(
        "XXpsk0+psk3", CHACHAPOLY, initiator=True, prologue=b"p", s=KeyPair(), psks=(b"x" * 32, b"y" * 32)
    )
    attempts = [initiator.write_message(bytes(16)), outsider.write_message()]
    calls: list[str] = []
    for name in ("crypto_scalarmult", "crypto_scalarmult_base"):
        monkeypatch.setattr(noise, name, lambda *_: calls.append("called"))
    for attempt in attempts:
        with pytest.raises(HandshakeFailed):
            pair("XXpsk0+psk3")[1].read_message(attempt)
    assert calls == []


def test_reprs_hold_no_secret() -> None:
    initiator, responder = pair("XXpsk0+psk3")
    assert repr(initiator) == "<HandshakeState Noise_XXpsk0+psk3_25519_ChaChaPoly_SHA256, initiator, 3 messages to go>"
    run(initiator, responder)
    assert repr(initiator.split()[0]) == "<CipherState ChaChaPoly, n=0>"
    assert repr(KeyPair()) == "<KeyPair>"
