"""The files in `topologies/`: all load, and the table of the README says what they are."""

import re
from pathlib import Path

import pytest

from p2pfl.topology import FAMILIES, load, loads
from p2pfl.topology.families import parameters
from p2pfl.topology.file import shelf
from p2pfl.topology.report import describe

README = shelf() / "README.md"
NAMES = sorted(path.stem for path in shelf().glob("*.toml"))


def table_row(name: str) -> str:
    file = load(name)
    report = describe(file.schedule)
    low, high = report.degree_min, report.degree_max
    degree = str(low) if low == high else f"{low}–{high}"
    cells = [f"`{name}`", file.about, str(report.n), f"{report.edges:.3g}", degree, str(report.diameter)]
    return f"| {' | '.join([*cells, f'{report.gap:.3f}', f'{report.rounds:g}'])} |"


@pytest.mark.parametrize("name", NAMES)
def test_the_table_says_what_the_file_is(name: str) -> None:
    assert load(name).about
    assert table_row(name) in README.read_text(encoding="utf-8").splitlines()


def test_the_table_has_no_other_rows() -> None:
    text = README.read_text(encoding="utf-8").split("## How to choose")[0]
    assert re.findall(r"^\| `(.+?)`", text, re.MULTILINE) == NAMES


def test_the_readme_lists_every_family_and_parameter() -> None:
    rows = re.findall(
        r"^\| (`.*?) \| (.*) \|$", README.read_text(encoding="utf-8").split("| family |")[1], re.MULTILINE
    )
    listed = {family: text for families, text in rows for family in re.findall(r"`(.+?)`", families)}
    assert set(listed) == set(FAMILIES)
    for family, text in listed.items():
        assert all(f"`{name}`" in text for name in parameters(family)), family


def test_the_examples_of_the_readme_load() -> None:
    examples = re.findall(r"```toml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    family, deployment = map(loads, examples)
    assert family.schedule.n == 64
    assert [other.name for other in deployment.dials("laptop")] == ["amsterdam", "berlin"]


def test_hospitals_only_dial_out() -> None:
    file = load("three-hospitals")
    assert file.member("university").role == "server" and file.dials("university") == ()
    assert file.dial_only == (1, 2, 3)
    assert {other.name for seat in file.dial_only for other in file.dials(file.members[seat].name)} == {"university"}


def test_the_campus_reaches_every_lab_behind_nat_twice() -> None:
    file = load("campus-mesh")
    assert [len(file.dials(file.members[seat].name)) for seat in file.dial_only] == [2, 2, 2]


def test_the_shelf_is_in_the_package_or_beside_it() -> None:
    assert shelf().parent in {Path(__file__).resolve().parents[1] / "p2pfl", Path(__file__).resolve().parents[1]}
