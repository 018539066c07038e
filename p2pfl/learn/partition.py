"""Dealing a training set to clients: every scheme but `bootstrap` gives disjoint parts that cover it.

Schemes draw from a numpy Generator seeded by the course alone, and from the labels; so hosts that hold the same data
agree on who holds what without exchanging a word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import overload

import numpy as np
import numpy.typing as npt
import torch

from p2pfl.errors import ConfigError
from p2pfl.learn.data import Dataset, Shard, largest_remainder
from p2pfl.learn.shift import Examples, Shift, shift_of_seat
from p2pfl.learn.specs import PartitionSpec

__all__ = ["SCHEMES", "Shards", "deal", "partition", "partition_test"]

Integers = npt.NDArray[np.int64]
Parts = list[Integers]
Scheme = Callable[[Integers, int, PartitionSpec, np.random.Generator], Parts]

_STREAM, _TEST_STREAM = 3, 5  # random streams apart from those of other modules
_BOOTSTRAP = 0x626F6F74  # keeps these draws apart from other draws with the same seed
_DRAWS = 200  # attempts to give every client its least number of examples


class Shards(Sequence[Shard]):
    """The shards of all clients, in the order of seats. A client costs nothing but its rows until it is asked for."""

    def __init__(
        self, dataset: Dataset, clients: int, rows: Callable[[int], Integers], shift: Callable[[int], Shift | None]
    ) -> None:
        """`rows` gives the rows of a client, `shift` what it sees them through."""
        self._dataset = dataset
        self._clients = clients
        self._rows = rows
        self.shift = shift

    @overload
    def __getitem__(self, client: int) -> Shard: ...

    @overload
    def __getitem__(self, client: slice) -> list[Shard]: ...

    def __getitem__(self, client: int | slice) -> Shard | list[Shard]:
        if isinstance(client, slice):
            return [self[each] for each in range(self._clients)[client]]
        client = range(self._clients)[client]
        return Shard(self._dataset, torch.from_numpy(self._rows(client)), self.shift(client))

    def __len__(self) -> int:
        return self._clients

    def __repr__(self) -> str:
        return f"<{self._clients} Shards of {self._dataset.name}>"


def partition(dataset: Dataset, spec: PartitionSpec, clients: int, seed: int) -> Shards:
    """One shard per client, in the order of seats.

    With `natural`, `clients` may be 0: one client for every natural id that has training examples; with fewer clients
    than ids, ids are dealt whole. Raises ConfigError if the scheme cannot be carried out on this data.
    """
    rows = dataset.train_indices.numpy()
    examples = Examples(dataset.input_shape, len(dataset.classes))
    shift_of_seat(spec, 0, clients, seed, examples)  # to raise now what it raises
    if spec.scheme == "bootstrap":
        return Shards(
            dataset,
            clients,
            lambda client: _bootstrap(rows, spec, seed, client),
            lambda client: shift_of_seat(spec, client, clients, seed, examples),
        )
    if spec.scheme == "natural":
        labels, clients = _natural_ids(dataset, clients)
    else:
        labels = _labels(dataset, spec)[rows]
    places = deal(labels, spec, clients, seed)
    shift = partial(shift_of_seat, spec, seats=clients, seed=seed, examples=examples)
    return Shards(dataset, clients, _sliced(rows[np.concatenate(places)], [len(place) for place in places]), shift)


def partition_test(dataset: Dataset, spec: PartitionSpec, shards: Shards, seed: int) -> Shards:
    """The test part as shards of the clients that have `shards` of the training part, with their shifts.

    Of each class (with `natural`: of each natural id) a client gets the same share in both parts, to within one
    example. Rows of classes that nobody trains on are nobody's.
    """
    by_id = spec.scheme == "natural" and dataset.groups is not None
    labels = dataset.groups.numpy() if by_id and dataset.groups is not None else _labels(dataset, spec)
    test, rng = dataset.test_indices.numpy(), np.random.default_rng([seed, _TEST_STREAM])
    trained = [labels[shard.indices.numpy()] for shard in shards]
    names = np.unique(np.concatenate(trained))
    counts = np.stack([np.bincount(np.searchsorted(names, own), minlength=len(names)) for own in trained])
    parts: list[Parts] = [[] for _ in trained]
    for name, column in zip(names, counts.T, strict=True):
        members = rng.permutation(test[labels[test] == name])
        sizes = largest_remainder(column / column.sum() * len(members), len(members))
        for part, piece in zip(parts, np.split(members, np.cumsum(sizes)[:-1]), strict=True):
            part.append(piece)
    rows = [np.sort(np.concatenate(part)) for part in parts]
    return Shards(dataset, len(shards), _sliced(np.concatenate(rows), [len(part) for part in rows]), shards.shift)


def _sliced(rows: Integers, sizes: Sequence[int]) -> Callable[[int], Integers]:
    """Gives the rows of each client, as slices of one array: a million small arrays would take much more memory."""
    cuts = np.cumsum([0, *sizes])
    return lambda client: rows[cuts[client] : cuts[client + 1]]


def _bootstrap(rows: Integers, spec: PartitionSpec, seed: int, client: int) -> Integers:
    """With replacement, so that there may be more clients than examples."""
    generator = torch.Generator().manual_seed(seed ^ (client << 24) ^ _BOOTSTRAP)  # numpy's takes five times as long
    places: Integers = torch.randint(len(rows), (spec.examples_per_client,), generator=generator).sort().values.numpy()
    return rows[places]


def deal(labels: Integers, spec: PartitionSpec, clients: int, seed: int) -> Parts:
    """The places in `labels` (classes, or natural ids for `natural`) that each client gets, in rising order.

    A draw that leaves a client with fewer than `spec.min_examples` is repeated, at most 200 times.
    Raises ConfigError if that never succeeds, or if the scheme cannot be carried out.
    """
    if clients < 1:
        raise ConfigError(f"partition: {clients} clients cannot be dealt to; ask for at least 1")
    if clients * spec.min_examples > len(labels):
        raise ConfigError(
            f"partition.min_examples is {spec.min_examples} for {clients} clients, and there are {len(labels)} "
            f"training examples; lower it, or ask for fewer clients"
        )
    rng = np.random.default_rng([seed, _STREAM])
    draws = 1 if spec.scheme == "natural" else _DRAWS
    best = 0
    for _ in range(draws):
        parts = SCHEMES[spec.scheme](labels, clients, spec, rng)
        fewest = min(len(part) for part in parts)
        if fewest >= spec.min_examples:
            return [np.sort(part) for part in parts]
        best = max(best, fewest)
    raise ConfigError(
        f"partition.min_examples is {spec.min_examples}, and {draws} draws of {spec.scheme} over {clients} clients "
        f"gave at best {best} to the smallest; lower it, ask for fewer clients, or make the partition less skewed"
    )


def _iid(labels: Integers, clients: int, spec: PartitionSpec, rng: np.random.Generator) -> Parts:
    return np.array_split(rng.permutation(len(labels)), clients)


def _dirichlet(labels: Integers, clients: int, spec: PartitionSpec, rng: np.random.Generator) -> Parts:
    """Each class is cut by shares drawn from a symmetric Dirichlet distribution: Yurochkin et al., "Bayesian
    Nonparametric Federated Learning of Neural Networks", ICML 2019, https://arxiv.org/abs/1905.12022.
    """
    parts: list[Parts] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(clients, spec.alpha))
        for part, piece in zip(parts, _cut(members, shares), strict=True):
            part.append(piece)
    return [np.concatenate(part) for part in parts]


def _classes(labels: Integers, clients: int, spec: PartitionSpec, rng: np.random.Generator) -> Parts:
    """McMahan et al., AISTATS 2017, https://arxiv.org/abs/1602.05629: examples sorted by class are cut into equal
    pieces, and every client is dealt `classes_per_client` of them. Here no piece spans two classes.
    """
    names, counts = np.unique(labels, return_counts=True)
    total = clients * spec.classes_per_client
    if total < len(names):
        raise ConfigError(
            f"partition.classes_per_client is {spec.classes_per_client}, so {clients} clients cannot cover "
            f"{len(names)} classes; raise it, or ask for more clients"
        )
    pieces: Parts = []
    for label, number in zip(names, _apportion(counts, total), strict=True):
        pieces += np.array_split(rng.permutation(np.flatnonzero(labels == label)), number)
    hands = rng.permutation(total).reshape(clients, spec.classes_per_client)
    return [np.concatenate([pieces[piece] for piece in hand]) for hand in hands]


def _lognormal(labels: Integers, clients: int, spec: PartitionSpec, rng: np.random.Generator) -> Parts:
    sizes = np.exp(spec.sigma * rng.standard_normal(clients))
    return _cut(rng.permutation(len(labels)), sizes / sizes.sum())


def _power(labels: Integers, clients: int, spec: PartitionSpec, rng: np.random.Generator) -> Parts:
    """Sizes by a power law, as in Li et al., MLSys 2020, above the least number, which everyone gets first."""
    shares = np.arange(1, clients + 1) ** -spec.exponent
    order = rng.permutation(len(labels))
    reserved = clients * spec.min_examples
    floors = order[:reserved].reshape(clients, -1)
    rest = _cut(order[reserved:], rng.permutation(shares / shares.sum()))
    return [np.concatenate(pair) for pair in zip(floors, rest, strict=True)]


def _natural(labels: Integers, clients: int, spec: PartitionSpec, rng: np.random.Generator) -> Parts:
    ids = np.unique(labels)
    seats = np.arange(len(ids)) % clients
    if clients < len(ids):
        seats = rng.permutation(seats)
    seat_of_row = seats[np.searchsorted(ids, labels)]
    order = np.argsort(seat_of_row, kind="stable")
    return np.split(order, np.cumsum(np.bincount(seat_of_row, minlength=clients))[:-1])


SCHEMES: Mapping[str, Scheme] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
    "classes": _classes,
    "lognormal": _lognormal,
    "power": _power,
    "natural": _natural,
}


def _labels(dataset: Dataset, spec: PartitionSpec) -> Integers:
    if dataset.classes:
        return dataset.y.numpy()
    if spec.scheme in ("dirichlet", "classes"):
        raise ConfigError(
            f"partition.scheme {spec.scheme} skews classes, and {dataset.name} has none; use iid, lognormal or power"
        )
    return np.zeros(len(dataset.y), np.int64)


def _natural_ids(dataset: Dataset, clients: int) -> tuple[Integers, int]:
    if dataset.groups is None:
        raise ConfigError(
            f"partition.scheme is natural, and {dataset.name} has no natural ids; set data.group for a CSV"
        )
    ids: Integers = dataset.groups[dataset.train_indices].numpy()
    present = len(np.unique(ids))
    if clients > present:
        raise ConfigError(
            f"partition.scheme is natural, and {dataset.name} has {present} ids for {clients} clients; ask for fewer"
        )
    return ids, clients or present


def _cut(members: Integers, shares: npt.NDArray[np.float64]) -> Parts:
    cuts = (np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
    return np.split(members, cuts)


def _apportion(counts: Integers, total: int) -> Integers:
    """Share out `total` pieces in proportion to `counts`, at least one each, by the largest remainder."""
    spare = total - len(counts)
    return largest_remainder(counts / counts.sum() * spare, spare) + 1
