"""The batched tier against the plain one, and its promise: nobody's bits depend on the others."""

import itertools
import math
from dataclasses import replace
from unittest import mock

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from torch import Tensor, nn
from torch.nn import functional

from p2pfl.learn import batched
from p2pfl.learn.batched import suits, together, width_of
from p2pfl.learn.chain import Chain, chain_of
from p2pfl.learn.data import Dataset, Shard
from p2pfl.learn.model import LOSSES, Model
from p2pfl.learn.shift import Shift
from p2pfl.learn.specs import TrainSpec
from p2pfl.learn.train import Fit, fit, fit_plainly

ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Identity]


def huber(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that p2pfl does not know."""
    return functional.huber_loss(outputs.squeeze(1), targets.float())


def examples(rows: int, inputs: int, outputs: int, loss: str, seed: int = 0) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator)
    if loss == "cross_entropy":
        y = torch.randint(outputs, (rows,), generator=generator)
    elif loss == "mse":
        y = torch.randn(rows, outputs, generator=generator)
    else:
        y = torch.randint(2, (rows,), generator=generator)
    return Dataset("random", x, y, (), torch.arange(rows), torch.arange(0))


def network(widths: list[int], activation: type[nn.Module], bias: bool, seed: int = 0) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after, bias=bias), activation()]
    module = nn.Sequential(*layers[:-1])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter.shape[-1]))
    return module


def model_of(module: nn.Module, loss: str, dataset: Dataset) -> Model:
    return Model.of(module, LOSSES.get(loss, huber), *dataset.batch(torch.arange(2)))


def chain(model: Model) -> Chain:
    found = chain_of(model.module)
    assert isinstance(found, Chain), found
    return found


def clients(model: Model, dataset: Dataset, spec: TrainSpec, sizes: list[int], *, drift: bool = False) -> list[Fit]:
    fits = []
    for seed, size in enumerate(sizes):
        generator = torch.Generator().manual_seed(1000 + seed)
        rows = torch.randperm(len(dataset.x), generator=generator)[:size]
        params = model.initial + 0.01 * seed
        pull = 0.01 * torch.randn(len(params), generator=generator) if drift else None
        fits.append(Fit(params, model, Shard(dataset, rows), spec, seed, 0, pull))
    return fits


def same_bits(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first.view(torch.int32), second.view(torch.int32))


def in_groups(fits: list[Fit]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = {}
    for at, work in enumerate(fits):
        groups.setdefault(width_of(len(work.shard), work.spec), []).append(at)
    return groups


specs = st.builds(
    TrainSpec,
    epochs=st.integers(1, 2),
    steps=st.sampled_from([0, 0, 1, 5]),
    batch_size=st.integers(1, 24),
    drop_last=st.booleans(),
    lr=st.sampled_from([0.01, 0.05]),
    momentum=st.sampled_from([0.0, 0.0, 0.9]),
    weight_decay=st.sampled_from([0.0, 0.0, 0.1]),
    proximal=st.sampled_from([0.0, 0.0, 0.3]),
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    spec=specs,
    widths=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    activation=st.sampled_from(ACTIVATIONS),
    bias=st.booleans(),
    drift=st.booleans(),
    loss=st.sampled_from(["cross_entropy", "mse", "bce", "huber"]),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    cache=st.sampled_from([1, 20_000, 2**30]),
    apart=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_nobodys_bits_depend_on_the_others(
    spec, widths, activation, bias, drift, loss, sizes, cache, apart, order
) -> None:
    if loss in ("bce", "huber"):
        widths[-1] = 1
    assume(1 not in widths[:-1])
    dataset = examples(40, widths[0], widths[-1], loss)
    model = model_of(network(widths, activation, bias), loss, dataset)
    fits = clients(model, dataset, spec, sizes, drift=drift)
    with mock.patch.object(batched, "_APART_BYTES", 2**20 if apart else 0):
        alone = [together(chain(model), [work])[0] for work in fits]
        order.shuffle(order_ := list(range(len(fits))))
        with mock.patch.object(batched, "_CACHE_BYTES", cache):
            for members in in_groups([fits[at] for at in order_]).values():
                members = [order_[at] for at in members]
                for at, found in zip(members, together(chain(model), [fits[at] for at in members]), strict=True):
                    assert same_bits(found.params, alone[at].params)
                    assert found.loss == alone[at].loss or math.isnan(found.loss)
                    assert (found.num_examples, found.steps) == (alone[at].num_examples, alone[at].steps)
    for work, found in zip(fits, alone, strict=True):
        plain = fit_plainly(work)
        assert (found.num_examples, found.steps) == (plain.num_examples, plain.steps)
        if plain.loss < 20:  # rounding grows without bounds where training diverges
            # What some last bits of the start make of the result is what rounding may make of it.
            nudged = fit_plainly(replace(work, params=work.params * (1 + 1e-6)))
            apart = (nudged.params - plain.params).abs().max().item()
            assert torch.allclose(found.params, plain.params, rtol=1e-5, atol=1e-5 + apart)
            assert found.loss == pytest.approx(plain.loss, rel=1e-5, abs=1e-5 + abs(nudged.loss - plain.loss))


@pytest.mark.parametrize("many", [2, 37, 100])
@pytest.mark.parametrize("widths", [[64, 128, 10], [784, 62], [300, 7, 200, 3]])
@pytest.mark.parametrize("batch_size", [5, 16])
def test_one_hundred_or_one(widths: list[int], batch_size: int, many: int) -> None:
    """Sizes at which torch's products choose their fast ways."""
    dataset = examples(200, widths[0], widths[-1], "cross_entropy")
    model = model_of(network(widths, nn.ReLU, bias=True), "cross_entropy", dataset)
    fits = clients(model, dataset, TrainSpec(epochs=2, batch_size=batch_size), [18] * many)
    for at, found in enumerate(together(chain(model), fits)):
        if at in (0, many // 2, many - 1):
            (alone,) = together(chain(model), [fits[at]])
            assert torch.equal(found.params, alone.params)
            assert found.loss == alone.loss


def test_a_result_pins_little_memory() -> None:
    dataset = examples(200, 64, 10, "cross_entropy")
    model = model_of(network([64, 128, 10], nn.ReLU, bias=True), "cross_entropy", dataset)
    for found in together(chain(model), clients(model, dataset, TrainSpec(), [5] * 100)):
        assert found.params.is_contiguous()
        assert found.params.untyped_storage().nbytes() <= 2 * 2**20


def test_schedules_and_rounds() -> None:
    dataset = examples(40, 5, 3, "cross_entropy")
    model = model_of(network([5, 3], nn.ReLU, bias=True), "cross_entropy", dataset)
    spec = TrainSpec(lr=0.4, schedule="step", schedule_rounds=1, schedule_factor=0.5)
    late = Fit(model.initial, model, dataset.train, spec, 0, round=2)
    expected = fit(model.initial, model, dataset.train, TrainSpec(lr=0.1), 0)
    assert torch.allclose(together(chain(model), [late])[0].params, expected.params, atol=1e-6)


def test_every_client_may_have_data_of_its_own() -> None:
    """Shifted features, and data sets of their own: the bits are those of one shared data set."""
    shared = examples(40, 6, 3, "cross_entropy")
    model = model_of(network([6, 8, 3], nn.Tanh, bias=True), "cross_entropy", shared)
    spec = TrainSpec(epochs=3, batch_size=4)
    fits = clients(model, shared, spec, [9, 10, 11])
    own = []
    for work in fits:
        x, y = shared.batch(work.shard.indices)
        private = Dataset("own", x, y, (), torch.arange(len(x)), torch.arange(0))
        own.append(Fit(work.params, model, private.train, spec, work.seed))
    pairs = zip(together(chain(model), own), together(chain(model), fits), strict=True)
    assert all(torch.equal(a.params, b.params) for a, b in pairs)
    shifted = [
        Fit(work.params, model, Shard(shared, work.shard.indices, Shift("scale", 1 + at)), spec, work.seed)
        for at, work in enumerate(fits)
    ]
    for work, found in zip(shifted, together(chain(model), shifted), strict=True):
        assert torch.allclose(found.params, fit_plainly(work).params, atol=1e-5)


def test_parameters_that_the_loss_does_not_reach() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle, self.used = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    dataset = examples(40, 5, 3, "cross_entropy")
    model = model_of(Half(), "cross_entropy", dataset)
    for spec in (TrainSpec(), TrainSpec(weight_decay=0.2), TrainSpec(momentum=0.9, proximal=0.1)):
        for work in clients(model, dataset, spec, [7, 8], drift=True):
            (found,) = together(chain(model), [work])
            assert torch.allclose(found.params, fit_plainly(work).params, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "y", "suited"),
    [
        (torch.zeros(4, 6), torch.zeros(4).long(), True),
        (torch.zeros(4, 6), torch.tensor([0, 1, -100, 2]), False),  # to be ignored
        (torch.zeros(4, 6), torch.zeros(4, 3), True),
        (torch.zeros(4, 6).long(), torch.zeros(4).long(), False),
        (torch.zeros(4, 6).double(), torch.zeros(4).long(), False),
        (torch.zeros(4, 2, 3), torch.zeros(4).long(), False),
        (torch.zeros(4, 5), torch.zeros(4).long(), False),
    ],
)
def test_which_data_sets_can_go_through(x: Tensor, y: Tensor, suited: bool) -> None:
    dataset = Dataset("some", x, y, (), torch.arange(4), torch.arange(0))
    assert suits(chain_of(nn.Linear(6, 3)), dataset) is suited
    if x.dim() == 3:
        assert suits(chain_of(nn.Sequential(nn.Flatten(), nn.Linear(6, 3))), dataset)
