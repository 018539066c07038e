"""The weighted sum of a neighbourhood: a node of a gossip course learns it, and of no neighbour anything else.

Every pair of a node's neighbours agrees on a mask, which one of them adds and the other takes away, so that all masks
are gone in the sum, and in nothing less than the sum. The weights are folded in before; they are public. Neighbours
need not be linked: the node passes their signed keys on. It is the pairwise half of K. Bonawitz et al.: "Practical
Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, https://arxiv.org/abs/1611.04482, in each
neighbourhood, as in S. Biswas, A.-M. Kermarrec, R. Pires, R. Sharma, M. Vujasinovic: "Secure Aggregation Meets
Sparsification in Decentralized Learning", 2024, https://arxiv.org/abs/2405.07708, without sparsification.

Nobody's masks are ever revealed, so that nothing is learned of a sum that somebody is missing in: the node then keeps
its own model in this round, and its row of the mixing matrix still sums to one. No second sum of other members may be
made of the same vectors, and what sums tell by being several is for exposure.py to say, before a course begins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from p2pfl.crypto.masks import Binding
from p2pfl.crypto.signing import Signer
from p2pfl.errors import AggregationAborted
from p2pfl.privacy.encoding import Encoding, Words
from p2pfl.privacy.secagg import Advert, Session, Stage, Terms
from p2pfl.privacy.secagg_client import Floors
from p2pfl.privacy.secagg_masks import Mask
from p2pfl.privacy.thresholds import Resilience
from p2pfl.privacy.unanimous import Party

__all__ = ["Neighbour", "neighbourhood_session", "weighted_sum"]


def neighbourhood_session(
    run: str, round: int, receiver: str, nonce: str, weights: Mapping[str, float], terms: tuple[Encoding, str]
) -> Session:
    """The session in which a node gets the sum of its neighbours. All that it is for is in it, and so in every mask.

    `weights`: of each neighbour, by peer id, as the graph of this round has them; `terms`: how entries are encoded, and
    what the tensors are. Each neighbour makes it of what it knows itself, but for the nonce, which is the receiver's.
    """
    purpose = msgspec.json.encode(["neighbourhood", receiver, sorted(weights.items())])
    encoding, schema = terms
    nobody = Resilience(0.0, 0.0, active=False)  # may be lost, and nobody has shares of another's keys
    agreed = Terms(encoding, nobody, len(weights), 0, schema)
    return Session(run, round, nonce, hashlib.sha256(purpose).hexdigest(), agreed)


class Neighbour(Party):
    """One neighbour in one session of one receiver. The receiver's side is `Collector`."""

    def __init__(self, session: Session, signer: Signer, floors: Floors, members: Collection[str]) -> None:
        """`members`: the peer ids of all neighbours of the receiver, as the graph has them."""
        super().__init__(session, signer, floors)
        self._members = frozenset(members)

    def join(self, adverts: Sequence[Advert]) -> None:
        """Check that the list is just that of the receiver's neighbours. Raises AggregationAborted."""
        if {advert.peer for advert in adverts} != self._members:
            raise AggregationAborted("the list is not that of all neighbours of the node which asks")
        super().join(adverts)

    def masks(self) -> tuple[tuple[Mask, ...], Binding]:
        """What is put on our vector, encoded with its weight: see `add_masks`. Then the key is gone."""
        self._advance(Stage.SHARED, Stage.MASKED)
        masks = tuple(Mask(self._agreed(other), self.me < other) for other in self.others)
        self._key[:] = bytes(len(self._key))
        return masks, self.roster.binding


def weighted_sum(encoding: Encoding, total: Words, neighbours: int) -> npt.NDArray[np.float64]:
    """Σ w_j x_j of so many neighbours, shape (d,), of the sum (d + 3,) of their integers.

    Raises RemoteProtocolError where the sum cannot be one of so many.
    """
    mean = encoding.decode(total, neighbours)
    return mean.vector * mean.weight
