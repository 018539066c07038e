"""What a course file says about data, partition, model and local training, as plain values.

Each class is one table of the course file (`[data]`, `[partition]`, `[model]`, `[train]`, `[metrics]`) and one group of
flags of the command line, so the fields are plain types only, and nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pfl.errors import require

__all__ = ["DataSpec", "MetricsSpec", "ModelSpec", "Option", "PartitionSpec", "TrainSpec", "metric_name"]

# What a user may hand to a constructor of their own: the values that TOML and a command line can both say.
Option = bool | int | float | str | tuple[int, ...]


def _choose(field_name: str, value: str, choices: tuple[str, ...]) -> None:
    require(value in choices, f"{field_name} is {value!r}; it must be one of {', '.join(choices)}")


@dataclass(frozen=True, slots=True)
class DataSpec:
    """Where the examples come from, and how they are read."""

    source: str = "digits"
    """`digits`, `fashion-mnist`, `shakespeare`, or the path of a .csv file, an .npz file, or a folder that holds
    either idx files (MNIST's format) or one sub-folder of images per class, or such a folder in each of `train` and
    `test` (or `val`), or what `save_to_disk` of Hugging Face's `datasets` has written."""
    test_share: float = 0.2
    """Share of the examples held out as the test part, where the source has none of its own."""
    subsample: float = 1.0
    """Share of the training part that is kept, drawn by seed: for quick trials."""
    min_group: int = 1
    """Natural ids (roles, hospitals) with fewer training examples than this are left out."""
    label: str = "label"
    """CSV, datasets: the column to predict."""
    group: str = ""
    """CSV, datasets: the column whose values are the natural ids; empty for none."""
    drop: tuple[str, ...] = ()
    """CSV, datasets: columns to leave out."""
    task: str = "classification"
    """CSV, npz, datasets: `classification` (the label is a name) or `regression` (the label is a number)."""
    labels: tuple[str, ...] = ()
    """CSV: the classes in order. Needed when hosts hold different files; else the values seen, sorted."""
    categories: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """CSV: column = its values in order, for columns to encode one-hot. Needed when hosts hold different files;
    else every column with a value that is no number is encoded by the values seen, sorted."""
    missing: str = "refuse"
    """CSV: what to do about empty cells: `refuse`, `drop` (the row), or `fill` (numbers by the column's mean,
    categories by all zeros)."""
    standardise: bool = False
    """Shift and scale every feature by its mean and deviation over the training part that this host holds."""
    window: int = 80
    """Text: how many characters the model sees before it names the next one."""
    image_size: tuple[int, ...] = (28, 28)
    """Image folder: height and width that every image is scaled to."""
    colour: bool = False
    """Image folder: three channels instead of one."""

    def __post_init__(self) -> None:
        require(bool(self.source), "data.source is empty; name a data set or a path")
        require(0 < self.test_share < 1, f"data.test_share is {self.test_share}; it must lie between 0 and 1")
        require(0 < self.subsample <= 1, f"data.subsample is {self.subsample}; it must lie in (0, 1]")
        _choose("data.task", self.task, ("classification", "regression"))
        _choose("data.missing", self.missing, ("refuse", "drop", "fill"))
        require(self.window >= 1, f"data.window is {self.window}; it must be at least 1")
        sized = len(self.image_size) == 2 and min(self.image_size) > 0
        require(sized, f"data.image_size is {self.image_size}; give height and width, such as [28, 28]")


@dataclass(frozen=True, slots=True)
class PartitionSpec:
    """How the training part is dealt to the clients."""

    scheme: str = "iid"
    """`iid`, `dirichlet` (label skew), `classes` (few classes each), `lognormal` or `power` (quantity skew),
    `natural` (by the data's own ids), `bootstrap` (every client draws its own, with replacement: for any number of
    clients), `own` (nothing is dealt: every host has files of its own, and `{seat}` in
    data.source stands for its number)."""
    alpha: float = 0.5
    """dirichlet: concentration; small is skewed, large is even."""
    classes_per_client: int = 2
    """classes: the most classes that one client sees."""
    examples_per_client: int = 20
    """bootstrap: how many examples each client draws."""
    sigma: float = 1.0
    """lognormal: deviation of the logarithm of the clients' sizes."""
    exponent: float = 1.5
    """power: the client of rank r gets a share in proportion to r to the power of minus this."""
    min_examples: int = 1
    """The fewest training examples that any client may get."""
    holdout: float = 0.0
    """Share of each client's examples that it keeps from training, for its own evaluation."""
    consistent: bool = False
    """Deal the test part to the clients too, and let each have about the same proportions of classes in what it trains
    on, what it holds out and what it is tested on; with `natural`, its test part is of its own ids. Clients then
    evaluate on their test part."""
    shift: str = "none"
    """Feature shift that goes with a client's seat: `none`, `rotation`, `noise`, `scale`."""
    shift_strength: float = 0.0
    """At the last seat: rotation in degrees, noise as a deviation, scale as a relative change."""
    concepts: int = 1
    """Concept shift: clients are of so many kinds, in turn, and each kind but the first calls the classes by names of
    its own, drawn by seed."""
    drift_rounds: int = 0
    """Temporal drift: a feature shift sets in gradually over so many rounds, a concept shift at once after them; 0:
    both are there from the start."""

    def __post_init__(self) -> None:
        schemes = ("iid", "dirichlet", "classes", "lognormal", "power", "natural", "bootstrap", "own")
        _choose("partition.scheme", self.scheme, schemes)
        _choose("partition.shift", self.shift, ("none", "rotation", "noise", "scale"))
        require(0 <= self.holdout < 1, f"partition.holdout is {self.holdout}; it must lie in [0, 1)")
        require(self.alpha > 0, f"partition.alpha is {self.alpha}; it must be above 0")
        for name in ("classes_per_client", "examples_per_client", "concepts"):
            value = getattr(self, name)
            require(value >= 1, f"partition.{name} is {value}; it must be at least 1")
        for name in ("sigma", "exponent", "min_examples", "shift_strength", "drift_rounds"):
            value = getattr(self, name)
            require(value >= 0, f"partition.{name} is {value}; it must not be negative")
        idle = self.shift_strength > 0 and self.shift == "none"
        require(not idle, "partition.shift_strength is set but partition.shift is none; name a shift or leave it out")
        nothing = self.drift_rounds > 0 and self.shift == "none" and self.concepts == 1
        require(not nothing, "partition.drift_rounds is set, but nothing drifts; set partition.shift or concepts too")
        drawn = self.consistent and self.scheme == "bootstrap"
        require(not drawn, "partition.consistent does not go with scheme bootstrap, whose clients share examples")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model is trained, and by which loss."""

    name: str = "mlp"
    """`logistic`, `mlp`, `cnn`, `char-lstm`, or your own module: `package.module:Class` or `./file.py:Class`.
    Your class is handed `input_shape` (without the batch) and `outputs` if it takes parameters of these names."""
    hidden: tuple[int, ...] = ()
    """Widths of the hidden layers, for a model that takes `hidden`; empty for its own default."""
    parameters: dict[str, Option] = field(default_factory=dict)
    """More keyword parameters for the model."""
    loss: str = "auto"
    """`cross_entropy`, `mse`, `bce`, your own `package.module:function` of (outputs, targets) that gives the mean
    over the batch, or `auto`: cross_entropy for classes, mse for numbers."""

    def __post_init__(self) -> None:
        require(bool(self.name), "model.name is empty; name a model or package.module:Class")
        low = any(width < 1 for width in self.hidden)
        require(not low, f"model.hidden is {self.hidden}; every width must be at least 1")


@dataclass(frozen=True, slots=True)
class TrainSpec:
    """How one client trains in one round."""

    epochs: int = 1
    """Passes over the client's examples."""
    steps: int = 0
    """Batches instead of passes, when above 0."""
    batch_size: int = 32
    """Examples in a batch; the last batch of a pass may have fewer."""
    drop_last: bool = False
    """Leave out a last batch that is not full (unless it is the only one): batch normalisation cannot take a batch
    of one."""
    lr: float = 0.1
    """Learning rate of the first round."""
    schedule: str = "constant"
    """How the learning rate changes over rounds: `constant`, `step`, `cosine`."""
    schedule_rounds: int = 10
    """step: rounds between two drops; cosine: rounds until the end of the half wave."""
    schedule_factor: float = 0.1
    """step: factor of each drop; cosine: what is left of the rate at the end, as a factor."""
    momentum: float = 0.0
    """Momentum of plain SGD; it starts at zero in every round."""
    weight_decay: float = 0.0
    """Pull towards zero, as a factor of the weights that is added to the gradient."""
    proximal: float = 0.0
    """Pull towards the weights that the round began with: mu of FedProx (Li et al., MLSys 2020)."""
    clip: float = 0.0
    """Largest L2 norm of a batch's gradient, when above 0; it is applied before the pulls."""
    label_smoothing: float = 0.0
    """Share of each target that is spread evenly over all classes, for cross_entropy; evaluation knows nothing of it
    (Szegedy et al., CVPR 2016, https://arxiv.org/abs/1512.00567)."""
    accumulate: int = 1
    """Batches of one pass whose gradients make one step: what a batch so many times as large would give, in less
    memory."""
    sam_rho: float = 0.0
    """Radius of sharpness-aware minimisation, when above 0: steps go by the gradient where the loss is worst within
    it, which costs a second backward pass (Foret et al., ICLR 2021)."""
    sam_adaptive: bool = False
    """Measure the radius in proportion to the weights (ASAM, Kwon et al., ICML 2021); train.sam_rho is then about ten
    times as large."""
    function: str = ""
    """Your own training in place of ours: `package.module:function` or `./file.py:function`; it is called with those of
    `params`, `model`, `shard`, `spec`, `seed`, `round` and `drift` that it takes, see p2pfl/learn/own.py."""
    limit_seconds: float = 0.0
    """Training that takes longer in one round has failed in that round, when above 0: a guard against a model that
    hangs. What hangs keeps the thread or process that it has until it ends."""
    within_seconds: float = 0.0
    """Train on as many batches as the device gets through in so many seconds, when above 0: at least on one, at most on
    those of `epochs` or `steps`. In a simulation the speed is that of [devices]; a host measures its own."""
    optimizer: str = "sgd"
    """`sgd`, or the name of a class in torch.optim, such as `Adam`, whose state lives for one round."""
    optimizer_parameters: dict[str, Option] = field(default_factory=dict)
    """Keyword parameters for a class of torch.optim, beside `lr` and `weight_decay`."""
    precision: str = "float32"
    """`float32`; `bfloat16`: mixed precision by torch.autocast, for processors that have instructions for it. Weights
    and gradients stay float32; the last bits depend on the processor."""
    tier: str = "auto"
    """How training is computed; results are the same to rounding. `cohort`: many clients in one batched computation,
    for linear layers and activations; `fused`: client by client, large linear layers updated within the backward
    pass; `plain`: as anyone would write it; `functional`: small models of any kind many at once, by torch.func, with
    bits that may depend on who is trained together; `auto`: the fastest of the first three that can."""

    def __post_init__(self) -> None:
        _choose("train.schedule", self.schedule, ("constant", "step", "cosine"))
        _choose("train.precision", self.precision, ("float32", "bfloat16"))
        _choose("train.tier", self.tier, ("auto", "cohort", "functional", "fused", "plain"))
        for name in ("epochs", "batch_size", "schedule_rounds", "accumulate"):
            value = getattr(self, name)
            require(value >= 1, f"train.{name} is {value}; it must be at least 1")
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            require(value >= 0, f"train.{name} is {value}; it must not be negative")
        for name in ("momentum", "label_smoothing"):
            value = getattr(self, name)
            require(0 <= value < 1, f"train.{name} is {value}; it must lie in [0, 1)")
        aimless = self.sam_adaptive and self.sam_rho == 0
        require(not aimless, "train.sam_adaptive is set, but train.sam_rho is 0; give a radius, such as 0.5")
        foreign = self.optimizer != "sgd" and self.momentum > 0
        require(not foreign, "train.momentum is for sgd; give other optimizers theirs in train.optimizer_parameters")
        forced = bool(self.function) and self.tier != "auto"
        require(not forced, f"train.tier is {self.tier}, but train.function trains in its own way; leave the tier out")
        unused = self.optimizer == "sgd" and bool(self.optimizer_parameters)
        require(
            not unused, "train.optimizer_parameters are not for sgd; name a class of torch.optim in train.optimizer"
        )


_NOT_NEGATIVE = (
    "steps",
    "lr",
    "schedule_factor",
    "weight_decay",
    "proximal",
    "clip",
    "sam_rho",
    "within_seconds",
    "limit_seconds",
)


@dataclass(frozen=True, slots=True)
class MetricsSpec:
    """What is measured beside loss and accuracy, and what is told of the clients beside their weighted mean."""

    own: tuple[str, ...] = ()
    """Metrics of your own, `package.module:function` or `./file.py:function`: each is called with the outputs and the
    targets of all examples of an evaluation, gives a number, and goes by the function's name; see
    p2pfl/learn/metrics.py."""
    clients: tuple[str, ...] = ()
    """Where clients evaluate, or nodes by themselves, of each metric: `mean`, not weighted by examples; `groups`, the
    mean of each group; `fairness`, its spread over them: deviation, least and most, deciles, means of the lowest and
    highest tenth, entropy, cosine; `each`, what every client has found, in the file clients.jsonl of the run."""
    groups: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """For `groups`: the name of each, and who sits in it."""

    def __post_init__(self) -> None:
        for form in self.clients:
            _choose("metrics.clients", form, ("mean", "groups", "fairness", "each"))
        named = "groups" not in self.clients or bool(self.groups)
        require(named, "metrics.clients asks for groups; name their seats, as in metrics.groups = {north = [1, 2]}")
        for path in self.own:
            require(":" in path, f"metrics.own {path!r} is no function; write ./file.py:function")
        for name in self.names:
            once = self.names.count(name) == 1
            require(once, f"metrics.own has two metrics {name!r}, or one that is there already; rename the function")

    @property
    def names(self) -> tuple[str, ...]:
        """What an evaluation gives, as far as it can be told."""
        return ("accuracy", "loss", *map(metric_name, self.own))


def metric_name(path: str) -> str:
    """By what name a metric of the user's own goes.

    >>> metric_name("./my_metrics.py:f1")
    'f1'
    """
    return path.rpartition(":")[2]
