"""Every checker is silent where all is well, and speaks where a role has a bug: each test plants one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from p2pfl.aggregators.mean import WeightedMean
from p2pfl.app.trial import Trial, settled_memory
from p2pfl.courses import rounds
from p2pfl.courses.adpsgd import ADPSGD, Pair, Swap, Swapped
from p2pfl.courses.course import Course
from p2pfl.courses.dpsgd import DPSGD, Mixer
from p2pfl.courses.durable import RoundCommitted
from p2pfl.courses.fedavg import FEDAVG, SecretServer, Server, Trainer
from p2pfl.courses.mass import Purse, Share
from p2pfl.courses.messages import Train, Update
from p2pfl.courses.pushsum import PUSHSUM, Pusher
from p2pfl.courses.secagg import CONSISTENT, Mask, Masked, Reveal, SecAggSpec, Seeds, digest
from p2pfl.courses.secagg_trainer import SecretTrainer
from p2pfl.errors import ConfigError
from p2pfl.journal.certificate import Certificate
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer
from p2pfl.privacy.account import Account
from p2pfl.privacy.ledger import PrivacyLedger
from p2pfl.privacy.spec import PrivacySpec
from p2pfl.privacy.spent import Spent
from p2pfl.sim.checkers import CHECKERS, Evidence, Violation, check, checked
from p2pfl.sim.history import Charged, WatchedLedger
from p2pfl.sim.nemesis import Crash, Cut, Fault
from p2pfl.topology.families import build
from p2pfl.wire.packet import Packet


@pytest.fixture(scope="module", autouse=True)
def settled() -> Iterator[None]:
    with settled_memory():
        yield


def trial(course: Course, *invariants: str, recast: Callable[[object], object] = lambda role: role) -> Trial:
    """The course with other roles, on its own topology of four."""
    changed = replace(course, play=lambda place: tuple(recast(role) for role in course.play(place)))
    return Trial(changed, course.settings(rounds=2), build(course.family, 4), invariants or checked(course.name))


def as_a(kind: type, of: type) -> Callable[[object], object]:
    """Roles of one class become those of a subclass that has a bug."""

    def recast(role: object) -> object:
        if type(role) is of:
            role.__class__ = kind
        return role

    return recast


def found(subject: Trial, *faults: Fault, seed: int = 0) -> list[Violation]:
    return subject.violations(seed, faults)[0]


def sentences(violations: Sequence[Violation]) -> str:
    return "\n".join(map(str, violations))


@pytest.mark.parametrize("course", [FEDAVG, DPSGD, ADPSGD], ids=lambda course: course.name)
@pytest.mark.parametrize("faults", [(), (Cut(0.5, 0.5, 0, 1),), (Crash(0.5, 0.9, 1),)], ids=["well", "cut", "crash"])
def test_where_no_bug_is_planted_all_are_silent(course: Course, faults: tuple[Fault, ...]) -> None:
    assert not found(trial(course), *faults)


class CountsTheFirstTwice(WeightedMean):
    def add(self, rank: Any, vector: torch.Tensor, weight: float) -> None:
        super().add(rank, vector, weight * (1 if self.count else 2))


def test_i1_and_i2_see_an_update_that_counts_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "WeightedMean", CountsTheFirstTwice)
    violations = found(trial(FEDAVG))
    assert {violation.invariant for violation in violations} == {"I1", "I2"}
    assert "shares of 0.000, 0." in sentences(violations) and "all must be equal" in sentences(violations)
    assert "round 1 is not the mean of what its certificate names" in sentences(violations)


def tampered(change: Callable[[Certificate], Certificate], *invariants: str) -> list[Violation]:
    """What is said of a sound run whose certificates are changed afterwards."""
    subject = trial(FEDAVG)
    history = subject.play(0, ())
    for index, entry in enumerate(history.entries):
        if isinstance(entry.what, RoundCommitted) and entry.what.certificate is not None:
            event = replace(entry.what, certificate=change(entry.what.certificate))
            history.entries[index] = replace(entry, what=event)
    return check(Evidence(history, history.models[0] * 0, (0,)), invariants)


def test_i1_sees_a_certificate_that_names_a_peer_twice() -> None:
    def twice(sound: Certificate) -> Certificate:
        return replace(sound, contributions=(*sound.contributions, sound.contributions[-1]))

    violations = tampered(twice, "I1")
    assert "seat0000003 is in the certificate of round 1 twice" in sentences(violations)
    assert violations[0].entries


def test_i2_sees_an_update_that_was_never_sent_and_a_mean_of_others() -> None:
    def invented(sound: Certificate) -> Certificate:
        one, *others = sound.contributions
        return replace(sound, contributions=(replace(one, update_hash="0" * 32), *others))

    def fewer(sound: Certificate) -> Certificate:
        return replace(sound, contributions=sound.contributions[1:])

    sentence = "the certificate of round 1 names an update that seat 1 never sent"
    assert sentence in sentences(tampered(invented, "I2"))
    assert "round 2 is not the mean of what its certificate names" in sentences(tampered(fewer, "I2"))
    assert not tampered(lambda sound: sound, "I2")


class Forgets(Server):
    def resume(self, state: Any) -> None:
        """Begins anew, whatever was committed."""


def test_i3_sees_a_round_that_is_played_and_committed_again() -> None:
    server = as_a(Forgets, Server)
    committed = next(entry.seconds for entry in trial(FEDAVG).play(0, ()).entries if "is committed" in str(entry.what))
    crash = Crash(committed + 0.01, committed + 0.1, 0)
    violations = found(trial(FEDAVG, "I3", recast=server), crash)
    assert "seat 0 begins round 1 after it has committed 1" in sentences(violations)
    assert "seat 0 commits round 1 again" in sentences(violations)
    assert not found(trial(FEDAVG, "I3"), crash)


def secret(*invariants: str, recast: Callable[[object], object] = lambda role: role) -> Trial:
    """Federated averaging of six that add up in secret."""
    changed = replace(FEDAVG, play=lambda place: tuple(recast(role) for role in FEDAVG.play(place)))
    settings = FEDAVG.settings(rounds=2, privacy=CONSISTENT, weights="equal", secagg=SecAggSpec(bits=20))
    return Trial(changed, settings, build("star", 7), invariants or checked("fedavg", settings))


@pytest.mark.parametrize("faults", [(), (Cut(0.5, 0.5, 0, 1),), (Crash(0.5, 0.9, 1),)], ids=["well", "cut", "crash"])
def test_where_updates_are_hidden_all_are_silent(faults: tuple[Fault, ...]) -> None:
    assert not found(secret(), *faults)


class Unmasked(SecretTrainer):
    """Forgets to add its masks."""

    @Mask.handler
    async def mask(self, ask: Mask, peer: Peer) -> Masked:
        await super().mask(ask, peer)
        words = await self._encoded(self._pledged(ask.session))
        return Masked(self._secrecy.tensors(words), self._pledged(ask.session).client.sign_masked(await digest(words)))


class Talkative(SecretTrainer):
    """Gives the server what it asks for."""

    @Train.handler
    async def train(self, ask: Train, peer: Peer) -> Update:
        return await self._outbox.update(peer.node, ask.round, ask.params)


class Curious(SecretServer):
    """Asks its clients for updates in the clear, before it plays by the rules."""

    async def lead(self, node: Node) -> str:
        ask = Train(0, self._rule.down.tensors(self.params))
        async with node.ask_all(node.peers, ask) as replies:
            async for _ in replies:
                pass
        return await super().lead(node)


def test_i4_sees_what_is_not_masked() -> None:
    violations = found(secret("I4", recast=as_a(Unmasked, SecretTrainer)))
    assert "what seat 1 has sent as masked is not" in sentences(violations)


def test_i4_sees_an_update_in_the_clear() -> None:
    def recast(role: object) -> object:
        return as_a(Talkative, SecretTrainer)(as_a(Curious, SecretServer)(role))

    violations = found(secret("I4", recast=recast))
    assert "has sent its Update in the clear" in sentences(violations)
    assert "has sent a model in the clear" in sentences(violations)
    assert not found(secret("I4", recast=as_a(Curious, SecretServer)))  # whoever asks gets nothing


def private(mode: str, *invariants: str, course: Course = FEDAVG, **spec: Any) -> Trial:
    """The course with differential privacy; with `ddp`, of six that add up in secret, of whom one may be lost."""
    given: dict[str, Any] = {} if course is DPSGD else {"weights": "equal"}
    if mode == "ddp":
        given |= {"privacy": CONSISTENT, "secagg": SecAggSpec(dropouts=0.2)}
    settings = course.settings(rounds=2, **given)
    privacy = PrivacySpec(mode, noise_multiplier=2.0, **spec)
    chosen = invariants or checked(course.name, settings, privacy)
    return Trial(course, settings, build(course.family, 7), chosen, privacy=privacy)


CRASH = Crash(0.5, 0.9, 1)


@pytest.mark.parametrize("mode", ["cdp", "ldp", "ddp"])
def test_where_noise_is_paid_for_all_are_silent(mode: str) -> None:
    assert "I5" in private(mode).invariants and "I12" not in private(mode).invariants
    assert not found(private(mode), CRASH)
    assert not found(private("ldp", course=DPSGD), CRASH)


@pytest.mark.parametrize(
    ("mode", "course", "seats"),
    [("ldp", FEDAVG, range(1, 7)), ("ddp", FEDAVG, range(1, 7)), ("cdp", FEDAVG, range(7)), ("ldp", DPSGD, range(7))],
)
def test_i5_sees_what_is_not_paid_for(mode: str, course: Course, seats: range, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Account, "charge", lambda self, round: None)
    violations = found(private(mode, "I5", course=course))
    for seat in seats:
        assert f"seat {seat} has paid for 0 releases, and this is another" in sentences(violations)


def test_i5_sees_who_pays_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the second round is paid for, twice: then as much is spent as was released."""
    charge = Account.charge
    monkeypatch.setattr(Account, "charge", lambda self, round: [charge(self, each) for each in range(2 * round)])
    assert "has paid for 0 releases" in sentences(found(private("ldp", "I5")))


