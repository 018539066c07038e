"""What a picture of a topology shows, as lines, dots and words in pixels; `draw` turns it into SVG and PNG."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from p2pfl.topology.graph import Topology
from p2pfl.topology.layout import Points, layout
from p2pfl.topology.schedule import Schedule

__all__ = ["Dot", "Line", "Part", "Scene", "Shape", "Text", "scene", "subtitle"]

INK, QUIET, LINK, PAPER = "#1f2933", "#616e7c", "#9aa5b1", "#ffffff"
COLOURS = {"server": "#c8553d", "edge": "#e9a23b", "client": "#2f7f9f", "peer": "#3f6fb5"}
SPARE = ("#588157", "#8e5aa8", "#d16d9e", "#7a6c5d", "#2a9d8f", "#b5838d")  # for other roles, in order of appearance


@dataclass(frozen=True, slots=True)
class Line:
    """A link from one point to another, in pixels."""

    start: tuple[float, float]
    end: tuple[float, float]
    width: float
    opacity: float


@dataclass(frozen=True, slots=True)
class Shape:
    """A filled polygon: an arrow head."""

    points: tuple[tuple[float, float], ...]
    fill: str


@dataclass(frozen=True, slots=True)
class Dot:
    """A seat."""

    center: tuple[float, float]
    radius: float
    fill: str
    stroke: str


@dataclass(frozen=True, slots=True)
class Text:
    """A label; `anchor` is "start", "middle" or "end", and y is that of its vertical middle."""

    at: tuple[float, float]
    text: str
    size: float
    colour: str = INK
    anchor: str = "middle"
    bold: bool = False


Part = Line | Shape | Dot | Text


@dataclass(frozen=True, slots=True)
class Scene:
    """What there is to draw, in pixels, y down; later parts lie on top."""

    width: float
    height: float
    parts: tuple[Part, ...]


def scene(schedule: Schedule, *, title: str = "", dial_only: Collection[int] = (), panels: int = 4) -> Scene:
    """Lay out a topology, or the first `panels` rounds of a schedule. Seats in `dial_only` are drawn hollow.

    The title is the family's name unless given.
    """
    union = schedule.union
    points = layout(union)
    shown = 1 if schedule.period == 1 else min(panels, schedule.period or panels)
    side = 560 if shown == 1 else 340
    margin = 40 + (max((len(name) for name in union.names), default=0) * 6.5 if union.names else 0)
    columns = shown if shown <= 3 else 2
    size = _dot_radius(points, side / 2 - margin)
    width = columns * side
    top = 64
    parts: list[Part] = [
        Text((24, 28), title or schedule.family.replace("-", " "), 18, anchor="start", bold=True),
        Text((24, 50), subtitle(schedule), 12.5, QUIET, "start"),
    ]
    rows = math.ceil(shown / columns)
    captioned = 24 if shown > 1 else 0
    for t in range(shown):
        left, above = t % columns * side, top + t // columns * (side + captioned)
        if captioned:
            parts.append(Text((left + side / 2, above + 12), f"round {t}", 12.5, QUIET, bold=True))
        centre = np.array([left + side / 2, above + captioned + side / 2])
        parts += _panel(schedule.at(t), centre + points * (side / 2 - margin), size, dial_only)
    height = top + rows * (side + captioned)
    parts += _legend(union, dial_only, height + 6)
    return Scene(width, height + 34, tuple(parts))


def subtitle(schedule: Schedule) -> str:
    """What repr says after the colon."""
    return repr(schedule).split(": ", 1)[1].rstrip(">")


def _dot_radius(points: Points, scale: float) -> float:
    """As large as the closest two seats allow, from 3 to 16 pixels."""
    apart = np.sqrt(((points[:, None] - points[None]) ** 2).sum(2)) * scale
    closest = float(apart[~np.eye(len(points), dtype=bool)].min()) if len(points) > 1 else 99.0
    return min(16.0, max(3.0, closest * 0.3))


def _colours(topology: Topology) -> dict[str, str]:
    roles = list(dict.fromkeys(topology.role(seat) for seat in range(topology.n)))
    others = [role for role in roles if role not in COLOURS]
    return {role: COLOURS.get(role) or SPARE[others.index(role) % len(SPARE)] for role in roles}


def _panel(topology: Topology, places: Points, size: float, dial_only: Collection[int]) -> Iterator[Part]:
    opacity = max(0.15, min(0.9, 12 / math.sqrt(len(topology.edges) + 1)))
    width = 1.6 if len(topology.edges) < 100 else 1.0
    for a, b in topology.edges:
        yield from _link(places[a], places[b], size, width, opacity, arrow=topology.directed)
    colours = _colours(topology)
    middle = places.mean(0)
    for seat in range(topology.n):
        x, y = map(float, places[seat])
        colour = colours[topology.role(seat)]
        hollow = seat in dial_only
        yield Dot((x, y), size, PAPER if hollow else colour, colour)
        if topology.names:
            yield _name(topology.name(seat), (x, y), (float(middle[0]), float(middle[1])), size)
        elif size >= 7:
            yield Text((x, y), str(seat), min(12.0, size * 0.85), colour if hollow else PAPER, bold=True)


def _link(
    start: Points, end: Points, size: float, width: float, opacity: float, *, arrow: bool
) -> Iterator[Line | Shape]:
    along = end - start
    length = float(np.hypot(*along))
    if not arrow or length < 2 * size:
        yield Line(_pair(start), _pair(end), width, opacity)
        return
    along = along / length
    tip = end - along * (size + 2)
    head = 3.5 + width * 2
    back, across = tip - along * head, np.array([-along[1], along[0]]) * head * 0.45
    yield Line(_pair(start), _pair(back), width, opacity)
    yield Shape((_pair(tip), _pair(back + across), _pair(back - across)), QUIET)


def _pair(point: Points) -> tuple[float, float]:
    return (float(point[0]), float(point[1]))


def _name(name: str, place: tuple[float, float], middle: tuple[float, float], size: float) -> Text:
    """A name beside its seat, on the side away from the middle; the middle one's goes below."""
    dx, dy = place[0] - middle[0], place[1] - middle[1]
    distance = math.hypot(dx, dy)
    if distance < 3 * size or abs(dx) < 0.35 * distance:
        down = dy >= 0 or distance < 3 * size
        return Text((place[0], place[1] + (size + 11) * (1 if down else -1)), name, 12.5)
    right = dx > 0
    return Text(
        (place[0] + (size + 6) * (1 if right else -1), place[1]), name, 12.5, anchor="start" if right else "end"
    )


def _legend(topology: Topology, dial_only: Collection[int], y: float) -> Iterator[Dot | Text]:
    entries = [(role, colour, colour) for role, colour in _colours(topology).items()]
    if dial_only:
        entries.append(("only dials out", PAPER, QUIET))
    x = 32.0
    for label, fill, stroke in entries if len(entries) > 1 or entries[0][0] != "peer" else ():
        yield Dot((x, y), 6, fill, stroke)
        yield Text((x + 12, y), label, 12.5, QUIET, "start")
        x += 36 + 7 * len(label)
