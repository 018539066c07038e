"""The fused tier against the plain one, and that it lets go of the module whatever happens."""

import gc
import itertools
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from p2pfl.learn import fused
from p2pfl.learn.data import Dataset
from p2pfl.learn.fused import fit_fused, large_layers
from p2pfl.learn.model import Model
from p2pfl.learn.models import cnn
from p2pfl.learn.specs import TrainSpec
from p2pfl.learn.train import Fit, fit_plainly


@pytest.fixture(autouse=True)
def every_layer_is_large(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fused, "_LARGE", 1)
    fused._found.cache_clear()
    yield
    fused._found.cache_clear()


class Layered(nn.Module):
    """Layers to be used by a forward that is written out."""

    def __init__(self, forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 3, bias=False), nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.written = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.written(self, x)


def examples(rows: int = 22) -> Dataset:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 6, generator=generator)
    return Dataset("some", x, torch.arange(rows) % 3, (), torch.arange(rows), torch.arange(0))


def work_of(module: nn.Module, dataset: Dataset | None = None, drift: bool = False, **spec: object) -> Fit:
    dataset = dataset or examples()
    model = Model.of(module, functional.cross_entropy, *dataset.batch(torch.arange(2)))
    pull = torch.linspace(-0.1, 0.1, model.layout.numel) if drift else None
    return Fit(model.initial, model, dataset.train, TrainSpec(epochs=2, batch_size=6, **spec), 3, 0, pull)


def assert_alike(work: Fit) -> None:
    found, plain = fit_fused(work), fit_plainly(work)
    assert torch.allclose(found.params, plain.params, rtol=1e-5, atol=1e-6)
    assert found.loss == pytest.approx(plain.loss, rel=1e-5, nan_ok=True)
    assert (found.num_examples, found.steps) == (plain.num_examples, plain.steps)
    assert plain.steps == 0 or not torch.equal(found.params, work.params)


FORWARDS = {
    "a chain": lambda m, x: m.b(torch.relu(m.a(x))),
    "a residual": lambda m, x: m.b(x + m.c(torch.relu(m.a(x)))),
    "more dimensions": lambda m, x: m.b(m.a(x.unsqueeze(1).expand(-1, 4, -1)).tanh()).mean(1),
    "a layer called twice": lambda m, x: m.b(m.a(m.a(x))),
    "a weight used outside": lambda m, x: m.b(m.a(x) @ m.a.weight),
    "a weight used by itself": lambda m, x: m.b(m.a(x)) + m.b.weight.square().mean(),
    "a layer called in some steps": lambda m, x: m.b(m.a(x) if x.sum() > 0 else x),
    "a layer never called": lambda m, x: m.b(x),
    "dropout": lambda m, x: m.b(m.drop(m.a(x))),
    "batch normalisation": lambda m, x: m.b(m.norm(m.a(x))),
    "called by keyword": lambda m, x: m.b(input=m.a(x)),
}


@pytest.mark.parametrize("forward", FORWARDS.values(), ids=FORWARDS)
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_any_module(forward, momentum: float) -> None:
    assert_alike(work_of(Layered(forward), momentum=momentum, weight_decay=0.1))


@pytest.mark.parametrize(
    ("momentum", "weight_decay", "proximal", "drift"),
    list(itertools.product([0.0, 0.9], [0.0, 0.2], [0.0, 0.3], [False, True])),
)
def test_every_pull(momentum: float, weight_decay: float, proximal: float, drift: bool) -> None:
    spec = {"momentum": momentum, "weight_decay": weight_decay, "proximal": proximal}
    assert_alike(work_of(Layered(FORWARDS["a residual"]), drift=drift, **spec))


def test_a_convolutional_network() -> None:
    torch.manual_seed(0)
    x = torch.randn(10, 2, 8, 8)
    dataset = Dataset("images", x, torch.arange(10) % 3, (), torch.arange(10), torch.arange(0))
    assert_alike(work_of(cnn((2, 8, 8), 3, hidden=(16,)), dataset, lr=0.05, momentum=0.5))


def test_without_examples() -> None:
    assert_alike(work_of(Layered(FORWARDS["a chain"]), Dataset(**{
        name: getattr(examples(), name) for name in ("name", "x", "y", "classes", "test_indices")
    } | {"train_indices": torch.arange(2)})))  # fmt: skip
    work = work_of(Layered(FORWARDS["a chain"]))
    nobody, _ = work.shard.split(1.0, 0)
    assert_alike(Fit(work.params, work.model, nobody, work.spec, 0))


def test_which_layers_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Layered(FORWARDS["a chain"])
    assert large_layers(module) == ("a", "b", "c")
    tied = Layered(FORWARDS["a chain"])
    tied.c.weight = tied.a.weight
    assert large_layers(tied) == ("b",)
    frozen = Layered(FORWARDS["a chain"])
    frozen.a.weight.requires_grad_(False)
    assert large_layers(frozen) == ("b", "c")
    assert_alike(work_of(tied))
    assert_alike(work_of(frozen))
    monkeypatch.setattr(fused, "_LARGE", 20)
    assert large_layers(Layered(FORWARDS["a chain"])) == ("a", "c")


def test_no_gradient_of_a_weights_size_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []
    grad = torch.autograd.grad

    def watched(*arguments: object, **keywords: object) -> object:
        gradients = grad(*arguments, **keywords)
        made.extend(gradient is not None and gradient.dim() == 2 for gradient in gradients)
        return gradients

    monkeypatch.setattr(torch.autograd, "grad", watched)
    fit_fused(work_of(Layered(FORWARDS["a residual"])))
    assert made
    assert not any(made)


def test_the_module_is_let_go_of() -> None:
    module = Layered(FORWARDS["a chain"])
    work = work_of(module)
    before = {name: dict(vars(layer)) for name, layer in module.named_modules()}
    fit_fused(work)
    assert {name: dict(vars(layer)) for name, layer in module.named_modules()} == before
    module.written = lambda m, x: m.b(m.a(x)) / 0 if m.a(x) is None else {}["no such thing"]
    with pytest.raises(KeyError, match="no such thing"):
        fit_fused(work)
    assert not any("forward" in vars(layer) for layer in module.modules())
    assert torch.equal(torch.cat([p.flatten() for p in module.parameters()])[:36], work.params[:36])


def test_a_result_is_freed_when_it_is_dropped() -> None:
    """A cycle that holds the vector would keep every client's until the next garbage collection."""
    work = work_of(Layered(FORWARDS["a chain"]))
    gc.disable()
    try:
        result = weakref.ref(fit_fused(work).params)
        assert result() is None
    finally:
        gc.enable()
