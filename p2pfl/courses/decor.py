"""Differential privacy in gossip: each node clips what it has learned, and adds noise before anybody gets it.

With `ldp` the noise is a node's own. With `decor` most of it cancels between neighbours, so that their mean is more
exact than what any of them shows:

Y. Allouah, A. Koloskova, A. El Firdoussi, M. Jaggi, R. Guerraoui: "The Privacy Power of Correlated Noise in
Decentralized Learning", ICML 2024, https://arxiv.org/abs/2405.01031.

    y_i = x_i + clip(trained - x_i) + N(0, (z clip)²) + the sum over neighbours j of v_ij,    v_ij = -v_ji

Both ends of a link draw v_ij from a key that they agree on when they meet, by X25519, and that lasts as long as the
processes do. Noise for a neighbour without a key is drawn in secret: it does not cancel, and hides as much.

Deviation: noise is never left out where a neighbour is lost in the middle of a round. What is lost does not cancel, at
the cost of exactness; who left it out would have less privacy than it was charged for, and so would its neighbours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress

from torch import Tensor

from p2pfl.courses.course import Place
from p2pfl.courses.gossip import neighborhood
from p2pfl.courses.learner import Learner
from p2pfl.courses.noised import check_model
from p2pfl.courses.steps import Adapt
from p2pfl.crypto.noise import KeyPair, dh, hkdf
from p2pfl.errors import HandshakeFailed, RemoteProtocolError, require
from p2pfl.learn.train import FitResult
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer, require_seat
from p2pfl.privacy.account import Account
from p2pfl.privacy.clipping import clipped
from p2pfl.privacy.noise import Keyed, Source, gaussian, source_of
from p2pfl.topology.schedule import Schedule
from p2pfl.topology.weights import Missing
from p2pfl.wire.message import Message, Request

__all__ = ["GOSSIPING", "AgreeOnNoise", "NoiseKey", "Noisy", "Pairing", "noisy"]

GOSSIPING = ("ldp", "decor")
"""The modes of a course without a coordinator."""

_KEY_BYTES = 32
_KEY_SECONDS = 10.0  # that a linked neighbour has to give its key, before noise for it is drawn in secret


class NoiseKey(Message):
    """The sender's public key, as hex."""

    public: str

    def __post_init__(self) -> None:
        _check_key(self.public)


class AgreeOnNoise(Request[NoiseKey]):
    """Here is my public key, as hex: let us draw noise that cancels between us. What is yours?"""

    public: str

    def __post_init__(self) -> None:
        _check_key(self.public)


def _check_key(public: str) -> None:
    if len(bytes.fromhex(public)) != _KEY_BYTES:
        raise ValueError(f"a public key has {_KEY_BYTES} bytes, as hex")


class Pairing:
    """The role that agrees on a key with each neighbour. Keys are made anew in each process, and kept nowhere."""

    def __init__(self, neighbors: Iterable[int]) -> None:
        self._neighbors = tuple(neighbors)
        self._own = KeyPair()
        self._secrets: dict[int, bytes] = {}
        self._used: dict[int, int] = {}  # seat -> the last round that noise was drawn for
        self._node: Node | None = None

    async def run(self, node: Node) -> None:
        """All else is to ask and to answer, for as long as others play."""
        self._node = node

    async def agree(self, seats: Iterable[int]) -> None:
        """Ask those for their key who are linked and have not told it; they have a while to answer."""
        node = self._node
        assert node is not None, "whoever plays a round has begun to run"
        peers = [peer for seat in seats if seat not in self._secrets and (peer := node.at(seat)) is not None]
        replies = node.ask_all(peers, AgreeOnNoise(self._own.public.hex()))
        with suppress(TimeoutError):
            async with asyncio.timeout(_KEY_SECONDS), replies:
                async for peer, key in replies:
                    with suppress(RemoteProtocolError):  # it is of no use, as if there were none
                        self._take(peer, key.public)

    def source(self, seat: int, round: int) -> Source | None:
        """What a neighbour draws the same from in a round; None if there is no key, or one update was hidden by it."""
        secret = self._secrets.get(seat)
        if secret is None or self._used.get(seat, -1) >= round:
            return None
        self._used[seat] = round
        return Keyed(hkdf(b"p2pfl decor v1", secret, round.to_bytes(8, "big"), _KEY_BYTES))

    @AgreeOnNoise.handler
    async def answer(self, ask: AgreeOnNoise, peer: Peer) -> NoiseKey:
        """Who asks again was restarted, and has a new key."""
        self._take(peer, ask.public)
        return NoiseKey(self._own.public.hex())

    def _take(self, peer: Peer, public: str) -> None:
        seat, theirs = require_seat(peer, *self._neighbors), bytes.fromhex(public)
        try:
            shared = dh(self._own.private, theirs)
        except HandshakeFailed as error:
            raise RemoteProtocolError(str(error)) from error
        both = b"".join(sorted((self._own.public, theirs)))
        self._secrets[seat] = hkdf(both, shared, b"pair", _KEY_BYTES)


class Noisy(Adapt):
    """Train, add noise, then mix what all have given: nobody, and no later model, gets what had none."""

    def __init__(
        self, learner: Learner, account: Account, schedule: Schedule, pairing: Pairing | None, missing: Missing = "self"
    ) -> None:
        """`pairing`: where noise cancels between neighbours; `missing`: see Adapt."""
        super().__init__(learner.parts, missing)
        self._seat = learner.seat
        self._account = account
        self._schedule = schedule
        self._pairing = pairing
        spec = account.plan.spec
        self._clip = spec.clip
        self._sigma = account.plan.multiplier * spec.clip
        self._correlated = self._sigma * spec.correlated
        self._source = source_of(spec.deterministic_noise, learner.seed, "noise", learner.seat)
        self._round = -1  # the one that was paid for

    async def fit(self, learner: Learner, params: Tensor, round: int) -> FitResult:
        self._account.charge(round)
        self._round = round
        if self._pairing is not None:
            await self._pairing.agree(self._schedule.at(round).neighbors(self._seat))
        return await super().fit(learner, params, round)

    def give(self, params: Tensor, trained: Tensor) -> Tensor:
        assert self._round >= 0, "a round is paid for before anything of it is given"
        return (params + clipped(trained - params, self._clip) + self._noise(len(params))).float()

    def _noise(self, numel: int) -> Tensor:
        round, self._round = self._round, -1
        total = gaussian(self._source, numel, self._sigma)
        if self._pairing is not None:
            for other in self._schedule.at(round).neighbors(self._seat):
                shared = self._pairing.source(other, round) or self._source
                draw = gaussian(shared, numel, self._correlated)
                total.add_(draw, alpha=1.0 if self._seat < other else -1.0)
        return total


def noisy(place: Place) -> tuple[Noisy, Pairing | None]:
    """The steps of a node of D-PSGD in the privacy mode of the course. Raises ConfigError where it cannot be."""
    spec, settings = place.privacy, place.settings
    check_model(place.learner.model, spec.mode)
    adapts = settings.order == "adapt"
    require(adapts, f"privacy.mode is {spec.mode!r}, which goes with course.order = 'adapt' only")
    whole = not settings.private
    require(whole, f"privacy.mode is {spec.mode!r}, which does not go with course.private; leave one of them out")
    assert place.account is not None, "who has a privacy mode has an account"
    pairs = spec.mode == "decor"
    pairing = Pairing(neighborhood(place.topology, place.seat)) if pairs else None
    return Noisy(place.learner, place.account, place.topology, pairing, settings.missing), pairing
