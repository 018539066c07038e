"""The page of several runs."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from p2pfl.app.page import page
from p2pfl.app.results import Result

ROWS = [
    {"round": n, "participants": 2, "virtual_seconds": 1.0 * n, "bytes": n, "metrics": {
        "accuracy": n / 4, "loss": 1.0 / n, "client_accuracy": 0.5, "client_accuracy_std": 0.1 / n}}
    for n in (1, 2, 3)
]  # fmt: skip


def made(*names: str, rows: list[dict[str, object]] = ROWS) -> str:
    results = [Result(Path(name), name, "fedavg", rows, {}) for name in names]
    return page("accuracy", ["run", "best"], [[name, "0.75"] for name in names], results, "accuracy")


class Balance(HTMLParser):
    """Every element that is opened is closed, but for those that have no end."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        return None

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_it_is_whole_and_loads_nothing() -> None:
    html = made("a", "b")
    reader = Balance()
    reader.feed(html)
    assert not reader.open
    assert not re.search(r"https?://|src=|href=|<script|@import|url\(", html)
    assert "prefers-color-scheme: dark" in html and '<html lang="en">' in html


def test_there_is_a_chart_for_each_metric_and_each_axis() -> None:
    titles = re.findall("<h2>(.*?)</h2>", made("a"))
    assert titles == [
        "accuracy by round", "accuracy by virtual seconds", "accuracy by MB sent", "loss by round",
        "client_accuracy by round", "client_accuracy_std by round",
    ]  # fmt: skip


def test_a_run_of_hosts_has_rounds_only() -> None:
    rows: list[dict[str, object]] = [{"round": 1, "participants": 2, "metrics": {"accuracy": 0.5}}]
    assert re.findall("<h2>(.*?)</h2>", made("a", rows=rows)) == ["accuracy by round"]


def test_names_cannot_break_out() -> None:
    assert "<b>" not in made("<b>bold</b>") and "&lt;b&gt;bold" in made("<b>bold</b>")
