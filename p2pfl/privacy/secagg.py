"""Secure aggregation: a coordinator learns the sum of its clients' vectors, and of no client anything else.

J. Bell, K. Bonawitz, A. Gascón, T. Lepoint, M. Raykova: "Secure Single-Server Aggregation with (Poly)Logarithmic
Overhead", CCS 2020, https://eprint.iacr.org/2020/704, which makes K. Bonawitz et al.: "Practical Secure Aggregation
for Privacy-Preserving Machine Learning", CCS 2017, https://arxiv.org/abs/1611.04482 sparse. A session has five stages:

    advertise    clients sign fresh public keys
    share        each gets the whole signed list, finds its neighbours in it, and gives them shares of its two seeds
    mask         each sends its vector under one mask of its own and one for each neighbour who has shared, too
    confirm      each signs who has sent one (only with consistency, against a coordinator that tells different sets)
    reveal       each gives shares of the own seeds of those who have sent a vector, and of the mask keys of the others

Deviations. The masks are bound to the model that was trained from and to its shape, so that a coordinator that gives
out different models learns noise (D. Pasquini, D. Francati, G. Ateniese: "Eluding Secure Aggregation in Federated
Learning via Model Inconsistency", CCS 2022, https://arxiv.org/abs/2111.07380). Neighbours and thresholds are found by
each client from the list; nobody tells it. With its shares a client sends a hash of its own seed, so that what is put
together of the shares can be held against it, and wrong ones are corrected and named.

Here is what both sides agree on; secagg_client.py and secagg_server.py are the sides, without any I/O.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from itertools import pairwise

import msgspec

from p2pfl.crypto.masks import Binding
from p2pfl.errors import AggregationAborted, ConfigError
from p2pfl.privacy.distributed import Distributed
from p2pfl.privacy.encoding import Encoding, Ring
from p2pfl.privacy.thresholds import Plan, Resilience, plan

__all__ = ["Advert", "Dealt", "Revealed", "Roster", "Session", "Stage", "Terms", "digest_of"]

_TAG = b"p2pfl secagg v1\0"
KEY_BYTES = 32
Verifies = Callable[[str, bytes, str], bool]
"""Whether the node of an id has signed a statement so."""


class Stage(IntEnum):
    """How far a session is."""

    ADVERTISED = 1
    SHARED = 2
    MASKED = 3
    CONFIRMED = 4
    DECIDED = 5  # what is revealed is settled
    OVER = 6


@dataclass(frozen=True, slots=True)
class Terms:
    """What all clients of a session must have agreed on. Each knows it from the course; no message can change it."""

    encoding: Encoding | Distributed
    """How an update becomes integers: `Distributed` adds noise to them."""
    resilience: Resilience
    most_clients: int
    """That a session may have."""
    most_examples: int
    """That a client's update is weighed by; 0: all weigh the same."""
    schema: str
    """What the tensors are."""
    wide: bool = False
    """Whether sums are made modulo 2^64 even where they fit below 2^32."""
    digest: str = field(init=False, repr=False, compare=False)
    """The same for the same terms only."""

    def __post_init__(self) -> None:
        said = [self.encoding, self.resilience, self.most_clients, self.most_examples, self.schema, self.wide]
        object.__setattr__(self, "digest", hashlib.sha256(msgspec.json.encode(said, order="sorted")).hexdigest())

    @property
    def ring(self) -> Ring:
        """Where the sum of them all does not wrap around."""
        return Ring(64) if self.wide else self.encoding.ring(self.most_clients)


@dataclass(frozen=True, slots=True)
class Session:
    """One secure aggregation. `nonce` is the coordinator's, `model` the hash of what was trained from."""

    run: str
    round: int
    nonce: str
    model: str
    terms: Terms

    def statement(self, stage: str, *body: bytes) -> bytes:
        """What is signed in a stage. Equal for equal sessions, stages and bodies only."""
        hashed = hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in body)).hexdigest()
        return _TAG + msgspec.json.encode([self.run, self.round, self.nonce, stage, hashed])

    @property
    def rotation(self) -> bytes:
        """32 bytes that all of this session have, and nobody else of another: see Distributed."""
        return hashlib.sha256(self.statement("rotate")).digest()

    def advertised(self, keys: bytes) -> bytes:
        """What a client signs at first: its keys, the model that it has got, and the terms that it knows."""
        return self.statement("advertise", keys, self.model.encode(), self.terms.digest.encode())


@dataclass(frozen=True, slots=True)
class Advert:
    """A client's public keys, for shares and for masks, and its nonce: 32 bytes each, in this order."""

    peer: str
    keys: bytes
    signature: str

    @property
    def parts(self) -> tuple[bytes, bytes, bytes]:
        """Key for shares, key for masks, nonce."""
        return self.keys[:KEY_BYTES], self.keys[KEY_BYTES : 2 * KEY_BYTES], self.keys[2 * KEY_BYTES :]

    def check(self, session: Session, verifies: Verifies) -> None:
        """Raise AggregationAborted unless its peer has signed just this session, model and terms with it."""
        statement = session.advertised(self.keys)
        if len(self.keys) != 3 * KEY_BYTES or not verifies(self.peer, statement, self.signature):
            raise AggregationAborted(
                "has not signed these keys for this session, model and terms", culprits=(self.peer,)
            )


