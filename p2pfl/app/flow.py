"""The message flow of a course, as a value, as lines of text and as pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from xml.sax.saxutils import escape

from p2pfl.topology.scene import INK, LINK, PAPER, QUIET

__all__ = ["Edge", "Flow", "draw", "draw_svg"]


class Edge(NamedTuple):
    """One role sends a message that another handles. `reply` is the message that comes back, for a request."""

    sender: str
    message: str
    receiver: str
    reply: str | None


@dataclass(frozen=True, slots=True)
class Flow:
    """Who sends what to whom: names of roles, and tags of messages."""

    name: str
    roles: tuple[str, ...]
    senders: Mapping[str, tuple[str, ...]]  # message -> roles that send it
    handlers: Mapping[str, tuple[str, ...]]  # message -> roles that handle it
    edges: tuple[Edge, ...]
    problems: tuple[str, ...]  # one sentence each

    def lines(self) -> list[str]:
        """One line for each edge, in columns."""
        wide = max((len(edge.sender) for edge in self.edges), default=0)
        long = max((len(edge.message) for edge in self.edges), default=0)
        return [
            f"{sender:{wide}}  {message:{long}}  -> {receiver}" + (f", answers {reply}" if reply else "")
            for sender, message, receiver, reply in self.edges
        ]


def draw(flow: Flow) -> str:
    """The flow as a Mermaid flowchart: dotted arrows are answers."""
    lines = ["flowchart LR", *(f"    {role}([{role}])" for role in flow.roles)]
    for sender, message, receiver, reply in flow.edges:
        lines.append(f'    {sender} -->|"{message}"| {receiver}')
        if reply is not None:
            lines.append(f'    {receiver} -.->|"{reply}"| {sender}')
    return "\n".join(lines) + "\n"


_MARGIN, _COLUMN, _BOX_WIDTH, _BOX_HEIGHT, _ROW, _LOOP = 24, 210, 130, 36, 34, 44


def draw_svg(flow: Flow) -> str:
    """The flow as the text of an SVG file: a column for each role, a row for each message, dashed rows for answers."""
    rows: list[str] = []
    y: float = _MARGIN + _BOX_HEIGHT + _ROW
    columns = {role: _MARGIN + _BOX_WIDTH / 2 + _COLUMN * place for place, role in enumerate(flow.roles)}
    for sender, message, receiver, reply in flow.edges:
        rows.extend(_arrow(columns[sender], columns[receiver], y, message, dashed=False))
        if reply is not None and sender == receiver:
            rows.append(_label(columns[sender] + _LOOP + 8, y + 17, f"answers {reply}", QUIET, "start"))
        elif reply is not None:
            y += _ROW * 0.8
            rows.extend(_arrow(columns[receiver], columns[sender], y, reply, dashed=True))
        y += _ROW * (1.6 if sender == receiver else 1.3)
    width = 2 * _MARGIN + _BOX_WIDTH + _COLUMN * (len(columns) - 1) + _overhang(flow)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{y:g}" viewBox="0 0 {width:g} {y:g}"'
        ' font-family="Helvetica, Arial, sans-serif" font-size="13" role="img">',
        f"<title>{escape(flow.name)}: who sends what to whom</title>",
        f'<rect width="100%" height="100%" fill="{PAPER}"/>',
        *(part for role, x in columns.items() for part in _column(role, x, y - _MARGIN)),
        *rows,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _overhang(flow: Flow) -> float:
    """Pixels that what the last role tells its own kind takes to the right of its box."""
    loops = [edge for edge in flow.edges if edge.sender == edge.receiver == flow.roles[-1]]
    longest = max((max(len(edge.message), len(f"answers {edge.reply}")) for edge in loops), default=0)
    return max(0.0, _LOOP + 8 + 7.5 * longest - _BOX_WIDTH / 2) if loops else 0.0


def _column(role: str, x: float, bottom: float) -> Iterator[str]:
    middle = _MARGIN + _BOX_HEIGHT / 2
    ends = f'x1="{x:g}" y1="{_MARGIN + _BOX_HEIGHT}" x2="{x:g}" y2="{bottom:g}"'
    yield f'<line {ends} stroke="{LINK}" stroke-dasharray="2 4"/>'
    frame = f'x="{x - _BOX_WIDTH / 2:g}" y="{_MARGIN}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="6"'
    yield f'<rect {frame} fill="{PAPER}" stroke="{INK}" stroke-width="1.5"/>'
    yield f'<text x="{x:g}" y="{middle:g}" dy="0.35em" text-anchor="middle" fill="{INK}">{escape(role)}</text>'


def _arrow(start: float, end: float, y: float, text: str, *, dashed: bool) -> Iterator[str]:
    """A labelled arrow from one column to another, or round to the same one."""
    colour = QUIET if dashed else INK
    style = f'fill="none" stroke="{colour}"' + (' stroke-dasharray="5 3"' if dashed else "")
    if start == end:
        yield f'<path d="M{start:g} {y:g}h{_LOOP}v18h-{_LOOP - 8}" {style}/>'
        yield _head(end, y + 18, -1, colour)
        yield _label(start + _LOOP + 8, y + 1, text, colour, "start")
        return
    way = 1 if end > start else -1
    yield f'<path d="M{start:g} {y:g}H{end - 8 * way:g}" {style}/>'
    yield _head(end, y, way, colour)
    yield _label((start + end) / 2, y - 8, text, colour, "middle")


def _head(x: float, y: float, way: int, colour: str) -> str:
    return f'<path d="M{x:g} {y:g}l{-9 * way} -4v8z" fill="{colour}"/>'


def _label(x: float, y: float, text: str, colour: str, anchor: str) -> str:
    halo = f'stroke="{PAPER}" stroke-width="4" paint-order="stroke"'  # keeps it readable across columns
    place = f'x="{x:g}" y="{y:g}" dy="0.35em" text-anchor="{anchor}"'
    return f'<text {place} fill="{colour}" {halo}>{escape(text)}</text>'
