"""Entropy coding: bytes come back, lengths are agreed ones, and bombs stay small."""

import importlib.util
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import ConfigError
from p2pfl.learn.entropy import ENTROPY, EntropyCoder, codec

INSTALLED = importlib.util.find_spec("zstandard") is not None
NAMES = [
    "zlib",
    pytest.param(
        "zstandard", marks=pytest.mark.skipif(not INSTALLED, reason="zstandard is not installed: pip install zstandard")
    ),
]


def bomb(name, size):
    """So many zeros in few bytes, as the library makes them."""
    return codec(name).compress(bytes(size))


def test_nothing_is_coded_unless_asked_for():
    assert codec(ENTROPY[0]) is None


@pytest.mark.parametrize("name", NAMES)
@given(data=st.binary(min_size=1, max_size=400), again=st.integers(1, 9))
def test_bytes_come_back_from_an_agreed_length(name, data, again):
    data *= again
    coder = EntropyCoder(codec(name), len(data))
    packed = coder.pack(data)
    assert len(packed) in [*coder.lengths, len(data)] and coder.unpack(packed) == data
    assert all(0 < length < len(data) for length in coder.lengths) and len(coder.lengths) < 128


@pytest.mark.parametrize("name", NAMES)
def test_what_shrinks_takes_a_hundredth_more_at_most(name):
    data = bytes(range(100)) * 100
    coder = EntropyCoder(codec(name), len(data))
    assert len(coder.pack(data)) <= len(codec(name).compress(data)) + len(data) / 100


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data(), size=st.integers(1, 300))
def test_bytes_of_a_stranger_expand_to_just_the_size_or_are_refused(name, data, size):
    sent = data.draw(st.binary(max_size=300))
    try:
        assert len(codec(name).expand(sent, size)) == size
    except ValueError as error:
        assert "bytes came" in str(error)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [0, 999, 1001, 1 << 24])
def test_what_expands_to_another_size_is_refused(name, size):
    with pytest.raises(ValueError, match="do not expand to just 1000"):
        codec(name).expand(bomb(name, size), 1000)


@pytest.mark.parametrize("name", NAMES)
def test_a_bomb_takes_no_memory(name):
    sent = bomb(name, 1 << 26)
    tracemalloc.start()
    with pytest.raises(ValueError, match="do not expand"):
        codec(name).expand(sent, 1000)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_what_ends_too_early_is_refused():
    whole = codec("zlib").compress(bytes(1000))
    with pytest.raises(ValueError, match="do not expand to just"):
        codec("zlib").expand(whole[:-1], 1000)
    with pytest.raises(ValueError, match="bytes came that zlib has not made"):
        codec("zlib").expand(zlib.compress(b"with a header"), 1000)


@pytest.mark.skipif(INSTALLED, reason="zstandard is installed")
def test_a_missing_package_is_named_with_what_installs_it():
    with pytest.raises(ConfigError, match=r"zstandard is not installed: pip install 'p2pfl-aio\[zstd\]', or set it to"):
        codec("zstandard")