def test_i5_sees_a_ledger_that_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(ledger: PrivacyLedger, *given: Any) -> None:
        ledger.spent = Spent()
        honest(ledger, *given)

    honest = PrivacyLedger.charge
    monkeypatch.setattr(WatchedLedger, "charge", _watched(forgetful))
    assert "the ledger of seat 1 has gone down to epsilon 0" in sentences(found(private("ldp", "I5")))


def test_i5_sees_a_limit_that_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(ledger: PrivacyLedger, run: str, round: int, cost: Spent, most: float, delta: float) -> None:
        honest(ledger, run, round, cost * 40, 0.0, delta)

    honest = PrivacyLedger.charge
    monkeypatch.setattr(WatchedLedger, "charge", _watched(careless))
    violations = sentences(found(private("ldp", "I5", epsilon_max=2.0)))
    assert "seat 1 has spent epsilon" in violations and "and 2 is allowed" in violations


def _watched(charge: Callable[..., None]) -> Callable[..., None]:
    """A charge that a history is told of, as it is of an honest one."""

    def told(ledger: Any, run: str, round: int, cost: Spent, most: float, delta: float) -> None:
        charge(ledger, run, round, cost, most, delta)
        after = ledger.spent.epsilon(delta)
        before = Spent(ledger.spent.mu_squared - ledger.charges[-1].mu_squared).epsilon(delta)
        ledger._history.charged(ledger._seat, Charged(round, before, after, most))

    return told


