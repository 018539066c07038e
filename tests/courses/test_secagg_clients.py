from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch

from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.messages import Train, Update
from p2pfl.courses.secagg import (
    CONSISTENT,
    PRIVACY,
    AggregationFailed,
    AggregationLeft,
    Reveal,
    SecAggSpec,
    Seeds,
)  # fmt: skip
from p2pfl.courses.secagg_trainer import SecretTrainer
from p2pfl.courses.trainer import Trainer
from p2pfl.errors import CourseError
from p2pfl.learn.specs import PartitionSpec
from p2pfl.node.events import CourseEnded, RoundEnded, UpdateMissing
from p2pfl.node.peer import Peer
from p2pfl.privacy.secagg import Revealed
from p2pfl.privacy.thresholds import Plan, Resilience, plan
from p2pfl.topology.families import build
from tests.courses.kit import Played, Roles
from tests.courses.staged import Staged

SPEC = SecAggSpec(bits=20, most_examples=100)
LOST = 3  # a seat


def fedavg(n: int = 7, **settings: object) -> Played:
    chosen = FedAvgSettings(**{"rounds": 2, "privacy": CONSISTENT, "secagg": SPEC} | settings)
    return Played(FEDAVG, chosen, build("star", n))


class Failing(Staged):
    """Fails in one stage of one round."""

    at, in_round = "", 0

    def begins(self, stage: str, round: int) -> None:
        if (stage, round) == (self.at, self.in_round):
            raise CourseError("it is gone")


def failing(stage: str, *seats: int, kind: type[SecretTrainer] = Failing) -> dict[str, object]:
    def recast(seat: int, roles: Roles) -> Roles:
        if seat not in seats:
            return roles
        (role,) = roles
        other = kind(role._learner, 0, None, role._secrecy, role._floors)
        other.at = stage
        return (other,)

    return {"recast": recast}


class Absent(Trainer):
    """A plain client that gives nothing in the first round."""

    @Train.handler
    async def train(self, ask: Train, peer: Peer) -> Update:
        if ask.round == 0:
            raise CourseError("it is gone")
        return await super().train(ask, peer)


def plain(*absent: int, **settings: object) -> torch.Tensor:
    def recast(seat: int, roles: Roles) -> Roles:
        return (Absent(roles[0]._learner, 0),) if seat in absent else roles

    return replace(fedavg(privacy="plain", **settings), recast=recast, events=[]).play().params[0]


@pytest.mark.parametrize("privacy", PRIVACY[1:])
@pytest.mark.parametrize("settings", [{}, {"weights": "equal"}, {"fraction": 0.7, "over_selection": 0.3}])
def test_it_is_federated_averaging_but_for_rounding(privacy: str, settings: dict[str, object]) -> None:
    played = fedavg(privacy=privacy, **settings).play()
    reference = replace(fedavg(privacy="plain", **settings), events=[]).play()
    assert torch.allclose(played.params[0], reference.params[0], rtol=0, atol=2e-4)
    if settings.get("weights") != "equal":  # else losses, too, count the same
        assert played.metric("train_loss") == pytest.approx(reference.metric("train_loss"), abs=1e-3)
    assert played.metric("clipped") == [0.0, 0.0]
    assert not played.missing and not played.told(AggregationLeft)


@pytest.mark.parametrize("stage", ["enlist", "share", "mask", "confirm", "reveal"])
def test_who_is_lost_in_any_stage_is_named_and_the_sum_is_that_of_the_others(stage: str) -> None:
    """From the moment on in which a masked update has come, it counts, and its client is not needed any more."""
    played = replace(fedavg(), **failing(stage, LOST)).play()
    counts = stage in ("confirm", "reveal")
    assert torch.allclose(played.params[0], plain(*(() if counts else (LOST,))), rtol=0, atol=2e-4)
    assert [round for round, _ in played.missing] == [1]
    assert [ended.participants for ended in played.told(RoundEnded)] == [6 if counts else 5, 6]
    assert not played.told(AggregationFailed)


