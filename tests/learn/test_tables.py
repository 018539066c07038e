"""CSV files: what becomes of each column, and what each mistake is told."""

from pathlib import Path

import pytest

from p2pfl.errors import ConfigError
from p2pfl.learn.specs import DataSpec
from p2pfl.learn.tables import Table, read_csv

PATIENTS = """age,sex,hospital,pressure,label
63,m,Basel,145,sick
37,f,Basel,130,well
41,f,Zurich,,well
56,m,Zurich,120,sick
"""


def table(tmp_path: Path, text: str = PATIENTS, **options: object) -> Table:
    path = tmp_path / "patients.csv"
    path.write_text(text, "utf-8")
    return read_csv(path, DataSpec(source=str(path), **options))  # type: ignore[arg-type]  # names are checked by the class


def test_columns_become_numbers_or_one_hot(tmp_path: Path) -> None:
    found = table(tmp_path, group="hospital", missing="drop")
    assert found.features == ("age", "sex=f", "sex=m", "pressure")
    assert found.x.tolist() == [[63, 0, 1, 145], [37, 1, 0, 130], [56, 0, 1, 120]]
    assert (found.y.tolist(), found.classes) == ([0, 1, 0], ("sick", "well"))
    assert found.groups is not None
    assert (found.groups.tolist(), found.group_names) == ([0, 0, 1], ("Basel", "Zurich"))


def test_missing_cells_are_filled_when_asked_for(tmp_path: Path) -> None:
    found = table(tmp_path, PATIENTS.replace("41,f", "41,?"), missing="fill", group="hospital")
    assert found.x[2].tolist() == [41, 0, 0, pytest.approx((145 + 130 + 120) / 3)]


def test_regression_drops_and_number_classes(tmp_path: Path) -> None:
    found = table(tmp_path, task="regression", label="age", drop=("pressure", "hospital", "label"))
    assert (found.y.tolist(), found.classes, found.features) == ([63, 37, 41, 56], (), ("sex=f", "sex=m"))
    found = table(tmp_path, "a,label\n1,10\n2,9\n3,10\n")
    assert found.classes == ("9", "10")


def test_hosts_with_different_files_agree_by_listing_values(tmp_path: Path) -> None:
    options = {"labels": ("well", "sick"), "categories": {"sex": ("m", "f", "x"), "age": ("37", "63")}}
    found = table(tmp_path, "age,sex,label\n63,f,sick\n", **options)
    assert (found.x.tolist(), found.y.tolist()) == ([[0, 1, 0, 1, 0]], [1])


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        (PATIENTS, {}, r"patients.csv, line 4, column 'pressure' is empty; fill the cell, or set data.missing"),
        (PATIENTS, {"label": "lable"}, "data.label is 'lable', and .* has no such column; it has age, sex"),
        (PATIENTS, {"group": "clinic"}, "data.group is 'clinic'"),
        (PATIENTS, {"drop": ("clinic",)}, "data.drop is 'clinic'"),
        (PATIENTS, {"categories": {"clinic": ("a",)}}, "data.categories is 'clinic'"),
        ("a,label\n1,x\n2\n", {}, "line 3 has 1 cells where the header has 2"),
        ("a,label\n1,x\ninf,y\n", {}, "line 3, column 'a' is inf; give a finite number"),
        ("a,label\n1,x\n2,\n", {"missing": "fill"}, "line 3, column 'label' is empty"),
        (
            "a,label\n1,x\n2,z\n",
            {"labels": ("x", "y")},
            "line 3, column 'label' is 'z', which data.labels does not list",
        ),
        (
            "a,label\nu,x\nw,y\n",
            {"categories": {"a": ("u",)}},
            "column 'a' is 'w', which data.categories.a does not list",
        ),
        ("a,label\nu,x\n", {"task": "regression"}, "label 'label' is no number; set data.task to classification"),
        ("label\nx\n", {}, "no feature columns"),
        ("a,label\n", {}, "no rows to learn from"),
        ("a,label\n,x\n", {"missing": "drop"}, "no rows to learn from"),
        ("a,b,label\n1,,x\n2,,y\n", {"missing": "fill"}, "column 'b' is empty throughout; list it in data.drop"),
        ("", {}, "has no such column"),
        ("a,a,label\n1,2,x\n", {}, "has two columns 'a'; rename one"),
    ],
)
def test_mistakes_name_line_and_column(tmp_path: Path, text: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        table(tmp_path, text, **options)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "patients.csv"
    path.write_bytes(b"a,label\n\xff\xfe,1\n")
    with pytest.raises(ConfigError, match="cannot be read as a CSV file in UTF-8"):
        read_csv(path, DataSpec())