class RevealsForAnybody(SecretTrainer):
    """Reveals once more, as if another had been lost."""

    @Reveal.handler
    async def reveal(self, ask: Reveal, peer: Peer) -> Seeds:
        seeds = await super().reveal(ask, peer)
        if (owner := max(seeds.own)) != peer.node.id and peer.node.seat == 1:
            await self._again(peer, replace_one(seeds, owner))
        return seeds

    async def _again(self, peer: Peer, seeds: Seeds) -> None:
        await peer.tell(seeds)


def replace_one(seeds: Seeds, owner: str) -> Seeds:
    own = {peer: share for peer, share in seeds.own.items() if peer != owner}
    return Seeds(seeds.session, own, {owner: seeds.own[owner]}, seeds.signature)


def test_i6_sees_a_second_reveal() -> None:
    violations = found(secret("I6", recast=as_a(RevealsForAnybody, SecretTrainer)))
    assert "seat 1 has revealed for two sets in session" in sentences(violations)
    assert "shares of both seeds of seat0000006 were revealed in session" in sentences(violations)


class Floods(Trainer):
    """Does not care for credit."""

    async def run(self, node: Node) -> None:
        (server,) = await node.meet([0])
        for _ in range(400):
            server.connection().link.send(Packet(b'["pong",0,"",{"padding":"%s"}]' % (4000 * b"x")))
        await super().run(node)


def test_i7_sees_a_flood() -> None:
    violations = found(trial(FEDAVG, "I7", recast=as_a(Floods, Trainer)))
    assert "bytes lay on one link; the limits allow" in sentences(violations)


class Lingers(Trainer):
    async def run(self, node: Node) -> None:
        self.kept = asyncio.create_task(asyncio.Event().wait(), name="a task without an owner")
        await super().run(node)


class FailsUnheard(Trainer):
    async def run(self, node: Node) -> None:
        asyncio.get_running_loop().create_task(self._fail())
        await super().run(node)

    async def _fail(self) -> None:
        raise LookupError("nobody hears me")


