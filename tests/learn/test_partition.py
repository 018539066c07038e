"""Every scheme deals every example once, the same on every host, and as skewed as it says."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from p2pfl.errors import ConfigError
from p2pfl.learn.data import Dataset, load_dataset
from p2pfl.learn.partition import SCHEMES, deal, partition, partition_test
from p2pfl.learn.skew import PartitionReport
from p2pfl.learn.specs import DataSpec, PartitionSpec

LABELS = np.repeat(np.arange(10), 100)
KNOWN_IID = [[0, 2, 3], [4, 5, 7], [1, 6]]
KNOWN_DIRICHLET = [258, 198, 301, 243]


@given(
    scheme=st.sampled_from(sorted(SCHEMES)),
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=120),
    clients=st.integers(1, 12),
    seed=st.integers(0, 2**32),
    alpha=st.sampled_from([0.05, 1.0, 100.0]),
    min_examples=st.integers(0, 2),
)
def test_parts_are_disjoint_and_cover(
    scheme: str, labels: list[int], clients: int, seed: int, alpha: float, min_examples: int
) -> None:
    array = np.array(labels, np.int64)
    spec = PartitionSpec(scheme=scheme, alpha=alpha, min_examples=min_examples, sigma=0.5)
    try:
        parts = deal(array, spec, clients, seed)
    except ConfigError:
        assume(False)
    assert len(parts) == clients
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert min(len(part) for part in parts) >= min_examples
    again = deal(array, spec, clients, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    if scheme == "classes":
        assert max(len(set(array[part].tolist())) for part in parts) <= spec.classes_per_client
    if scheme == "iid":
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    if scheme == "natural":
        owners = {label: {seat for seat, part in enumerate(parts) if label in array[part]} for label in labels}
        assert all(len(seats) == 1 for seats in owners.values())


def test_a_known_deal() -> None:
    """Hosts deal for themselves: a change of these numbers would set old and new versions apart."""
    assert [part.tolist() for part in deal(LABELS[::125], PartitionSpec(), 3, seed=1)] == KNOWN_IID
    parts = deal(LABELS, PartitionSpec(scheme="dirichlet", alpha=0.3), 4, seed=1)
    assert [len(part) for part in parts] == KNOWN_DIRICHLET


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "classes", "lognormal", "power"])
def test_other_seeds_give_other_deals(scheme: str) -> None:
    first, second = (deal(LABELS, PartitionSpec(scheme=scheme), 5, seed) for seed in (0, 1))
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_smaller_alpha_skews_more() -> None:
    digits = load_dataset(DataSpec())
    distances = [
        PartitionReport.of(partition(digits, PartitionSpec(scheme="dirichlet", alpha=alpha), 10, 0)).total_variation
        for alpha in (0.1, 1.0, 100.0)
    ]
    assert distances[0] > 2 * distances[1] > 4 * distances[2]


def test_dirichlet_shares_have_the_moments_of_the_distribution() -> None:
    """A share of Dirichlet(alpha 1_n) has mean 1/n and variance (n - 1) / (n^2 (n alpha + 1))."""
    spec = PartitionSpec(scheme="dirichlet", alpha=0.5, min_examples=0)
    shares = (
        np.array([[len(part) for part in deal(np.zeros(1000, np.int64), spec, 4, seed)] for seed in range(400)]) / 1000
    )
    assert shares.mean() == pytest.approx(0.25)
    assert shares.var() == pytest.approx(3 / (16 * 3), rel=0.15)


def test_quantity_skew_is_of_the_stated_size() -> None:
    sizes = np.array(
        [len(part) for part in deal(np.zeros(200_000, np.int64), PartitionSpec(scheme="lognormal"), 2000, 0)]
    )
    assert np.log(sizes).std() == pytest.approx(1.0, rel=0.08)
    spec = PartitionSpec(scheme="power", exponent=2.0, min_examples=0)
    sizes = np.sort([len(part) for part in deal(np.zeros(10_000, np.int64), spec, 5, 0)])[::-1]
    expected = np.arange(1, 6) ** -2.0
    assert sizes / 10_000 == pytest.approx(expected / expected.sum(), abs=2e-4)


def test_the_least_number_is_met_or_refused() -> None:
    spec = PartitionSpec(scheme="dirichlet", alpha=0.3, min_examples=20)
    assert min(map(len, deal(LABELS, spec, 10, 0))) >= 20
    power = PartitionSpec(scheme="power", exponent=3.0, min_examples=20)
    assert min(map(len, deal(LABELS, power, 10, 0))) >= 20
    with pytest.raises(ConfigError, match="200 draws of dirichlet over 30 clients gave at best"):
        deal(LABELS, PartitionSpec(scheme="dirichlet", alpha=0.01, min_examples=10), 30, 0)
    with pytest.raises(ConfigError, match="min_examples is 20 for 100 clients, and there are 1000 training examples"):
        deal(LABELS, spec, 100, 0)


@pytest.mark.parametrize("alpha", [1e-12, 1e9])
def test_extreme_concentrations_still_cover(alpha: float) -> None:
    parts = deal(LABELS, PartitionSpec(scheme="dirichlet", alpha=alpha, min_examples=0), 7, 0)
    assert sum(map(len, parts)) == len(LABELS)


def grouped(classes: tuple[str, ...] = ("a", "b")) -> Dataset:
    groups = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, -1, -1], dtype=torch.int32)
    x = torch.arange(20.0).reshape(10, 2)
    y = torch.tensor([0, 1] * 5) if classes else torch.zeros(10)
    return Dataset("ten", x, y, classes, torch.arange(8), torch.arange(8, 10), groups, ("u", "v", "w"))


def test_natural_ids_become_clients() -> None:
    shards = partition(grouped(), PartitionSpec(scheme="natural"), 0, 0)
    assert [shard.indices.tolist() for shard in shards] == [[0, 1, 2], [3, 4], [5, 6, 7]]
    shared = partition(grouped(), PartitionSpec(scheme="natural"), 2, 0)
    assert sorted(len(shard) for shard in shared) in ([2, 6], [3, 5])


def test_rows_of_the_test_part_are_never_dealt() -> None:
    for scheme in ("iid", "dirichlet", "classes", "lognormal"):
        shards = partition(grouped(), PartitionSpec(scheme=scheme, sigma=0.1, min_examples=0), 2, 0)
        assert sorted(torch.cat([shard.indices for shard in shards]).tolist()) == list(range(8))


def test_mistakes() -> None:
    digits = load_dataset(DataSpec())
    with pytest.raises(ConfigError, match=r"digits has no natural ids; set data.group"):
        partition(digits, PartitionSpec(scheme="natural"), 4, 0)
    with pytest.raises(ConfigError, match="has 3 ids for 4 clients"):
        partition(grouped(), PartitionSpec(scheme="natural"), 4, 0)
    with pytest.raises(ConfigError, match="dirichlet skews classes, and ten has none"):
        partition(grouped(classes=()), PartitionSpec(scheme="dirichlet"), 2, 0)
    with pytest.raises(ConfigError, match="2 clients cannot cover 10 classes"):
        partition(digits, PartitionSpec(scheme="classes"), 2, 0)
    with pytest.raises(ConfigError, match="0 clients cannot be dealt to"):
        partition(digits, PartitionSpec(), 0, 0)


def test_shifts_go_by_seat() -> None:
    digits = load_dataset(DataSpec())
    shards = partition(digits, PartitionSpec(shift="rotation", shift_strength=90), 4, 0)
    assert [shard.shift.amount for shard in shards if shard.shift] == [0, 30, 60, 90]
    assert partition(digits, PartitionSpec(), 4, 0)[3].shift is None


def test_a_registered_client_costs_its_indices_only() -> None:
    digits = load_dataset(DataSpec())
    shards = partition(digits, PartitionSpec(), 1000, 0)
    assert all(shard.dataset is digits for shard in shards)


def test_a_bootstrap_gives_each_client_its_own_draw_of_any_size() -> None:
    digits = load_dataset(DataSpec())
    spec = PartitionSpec(scheme="bootstrap", examples_per_client=15)
    shards = partition(digits, spec, 1_000_000, seed=3)
    assert len(shards) == 1_000_000
    assert len(shards[999_999]) == 15
    assert torch.equal(shards[7].indices, partition(digits, spec, 8, seed=3)[7].indices), "more clients change nothing"
    assert not torch.equal(shards[7].indices, shards[8].indices)
    assert not torch.equal(shards[7].indices, partition(digits, spec, 8, seed=4)[7].indices)
    assert set(shards[7].indices.tolist()) <= set(digits.train_indices.tolist())


def test_shards_are_a_sequence() -> None:
    digits = load_dataset(DataSpec())
    shards = partition(digits, PartitionSpec(), 4, 0)
    assert [len(shard) for shard in shards] == [len(shards[at]) for at in range(4)]
    assert torch.equal(shards[-1].indices, shards[3].indices)
    assert [len(shard) for shard in shards[1:3]] == [len(shards[1]), len(shards[2])]
    with pytest.raises(IndexError):
        shards[4]
    assert repr(shards) == "<4 Shards of digits>"


@given(
    scheme=st.sampled_from(sorted(SCHEMES)),
    labels=st.lists(st.integers(0, 4), min_size=20, max_size=120),
    clients=st.integers(1, 6),
    seed=st.integers(0, 2**32),
    share=st.floats(0.2, 0.8),
)
def test_the_test_part_is_dealt_in_the_proportions_of_training(
    scheme: str, labels: list[int], clients: int, seed: int, share: float
) -> None:
    y, cut = torch.tensor(labels), round(share * len(labels))
    rows, groups = torch.arange(len(y)), (y * 7) % 5
    data = Dataset("any", y[:, None].float(), y, tuple("abcde"), rows[:cut], rows[cut:], groups, tuple("uvwxy"))
    spec = PartitionSpec(scheme=scheme, sigma=0.5, min_examples=0, alpha=0.5, consistent=True)
    try:
        shards = partition(data, spec, clients, seed)
    except ConfigError:
        assume(False)
    tests = partition_test(data, spec, shards, seed)
    assert len(tests) == len(shards)
    dealt = torch.cat([shard.indices for shard in tests])
    by = groups if scheme == "natural" else y
    trained = set(by[:cut].tolist())
    assert sorted(dealt.tolist()) == [row for row in rows[cut:].tolist() if int(by[row]) in trained]
    for shard, test in zip(shards, tests, strict=True):
        for label in trained:
            part = (by[shard.indices] == label).sum() / (by[:cut] == label).sum()
            assert abs((by[test.indices] == label).sum() - part * (by[cut:] == label).sum()) < 1.001


def test_a_tested_client_sees_through_its_own_shift() -> None:
    digits, spec = load_dataset(DataSpec()), PartitionSpec(shift="scale", shift_strength=1.0, consistent=True)
    shards = partition(digits, spec, 3, 0)
    assert [shard.shift for shard in partition_test(digits, spec, shards, 0)] == [shard.shift for shard in shards]


def test_parts_of_a_client_have_one_distribution() -> None:
    """Of few classes each: what is trained on, held out and tested on are the same classes in the same proportions."""
    digits, spec = load_dataset(DataSpec()), PartitionSpec(scheme="dirichlet", alpha=0.3, consistent=True)
    shards = partition(digits, spec, 6, 0)
    for shard, test in zip(shards, partition_test(digits, spec, shards, 0), strict=True):
        whole = torch.bincount(digits.y[shard.indices], minlength=10) / len(shard)
        for part in (*shard.split(0.25, 0, by_class=True), test):
            found = torch.bincount(digits.y[part.indices], minlength=10) / len(part)
            assert (found - whole).abs().sum() / 2 < 0.1
