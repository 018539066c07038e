"""`p2pfl topology`: what it prints, draws and refuses."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from p2pfl.app.cli import main


def test_a_family_is_shown_with_its_gap(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology", "show", "full:8"]) == 0
    shown = capsys.readouterr().out
    assert "spectral gap" in shown
    assert "1.0000" in shown


def test_json_has_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology", "show", "ring:16", "--json"]) == 0
    report = orjson.loads(capsys.readouterr().out)
    assert (report["n"], report["edges"], report["rounds"]) == (16, 16, 133)


def test_a_deployment_names_its_members_and_who_only_dials_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology", "show", "three-hospitals"]) == 0
    shown = capsys.readouterr().out
    assert "hospital-north" in shown
    assert "dials out" in shown


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_it_is_drawn(suffix: str, tmp_path: Path) -> None:
    picture = tmp_path / f"torus.{suffix}"
    assert main(["topology", "show", "torus:16", "--to", str(picture)]) == 0
    assert picture.read_bytes().startswith({"svg": b"<svg", "png": b"\x89PNG"}[suffix])


def test_a_slow_topology_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology", "show", "ring:64", "--rounds", "30"]) == 0
    assert "2149 rounds" in capsys.readouterr().out


def test_the_list_has_files_and_families(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology", "list"]) == 0
    listed = capsys.readouterr().out
    assert "campus-mesh" in listed
    assert "watts-strogatz" in listed


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rin:16", "ring"),
        ("ring:many", "number of nodes"),
        ("nowhere.toml", "nowhere.toml"),
        ("campus-mash", "campus-mesh"),
    ],
)
def test_a_mistake_is_one_line_that_says_the_mend(name: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology", "show", name]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1