@dataclass(frozen=True, slots=True)
class Dealt:
    """What a client gives in stage `share`: a hash of its own seed, and what is sealed for each neighbour."""

    commitment: bytes
    sealed: Mapping[str, bytes]
    signature: str

    @property
    def body(self) -> tuple[bytes, ...]:
        """What is signed."""
        return (self.commitment, *(each for to in sorted(self.sealed) for each in (to.encode(), self.sealed[to])))


@dataclass(frozen=True, slots=True)
class Revealed:
    """What a client gives in the end, by owner: shares of the own seeds of survivors, of the mask keys of others."""

    own: Mapping[str, bytes]
    mask: Mapping[str, bytes]
    signature: str

    @property
    def body(self) -> tuple[bytes, ...]:
        """What is signed."""
        return tuple(
            each
            for kind, shares in ((b"own", self.own), (b"mask", self.mask))
            for owner in sorted(shares)
            for each in (kind, owner.encode(), shares[owner])
        )


class Roster:
    """The whole signed list of a session, checked: who takes part, who is whose neighbour, and how many it takes."""

    def __init__(self, session: Session, adverts: Iterable[Advert], verifies: Verifies) -> None:
        """Raises AggregationAborted, naming whose entry is wrong, also where no list of this length will do."""
        self.adverts = tuple(adverts)
        self.peers: tuple[str, ...] = tuple(advert.peer for advert in self.adverts)
        if len(self.peers) > session.terms.most_clients:
            raise AggregationAborted(f"the list has {len(self.peers)} clients, and the course fewer")
        if any(one >= other for one, other in pairwise(self.peers)):
            raise AggregationAborted("the list of clients is not in the order of their ids, each once")
        for advert in self.adverts:
            advert.check(session, verifies)
        keys = [key for advert in self.adverts for key in advert.parts]
        if len(set(keys)) < len(keys):
            raise AggregationAborted("two clients of the list have one key")
        self.session = session
        try:
            self.plan: Plan = plan(len(self.peers), session.terms.resilience)
        except ConfigError as error:  # for a list of another length than the course was checked for
            raise AggregationAborted(str(error)) from error
        self._index = {peer: index for index, peer in enumerate(self.peers)}

    @cached_property
    def sid(self) -> bytes:
        """32 bytes that only this list has, in this session."""
        signed = [part for each in self.adverts for part in (each.peer.encode(), each.keys, each.signature.encode())]
        model, terms = self.session.model.encode(), self.session.terms.digest.encode()
        return hashlib.sha256(self.session.statement("list", model, terms, *signed)).digest()

    @property
    def binding(self) -> Binding:
        """What all masks of the session are bound to."""
        return Binding(self.sid, self.session.model, self.session.terms.schema)

    def __contains__(self, peer: object) -> bool:
        return peer in self._index

    def __len__(self) -> int:
        return len(self.peers)

    def __getitem__(self, peer: str) -> Advert:
        return self.adverts[self._index[peer]]

    def place(self, peer: str) -> int:
        """Where a client's shares are on the polynomials."""
        return 1 + self._index[peer]

    def holders(self, peer: str) -> tuple[str, ...]:
        """Who has shares of a client's seeds: its neighbours and itself, by id."""
        return tuple(sorted((*self.neighbours(peer), peer)))

    def neighbours(self, peer: str) -> tuple[str, ...]:
        """With whom a client shares masks, by id. It is its neighbours' neighbour."""
        if self.plan.degree >= len(self) - 1:
            return tuple(other for other in self.peers if other != peer)
        ring, at, half = self._ring, self._at[peer], self.plan.degree // 2
        return tuple(sorted(ring[(at + step) % len(ring)] for step in range(-half, half + 1) if step))

    @cached_property
    def _ring(self) -> tuple[str, ...]:
        """All clients in an order that nobody knew before the list was complete: that of a hash of all nonces."""
        seed = hashlib.sha256(_TAG + b"ring" + b"".join(advert.parts[2] for advert in self.adverts)).digest()
        return tuple(sorted(self.peers, key=lambda peer: hashlib.sha256(seed + peer.encode()).digest()))

    @cached_property
    def _at(self) -> dict[str, int]:
        return {peer: index for index, peer in enumerate(self._ring)}

    def indices(self, peers: Collection[str]) -> list[int]:
        """Some of the list as numbers, in order."""
        return sorted(self._index[peer] for peer in peers)

    def check_sum(self, peers: Collection[str]) -> None:
        """Raise AggregationAborted where the sum of just these vectors must not be told."""
        least = self.session.terms.encoding.least(len(self))
        if len(peers) < least:
            raise AggregationAborted(
                f"the sum is of {len(peers)} vectors, and only those of {least} have the noise that was paid for"
            )

    def chosen(self, indices: Sequence[int]) -> frozenset[str]:
        """Who the numbers are. Raises AggregationAborted if they are not in order, each once, or not of the list."""
        if any(one >= other for one, other in pairwise(indices)) or (
            indices and not 0 <= indices[0] <= indices[-1] < len(self)
        ):
            raise AggregationAborted("a set of clients is not one of the list")
        return frozenset(self.peers[index] for index in indices)

    def confirmation(self, survivors: Collection[str]) -> bytes:
        """What is signed in stage `confirm`."""
        return self.session.statement("confirm", self.sid, digest_of(survivors))

    def __repr__(self) -> str:
        return f"<Roster of {len(self)} clients, {self.plan.threshold} of {self.plan.degree + 1} shares>"


def digest_of(peers: Collection[str]) -> bytes:
    """32 bytes that only this set of clients has."""
    return hashlib.sha256("\0".join(sorted(peers)).encode()).digest()
