"""Metrics of the user's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from p2pfl.errors import ComputeError, ConfigError
from p2pfl.learn.metrics import measure, own_metric

OUTPUTS, TARGETS = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1, 1])
TEXT = """
def f1(outputs, targets):
    said, true = outputs.argmax(dim=1) == 1, targets == 1
    return 2 * (said & true).sum() / (said.sum() + true.sum())

def divided(outputs, targets):
    return len(targets) / 0

def words(outputs, targets):
    return "good"
"""


@pytest.fixture
def file(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "mine.py"
    path.write_text(TEXT)
    yield str(path)
    own_metric.cache_clear()


def test_each_goes_by_its_name(file: str) -> None:
    assert measure([f"{file}:f1"], OUTPUTS, TARGETS) == {"f1": pytest.approx(2 / 3)}
    assert measure([], OUTPUTS, TARGETS) == {}


def test_what_fails_or_is_no_number_is_named(file: str) -> None:
    with pytest.raises(ComputeError, match=r"metrics.own '.*mine.py:divided' failed: ZeroDivisionError"):
        measure([f"{file}:divided"], OUTPUTS, TARGETS)
    with pytest.raises(ConfigError, match="words' gives a str; it must give a number"):
        measure([f"{file}:words"], OUTPUTS, TARGETS)


def test_a_file_is_run_once(file: str) -> None:
    assert own_metric(f"{file}:f1") is own_metric(f"{file}:f1")
    with pytest.raises(ConfigError, match=r"metrics\.own .* has no class or function 'f2'"):
        own_metric(f"{file}:f2")
