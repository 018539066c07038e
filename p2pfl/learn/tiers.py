"""Which way a client is trained: the fastest that its model and spec allow, found by looking at them.

| tier | for | how |
|---|---|---|
| cohort | chains of linear layers and activations | many clients in batched products, gradients by hand (batched.py) |
| fused | other models with large linear layers | client by client, updated within the backward pass (fused.py) |
| plain | everything | client by client, as anyone would write it (train.py) |
| own | `train.function` | client by client, by the user's function (own.py) |

The first three give the same result to rounding, and none lets it depend on who else is trained: a host that trains for
itself gets the bytes that a simulation gets. A client whose optimizer is to go on where it stood, momentum and all, is
trained plainly whatever its tier.

`functional` (functional.py) trains small models of any kind together, by torch.func. It promises nobody the same bits
alone and together, and makes a lone client slower, so it runs only where `train.tier` asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

from p2pfl.errors import ConfigError
from p2pfl.learn.batched import suits, together, width_of
from p2pfl.learn.batches import Work
from p2pfl.learn.chain import Chain, Dense, chain_of
from p2pfl.learn.functional import fit_functional
from p2pfl.learn.fused import fit_fused, large_layers
from p2pfl.learn.model import Model
from p2pfl.learn.own import fit_by_own, own_function
from p2pfl.learn.params import Layout
from p2pfl.learn.specs import TrainSpec
from p2pfl.learn.train import Fit, FitResult, fit_plainly, training_loss

__all__ = ["Tier", "fit_all", "fit_one", "tier_of"]


@dataclass(frozen=True, slots=True)
class Tier:
    """How a model is trained, and why in no faster way; the reason is empty for the fastest."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})" if self.reason else self.name


def tier_of(model: Model, spec: TrainSpec) -> Tier:
    """The tier in which `model` is trained as `spec` says.

    Raises ConfigError if `spec.tier` names one that cannot, or if nothing can be done as `spec` says.
    """
    if spec.function:
        own_function(spec.function)
        return Tier("own", f"train.function is {spec.function}")
    training_loss(model, spec)
    hindrances = {"cohort": _not_cohort(model, spec), "fused": _not_fused(model, spec), "plain": ""}
    if spec.tier == "functional":
        hindrances["functional"] = _not_stateless(model) or _not_by_hand(spec)
    if spec.tier == "auto":
        name = next(name for name, hindrance in hindrances.items() if not hindrance)
        above = list(hindrances.values())[: list(hindrances).index(name)]
        return Tier(name, "; ".join(dict.fromkeys(above)))
    if hindrances[spec.tier]:
        raise ConfigError(f"train.tier is {spec.tier}, but {hindrances[spec.tier]}; set it to auto")
    return Tier(spec.tier, "" if spec.tier == "cohort" else f"train.tier is {spec.tier}")


def fit_one(work: Fit) -> FitResult:
    """Train one client in its tier. Raises what `p2pfl.learn.train.fit` raises."""
    (found,) = fit_all((work,))
    if isinstance(found, Exception):
        raise found
    return found


def fit_all(fits: Sequence[Fit]) -> list[FitResult | Exception]:
    """Train clients, together where that can be: the results in their order, or what was raised in a result's place.

    No client's result depends on the others.
    """
    results: dict[int, FitResult | Exception] = {}
    cohorts: dict[Hashable, list[int]] = {}
    ways = _Ways()
    for at, work in enumerate(fits):
        try:
            key = ways.cohort_of(work)
        except ConfigError as error:
            results[at] = error
            continue
        if key is None:
            results[at] = _outcome(ways.alone(work), work)
        else:
            cohorts.setdefault(key, []).append(at)
    for members in cohorts.values():
        results.update(zip(members, _outcomes([fits[at] for at in members]), strict=True))
    return [results[at] for at in range(len(fits))]


