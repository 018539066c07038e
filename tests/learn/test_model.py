"""Binding a module: seeded, shaped by the data, and restored after every use."""

import math
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from p2pfl.errors import ConfigError
from p2pfl.learn.data import Dataset, Shard, load_dataset
from p2pfl.learn.model import Model, build_model
from p2pfl.learn.specs import DataSpec, ModelSpec, TrainSpec
from p2pfl.learn.tiers import fit_one
from p2pfl.learn.train import Fit

X = torch.linspace(-1, 1, 24).reshape(6, 4)


def dataset(y: torch.Tensor | None = None, classes: tuple[str, ...] = ("a", "b", "c")) -> Dataset:
    y = torch.tensor([0, 1, 2, 0, 1, 2]) if y is None else y
    return Dataset("six", X, y, classes, torch.arange(4), torch.arange(4, 6))


def test_equal_seeds_give_equal_bytes_whatever_was_drawn_before() -> None:
    first = build_model(ModelSpec(), dataset(), seed=5).initial
    torch.rand(17)
    state = torch.random.get_rng_state()
    second = build_model(ModelSpec(), dataset(), seed=5).initial
    assert torch.equal(first, second)
    assert not torch.equal(first, build_model(ModelSpec(), dataset(), seed=6).initial)
    assert torch.equal(state, torch.random.get_rng_state())


def test_using_binds_for_the_block_only() -> None:
    model = build_model(ModelSpec(name="logistic"), dataset(), 0)
    flat = torch.zeros(model.layout.numel)
    with model.using(flat, training=False):
        assert not model.module(X).any()
        assert not model.module.training
    assert model.module(X).any()
    with pytest.raises(ConfigError, match="the flat vector is"), model.using(torch.zeros(3), training=False):
        pass


def test_counters_that_the_vector_leaves_out_start_anew_in_every_use() -> None:
    module = nn.Sequential(nn.BatchNorm1d(4, momentum=None), nn.Linear(4, 3))
    model = Model.of(module, functional.cross_entropy, X[:4], torch.tensor([0, 1, 2, 0]))
    assert not model.draws
    results = []
    for _ in range(2):
        flat = model.initial.clone()
        with model.using(flat, training=True):
            model.module(X)
        results.append(flat)
    assert torch.equal(*results)
    assert not torch.equal(results[0], model.initial)


def test_what_a_module_draws_is_seeded_and_leaves_the_global_generator_alone() -> None:
    model = Model.of(
        nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)), functional.cross_entropy, X[:2], torch.tensor([0, 1])
    )
    assert model.draws
    state = torch.random.get_rng_state()
    outputs = []
    for seed in (1, 1, 2):
        with model.using(model.initial, training=True, seed=seed):
            outputs.append(model.module(X))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert torch.equal(state, torch.random.get_rng_state())


def test_other_weights_to_begin_with_are_those_of_another_seed() -> None:
    data = load_dataset(DataSpec(subsample=0.1), 0)
    model = build_model(ModelSpec("mlp"), data, 0)
    before = model.initial.clone()
    other = model.redrawn(7)
    assert torch.equal(other, model.redrawn(7)) and not torch.equal(other, model.redrawn(8))
    assert torch.equal(other, build_model(ModelSpec("mlp"), data, 7).initial)
    assert torch.equal(model.initial, before)


def test_copies_can_be_used_at_the_same_time() -> None:
    model = build_model(ModelSpec(name="logistic"), dataset(), 0)
    twin = model.copy()
    assert twin.initial is model.initial
    zeros = torch.zeros(model.layout.numel)
    with model.using(zeros, training=False), twin.using(twin.initial, training=False):
        assert not model.module(X).any()
        assert twin.module(X).any()


def test_one_model_serves_one_thread_at_a_time() -> None:
    model = build_model(ModelSpec(name="logistic"), dataset(), 0)
    entered = threading.Event()

    def use() -> None:
        with model.using(model.initial, training=False):
            entered.set()

    with model.using(model.initial, training=False):
        thread = threading.Thread(target=use)
        thread.start()
        assert not entered.wait(0.02)
    thread.join()
    assert entered.is_set()


