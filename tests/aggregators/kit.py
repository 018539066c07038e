"""The conformance kit of aggregators: what every streaming reducer does, whatever it computes.

A new aggregator is one line: a pair of a constructor, which takes the ranks, and the reference in numpy, which takes
vectors as rows and their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from itertools import permutations
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]
Reference = Callable[[Floats, Floats], Floats]


class Aggregator(Protocol):
    count: int

    def add(self, rank: Hashable, vector: Tensor, weight: float) -> None: ...

    def skip(self, rank: Hashable) -> None: ...

    def value(self) -> Tensor | None: ...


Constructor = Callable[[Iterable[Hashable]], Aggregator]


def check_aggregator(constructor: Constructor, reference: Reference) -> None:
    """Everything that holds for every aggregator."""
    _agrees_with_reference(constructor, reference)
    _is_the_same_for_every_order(constructor)
    _refuses(constructor)
    _leaves_its_inputs_alone(constructor)
    _is_empty(constructor)


def _draw(count: int, seed: int = 0) -> tuple[list[Tensor], list[float]]:
    generator = torch.Generator().manual_seed(seed)
    vectors = [torch.randn(7, generator=generator) * 10**power for power in range(count)]
    return vectors, [1.0 + 3 * number for number in range(count)]


def _agrees_with_reference(constructor: Constructor, reference: Reference) -> None:
    vectors, weights = _draw(5)
    aggregator = constructor(range(5))
    for rank, (vector, weight) in enumerate(zip(vectors, weights, strict=True)):
        aggregator.add(rank, vector, weight)
    value = aggregator.value()
    assert aggregator.count == 5
    assert value is not None and value.shape == (7,) and value.dtype == torch.float32
    wanted = reference(torch.stack(vectors).double().numpy(), np.array(weights))
    np.testing.assert_allclose(value.numpy(), wanted, rtol=1e-5)


def _is_the_same_for_every_order(constructor: Constructor) -> None:
    """To the last bit, and also with one who never comes and one who is skipped."""
    vectors, weights = _draw(4, seed=1)
    seen = set()
    for order in permutations(range(4)):
        aggregator = constructor(range(6))
        for rank in order:
            aggregator.add(rank, vectors[rank], weights[rank])
            if rank == 2:
                aggregator.skip(4)
        value = aggregator.value()
        assert value is not None
        seen.add(value.numpy().tobytes())
    assert len(seen) == 1


def _refuses(constructor: Constructor) -> None:
    x = torch.ones(3)
    aggregator = constructor("abcd")
    aggregator.add("a", x, 1)
    aggregator.add("c", x, 1)
    aggregator.skip("b")
    for rank in "abcz":
        with pytest.raises(ValueError, match=f"'{rank}' is not expected"):
            aggregator.add(rank, x, 1)
    for weight in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"weight of 'd'.*above 0"):
            aggregator.add("d", x, weight)
    for shape in ((1,), (4,), (3, 1)):  # of which some would be broadcast
        with pytest.raises(ValueError, match="shape"):
            aggregator.add("d", torch.ones(shape), 1)
    assert aggregator.count == 2, "what was refused was counted"
    aggregator.add("d", x, 1)
    assert torch.equal(aggregator.value(), x)  # type: ignore[arg-type]  # there were updates
    with pytest.raises(ValueError, match="not expected"):
        aggregator.add("d", x, 1)
    assert torch.equal(aggregator.value(), x), "looking twice changed the value"  # type: ignore[arg-type]  # as above
    with pytest.raises(ValueError, match="twice"):
        constructor("aba")


def _leaves_its_inputs_alone(constructor: Constructor) -> None:
    vectors, weights = _draw(3)
    copies = [vector.clone() for vector in vectors]
    aggregator = constructor(range(3))
    for rank in (2, 0, 1):
        aggregator.add(rank, vectors[rank], weights[rank])
    aggregator.value()
    assert all(map(torch.equal, vectors, copies))


def _is_empty(constructor: Constructor) -> None:
    aggregator = constructor("ab")
    aggregator.skip("a")
    assert aggregator.value() is None
    assert aggregator.count == 0
    assert constructor([]).value() is None
