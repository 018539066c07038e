import itertools
import xml.etree.ElementTree as ET

import pytest

from p2pfl.app.flow import Edge, Flow, draw, draw_svg

TWO = Flow(
    "fed<avg>",
    ("Server", "Trainer"),
    {"Train": ("Server",), "Finish": ("Server",)},
    {"Train": ("Trainer",), "Finish": ("Trainer",)},
    (Edge("Server", "Train", "Trainer", "Update"), Edge("Server", "Finish", "Trainer", None)),
    (),
)
GOSSIP = Flow(
    "gossip",
    ("Pair",),
    {"Swap": ("Pair",)},
    {"Swap": ("Pair",)},
    (Edge("Pair", "Swap", "Pair", "SwappedWithAVeryLongName"),),
    (),
)
NOTHING = Flow("nothing", ("Idle",), {}, {}, (), ())
SVG = "{http://www.w3.org/2000/svg}"


def test_lines_are_columns() -> None:
    assert TWO.lines() == ["Server  Train   -> Trainer, answers Update", "Server  Finish  -> Trainer"]
    assert NOTHING.lines() == []


def test_mermaid() -> None:
    assert draw(TWO) == (
        "flowchart LR\n"
        "    Server([Server])\n"
        "    Trainer([Trainer])\n"
        '    Server -->|"Train"| Trainer\n'
        '    Trainer -.->|"Update"| Server\n'
        '    Server -->|"Finish"| Trainer\n'
    )


@pytest.mark.parametrize("flow", [TWO, GOSSIP, NOTHING], ids=lambda flow: flow.name)
def test_svg_names_everything_within_its_bounds(flow) -> None:
    picture = ET.fromstring(draw_svg(flow))
    width, height = float(picture.attrib["width"]), float(picture.attrib["height"])
    texts = [text.text or "" for text in picture.iter(f"{SVG}text")]
    assert [text for text in texts if text in flow.roles] == list(flow.roles)
    for edge in flow.edges:
        assert edge.message in texts
        assert edge.reply is None or edge.reply in texts or f"answers {edge.reply}" in texts
    for text in picture.iter(f"{SVG}text"):
        half = 7.5 * len(text.text or "") * (1 if text.attrib["text-anchor"] == "start" else 0.5)
        assert 0 < float(text.attrib["x"]) + half <= width
        assert 0 < float(text.attrib["y"]) < height


def test_svg_labels_do_not_lie_on_each_other() -> None:
    labels = [(float(t.attrib["x"]), float(t.attrib["y"])) for t in ET.fromstring(draw_svg(TWO)).iter(f"{SVG}text")]
    assert all(abs(a[0] - b[0]) > 60 or abs(a[1] - b[1]) >= 16 for a, b in itertools.combinations(labels, 2))


def test_svg_title_is_escaped() -> None:
    assert "fed&lt;avg&gt;: who sends what to whom" in draw_svg(TWO)
