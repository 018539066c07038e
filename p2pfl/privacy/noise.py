"""Gaussian noise from a cryptographic stream, whose seeds are drawn from the operating system and kept nowhere.

The generator of a simulation will not do: whoever knows the seed of a run would subtract the noise. Uniform numbers of
53 bits become normal ones in float64 (G. Box, M. Muller: "A Note on the Generation of Random Normal Deviates", 1958),
and are added before anything is rounded to float32, which hides the low bits that tell on floats (I. Mironov: "On
Significance of the Least Significant Bits for Differential Privacy", CCS 2012).
"""

from __future__ import annotations

import hashlib
import secrets
import warnings
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from p2pfl.crypto.drg import SEED_BYTES, random_stream

__all__ = ["DeterministicNoise", "Keyed", "Secret", "Source", "gaussian", "source_of", "uniform"]

_PAIRS = 1 << 18  # normal numbers are made so many pairs at a time: 4 MB of bytes


class DeterministicNoise(UserWarning):
    """Noise that can be drawn again by who knows the seed of the run. It protects nobody."""


class Source(Protocol):
    """Where the randomness of noise comes from."""

    def draw(self, size: int) -> bytes:
        """So many bytes, independent of all drawn before."""


class Secret:
    """Of which nobody knows anything, we ourselves included."""

    def draw(self, size: int) -> bytes:
        return random_stream(secrets.token_bytes(SEED_BYTES), size)

    def __repr__(self) -> str:
        return "<Secret>"


class Keyed:
    """Of which whoever has the key (32 bytes) can draw the same: two ends of a link, or a test."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._draws = 0

    def draw(self, size: int) -> bytes:
        number = self._draws.to_bytes(8, "big")
        self._draws += 1
        return random_stream(hashlib.blake2b(number, key=self._key, digest_size=SEED_BYTES).digest(), size)

    def __repr__(self) -> str:
        return "<Keyed>"  # the key is not for logs


def source_of(deterministic: bool, seed: int, *purpose: object) -> Source:
    """What noise is drawn from: `Secret`; or, `deterministic`, what the run's seed tells everybody, with a warning."""
    if not deterministic:
        return Secret()
    warnings.warn(
        DeterministicNoise("privacy.deterministic_noise is true: the noise follows from the seed, and PROTECTS NOBODY"),
        stacklevel=2,
    )
    text = "/".join(map(str, (seed, *purpose))).encode()
    return Keyed(hashlib.blake2b(text, digest_size=SEED_BYTES, person=b"p2pfl-testnoise").digest())


def gaussian(source: Source, numel: int, sigma: float) -> Tensor:
    """Independent normal numbers of standard deviation `sigma`, (numel,), float64."""
    found = np.empty(numel + numel % 2)
    for start in range(0, len(found), 2 * _PAIRS):
        part = found[start : start + 2 * _PAIRS]
        half = len(part) // 2
        chances = uniform(source, len(part)).numpy()
        radius = np.sqrt(-2 * np.log1p(-chances[:half]))  # 1 - u is never 0
        angle = 2 * np.pi * chances[half:]
        part[:half], part[half:] = radius * np.cos(angle), radius * np.sin(angle)
    return torch.from_numpy(found[:numel]).mul_(sigma)


def uniform(source: Source, count: int) -> Tensor:
    """Multiples of 2^-53 in [0, 1), (count,), float64."""
    words = np.frombuffer(source.draw(8 * count), dtype="<u8")
    return torch.from_numpy((words >> np.uint64(11)).astype(np.float64) * 2.0**-53)