def test_i8_sees_a_task_that_is_left_and_an_error_that_nobody_has_heard() -> None:
    assert "the task a task without an owner is left" in sentences(
        found(trial(FEDAVG, "I8", recast=as_a(Lingers, Trainer)))
    )
    assert "LookupError('nobody hears me')" in sentences(found(trial(FEDAVG, "I8", recast=as_a(FailsUnheard, Trainer))))


class KeepsItsOwn(Trainer):
    """Ends with another model than it was given."""

    async def run(self, node: Any) -> None:
        await super().run(node)
        self.params = self.params + node.seat


def test_i9_sees_models_that_differ() -> None:
    violations = found(trial(FEDAVG, "I9", recast=as_a(KeepsItsOwn, Trainer)))
    assert "the models that were held in the end differ: seat 0 " in sentences(violations)


class RoundsOnResume(Server):
    """Keeps its state with fewer digits."""

    def resume(self, state: Any) -> None:
        super().resume({**state, "params": state["params"].bfloat16().float()})


def test_i10_sees_a_resumed_node_that_goes_on_with_another_model() -> None:
    crash = Crash(2.0, 2.2, 0)
    violations = found(trial(FEDAVG, "I1", "I10", "I12", recast=as_a(RoundsOnResume, Server)), crash)
    assert {violation.invariant for violation in violations} == {"I10"}
    assert "nothing was missing, and yet seat 0 ends with another model" in sentences(violations)
    assert not found(trial(FEDAVG, "I10"), crash)


class NeverAnswersAgain(Trainer):
    asked = 0

    @Train.handler
    async def train(self, ask: Train, peer: Any) -> Update:
        self.asked += 1
        if self.asked > 1:
            await asyncio.Event().wait()
        return await super().train(ask, peer)


class GivesUp(Server):
    async def run(self, node: Node) -> None:
        await asyncio.sleep(1)


class Breaks(Server):
    async def run(self, node: Node) -> None:
        raise LookupError("lost")


@pytest.mark.parametrize(
    ("role", "of", "said"),
    [
        (NeverAnswersAgain, Trainer, "it does not come to its end: seat 0: answers to Train from seat 1"),
        (GivesUp, Server, "seat 0 stopped before the course was over"),
        (Breaks, Server, "it ended with LookupError: lost"),
    ],
)
def test_i11_sees_who_never_comes_to_its_end(role: type, of: type, said: str) -> None:
    assert said in sentences(found(trial(FEDAVG, "I11", recast=as_a(role, of))))


class MixesTooMuch(Mixer):
    def _mix(self, *args: Any) -> torch.Tensor:
        return super()._mix(*args) * 1.01


def test_i12_sees_weights_that_do_not_add_up_to_one() -> None:
    violations = found(trial(DPSGD, "I12", recast=as_a(MixesTooMuch, Mixer)))
    assert "of round 1, as 0." in sentences(violations)


class MovesTooFar(Pair):
    @Swap.handler
    async def swap(self, ask: Swap, peer: Any) -> Swapped:
        before = self.params
        answer = await super().swap(ask, peer)
        self.params = self.params + (self.params - before) / 10
        return answer


def test_i12_sees_an_exchange_that_does_not_keep_the_sum() -> None:
    violations = found(trial(ADPSGD, "I12 in sum", recast=as_a(MovesTooFar, Pair)))
    assert "of 8 rounds, and no exchange has failed" in sentences(violations)


class KeepsHalf(Purse):
    """Forgets a part of what it is given."""

    __slots__ = ()

    def take(self, sender: int, share: Share) -> bool:
        return super().take(sender, replace(share, weight=share.weight / 2))


def leaky(role: object) -> object:
    assert isinstance(role, Pusher)
    role.purse.__class__ = KeepsHalf
    return role


def test_i12_sees_weight_that_nobody_accounts_for() -> None:
    violations = found(trial(PUSHSUM, "I12 of weights", recast=leaky))
    assert "all nodes together have a weight of " in sentences(violations)
    assert not found(trial(PUSHSUM, "I12 of weights"))


def test_courses_of_ours_are_held_to_more_than_those_of_others() -> None:
    assert set(checked("somebody's own")) < set(checked("fedavg")) <= set(CHECKERS)
    assert str(Violation("I8", "a task is left")) == "I8 is violated: a task is left"


def test_an_invariant_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="invariants: 'I99' is not known; choose some of I1, I2"):
        found(trial(FEDAVG, "I99"))
