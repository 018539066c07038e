"""Runs side by side as one HTML file: a table and charts, light or dark as the reader has it, and nothing to load."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from p2pfl.app.plots import COLOURS, Line, chart, key
from p2pfl.app.results import Result
from p2pfl.learn.spread import spreads

__all__ = ["page"]

_X: Mapping[str, Callable[[Mapping[str, Any]], float | None]] = {
    "round": lambda row: row["round"],
    "virtual seconds": lambda row: row.get("virtual_seconds"),
    "MB sent": lambda row: row["bytes"] / 1e6 if "bytes" in row else None,
}

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1b1b1b; --dim: #5c5c5c; --rule: #dedede;
  --s0: #0060a8; --s1: #b84300; --s2: #00755a; --s3: #a3317f; --s4: #8a6100; --s5: #2a7fae; --s6: #5b3fb0; --s7: #444; }
@media (prefers-color-scheme: dark) { :root { --back: #16181c; --text: #ececec; --dim: #a8a8a8; --rule: #3a3d42;
  --s0: #56b4e9; --s1: #ff9a5c; --s2: #35c79a; --s3: #e58cc4; --s4: #f0c040; --s5: #9ad0f5; --s6: #b3a1ff;
  --s7: #ccc; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 70rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1rem; margin: 0; } p { color: var(--dim); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1.5rem; }
figure { margin: 0; }
svg { width: 100%; height: auto; } .key { width: 30px; height: 12px; margin-right: .4rem; }
svg text { font-size: 12px; fill: var(--dim); } .label { text-anchor: middle; } .left { text-anchor: end; }
.grid { stroke: var(--rule); } path { fill: none; stroke-width: 2; stroke-linejoin: round; }
"""


def page(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], results: Sequence[Result], by: str) -> str:
    """The whole file. `rows` has one for each result; `by` is the metric whose charts come first."""
    body = "\n".join(f"<figure><h2>{escape(name)}</h2>{drawn}</figure>" for name, drawn in _charts(results, by))
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}{_colours()}</style>
<h1>{escape(title)}</h1>
<div class="wide">{_table(columns, rows)}</div>
<p>The line before its name is that of a run in all charts.</p>
<div class="charts">
{body}
</div>
</html>
"""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    lines = [f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>"]
    for place, (name, *cells) in enumerate(rows):
        told = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{key(place)} {escape(name)}</th>{told}</tr>')
    return "\n".join([*lines, "</tbody></table>"])


def _colours() -> str:
    return "\n".join(
        f".s{n} path {{ stroke: var(--s{n}); }} .s{n} circle {{ fill: var(--s{n}); }}" for n in range(COLOURS)
    )


def _charts(results: Sequence[Result], by: str) -> list[tuple[str, str]]:
    """Titles and charts: the metric by all that it can be told by, the others by round, then how they are spread."""
    names = dict.fromkeys([by, *(name for result in results for name in result.metrics)])
    wanted = [(by, x) for x in _X] + [(name, "round") for name in names if name != by]
    spread = dict.fromkeys(
        f"{name}_std"
        for result in results
        for row in result.rows
        for name, found in spreads(row["metrics"]).items()
        if "std" in found
    )
    wanted += [(name, "round") for name in spread]
    made = []
    for name, x in wanted:
        lines = [Line(result.name, result.points(name, _X[x]), place) for place, result in enumerate(results)]
        if any(line.points for line in lines):
            made.append((f"{name} by {x}", chart(name, x, lines)))
    return made
