"""Masks added to integers, chunk by chunk: the only heavy work of a secure aggregation. It belongs on a thread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from p2pfl.crypto.masks import CHUNK_ENTRIES, Binding, stream
from p2pfl.privacy.encoding import Words

__all__ = ["Mask", "add_masks", "masking"]

_STEP_BYTES = 1 << 21  # of masks


class Mask(NamedTuple):
    """A mask that grows from 32 secret bytes, to be added, or taken away."""

    secret: bytes
    added: bool


def add_masks(words: Words, masks: Iterable[Mask], binding: Binding) -> None:
    """Add masks to `words`, in place, modulo 2^32 or 2^64."""
    for _ in masking(words, masks, binding):
        pass


def masking(words: Words, masks: Iterable[Mask], binding: Binding) -> Iterator[None]:
    """`add_masks` in steps of a millisecond or two: a chunk gets its masks together, so that it stays in the cache."""
    masks = tuple(masks)
    for number in range(-(-len(words) // CHUNK_ENTRIES)):
        chunk = words[number * CHUNK_ENTRIES : (number + 1) * CHUNK_ENTRIES]
        for count, mask in enumerate(masks, 1):
            drawn = np.frombuffer(stream(mask.secret, binding, number, chunk.nbytes), dtype=words.dtype)
            if mask.added:
                np.add(chunk, drawn, out=chunk)
            else:
                np.subtract(chunk, drawn, out=chunk)
            if count * chunk.nbytes % _STEP_BYTES < chunk.nbytes:
                yield
