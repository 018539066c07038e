"""The table [compress] of a course file, and the pipelines that it asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from p2pfl.errors import ConfigError, require
from p2pfl.learn.entropy import ENTROPY
from p2pfl.learn.params import Layout
from p2pfl.learn.quantize import bfloat16, float16, qsgd, sign, uniform
from p2pfl.learn.sparsify import low_rank, random_k, top_k
from p2pfl.learn.transform import Ef21, ErrorFeedback, Stage, Transform, chain

__all__ = ["CompressSpec", "DownSpec", "UpSpec"]

_SELECT = ("all", "top-k", "random-k", "low-rank")
_VALUES = ("float32", "float16", "bfloat16", "uniform", "qsgd", "sign", "ternary")
_MEMORIES = ("error", "ef21")


@dataclass(frozen=True, slots=True)
class DownSpec:
    """The table [compress.down]: what is sent of how the server's model differs from the initial one."""

    _table: ClassVar[str] = "compress.down"

    select: str = "all"
    """Which numbers are sent: `all`, the largest (`top-k`), a random draw (`random-k`), or of each matrix two factors
    (`low-rank`)."""
    fraction: float = 0.01
    """The share of the numbers that top-k and random-k send."""
    rank: int = 2
    """Of the factors of low-rank."""
    values: str = "float32"
    """How they are written: `float32`, `float16`, `bfloat16`, `uniform` (the nearest on a grid), `qsgd` (a random
    neighbour on one), `sign`, or after top-k `ternary`, signs of one magnitude."""
    bits: int = 8
    """For each number of uniform and qsgd: 2, 4 or 8."""
    bucket: int = 512
    """So many numbers share a scale, in uniform, qsgd and sign."""
    entropy: str = "none"
    """What goes over the encoded bytes: `none`, `zlib`, or `zstandard` (pip install 'p2pfl-aio[zstd]')."""

    def __post_init__(self) -> None:
        for name, choices in {"select": _SELECT, "values": _VALUES, "entropy": ENTROPY}.items():
            value = getattr(self, name)
            require(value in choices, f"{self._table}.{name} is {value!r}; it must be one of {', '.join(choices)}")
        require(0 < self.fraction <= 1, f"{self._table}.fraction is {self.fraction}; it must lie in (0, 1]")
        for name in ("rank", "bucket"):
            require(getattr(self, name) >= 1, f"{self._table}.{name} is {getattr(self, name)}; it must be at least 1")
        require(self.bits in (2, 4, 8), f"{self._table}.bits is {self.bits}; it must be 2, 4 or 8")
        require(
            self.values != "ternary" or self.select == "top-k",
            f"{self._table}.values is 'ternary', which is zero where top-k does not select; set {self._table}.select "
            "to top-k",
        )

    @property
    def plain(self) -> bool:
        """Whether all is sent as it is."""
        return self.lossless and self.entropy == "none"

    @property
    def lossless(self) -> bool:
        """Whether what arrives is what was given."""
        return self.select == "all" and self.values == "float32"

    def transform(self, numel: int, layout: Layout | None) -> Transform:
        """The pipeline for vectors of `numel` numbers, which lie as `layout` says, as far as is known.

        Raises ConfigError where low rank is asked for and nothing has matrices.
        """
        return chain(numel, *self._stages(layout, unbiased=True))

    def _stages(self, layout: Layout | None, *, unbiased: bool) -> list[Callable[[int], Stage]]:
        stages: list[Callable[[int], Stage]] = []
        if self.select == "top-k":
            stages.append(top_k(self.fraction))
        elif self.select == "random-k":
            stages.append(random_k(self.fraction, unbiased=unbiased))
        elif self.select == "low-rank":
            if layout is None:
                raise ConfigError(
                    f"{self._table}.select is 'low-rank', but this course sends a part of the model; set it to top-k"
                )
            stages.append(low_rank(self.rank, layout))
        written: dict[str, Callable[[int], Stage]] = {
            "float16": float16,
            "bfloat16": bfloat16,
            "uniform": uniform(self.bits, self.bucket),
            "qsgd": qsgd(self.bits, self.bucket, unbiased=unbiased),
            "sign": sign(self.bucket),
            "ternary": lambda numel: sign(numel)(numel),
        }
        return stages if self.values == "float32" else [*stages, written[self.values]]


@dataclass(frozen=True, slots=True)
class UpSpec(DownSpec):
    """The table [compress.up]: what is sent of how a client's update differs from what it was sent."""

    _table: ClassVar[str] = "compress.up"

    feedback: bool = True
    """Send with each update what was withheld of those before: clients then remember it, and do not sleep. Needed where
    the same is withheld each time, as by top-k and sign; random-k and qsgd, right in the mean, are faster without."""
    memory: str = "error"
    """What feedback remembers: the `error`, what was withheld; or with `ef21` what the server knows of this client,
    which then gets the differences to it. Then the next model is made of what is known of all clients, whoever is in
    the cohort, and no update may be lost."""

    def __post_init__(self) -> None:
        DownSpec.__post_init__(self)
        require(
            self.memory in _MEMORIES,
            f"{self._table}.memory is {self.memory!r}; it must be one of {', '.join(_MEMORIES)}",
        )
        require(
            self.feedback or self.memory == "error",
            f"{self._table}.memory is {self.memory!r}, and {self._table}.feedback is false; set it to true",
        )

    @property
    def incremental(self) -> bool:
        """Whether what is decoded is to be added to what is known already."""
        return not self.lossless and self.memory == "ef21"

    @property
    def stateful(self) -> bool:
        """Whether a client has something to remember from round to round."""
        return not self.lossless and (self.feedback or self.select == "low-rank")

    def transform(self, numel: int, layout: Layout | None) -> Transform:
        if self.lossless or not self.feedback:
            return chain(numel, *self._stages(layout, unbiased=True))
        contraction = self.contraction(numel, layout)
        return Ef21(contraction) if self.incremental else ErrorFeedback(contraction)

    def contraction(self, numel: int, layout: Layout | None) -> Transform:
        """The same without feedback, for who sees to it otherwise that nothing is withheld for ever."""
        return chain(numel, *self._stages(layout, unbiased=False))


@dataclass(frozen=True, slots=True)
class CompressSpec:
    """The table [compress] of a course file, for courses with a coordinator."""

    up: UpSpec = field(default_factory=UpSpec)
    """From clients to the server."""
    down: DownSpec = field(default_factory=DownSpec)
    """From the server to clients."""

    @property
    def plain(self) -> bool:
        """Whether nothing is compressed."""
        return self.up.plain and self.down.plain
