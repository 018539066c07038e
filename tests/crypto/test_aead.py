import struct
from dataclasses import replace

import nacl.bindings
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.crypto.aead import AESGCM, CHACHAPOLY, TAG_BYTES, Aead, aes_available
from p2pfl.errors import LinkError, RemoteProtocolError
from tests.crypto.vectors import wycheproof

PUBLIC = {
    "AESGCM": (nacl.bindings.crypto_aead_aes256gcm_encrypt, nacl.bindings.crypto_aead_aes256gcm_decrypt, "big"),
    "ChaChaPoly": (
        nacl.bindings.crypto_aead_chacha20poly1305_ietf_encrypt,
        nacl.bindings.crypto_aead_chacha20poly1305_ietf_decrypt,
        "little",
    ),
}
KEY = bytes(range(32))

needs_aes = pytest.mark.skipif(not aes_available(), reason="this processor has no AES instructions")
both = pytest.mark.parametrize("aead", [pytest.param(AESGCM, marks=needs_aes), CHACHAPOLY], ids=lambda aead: aead.name)


@both
@given(key=st.binary(min_size=32, max_size=32), n=st.integers(0, 2**64 - 1), ad=st.binary(), plain=st.binary())
def test_gives_the_same_bytes_as_the_public_wrappers(aead: Aead, key: bytes, n: int, ad: bytes, plain: bytes) -> None:
    encrypt, decrypt, order = PUBLIC[aead.name]
    nonce = bytes(4) + n.to_bytes(8, order)
    sealed = aead.seal(key, n, ad, plain)
    assert sealed == encrypt(plain, ad, nonce, key)
    assert aead.open(key, n, ad, sealed) == decrypt(sealed, ad, nonce, key) == plain


@both
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 4096, 65_519])
def test_seals_and_opens_in_place(aead: Aead, size: int) -> None:
    plain = bytes(i % 251 for i in range(size))
    buffer = bytearray(plain + bytes(TAG_BYTES))
    view = memoryview(buffer)
    aead.seal_into(KEY, 5, b"ad", view[:size], view)
    assert bytes(buffer) == aead.seal(KEY, 5, b"ad", plain)
    aead.open_into(KEY, 5, b"ad", view, view[:size])
    assert bytes(view[:size]) == plain


@both
def test_every_changed_byte_is_noticed_and_nothing_is_shown(aead: Aead) -> None:
    sealed = aead.seal(KEY, 1, b"ad", b"twelve bytes")
    for index in range(len(sealed)):
        changed = bytearray(sealed)
        changed[index] ^= 1
        out = bytearray(b"?" * 12)
        with pytest.raises(RemoteProtocolError):
            aead.open_into(KEY, 1, b"ad", changed, out)
        assert len(set(out)) == 1  # filled with one value, whichever
    for key, n, ad in ((bytes(32), 1, b"ad"), (KEY, 2, b"ad"), (KEY, 1, b"da")):
        with pytest.raises(RemoteProtocolError):
            aead.open(key, n, ad, sealed)


@both
def test_sizes_are_checked_before_memory_is_touched(aead: Aead) -> None:
    with pytest.raises(ValueError, match="16 bytes longer"):
        aead.seal_into(KEY, 0, b"", bytes(8), bytearray(23))
    with pytest.raises(ValueError, match="32 bytes"):
        aead.seal_into(bytes(31), 0, b"", bytes(8), bytearray(24))
    with pytest.raises(ValueError, match="16 bytes shorter"):
        aead.open_into(KEY, 0, b"", bytes(24), bytearray(7))
    with pytest.raises(ValueError, match="32 bytes"):
        aead.open_into(bytes(33), 0, b"", bytes(24), bytearray(8))
    with pytest.raises(BufferError):
        aead.seal_into(KEY, 0, b"", bytes(8), memoryview(bytes(24)))  # a constant is not written to
    for size in range(TAG_BYTES):
        with pytest.raises(RemoteProtocolError):
            aead.open(KEY, 0, b"", bytes(size))


class NonceOf(struct.Struct):
    """A nonce that is no counter behind four zeros, as most of the public vectors have."""

    def __init__(self, nonce: bytes) -> None:
        super().__init__("12s")
        self.nonce = nonce

    def pack(self, *_: object) -> bytes:
        return self.nonce


def test_wycheproof_chacha20_poly1305() -> None:
    counts = {"valid": 0, "invalid": 0}
    for group, test in wycheproof("chacha20_poly1305"):
        if group["ivSize"] != 96:
            continue
        aead = replace(CHACHAPOLY, _nonce=NonceOf(bytes.fromhex(test["iv"])))
        key, ad, plain = (bytes.fromhex(test[name]) for name in ("key", "aad", "msg"))
        sealed = bytes.fromhex(test["ct"] + test["tag"])
        if test["result"] == "valid":
            assert aead.seal(key, 0, ad, plain) == sealed
            assert aead.open(key, 0, ad, sealed) == plain
        else:
            with pytest.raises(RemoteProtocolError):
                aead.open(key, 0, ad, sealed)
        counts[test["result"]] += 1
    assert counts == {"valid": 256, "invalid": 60}


@both
def test_a_cipher_that_does_not_work_is_not_taken_for_one_that_does(aead: Aead) -> None:
    absent = replace(aead, _encrypt=lambda *_: -1)
    with pytest.raises(LinkError, match=f"cannot do {aead.name}"):
        absent.seal(KEY, 0, b"", b"plain")


def test_repr_says_the_cipher() -> None:
    assert repr(CHACHAPOLY) == "<Aead ChaChaPoly>"
