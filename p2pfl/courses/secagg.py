"""What a course adds up in secret by: its settings, the messages of the five stages, and what both sides make of them.

The protocol is that of privacy/secagg.py. A client trains before a session begins, so that a session is short: its
first stage is the answer to `Enlist`, which has the model to train from. Weight and loss of an update are in the sum,
and in no message; where the sum has the noise of differential privacy, they are nowhere.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from p2pfl.courses.course import Place
from p2pfl.courses.rounds import RoundRules
from p2pfl.courses.rules import Rule
from p2pfl.crypto.drg import SEED_BYTES
from p2pfl.crypto.signing import Signer
from p2pfl.errors import ConfigError, RemoteProtocolError, require
from p2pfl.node.events import Event
from p2pfl.node.node import Node
from p2pfl.privacy.additive import MOST_CLIENTS
from p2pfl.privacy.distributed import Distributed
from p2pfl.privacy.encoding import Encoding, Mean, Words
from p2pfl.privacy.noise import Keyed, Source, source_of
from p2pfl.privacy.secagg import Session, Terms
from p2pfl.privacy.spec import PrivacySpec
from p2pfl.privacy.thresholds import Resilience, plan
from p2pfl.wire.message import Message, Request
from p2pfl.wire.tensor import Schema, Tensors, TensorSpec

__all__ = [
    "ADDITIVE", "CONSISTENT", "PRIVACY", "AggregationFailed", "AggregationLeft", "Confirm", "Confirmation", "Enlist",
    "Given", "Keys", "Mask", "Masked", "Reveal", "SecAggSpec", "Secrecy", "Seeds", "Share", "Shares", "digest",
    "distributed", "signer_of", "unhurried",
]  # fmt: skip

PRIVACY = ("plain", "secagg", "secagg+consistency", "additive")
CONSISTENT = "secagg+consistency"
ADDITIVE = "additive"
_MOST_CLIENTS = 600  # of one session: the list of them must fit into a head
_LEAST_CLIENTS = 3
_HASHED_AT_ONCE = 1 << 20  # bytes, in less than a millisecond


@dataclass(frozen=True, slots=True)
class SecAggSpec:
    """The table [course.secagg] of a course file: for `privacy` that is not plain."""

    bits: int = 16
    """Of an entry of an update, 8 to 24; with `privacy.mode = "ddp"`, of an entry of the sum."""
    clip: float = 4.0
    """What the entries of an update, times its weight, are clipped to; with `ddp`, privacy.clip is instead."""
    most_loss: float = 16.0
    """What losses are clipped to."""
    most_examples: int = 1000
    """A client that has more weighs as much as one that has so many. The nearer to what they have, the more exact."""
    adversaries: float = 0.05
    """The share of clients that may work together with the coordinator."""
    dropouts: float = 0.1
    """The share of clients that may be lost in the middle of a session."""

    def __post_init__(self) -> None:
        Encoding(self.bits, self.clip, self.most_loss)
        require(self.most_examples >= 1, f"course.secagg.most_examples is {self.most_examples}; it must be at least 1")
        for name in ("adversaries", "dropouts"):
            value = getattr(self, name)
            require(0 <= value < 1, f"course.secagg.{name} is {value}; it must lie in [0, 1)")


class Keys(Message):
    """The answer to Enlist: our keys for this session, signed. That training is done is all it tells of it."""

    keys: bytes
    signature: str


class Enlist(Request[Keys]):
    """Train from this model, and take part in a session in which the updates are added up. Rounds count from 0."""

    session: str
    run: str
    round: int
    params: Tensors


class Shares(Message):
    """The answer to Share: a hash of our own seed, and shares for our neighbours, sealed, by their ids."""

    commitment: bytes
    sealed: dict[str, bytes]
    signature: str


class Share(Request[Shares]):
    """Here is the whole list of the session: ids, keys and signatures."""

    session: str
    adverts: list[tuple[str, bytes, str]]


class Masked(Message):
    """The answer to Mask: our update under all masks."""

    words: Tensors
    signature: str


class Mask(Request[Masked]):
    """These have shared, by number in the list, and this is what your neighbours among them have sealed for you."""

    session: str
    sharers: list[int]
    sealed: dict[str, bytes]


class Confirmation(Message):
    """The answer to Confirm."""

    signature: str


class Confirm(Request[Confirmation]):
    """These have sent a masked update. Sign that."""

    session: str
    survivors: list[int]


class Seeds(Message):
    """The answer to Reveal: shares, by owner, of the own seeds of survivors and of the mask keys of the others."""

    session: str
    own: dict[str, bytes]
    mask: dict[str, bytes]
    signature: str


class Reveal(Request[Seeds]):
    """These have sent a masked update, and your neighbours have confirmed it."""

    session: str
    survivors: list[int]
    confirmations: dict[str, str]


@dataclass(frozen=True, slots=True)
class AggregationFailed(Event):
    """A session of the coordinator's came to nothing: its round has no update, and nobody's was seen."""

    round: int
    reason: str

    def __str__(self) -> str:
        return f"nothing is added up in round {self.round}: {self.reason}"


@dataclass(frozen=True, slots=True)
class AggregationLeft(Event):
    """A client refuses to go on with a session, for what it was asked could tell others of its update."""

    round: int
    reason: str

    def __str__(self) -> str:
        return f"WARNING: the secure aggregation of round {self.round} is left: {self.reason}"


@dataclass(frozen=True, slots=True)
class Given:
    """What a client gives to one session."""

    difference: Tensor
    """Of the update to what was received."""
    weight: float
    loss: float | None
    seed: bytes
    """Of roundings and noise, the same however often it is asked for: two under the same masks would tell."""


@dataclass(frozen=True, slots=True)
class Secrecy:
    """What coordinator and clients both know of how they add up."""

    rule: Rule
    terms: Terms
    run: str
    """The name of the run; empty where there is no journal."""
    noise: Source | None = None
    """What seeds of roundings and noise are drawn from; None: from what the node draws its keys."""

    @classmethod
    def of(cls, place: Place, rule: Rule) -> Secrecy:
        """What the settings of a course come to. Raises ConfigError for what does not go together."""
        settings, learner = place.settings, place.learner
        spec: SecAggSpec = settings.secagg
        _check_rule(settings.name, rule, clipped=not place.privacy.plain)
        require(
            place.compress.plain, "[compress] does not go with course.privacy: sums need whole vectors; leave it out"
        )
        clients = len(place.topology.union.neighbors(0)) if place.topology.n > 1 else 0
        additive = settings.privacy == ADDITIVE
        if additive:  # nobody may be lost, and nobody has shares of another's keys
            resilience = Resilience(0.0, 0.0, active=False)
        else:
            resilience = Resilience(spec.adversaries, spec.dropouts, settings.privacy == CONSISTENT)
        _check_size(settings.rules, clients, resilience, MOST_CLIENTS if additive else _MOST_CLIENTS)
        weighed = spec.most_examples if settings.rules.by_examples else 0
        schema = f"{learner.model.layout.digest}/{rule.up.numel}"
        encoding: Encoding | Distributed = Encoding(spec.bits, spec.clip, spec.most_loss)
        noise = None
        if not place.privacy.plain:
            assert place.account is not None, "who has a privacy mode has an account"
            multiplier = place.account.plan.multiplier
            encoding = distributed(settings, place.privacy, clients, rule.up.numel, multiplier)
            encoding.ring(clients)  # raises if there is none
            noise = source_of(place.privacy.deterministic_noise, learner.seed, "shares of noise", learner.seat)
        terms = Terms(encoding, resilience, clients, weighed, schema, wide=additive)
        return cls(rule, terms, place.journal.run if place.journal is not None else "", noise)

    @property
    def additive(self) -> bool:
        """Whether updates are split into shares, and not masked."""
        return self.terms.wide

    @property
    def size(self) -> int:
        """Entries of a masked update."""
        return self.terms.encoding.size(self.rule.up.numel)

    @property
    def schema(self) -> Schema:
        """How a masked update is sent."""
        return (TensorSpec("words", "u32" if self.terms.ring.bits == 32 else "u64", (self.size,)),)

    def tensors(self, words: Words) -> Tensors:
        """A masked update as it is sent. It is passed by reference: do not write to it afterwards."""
        return Tensors(self.schema, (words.data.cast("B").toreadonly(),))

    def words(self, tensors: Tensors) -> Words:
        """A masked update that came, in place. Raises RemoteProtocolError for another shape than agreed."""
        if tensors.schema != self.schema:
            raise RemoteProtocolError(f"{tensors} came where {', '.join(map(str, self.schema))} was agreed")
        return self.terms.ring.array(tensors["words"])

    def reference(self, received: Tensor) -> Tensor:
        """What an update is the difference to, of which sums are made."""
        return torch.zeros(self.rule.up.numel) if self.rule.relative else received

    def seed(self, signer: Signer) -> bytes:
        """32 bytes by which one update is rounded and has its noise."""
        return (self.noise or signer).draw(SEED_BYTES)

    def encoding(self, words: Words, given: Given, session: Session) -> Iterator[None]:
        """The integers of an update into `words`, step by step."""
        way = self.terms.encoding
        if isinstance(way, Distributed):
            return way.encoding(words, given.difference, session.rotation, Keyed(given.seed))
        loss = float("nan") if given.loss is None else given.loss
        return way.encoding(words, given.difference.numpy(), given.weight, loss, given.seed)

    def decode(self, total: Words, clients: int, session: Session) -> Mean:
        """What the sum of so many tells. Raises RemoteProtocolError for what is none."""
        way = self.terms.encoding
        if isinstance(way, Distributed):
            return way.mean(total, clients, session.rotation)
        return way.decode(total, clients)

    def weight(self, num_examples: int) -> float:
        """What an update of so many examples weighs, between 0 and 1."""
        most = self.terms.most_examples
        return min(num_examples / most, 1.0) if most else 1.0


def distributed(settings: Any, spec: PrivacySpec, clients: int, numel: int, multiplier: float) -> Distributed:
    """The noise that the clients of a course share, of whose cohorts as few as the quorum may be on the list.

    Raises ConfigError where nobody adds up in secret, or the sum does not fit.
    """
    rules, secagg = settings.rules, settings.secagg
    require(
        settings.privacy in ("secagg", CONSISTENT),
        f"privacy.mode is 'ddp', whose noise is in sums of masked updates, and course.privacy is {settings.privacy!r}; "
        "set course.privacy to 'secagg' or 'secagg+consistency', or privacy.mode to another",
    )
    least = min(rules.enough(clients), rules.asked(clients))
    return Distributed(numel, least, spec.clip, multiplier, secagg.bits, secagg.dropouts, secagg.adversaries)


def _check_rule(name: str, rule: Rule, *, clipped: bool) -> None:
    """Raise ConfigError unless its updates are models, of which nothing but the mean is made; or `clipped`."""
    up, down = dict(rule.up.sizes), dict(rule.down.sizes)
    fits = (clipped or not rule.relative) and list(up) == ["params"] and up["params"] == down.get("params")
    require(
        fits,
        f"course.privacy does not go with {name}, whose clients send more than a model, or something else: its range "
        "is not known; set it to 'plain', or take fedavg",
    )


def _check_size(rules: RoundRules, clients: int, resilience: Resilience, most: int) -> None:
    """Raise ConfigError unless the cohorts that the rules ask for can add up in secret, all of them and a quorum."""
    asked, enough = rules.asked(clients), min(rules.enough(clients), rules.asked(clients))
    require(
        enough >= _LEAST_CLIENTS,
        f"a round is content with {enough} clients, and the sum of fewer than {_LEAST_CLIENTS} hides nothing; raise "
        "course.fraction or course.quorum, or have more clients",
    )
    require(
        asked <= most,
        f"a round asks {asked} clients, and at most {most} can add up in secret; lower course.fraction",
    )
    for count in (asked, enough):
        plan(count, resilience)


def signer_of(node: Node) -> Signer:
    """What a node signs and draws its secrets with. Raises ConfigError if there is nothing."""
    if node.transport.signer is None:
        raise ConfigError(f"course.privacy needs signatures, and {node.transport!r} cannot sign: give it a signer")
    return node.transport.signer


async def unhurried(steps: Iterable[None]) -> None:
    """Do heavy work step by step on the loop, which others have in between. In the same order in every run."""
    for _ in steps:
        await asyncio.sleep(0)


async def digest(words: Words) -> bytes:
    """32 bytes that only this masked update has."""
    whole, content = hashlib.sha256(), words.data.cast("B")
    for start in range(0, len(content), _HASHED_AT_ONCE):
        whole.update(content[start : start + _HASHED_AT_ONCE])
        await asyncio.sleep(0)
    return whole.digest()
