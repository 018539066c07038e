"""Pictures of topologies: `svg` needs nothing beside numpy, `png` needs matplotlib (`pip install 'p2pfl-aio[plot]'`).

Both render the same `Scene`, so they look alike. A schedule that changes is drawn round by round, side by side.
"""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from p2pfl.errors import ConfigError, MissingPackage
from p2pfl.topology.scene import INK, LINK, PAPER, Dot, Line, Part, Shape, Text, scene, subtitle
from p2pfl.topology.schedule import Schedule

if TYPE_CHECKING:
    from matplotlib.artist import Artist

__all__ = ["png", "save", "svg"]


def svg(schedule: Schedule, *, title: str = "", dial_only: Collection[int] = (), panels: int = 4) -> str:
    """The picture as the text of an SVG file. Arguments as for `scene`."""
    drawing = scene(schedule, title=title, dial_only=dial_only, panels=panels)
    size = f'width="{drawing.width:g}" height="{drawing.height:g}" viewBox="0 0 {drawing.width:g} {drawing.height:g}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="Helvetica, Arial, sans-serif" role="img">',
        f"<title>{escape(title or schedule.family)}: {escape(subtitle(schedule))}</title>",
        f'<rect width="100%" height="100%" fill="{PAPER}"/>',
        *map(_svg_part, drawing.parts),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _svg_part(part: Part) -> str:
    match part:
        case Line((x1, y1), (x2, y2), width, opacity):
            ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
            return f'<line {ends} stroke="{LINK}" stroke-width="{width:g}" stroke-opacity="{opacity:.2f}"/>'
        case Shape(points, fill):
            corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            return f'<polygon points="{corners}" fill="{fill}"/>'
        case Dot((x, y), radius, fill, stroke):
            return (
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{fill}" stroke="{stroke}" stroke-width="2"/>'
            )
        case Text((x, y), text, size, colour, anchor, bold):
            style = f'font-size="{size:g}" fill="{colour}" text-anchor="{anchor}"' + (
                ' font-weight="bold"' if bold else ""
            )
            # A halo in the paper's colour keeps names readable across links.
            halo = f' stroke="{PAPER}" stroke-width="3" paint-order="stroke"' if colour == INK else ""
            return f'<text x="{x:.1f}" y="{y:.1f}" dy="0.35em" {style}{halo}>{escape(text)}</text>'


def png(
    schedule: Schedule, *, title: str = "", dial_only: Collection[int] = (), panels: int = 4, scale: float = 2.0
) -> bytes:
    """The picture as a PNG file, `scale` dots to a pixel. Raises MissingPackage without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - optional
        from matplotlib.figure import Figure  # noqa: PLC0415 - optional
    except ImportError as error:
        raise MissingPackage("a topology as PNG", "pip install 'p2pfl-aio[plot]'") from error
    drawing = scene(schedule, title=title, dial_only=dial_only, panels=panels)
    figure = Figure(figsize=(drawing.width / 100, drawing.height / 100), facecolor=PAPER)
    FigureCanvasAgg(figure)  # no pyplot: it would keep the figure in a table of the process
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, drawing.width), ylim=(drawing.height, 0))
    axes.set_axis_off()
    for order, part in enumerate(drawing.parts):
        axes.add_artist(_artist(part, order))
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=100 * scale, metadata={"Software": None})
    return out.getvalue()


def _artist(part: Part, order: int) -> Artist:
    from matplotlib.lines import Line2D  # noqa: PLC0415 - optional
    from matplotlib.patches import Circle, Polygon  # noqa: PLC0415 - optional
    from matplotlib.patheffects import withStroke  # noqa: PLC0415 - optional
    from matplotlib.text import Text as Label  # noqa: PLC0415 - optional

    points = 0.72  # typographic points in a pixel of 1 / 100 inch
    match part:
        case Line((x1, y1), (x2, y2), width, opacity):
            return Line2D([x1, x2], [y1, y2], color=LINK, lw=width * points, alpha=opacity, zorder=order)
        case Shape(corners, fill):
            return Polygon(corners, facecolor=fill, zorder=order)
        case Dot(center, radius, fill, stroke):
            return Circle(center, radius, facecolor=fill, edgecolor=stroke, lw=2 * points, zorder=order)
        case Text((x, y), text, size, colour, anchor, bold):
            side = {"start": "left", "middle": "center", "end": "right"}[anchor]
            halo = [withStroke(linewidth=2.5 * points, foreground=PAPER)] if colour == INK else []
            label = Label(x, y, text, color=colour, ha=side, va="center", zorder=order, path_effects=halo)
            label.set_fontsize(size * points)
            label.set_fontweight("bold" if bold else "normal")
            return label


def save(schedule: Schedule, path: str | Path, *, title: str = "", dial_only: Collection[int] = ()) -> None:
    """Write the picture to a file, as its suffix says: .svg or .png. Raises ConfigError for another suffix."""
    path = Path(path)
    if path.suffix == ".svg":
        path.write_text(svg(schedule, title=title, dial_only=dial_only), encoding="utf-8")
    elif path.suffix == ".png":
        path.write_bytes(png(schedule, title=title, dial_only=dial_only))
    else:
        raise ConfigError(f"a picture cannot be written as {path.name!r}: choose a name that ends in .svg or .png")
