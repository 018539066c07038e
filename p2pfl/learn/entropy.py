"""Entropy coding of what is sent: encoded updates are far from random, and a general compressor takes a part off.

Peers agree on sizes before they talk, and how far bytes shrink is known only afterwards. So a compressed buffer is
filled up with zeros to one of a few lengths, all below that of the bytes as they are; what does not shrink goes as it
is. What comes is expanded to the agreed number of bytes and no further: a small buffer cannot become a large one here.

Which bytes come out is up to the library and its version; what they expand to is not.
"""

from __future__ import annotations

import math
import zlib
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any, Protocol

from p2pfl.errors import ConfigError

__all__ = ["ENTROPY", "Codec", "EntropyCoder", "Tally", "codec"]

ENTROPY = ("none", "zlib", "zstandard")
_STEPS = 128  # lengths that are agreed: all within a hundredth of what is needed, as a share of the bytes as they are
_WINDOW = 1 << 23  # bytes that an expanding zstandard may keep: as much as its usual levels use


class Codec(Protocol):
    """A general compressor."""

    def compress(self, data: bytes) -> bytes:
        """What `expand` takes, alone or with more bytes behind it."""

    def expand(self, data: bytes, size: int) -> bytes:
        """Just `size` bytes. Raises ValueError for what holds fewer or more, before memory is taken for them."""


class _Zlib:
    """DEFLATE without a header, of the standard library."""

    def compress(self, data: bytes) -> bytes:
        press = zlib.compressobj(wbits=-zlib.MAX_WBITS, memLevel=zlib.DEF_MEM_LEVEL + 1)
        return press.compress(data) + press.flush()

    def expand(self, data: bytes, size: int) -> bytes:
        press = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
        try:
            found = press.decompress(data, size + 1)
        except zlib.error as error:
            raise ValueError(f"bytes came that zlib has not made: {error}") from error
        return _just(found, size, ended=press.eof)


class _Zstandard:
    """The package zstandard."""

    def __init__(self) -> None:
        try:
            import zstandard  # noqa: PLC0415 - optional
        except ImportError as error:
            raise ConfigError(
                "entropy is 'zstandard', and the package zstandard is not installed: pip install 'p2pfl-aio[zstd]', "
                "or set it to zlib"
            ) from error
        self._library: Any = zstandard

    def compress(self, data: bytes) -> bytes:
        found: bytes = self._library.ZstdCompressor(level=3).compress(data)
        return found

    def expand(self, data: bytes, size: int) -> bytes:
        """Read as a stream: at once, the library would take the memory that the bytes say they need."""
        press = self._library.ZstdDecompressor(max_window_size=_WINDOW)
        try:
            with press.stream_reader(data) as stream:
                found: bytes = stream.read(size + 1)
        except self._library.ZstdError as error:
            raise ValueError(f"bytes came that zstandard has not made: {error}") from error
        return _just(found, size, ended=True)


def _just(found: bytes, size: int, *, ended: bool) -> bytes:
    if len(found) != size or not ended:
        raise ValueError(f"bytes came that do not expand to just {size}")
    return found


def codec(name: str) -> Codec | None:
    """By one of the names in ENTROPY. Raises ConfigError where its package is missing."""
    return {"none": lambda: None, "zlib": _Zlib, "zstandard": _Zstandard}[name]()


@dataclass(slots=True)
class Tally:
    """Bytes that came entropy coded, and how many they stand for."""

    came: int = 0
    whole: int = 0

    def add(self, came: int, whole: int) -> None:
        self.came += came
        self.whole += whole


class EntropyCoder:
    """A codec for buffers of one size, to lengths that are agreed."""

    def __init__(self, codec: Codec, size: int) -> None:
        self._codec = codec
        self._size = size
        self.lengths = sorted({math.ceil(size * step / _STEPS) for step in range(1, _STEPS)} - {size})
        """What a coded buffer may be long, in bytes."""

    def pack(self, data: bytes) -> bytes:
        """Bytes of one of the lengths; or `data` itself, if it does not shrink."""
        found = self._codec.compress(data)
        at = bisect_left(self.lengths, len(found))
        return found.ljust(self.lengths[at], b"\0") if at < len(self.lengths) else data

    def unpack(self, data: bytes) -> bytes:
        """What was packed. Raises ValueError for what was not."""
        return data if len(data) == self._size else self._codec.expand(data, self._size)
