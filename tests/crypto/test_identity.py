import base64
import copy
import hashlib
from pathlib import Path

import nacl.bindings
import nacl.encoding
import nacl.hash
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.crypto import identity as module
from p2pfl.crypto.identity import Identity, NetworkKey, Succession, is_peer_id, peer_id_of, short_id, verify
from p2pfl.errors import IdentityError
from tests.crypto.vectors import wycheproof

ALICE = Identity.from_seed(bytes(range(32)))
BOB = Identity.from_seed(b"b" * 32)


@pytest.fixture
def cheap_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argon2id at its least: the figures are in the file, so what was sealed so opens so."""
    bindings = nacl.bindings
    monkeypatch.setattr(
        module, "crypto_pwhash_argon2id_OPSLIMIT_MODERATE", bindings.crypto_pwhash_argon2id_OPSLIMIT_MIN
    )
    monkeypatch.setattr(
        module, "crypto_pwhash_argon2id_MEMLIMIT_MODERATE", bindings.crypto_pwhash_argon2id_MEMLIMIT_MIN
    )


def test_the_peer_id_is_the_hash_of_the_public_key() -> None:
    assert ALICE.public_key.hex() == "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
    digest = hashlib.blake2b(ALICE.public_key, digest_size=32, person=b"p2pfl-peer-id-v1").digest()
    assert base64.b32decode(ALICE.peer_id.upper() + "====") == digest
    assert len(ALICE.peer_id) == 52
    assert peer_id_of(ALICE.public_key) == ALICE.peer_id
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        peer_id_of(bytes(31))


@given(st.binary(min_size=32, max_size=32))
def test_every_peer_id_is_one(public_key: bytes) -> None:
    assert is_peer_id(peer_id_of(public_key))


@pytest.mark.parametrize(
    "text", ["", ALICE.peer_id[:-1], ALICE.peer_id.upper(), ALICE.peer_id + "a", "1" + ALICE.peer_id[1:], "b" * 52]
)
def test_what_is_no_peer_id(text: str) -> None:
    assert not is_peer_id(text)


def test_signatures() -> None:
    signature = ALICE.sign(b"message")
    assert len(signature) == 64
    assert verify(ALICE.public_key, b"message", signature)
    assert not verify(ALICE.public_key, b"massage", signature)
    assert not verify(BOB.public_key, b"message", signature)
    assert not verify(ALICE.public_key, b"message", signature[:-1])
    assert not verify(ALICE.public_key[:-1], b"message", signature)
    # the border between signature and message cannot be moved
    assert not verify(ALICE.public_key, b"essage", signature + b"m")


def test_wycheproof_ed25519() -> None:
    counts = {"valid": 0, "invalid": 0}
    for group, test in wycheproof("ed25519"):
        arguments = (group["publicKey"]["pk"], test["msg"], test["sig"])
        assert verify(*map(bytes.fromhex, arguments)) is (test["result"] == "valid"), test
        counts[test["result"]] += 1
    assert counts == {"valid": 88, "invalid": 63}


def test_a_seed_makes_one_identity() -> None:
    assert Identity.from_seed(bytes(range(32))) == ALICE != BOB
    assert len({Identity.from_seed(bytes(range(32))), ALICE, BOB}) == 2
    assert Identity.generate() != Identity.generate()
    assert ALICE != "alice"
    with pytest.raises(IdentityError, match="32 bytes, not 5"):
        Identity.from_seed(b"short")


def test_repr_shows_ten_characters_and_no_key() -> None:
    assert repr(ALICE) == f"<Identity {ALICE.peer_id[:10]}>"
    assert short_id(ALICE.peer_id) == ALICE.peer_id[:10]
    assert "secret" not in repr(NetworkKey(bytes(32)))
    assert "\\x00" not in repr(NetworkKey(bytes(32)))


def test_is_never_copied_into_a_pickle() -> None:
    for carry in (copy.copy, copy.deepcopy):  # by the way that pickle takes, too
        with pytest.raises(TypeError, match="secret key"):
            carry(ALICE)


def test_saves_and_loads(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    ALICE.save(path)
    assert path.read_bytes() == bytes(range(32))
    assert Identity.load(str(path)) == ALICE
    with pytest.raises(IdentityError, match="exists already"):
        BOB.save(path)
    BOB.save(path, replace=True)
    assert Identity.load(path) == BOB


def test_load_or_create(tmp_path: Path) -> None:
    path = tmp_path / "state" / "identity.key"
    created = Identity.load_or_create(path)
    assert Identity.load_or_create(path) == Identity.load(path) == created


def test_two_processes_that_create_at_once_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "identity.key"
    generate = Identity.generate

    def slowly() -> Identity:
        monkeypatch.setattr(Identity, "generate", generate)
        ALICE.save(path)  # the other process, between our look and our write
        return generate()

    monkeypatch.setattr(Identity, "generate", slowly)
    assert Identity.load_or_create(path) == ALICE


def test_a_place_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(IdentityError, match="cannot be written"):
        Identity.load_or_create(tmp_path / "file" / "identity.key")


@pytest.mark.parametrize("size", [0, 1, 31, 33, 64])
def test_damage_is_named(tmp_path: Path, size: int) -> None:
    path = tmp_path / "identity.key"
    path.touch(mode=0o600)
    path.write_bytes(bytes(size))
    with pytest.raises(IdentityError, match=rf"is damaged \({size} bytes, not 32\)"):
        Identity.load(path)


@pytest.mark.usefixtures("cheap_passphrases")
def test_the_sealed_form(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    ALICE.save(path, "correct horse")
    data = path.read_bytes()
    assert bytes(range(32)) not in data
    assert Identity.load(path, "correct horse") == ALICE
    assert Identity.load_or_create(path, "correct horse") == ALICE
    with pytest.raises(IdentityError, match="is sealed: give its passphrase"):
        Identity.load(path)
    with pytest.raises(IdentityError, match="does not open: give its passphrase"):
        Identity.load(path, "wrong horse")
    path.write_bytes(data[:-1])
    with pytest.raises(IdentityError, match="is damaged"):
        Identity.load(path, "correct horse")
    for index in (40, 60, len(data) - 1):  # salt, nonce, seed
        path.write_bytes(data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :])
        with pytest.raises(IdentityError, match="does not open"):
            Identity.load(path, "correct horse")
    ALICE.save(path, replace=True)
    with pytest.raises(IdentityError, match="is not sealed"):
        Identity.load(path, "correct horse")


@pytest.mark.usefixtures("cheap_passphrases")
def test_a_damaged_file_cannot_ask_for_all_memory(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    ALICE.save(path, "p")
    data = bytearray(path.read_bytes())
    data[24:32] = (1 << 42).to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(IdentityError, match="absurd"):
        Identity.load(path, "p")


def test_sealing_is_slow_by_default() -> None:
    assert module.crypto_pwhash_argon2id_MEMLIMIT_MODERATE == 256 << 20
    assert module.crypto_pwhash_argon2id_OPSLIMIT_MODERATE == 3


def test_succession() -> None:
    succession = ALICE.succeeded_by(BOB)
    assert succession.valid
    assert not Succession(BOB.public_key, ALICE.public_key, succession.signature).valid
    assert not Succession(ALICE.public_key, ALICE.public_key, succession.signature).valid
    assert repr(succession) == f"<Succession {ALICE.peer_id[:10]} -> {BOB.peer_id[:10]}>"


def test_the_static_key_lives_as_long_as_the_process() -> None:
    identity = Identity.generate()
    assert identity.noise_static is identity.noise_static
    assert identity.noise_static.private != Identity.generate().noise_static.private


def test_network_key_files(tmp_path: Path) -> None:
    key = NetworkKey.generate()
    key.save(tmp_path / "network.key")
    assert NetworkKey.load(tmp_path / "network.key") == key
    (tmp_path / "network.key").write_bytes(base64.b64encode(key.secret) + b"\n")
    assert NetworkKey.load(tmp_path / "network.key") == key
    (tmp_path / "network.key").chmod(0o640)
    with pytest.raises(IdentityError, match=r"^network key: .* chmod 600 "):
        NetworkKey.load(tmp_path / "network.key")


@pytest.mark.parametrize("text", ["", "00", "0" * 63, "g" * 64, "QUJD", "no\nkey", "\ufffd" * 44])
def test_a_bad_network_key_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(IdentityError, match=r"^network key: ") as caught:
        NetworkKey.parse(text)
    assert not text or text not in str(caught.value)


def test_network_key_derivation() -> None:
    key = NetworkKey(bytes(range(32)))
    assert NetworkKey.parse(bytes(range(32)).hex()) == key
    psk0, psk3 = key.psks
    for psk, purpose in ((psk0, b"p2pfl psk0"), (psk3, b"p2pfl psk3")):
        assert psk == nacl.hash.blake2b(purpose, digest_size=32, key=key.secret, encoder=nacl.encoding.RawEncoder)