@pytest.mark.parametrize("stage", ["enlist", "share", "mask", "confirm", "reveal"])
def test_a_session_of_too_few_brings_nothing_and_the_course_goes_on(stage: str) -> None:
    """Five of six would do. The model stays as it was; in the next round there is an update again."""
    played = replace(fedavg(), **failing(stage, 1, 2, 4, 5)).play()
    failed = played.told(AggregationFailed)
    assert [event.round for event in failed] == [1]
    assert str(failed[0]).startswith("nothing is added up in round 1: ")
    untouched = replace(fedavg(rounds=1), **failing(stage, 1, 2, 4, 5))
    with pytest.raises(CourseError, match="none of 1 rounds brought an update"):
        untouched.play()
    assert played.told(CourseEnded) and not torch.equal(played.params[0], played.model.initial)


class Liar(SecretTrainer):
    """Reveals wrong shares of everybody's seeds, and signs them."""

    at = ""

    @Reveal.handler
    async def reveal(self, ask: Reveal, peer: Peer) -> Seeds:
        true = await super().reveal(ask, peer)
        own = {owner: bytes(31) + b"\1" for owner in true.own}
        client = self._pledge.client
        statement = client.session.statement("reveal", client.roster.sid, *Revealed(own, true.mask, "").body)
        return Seeds(true.session, own, true.mask, client._signer.sign(statement))


def test_who_reveals_wrong_shares_is_named_and_left_out_of_nothing_else() -> None:
    """It takes 7 of 9: one that is wrong can be told."""
    played = replace(fedavg(10), **failing("", LOST, kind=Liar)).play()
    missing = played.told(UpdateMissing)
    assert [event.round for event in missing] == [1, 2]
    assert all("has revealed wrong shares" in str(event) for event in missing)
    reference = replace(fedavg(10, privacy="plain"), events=[]).play()
    assert torch.allclose(played.params[0], reference.params[0], rtol=0, atol=2e-4)


@dataclass
class Spied(Played):
    """Keeps every packet."""

    packets: list[tuple[str, str, bytes, tuple[bytes, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        Played.__post_init__(self)
        self.world.memory.watch = lambda link, packet: self.packets.append(
            (link.local, link.remote, packet.head, tuple(map(bytes, packet.buffers)))
        )


def test_nothing_that_leaves_a_client_tells_of_it() -> None:
    """No number of examples, no loss, no update, and the same sizes whatever it has."""
    sizes = []
    for alpha in (0.3, 100.0):
        split = PartitionSpec("dirichlet", alpha=alpha, min_examples=3)
        played = Spied(FEDAVG, fedavg().settings, build("star", 7), split=split).play()
        left = [(head, buffers) for local, _, head, buffers in played.packets if local != played.world.peer_id(0)]
        assert left and not any(b"num_examples" in head or b"loss" in head for head, _ in left)
        masked = [buffer for _, buffers in left for buffer in buffers]
        assert len(masked) == 12
        for buffer in masked:
            words = torch.frombuffer(bytearray(buffer), dtype=torch.int32)
            assert ((words >> 20) == 0).float().mean() < 0.05  # of what is not masked, all would be so small
        sizes.append(sorted(len(head) for head, _ in left if b"reply" in head))
    assert sizes[0] == sizes[1]


def test_two_hundred_clients() -> None:
    """With neighbours by the rule: 30 for each."""
    spec = SecAggSpec(most_examples=4, bits=20, dropouts=0.05)
    assert plan(200, Resilience(spec.adversaries, spec.dropouts, True)) == Plan(30, 21)
    settings = FedAvgSettings(rounds=1, privacy=CONSISTENT, secagg=spec)
    split = PartitionSpec("bootstrap", examples_per_client=4)
    played = Played(FEDAVG, settings, build("star", 201), split=split).play()
    reference = replace(played, settings=FedAvgSettings(rounds=1), events=[]).play()
    assert torch.allclose(played.params[0], reference.params[0], rtol=0, atol=1e-5)
    assert not played.missing
