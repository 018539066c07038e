"""Line charts as inline SVG, for pages that need nothing else: no script, no font, no network.

Colours are classes (`.s0` to `.s7`) that a page's style sheet gives, so that it can be light or dark; dashes tell
lines apart where colours do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["COLOURS", "Line", "chart", "key", "ticks"]

COLOURS = 8
_DASHES = ("", "6 3", "2 3", "8 3 2 3")
_WIDTH, _HEIGHT = 460, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 14, 42  # margins of the plot
_MOST_POINTS = 400  # of a line: more cannot be seen


@dataclass(frozen=True, slots=True)
class Line:
    """Points by rising x. Lines of one place look alike in all charts of a page."""

    name: str
    points: Sequence[tuple[float, float]]
    place: int


def chart(title: str, x_label: str, lines: Sequence[Line]) -> str:
    """One chart. Raises ValueError if no line has a point."""
    xs = [x for line in lines for x, _ in line.points if math.isfinite(x)]
    ys = [y for line in lines for _, y in line.points if math.isfinite(y)]
    if not xs or not ys:
        raise ValueError("a chart needs points")
    across, up = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        right = _LEFT + (x - across[0]) / (across[-1] - across[0]) * (_WIDTH - _LEFT - _RIGHT)
        return right, _HEIGHT - _BOTTOM - (y - up[0]) / (up[-1] - up[0]) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(_described(title, x_label, lines))}">',
        *(_row(tick, place(across[0], tick)[1]) for tick in up),
        *(_column(tick, place(tick, up[0])[0]) for tick in across),
        *(_path(line, [place(x, y) for x, y in _thinned(line.points)]) for line in lines if line.points),
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:g}" y="{_HEIGHT - 6}" class="label">{escape(x_label)}</text>',
        "</svg>",
    ]
    return "\n".join(parts)


def key(place: int) -> str:
    """What the lines of one place look like, to stand beside a name."""
    shape = f'<path d="M0 6 L30 6"{_dashes(place)}/>'
    return f'<svg viewBox="0 0 30 12" class="key s{place % COLOURS}" aria-hidden="true">{shape}</svg>'


def ticks(least: float, most: float, about: int = 5) -> list[float]:
    """Round numbers, at steps of 1, 2 or 5 times a power of ten, from one not above `least` to one not below `most`.

    >>> ticks(0.12, 0.97)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> ticks(3, 3)
    [2.0, 3.0, 4.0]
    """
    if most <= least:
        wide = abs(least) or 1.0
        least, most, about = least - wide / 3, most + wide / 3, 2
    rough = (most - least) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(least / step + 1e-9), math.ceil(most / step - 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    return [round(number * step, digits) for number in range(first, last + 1)]


def _described(title: str, x_label: str, lines: Sequence[Line]) -> str:
    """What who cannot see the chart is told."""
    ends = [f"{line.name} ends at {line.points[-1][1]:.4g}" for line in lines if line.points]
    return f"Line chart of {title} by {x_label}: {'; '.join(ends)}."


def _thinned(points: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    every = max(1, len(points) // _MOST_POINTS)
    for number, (x, y) in enumerate(points):
        if (number % every == 0 or number + 1 == len(points)) and math.isfinite(x) and math.isfinite(y):
            yield x, y


def _path(line: Line, points: Sequence[tuple[float, float]]) -> str:
    shape = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dot = f'<circle cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="3"/>' if len(points) == 1 else ""
    return f'<g class="s{line.place % COLOURS}"><path d="{shape}"{_dashes(line.place)}/>{dot}</g>'


def _dashes(place: int) -> str:
    dash = _DASHES[(place + place // COLOURS) % len(_DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _row(value: float, y: float) -> str:
    right = _WIDTH - _RIGHT
    text = f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" class="left">{_short(value)}</text>'
    return f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>{text}'


def _column(value: float, x: float) -> str:
    return f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 17}" class="label">{_short(value)}</text>'


def _short(value: float) -> str:
    """A number that takes little room.

    >>> _short(1500000.0), _short(0.25), _short(0.0), _short(20000.0)
    ('1.5M', '0.25', '0', '20k')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{value:g}"
