"""What a course file may say of a course with a coordinator: rounds, cohorts, who is waited for, what is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from p2pfl.courses.goal import BETTER, Goal
from p2pfl.courses.rounds import RoundRules
from p2pfl.courses.samplers import SAMPLERS, SamplerSpec
from p2pfl.courses.scores import BY_CLIENTS
from p2pfl.courses.secagg import PRIVACY, SecAggSpec
from p2pfl.errors import require
from p2pfl.learn.specs import TrainSpec

__all__ = ["FedAvgSettings"]


@dataclass(frozen=True, slots=True)
class FedAvgSettings:
    """The table [course] of a course file."""

    name: str = "fedavg"
    rounds: int = 30
    """Rounds at most."""
    fraction: float = 1.0
    """Share of the clients that makes up a round's cohort."""
    sampler: str = "uniform"
    """How a cohort is drawn: `uniform`; `responsiveness`, by the time that clients take; `grouped`, those together that
    are about as fast; `power-of-choice`, where the loss is high; `oort`, for both loss and time."""
    favour: str = "fast"
    """With `responsiveness`: `fast`, or `slow`, to hear of all as often."""
    candidates: float = 2.0
    """With `power-of-choice`: of so many times the cohort those are taken whose loss is highest."""
    groups: int = 10
    """With `grouped`: so many groups of clients that are about as fast."""
    over_selection: float = 0.0
    """So many more clients are asked, as a share of the cohort."""
    quorum: float = 1.0
    """Share of the cohort whose updates are enough; the others of the round are cancelled."""
    deadline_seconds: float = 0.0
    """A round's training ends after so long with what has arrived, and so does an evaluation; 0: no deadline."""
    grace_seconds: float = 0.0
    """Once the quorum is reached, the others have so long to be part of the round too."""
    rejoin_seconds: float = 30.0
    """A client that is cut off has so long to come back, and is asked again; 0: the round goes on without it."""
    exclude_after: int = 3
    """A client that fails so many rounds in succession is left out of the next, then of the next two, four ...; 0:
    never."""
    most_examples: int = 100_000_000
    """An update that claims to be of more examples is refused."""
    weights: str = "examples"
    """`examples`: an update weighs as many as its client has; `equal`: all weigh the same."""
    coordinator: str = "fixed"
    """`fixed`: seat 0 leads, and all wait while it is away; `elect`: when it is lost, the others elect one of them. A
    round is then committed once a majority of all seats has its model and has signed it."""
    min_clients: int = 0
    """The first round waits for so many clients; 0: for all seats."""
    evaluate: str = "server"
    """`server`: on the test part, `clients`: each client on its own, `both`, `none`."""
    evaluate_every: int = 1
    """Rounds between two evaluations."""
    unseen: float = 0.0
    """Share of the clients, drawn by seed, that never train: they are evaluated only, and what they find is told apart
    from what the others do, as `unseen_accuracy` and `unseen_loss`."""
    finetune_epochs: int = 0
    """Before a client is evaluated, and in the end, it trains its model for so many passes over its own examples; no
    update holds anything of that."""
    finetune_lr: float = 0.0
    """The learning rate of these passes; 0: train.lr."""
    patience: int = 0
    """Stop after so many evaluations without a better one; 0: never."""
    target_accuracy: float = 0.0
    """Stop as soon as this accuracy is reached; 0: never."""
    target: float = 0.0
    """Stop as soon as the metric `best_by` reaches this; 0: never."""
    keep: str = "last"
    """The course's result: the model of the `last` round, or the `best`."""
    best_by: str = ""
    """The metric that `keep`, `patience` and `target` judge by, any that a round tells; empty: accuracy, or loss if
    there is none."""
    best_is: str = "auto"
    """The best is the `highest` or the `lowest`; `auto`: of a loss the lowest, of all else the highest."""
    diagnose: bool = False
    """Tell of each round how alike the updates are: dissimilarity, gradient diversity, norm, distance to their mean. It
    costs a pass over each update."""
    privacy: str = "plain"
    """`plain`: the server sees the update of each client; `secagg`: it sees only their sum, if it follows the protocol;
    `secagg+consistency`: and even if it does not; `additive`: so do at most 16 clients, of whom none may be lost."""
    secagg: SecAggSpec = field(default_factory=SecAggSpec)

    def __post_init__(self) -> None:
        for name in ("rounds", "evaluate_every", "most_examples", "candidates", "groups"):
            require(getattr(self, name) >= 1, f"course.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("fraction", "quorum"):
            require(0 < getattr(self, name) <= 1, f"course.{name} is {getattr(self, name)}; it must lie in (0, 1]")
        require(0 <= self.unseen < 1, f"course.unseen is {self.unseen}; it must lie in [0, 1)")
        for name in _NOT_NEGATIVE:
            require(getattr(self, name) >= 0, f"course.{name} is {getattr(self, name)}; it must not be negative")
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            require(value in choices, f"course.{name} is {value!r}; it must be one of {', '.join(choices)}")
        idle = self.unseen > 0 and self.evaluate not in ("clients", "both")
        require(not idle, "course.unseen is set, and clients are not evaluated; set course.evaluate to clients or both")
        aimless = bool(self.target) and not self.best_by
        require(not aimless, f"course.target is {self.target}; name the metric that is to reach it in course.best_by")
        unheard = self.best_by.startswith(BY_CLIENTS) and self.evaluate not in ("clients", "both")
        require(not unheard, f"course.best_by is {self.best_by!r}; set course.evaluate to clients or both")
        if self.coordinator == "elect":
            self._only(_ELECTED, "course.coordinator = 'elect'")
        if self.privacy != "plain":
            self._only(_SECRET, f"course.privacy = {self.privacy!r}")

    def _only(self, choices: Mapping[str, tuple[object, ...]], where: str) -> None:
        for name, only in choices.items():
            value = getattr(self, name)
            require(value in only, f"course.{name} is {value!r}; with {where} it must be one of {only}")

    @property
    def aim(self) -> Goal:
        return Goal(self.best_by, self.best_is, self.patience, self.target, self.target_accuracy)

    @property
    def hears_all(self) -> bool:
        """Whether every update that is asked for counts, and as much as every other."""
        return self.weights == "equal" and self.quorum == 1 and not (self.deadline_seconds or self.over_selection)

    @property
    def rules(self) -> RoundRules:
        return RoundRules(
            fraction=self.fraction,
            over_selection=self.over_selection,
            quorum=self.quorum,
            deadline_seconds=self.deadline_seconds,
            grace_seconds=self.grace_seconds,
            rejoin_seconds=self.rejoin_seconds,
            exclude_after=self.exclude_after,
            most_examples=self.most_examples,
            by_examples=self.weights == "examples",
            unseen=self.unseen,
            sampling=SamplerSpec(self.sampler, self.favour, self.candidates, self.groups),
        )

    def finetuning(self, train: TrainSpec) -> TrainSpec | None:
        """How clients who train as `train` says do so before they are evaluated; None: they do not."""
        if not self.finetune_epochs:
            return None
        return replace(train, epochs=self.finetune_epochs, steps=0, lr=self.finetune_lr or train.lr)


_NOT_NEGATIVE = (
    "over_selection", "deadline_seconds", "grace_seconds", "rejoin_seconds", "exclude_after", "min_clients", "patience",
    "target_accuracy", "finetune_epochs", "finetune_lr",
)  # fmt: skip
_CHOICES = {
    "sampler": SAMPLERS,
    "favour": ("fast", "slow"),
    "weights": ("examples", "equal"),
    "coordinator": ("fixed", "elect"),
    "evaluate": ("server", "clients", "both", "none"),
    "keep": ("last", "best"),
    "best_is": BETTER,
    "privacy": PRIVACY,
}
_ELECTED = {
    "keep": ("last",),
    "patience": (0,),
    "sampler": ("uniform",),
    "finetune_epochs": (0,),
    "unseen": (0,),
}  # what a successor can go on with
_SECRET = {
    "coordinator": ("fixed",),
    "sampler": ("uniform",),
    "evaluate": ("server", "none"),
    "diagnose": (False,),
}  # nothing of one client