def test_the_users_own_module_and_loss_by_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def __init__(self, outputs, width, input_shape):\n"
        "        super().__init__(input_shape[0], outputs)\n"
        "        self.width = width\n"
        "def loss(outputs, y):\n"
        "    return outputs.square().mean()\n"
    )
    spec = ModelSpec(name=f"{tmp_path}/mine.py:Net", parameters={"width": 3}, loss=f"{tmp_path}/mine.py:loss")
    model = build_model(spec, dataset(), 0)
    assert (model.module.in_features, model.module.out_features, model.module.width) == (4, 3, 3)
    assert model.loss(torch.ones(2, 2), X).item() == 1.0
    assert "Net, 15 numbers" in repr(model)


def test_the_loss_follows_the_task() -> None:
    numbers = dataset(torch.linspace(0, 1, 6), classes=())
    model = build_model(ModelSpec(name="logistic"), numbers, 0)
    assert model.layout.numel == 5
    assert model.loss(torch.ones(3, 1), torch.tensor([0.0, 1.0, 3.0])).item() == pytest.approx(5 / 3)
    two = dataset(torch.tensor([0, 1, 0, 1, 0, 1]), classes=("no", "yes"))
    model = build_model(ModelSpec(name="logistic", loss="bce"), two, 0)
    assert model.layout.numel == 5
    assert model.loss(torch.zeros(2, 1), torch.tensor([0, 1])).item() == pytest.approx(0.693147, abs=1e-6)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (ModelSpec(name="mpl"), "model.name 'mpl' is unknown; did you mean 'mlp'?"),
        (ModelSpec(loss="crossentropy"), "model.loss 'crossentropy' is unknown; did you mean 'cross_entropy'?"),
        (ModelSpec(name="logistic", hidden=(3,)), "model.hidden is set, but model 'logistic' has no hidden layers"),
        (ModelSpec(parameters={"depth": 3}), "does not take the model.parameters given: .*depth"),
        (ModelSpec(name="fractions:Fraction"), "gives a Fraction; it must give a torch.nn.Module"),
        (ModelSpec(name="collections:OrderedDict"), "is a built-in; it must be a torch.nn.Module"),
        (ModelSpec(loss="torch.nn.functional:relu"), "cannot take examples of shape"),
        (ModelSpec(name="cnn"), "cnn takes images"),
        (ModelSpec(loss="mse", name="mlp"), "cannot take examples"),
    ],
)
def test_mistakes_get_one_sentence(spec: ModelSpec, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_model(spec, dataset(torch.randint(0, 3, (6,)) if spec.loss != "mse" else torch.ones(6, 2)), 0)


def test_a_loss_that_is_no_mean_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.loss gives a tensor of shape \(2, 3\)"):
        Model.of(nn.Linear(4, 3), lambda outputs, y: outputs, X[:2], torch.tensor([0, 1]))


class Viewing(nn.Module):
    """Looks at what a convolution gives by `view`, as many do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(self.norm(self.conv(x)).view(x.size(0), -1))
        return out


def test_a_module_that_needs_the_usual_order_of_memory_gets_it() -> None:
    digits = load_dataset(DataSpec())
    torch.manual_seed(0)
    module = Viewing()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    model = Model.of(module, functional.cross_entropy, *digits.batch(digits.train_indices[:4]))
    named = dict(zip((e.name for e in model.layout.entries), model.layout.views(model.initial), strict=True))
    assert all(torch.equal(named[name], tensor) for name, tensor in before.items())
    shard = Shard(digits, digits.train_indices[:20])
    found = fit_one(Fit(model.initial, model, shard, TrainSpec(batch_size=10), 0))
    assert found.steps == 2
    assert math.isfinite(found.loss)
