"""T-D2: the distribution of what is drawn. The key is fixed, so that the test is the same each time."""

import math
import secrets

import pytest
import torch

from p2pfl.privacy.noise import DeterministicNoise, Keyed, Secret, gaussian, source_of

DRAWS = 100_000


def test_is_normal() -> None:
    drawn = gaussian(Keyed(bytes(32)), DRAWS, 3.0)
    assert drawn.dtype == torch.float64
    assert float(drawn.mean()) == pytest.approx(0, abs=4 * 3 / math.sqrt(DRAWS))
    assert float(drawn.var()) == pytest.approx(9, rel=4 * math.sqrt(2 / DRAWS))
    expected = (1 + torch.erf(drawn.sort().values / (3 * math.sqrt(2)))) / 2
    steps = torch.arange(DRAWS, dtype=torch.float64) / DRAWS
    distance = max(float((expected - steps).abs().max()), float((expected - steps - 1 / DRAWS).abs().max()))
    assert distance < 1.63 / math.sqrt(DRAWS)  # Kolmogorov and Smirnov, at 1 %


def test_draws_are_independent() -> None:
    source = Keyed(b"k" * 32)
    first, second = gaussian(source, DRAWS, 1.0), gaussian(source, DRAWS, 1.0)
    for one, other in ((first, second), (first[1:], first[:-1]), (first[: DRAWS // 2], first[DRAWS // 2 :])):
        assert abs(float((one * other).mean())) < 4 / math.sqrt(len(one))


@pytest.mark.parametrize("numel", [0, 1, 2, 5, (1 << 19) + 3])
def test_any_length(numel: int) -> None:
    drawn = gaussian(Keyed(bytes(32)), numel, 1.0)
    assert drawn.shape == (numel,)
    assert drawn.isfinite().all()
    assert len(drawn.unique()) == numel


def test_two_ends_with_one_key_draw_alike() -> None:
    one, other = Keyed(b"k" * 32), Keyed(b"k" * 32)
    for _ in range(2):
        assert torch.equal(gaussian(one, 7, 1.0), gaussian(other, 7, 1.0))
    assert not torch.equal(gaussian(one, 7, 1.0), gaussian(Keyed(b"l" * 32), 7, 1.0))


def test_nobody_else_can_draw_what_is_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each draw has a new seed of the operating system, whatever generators were seeded with."""
    seeds = []
    fresh = secrets.token_bytes
    monkeypatch.setattr(secrets, "token_bytes", lambda size: seeds.append(fresh(size)) or seeds[-1])
    source = Secret()
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        found.append(gaussian(source, 10, 1.0))
    assert not torch.equal(*found)
    assert len(set(seeds)) == 2
    assert all(len(seed) == 32 for seed in seeds)


def test_a_key_is_not_shown() -> None:
    assert repr(Keyed(b"s" * 32)) == "<Keyed>"
    assert repr(Secret()) == "<Secret>"


def test_noise_that_follows_from_the_seed_warns() -> None:
    assert isinstance(source_of(False, 1, "update"), Secret)
    with pytest.warns(DeterministicNoise, match="PROTECTS NOBODY"):
        one = source_of(True, 1, "update", 3)
    with pytest.warns(DeterministicNoise):
        same, other = source_of(True, 1, "update", 3), source_of(True, 1, "update", 4)
    drawn = gaussian(one, 5, 1.0)
    assert torch.equal(drawn, gaussian(same, 5, 1.0))
    assert not torch.equal(drawn, gaussian(other, 5, 1.0))