class _Ways:
    """Which way each of some clients goes. What their models, specs and data sets allow is found once for all."""

    def __init__(self) -> None:
        self._tiers: dict[tuple[int, int], str] = {}  # by identity of model and spec, which live as long as this
        self._suited: dict[tuple[int, int], bool] = {}  # by identity of model and data set
        self._specs: dict[int, TrainSpec] = {}  # by identity, the first that is equal
        self._alike: dict[int, int] = {}  # by identity, that of the first that differs in nothing but how much is done
        self._different: list[TrainSpec] = []

    def cohort_of(self, work: Fit) -> Hashable | None:
        """What those have in common who can be trained together; None for a client to be trained alone."""
        dataset, length, tier = work.shard.dataset, (work.model.layout.numel,), self._tier(work)
        alone = work.memory is not None or len(work.shard) == 0
        if alone or tier not in ("cohort", "functional") or work.params.shape != length:
            return None
        if tier == "functional":
            size = len(work.shard)
            steps = Work.of(size, work.spec).steps
            return id(work.model), self._like(work.spec), work.lr, size, steps, work.drift is None
        both = (id(work.model), id(dataset))
        if both not in self._suited:
            self._suited[both] = suits(_chain(work.model), dataset)
        if not self._suited[both] or (work.drift is not None and work.drift.shape != length):
            return None
        width = width_of(len(work.shard), work.spec)
        like = (dataset.x.shape[1:], dataset.y.shape[1:], dataset.y.dtype)
        return id(work.model), self._like(work.spec), work.lr, width, work.drift is None, like

    def alone(self, work: Fit) -> Callable[[Fit], FitResult]:
        """How a client is trained who is trained alone."""
        tier = self._tier(work)
        if tier == "own":
            return fit_by_own
        fused = tier != "plain" and work.memory is None and not _not_fused(work.model, work.spec)
        return fit_fused if fused else fit_plainly

    def _same(self, spec: TrainSpec) -> int:
        """The identity of the first spec that is equal: a course may make one for each client."""
        if id(spec) not in self._specs:
            self._specs[id(spec)] = self._first(spec)
        return id(self._specs[id(spec)])

    def _first(self, spec: TrainSpec) -> TrainSpec:
        known = next((other for other in self._different if other == spec), None)
        if known is None:
            self._different.append(spec)
        return known or spec

    def _like(self, spec: TrainSpec) -> int:
        """What it has in common with those who do more or less of the same."""
        same = self._same(spec)
        if same not in self._alike:
            self._alike[same] = id(self._first(replace(spec, epochs=1, steps=0, within_seconds=0.0, limit_seconds=0.0)))
        return self._alike[same]

    def _tier(self, work: Fit) -> str:
        both = (id(work.model), self._same(work.spec))
        if both not in self._tiers:
            self._tiers[both] = tier_of(work.model, work.spec).name
        return self._tiers[both]


def _not_cohort(model: Model, spec: TrainSpec) -> str:
    """Why a model cannot be trained in a cohort; empty if it can."""
    chain = chain_of(model.module)
    if isinstance(chain, str):
        return chain
    smoothed = "label_smoothing is set" if spec.label_smoothing > 0 else ""
    return _not_stateless(model, frozen=_only_frozen(model, chain)) or _not_by_hand(spec) or smoothed


def _only_frozen(model: Model, chain: Chain) -> bool:
    """Whether all that does not train are weights of the chain, of which some do train."""
    trainable, entries = model.layout.trainable, model.layout.entries
    used = {at for layer in chain.layers if isinstance(layer, Dense) for at in layer.entries}
    in_place = model.layout == Layout.of(model.module)  # by which the chain counts its entries
    return in_place and min(used) < trainable and used.issuperset(range(trainable, len(entries)))


def _not_stateless(model: Model, *, frozen: bool = False) -> str:
    """Why the steps of several clients cannot be one computation. `frozen`: no step changes its buffers."""
    if model.draws:
        return "it draws random numbers"
    return "it has buffers" if not frozen and model.layout.trainable < len(model.layout.entries) else ""


def _not_fused(model: Model, spec: TrainSpec) -> str:
    if not large_layers(model.module):
        return "no linear layer is large"
    return _not_by_hand(spec)


def _not_by_hand(spec: TrainSpec) -> str:
    """Why each step has to see a whole gradient, or more than one."""
    if spec.optimizer != "sgd":
        return f"optimizer is {spec.optimizer}"
    if spec.clip > 0:
        return "clip is set"
    if spec.sam_rho > 0:
        return "sam_rho is set"
    if spec.precision != "float32":
        return f"precision is {spec.precision}"
    return "accumulate is set" if spec.accumulate > 1 else ""


def _chain(model: Model) -> Chain:
    chain = chain_of(model.module)
    assert isinstance(chain, Chain), "models without one are in other tiers"
    return chain


def _outcomes(fits: Sequence[Fit]) -> list[FitResult | Exception]:
    """Train a cohort. If it fails, each client is trained alone, so that only those fail whose fault it is."""
    try:
        if fits[0].spec.tier == "functional":
            return [*fit_functional(fits)]
        return [*together(_chain(fits[0].model), fits)]
    except Exception as error:  # noqa: BLE001 - carried over to whoever wants this result
        if len(fits) == 1:
            return [error]
    return [outcome for work in fits for outcome in _outcomes((work,))]


def _outcome(train: Callable[[Fit], FitResult], work: Fit) -> FitResult | Exception:
    try:
        return train(work)
    except Exception as error:  # noqa: BLE001 - carried over to whoever wants this result
        return error
