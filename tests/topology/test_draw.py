import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from p2pfl.errors import ConfigError, MissingPackage
from p2pfl.topology import build, load
from p2pfl.topology.draw import png, save, svg

SVG = "{http://www.w3.org/2000/svg}"


def test_svg_is_well_formed_and_complete() -> None:
    tree = ET.fromstring(svg(build("exponential", 8), title="a < b & c"))
    found = {kind: len(tree.findall(SVG + kind)) for kind in ("line", "circle", "polygon")}
    assert found == {"line": 24, "circle": 8, "polygon": 24}
    title = tree.find(SVG + "title")
    assert title is not None and title.text == "a < b & c: 8 seats, 24 directed edges, degree 3"


def test_pictures_are_the_same_every_time() -> None:
    file = load("campus-mesh")
    assert svg(file.schedule, dial_only=file.dial_only) == svg(file.schedule, dial_only=file.dial_only)


def test_png_has_the_size_of_the_scene() -> None:
    pytest.importorskip("matplotlib")
    before = "matplotlib.pyplot" in sys.modules
    picture = png(build("hierarchy", 11), scale=1)
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(picture[i : i + 4], "big") for i in (16, 20))
    assert (width, height) == (560, 658)
    assert ("matplotlib.pyplot" in sys.modules) == before  # it would keep figures and pick a backend


def test_png_without_matplotlib_names_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingPackage, match=r"pip install 'p2pfl-aio\[plot\]'"):
        png(build("ring", 4))


def test_save_goes_by_the_suffix(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    save(build("ring", 4), tmp_path / "a.svg", title="mine")
    assert "mine" in (tmp_path / "a.svg").read_text(encoding="utf-8")
    save(build("ring", 4), str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"'a.gif': choose a name that ends in .svg or .png"):
        save(build("ring", 4), tmp_path / "a.gif")
