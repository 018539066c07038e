"""How uneven a partition is: in numbers, as a table, and as a picture."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt

from p2pfl.learn.data import Shard

__all__ = ["PartitionReport"]

Floats = npt.NDArray[np.float64]

_WIDTH, _LEFT, _TOP, _LEGEND = 640, 64, 56, 150  # pixels of the picture


@dataclass(frozen=True, slots=True, eq=False)
class PartitionReport:
    """Counts of a partition, and what they amount to. Without classes, all examples count as one class."""

    histogram: npt.NDArray[np.int64]  # (clients, classes) examples
    classes: tuple[str, ...]

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> PartitionReport:
        """Count the classes of each client's shard. All shards are of one data set; there is at least one."""
        dataset = shards[0].dataset
        classes = dataset.classes or ("examples",)
        histogram = np.zeros((len(shards), len(classes)), np.int64)
        for seat, shard in enumerate(shards):
            if dataset.classes:
                histogram[seat] = np.bincount(shard.labels.numpy(), minlength=len(classes))
            else:
                histogram[seat] = len(shard)
        return cls(histogram, classes)

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """(clients,) how many examples each holds."""
        counts: npt.NDArray[np.int64] = self.histogram.sum(1)
        return counts

    @property
    def total_variation(self) -> float:
        """Mean over clients of the distance between their label distribution and everyone's: 0 is iid, 1 the most."""
        return float(self._distances().mean())

    @property
    def quantity_gini(self) -> float:
        """Gini coefficient of the clients' sizes: 0 if all are equal, near 1 if one client has nearly everything."""
        sizes = np.sort(self.counts)
        ranks = np.arange(1, len(sizes) + 1)
        total = sizes.sum()
        return float((2 * ranks - len(sizes) - 1) @ sizes / (len(sizes) * total)) if total else 0.0

    @property
    def effective_classes(self) -> float:
        """Mean over clients of the exponential of their labels' entropy: how many classes they see in effect."""
        return float(self._perplexities().mean())

    def table(self) -> list[dict[str, float]]:
        """One row per client: its seat, how many examples and classes it holds, and its own skew."""
        rows = zip(self.histogram, self._perplexities(), self._distances(), strict=True)
        return [
            {
                "client": seat,
                "examples": int(row.sum()),
                "classes": int((row > 0).sum()),
                "effective_classes": round(float(perplexity), 2),
                "total_variation": round(float(distance), 3),
            }
            for seat, (row, perplexity, distance) in enumerate(rows)
        ]

    def picture(self, path: Path | str) -> None:
        """Write an SVG file: a bar for every client, in the colours of the classes, as long as it has examples."""
        bar = max(3.0, min(22.0, 900 / len(self.histogram)))
        height = _TOP + math.ceil(max(bar * len(self.histogram), 18 * min(len(self.classes), 30))) + 40
        Path(path).write_text("\n".join([*self._frame(height), *self._bars(bar), *self._legend(), "</svg>\n"]), "utf-8")

    def _frame(self, height: int) -> list[str]:
        clients, examples = len(self.histogram), int(self.counts.sum())
        title = f"{examples:,} examples over {clients:,} clients"
        measures = (
            f"total variation {self.total_variation:.2f}, Gini {self.quantity_gini:.2f}, "
            f"{self.effective_classes:.1f} effective classes of {len(self.classes)}"
        )
        return [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + _LEGEND}" height="{height}" '
            f'font-family="sans-serif" font-size="12" role="img">',
            f"<title>{title}: {measures}</title>",
            '<rect width="100%" height="100%" fill="white"/>',
            f'<text x="{_LEFT}" y="22" font-size="15" font-weight="bold">{title}</text>',
            f'<text x="{_LEFT}" y="42" fill="#555">{measures}</text>',
            f'<text x="{_LEFT}" y="{height - 14}" fill="#555">0</text>',
            f'<text x="{_LEFT + _WIDTH}" y="{height - 14}" fill="#555" text-anchor="end">{int(self.counts.max()):,} '
            f"examples</text>",
        ]

    def _bars(self, bar: float) -> list[str]:
        scale = _WIDTH / max(int(self.counts.max()), 1)
        every = math.ceil(14 / bar)  # labels closer than this would overlap
        colours = _colours(len(self.classes))
        drawn: list[str] = []
        for seat, row in enumerate(self.histogram):
            y = _TOP + seat * bar
            if seat % every == 0:
                middle = y + bar / 2 + 4
                drawn.append(f'<text x="{_LEFT - 8}" y="{middle:.1f}" text-anchor="end" fill="#555">{seat}</text>')
            ends = np.cumsum(row) * scale
            for place in np.flatnonzero(row):
                width = row[place] * scale
                shape = (
                    f'x="{_LEFT + ends[place] - width:.2f}" y="{y:.2f}" width="{width:.2f}" height="{bar * 0.86:.2f}"'
                )
                tip = f"client {seat}, {escape(self.classes[place])}: {row[place]}"
                drawn.append(f'<rect {shape} fill="{colours[place]}"><title>{tip}</title></rect>')
        return drawn

    def _legend(self) -> list[str]:
        x, shown = _LEFT + _WIDTH + 18, self.classes[:30]
        drawn: list[str] = []
        for place, (name, colour) in enumerate(zip(shown, _colours(len(self.classes)), strict=False)):
            y = _TOP + 18 * place
            drawn.append(f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colour}"/>')
            drawn.append(f'<text x="{x + 18}" y="{y + 11}">{escape(name[:16].strip() or repr(name))}</text>')
        if len(self.classes) > len(shown):
            drawn[-1] = f'<text x="{x + 18}" y="{_TOP + 18 * 29 + 11}">and {len(self.classes) - 29} more</text>'
        return drawn

    def _distances(self) -> Floats:
        """(clients,) total variation; 0 for a client without examples."""
        everyone = self.histogram.sum(0) / max(int(self.histogram.sum()), 1)
        distances = np.abs(self._shares() - everyone).sum(1) / 2
        return np.where(self.counts > 0, distances, 0.0)

    def _perplexities(self) -> Floats:
        """(clients,) effective classes; 0 for a client without examples."""
        shares = self._shares()
        entropies = -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(1)
        return np.where(self.counts > 0, np.exp(entropies), 0.0)

    def _shares(self) -> Floats:
        return self.histogram / np.maximum(self.counts, 1)[:, None]


def _colours(number: int) -> list[str]:
    """Hues spread evenly, with the lightness in three steps so that neighbours differ without colour vision too."""
    colours: list[str] = []
    for place in range(number):
        red, green, blue = colorsys.hls_to_rgb(place / number, (0.42, 0.58, 0.72)[place % 3], 0.6)
        colours.append(f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}")
    return colours
