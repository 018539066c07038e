"""Measures of skew in closed form, and a picture that is well-formed."""

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch

from p2pfl.learn.data import Dataset, Shard, load_dataset
from p2pfl.learn.partition import partition
from p2pfl.learn.skew import PartitionReport
from p2pfl.learn.specs import DataSpec, PartitionSpec


def report(histogram: list[list[int]]) -> PartitionReport:
    return PartitionReport(np.array(histogram), tuple("abcdefgh"[: len(histogram[0])]))


def test_even_clients_have_no_skew() -> None:
    even = report([[5, 5], [5, 5], [5, 5]])
    assert (even.total_variation, even.quantity_gini) == (0.0, 0.0)
    assert even.effective_classes == pytest.approx(2.0)


def test_one_class_each_is_the_most() -> None:
    apart = report([[6, 0, 0], [0, 6, 0], [0, 0, 6]])
    assert apart.total_variation == pytest.approx(2 / 3)
    assert apart.effective_classes == pytest.approx(1.0)


def test_mixtures_in_closed_form() -> None:
    mixed = report([[3, 1], [0, 4]])
    assert mixed.total_variation == pytest.approx(3 / 8)  # (3/4, 1/4) and (0, 1) against (3/8, 5/8)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert mixed.effective_classes == pytest.approx((math.exp(entropy) + 1) / 2)
    assert report([[0], [0], [0], [8]]).quantity_gini == pytest.approx(0.75)
    assert report([[1], [3]]).quantity_gini == pytest.approx(0.25)


def test_a_client_without_examples_is_neither_skewed_nor_an_error() -> None:
    assert report([[0, 0], [2, 2]]).table()[0] == {
        "client": 0,
        "examples": 0,
        "classes": 0,
        "effective_classes": 0.0,
        "total_variation": 0.0,
    }
    assert report([[0, 0]]).quantity_gini == 0.0


def test_counts_of_real_shards() -> None:
    digits = load_dataset(DataSpec())
    shards = partition(digits, PartitionSpec(scheme="classes"), 12, 0)
    found = PartitionReport.of(shards)
    assert found.counts.tolist() == [len(shard) for shard in shards]
    assert found.histogram.sum(0).tolist() == torch.bincount(digits.y[digits.train_indices]).tolist()
    assert max(row["classes"] for row in found.table()) <= 2


def test_regression_counts_examples() -> None:
    dataset = Dataset("four", torch.zeros(4, 1), torch.zeros(4), (), torch.arange(4), torch.arange(0))
    found = PartitionReport.of([Shard(dataset, torch.arange(3)), Shard(dataset, torch.arange(3, 4))])
    assert found.histogram.tolist() == [[3], [1]]
    assert found.total_variation == 0.0


def test_the_picture_has_a_bar_for_every_count(tmp_path: Path) -> None:
    path = tmp_path / "skew.svg"
    PartitionReport(np.array([[3, 1], [0, 4]]), ("<cat>", "dog")).picture(path)
    root = ElementTree.fromstring(path.read_text("utf-8"))
    name = "{http://www.w3.org/2000/svg}"
    bars = [bar for bar in root.iter(f"{name}rect") if bar.find(f"{name}title") is not None]
    tips = [bar.findtext(f"{name}title") for bar in bars]
    assert tips == ["client 0, <cat>: 3", "client 0, dog: 1", "client 1, dog: 4"]
    widths = [float(bar.attrib["width"]) for bar in bars]
    assert widths[0] == pytest.approx(3 * widths[1])
    assert widths[2] == pytest.approx(640)


def test_pictures_of_many_clients_and_classes(tmp_path: Path) -> None:
    path = tmp_path / "skew.svg"
    PartitionReport(np.ones((500, 40), np.int64), tuple(map(str, range(40)))).picture(path)
    texts = [text.text for text in ElementTree.fromstring(path.read_text("utf-8")).iter() if text.tag.endswith("text")]
    assert "and 11 more" in texts
