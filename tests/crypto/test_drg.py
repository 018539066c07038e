import pytest

from p2pfl.crypto.drg import random_stream

KNOWN = (
    "0d8e6cc68715648926732e7ea73250cfaf2d58422083904c841a8ba33b986111"
    "f346ba50723a68ae283524a6bded09f83be6b80595856f72e25b86918e8b114b"
)


def test_known_answer() -> None:
    assert random_stream(bytes(range(32)), 64).hex() == KNOWN


def test_is_the_chacha20_keystream_of_the_standard() -> None:
    ciphers = pytest.importorskip("cryptography.hazmat.primitives.ciphers", reason="needs the oracle extra")
    seed, size = b"s" * 32, 100_000
    algorithm = ciphers.algorithms.ChaCha20(seed, bytes(4) + b"LibsodiumDRG")  # counter 0, then the nonce
    assert random_stream(seed, size) == ciphers.Cipher(algorithm, mode=None).encryptor().update(bytes(size))


def test_a_longer_stream_begins_like_a_shorter_one() -> None:
    assert random_stream(bytes(32), 1000)[:10] == random_stream(bytes(32), 10)
    assert random_stream(bytes(32), 0) == b""


def test_a_short_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        random_stream(bytes(31), 8)
