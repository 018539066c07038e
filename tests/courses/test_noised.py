"""Privacy with a coordinator: exact numbers, what is charged before what is drawn, and whether an attack finds more."""

import asyncio
import itertools
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from p2pfl.app.build import Setup, prepare
from p2pfl.app.config import from_mapping
from p2pfl.app.simulate import simulate
from p2pfl.compute.inline import Inline
from p2pfl.courses import noised as subject
from p2pfl.courses import secagg
from p2pfl.courses.course import Place
from p2pfl.courses.durable import Durable
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.noised import check_model, noised
from p2pfl.courses.outbox import Outbox
from p2pfl.courses.rules import Rule, Trained, Training, averaging
from p2pfl.errors import ConfigError, CourseError, PrivacySpent, RemoteProtocolError
from p2pfl.journal.journal import Journal
from p2pfl.learn.model import Model
from p2pfl.node.events import UpdateMissing
from p2pfl.privacy.account import Account
from p2pfl.privacy.clipping import clipped, next_bound, update_multiplier
from p2pfl.privacy.distributed import Distributed
from p2pfl.privacy.gaussian import epsilon_of
from p2pfl.privacy.ledger import PrivacyLedger
from p2pfl.privacy.noise import DeterministicNoise, Keyed, gaussian
from p2pfl.privacy.plan import plan_of
from p2pfl.privacy.spec import PrivacySpec
from p2pfl.sim.disk import SimulatedDisk
from p2pfl.topology.families import build
from tests.courses.kit import Played, dataset
from tests.courses.test_durable import Told

CLIP, ROUNDS = 0.5, 3
SETTINGS = FedAvgSettings(rounds=ROUNDS, weights="equal")
PLAYED = Played(FEDAVG, SETTINGS, build("star", 5))
NUMEL = PLAYED.model.layout.numel
CDP = PrivacySpec("cdp", clip=CLIP, noise_multiplier=2.0)
LDP = replace(CDP, mode="ldp")


def account(spec: PrivacySpec, nodes: int = 4, rounds: int = ROUNDS, owner: bool = True) -> Account:
    (plan, *_) = plan_of(spec, nodes, [(spec.sensitivity**2,) * rounds] * nodes)
    return Account(PrivacyLedger("data"), plan, "run", owner=owner)


def place(spec: PrivacySpec, seat: int = 1, settings: FedAvgSettings = SETTINGS, n: int = 5) -> Place:
    paying = account(spec, n - 1, settings.rounds, owner=seat > 0)
    return Place(seat, build("star", n), PLAYED.learner(min(seat, 1)), settings, privacy=spec, account=paying)


class Fixed(Training):
    """A client whose training gives what it is told to."""

    def __init__(self, step: Tensor) -> None:
        self.step = step

    async def train(self, learner: Any, received: Tensor, round: int) -> Trained:
        return Trained(received + self.step, 17, 0.25)


def fixed(spec: PrivacySpec, step: Tensor, **given: Any) -> tuple[Rule, Place]:
    at = place(spec, **given)
    return noised(replace(averaging(at.learner), local=lambda: Fixed(step)), at), at


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Keyed]:
    """All noise from one key: what a new source of it draws."""
    monkeypatch.setattr(subject, "source_of", lambda *given: Keyed(bytes(32)))
    return lambda: Keyed(bytes(32))


def test_plain_leaves_the_rule_alone() -> None:
    rule = averaging(PLAYED.learner(1))
    assert noised(rule, Place(1, PLAYED.topology, PLAYED.learner(1), SETTINGS)) is rule


# -- exact numbers -----------------------------------------------------------------------------------------------------


async def test_a_client_sends_its_clipped_update_and_nothing_else_of_its_data(known: Callable[[], Keyed]) -> None:
    step = torch.linspace(-1, 1, NUMEL)
    received = torch.ones(NUMEL)
    for spec, noise in ((CDP, 0.0), (LDP, gaussian(known(), NUMEL, 2.0 * CLIP))):
        rule, at = fixed(spec, step)
        sent = await rule.local().train(at.learner, received, 0)
        assert torch.equal(sent.vector, (clipped(received + step - received, CLIP) + noise).float())
        assert sent.num_examples == 1
        assert math.isnan(sent.loss)
        assert at.account.ledger.spent.mu_squared == 0.25


@pytest.mark.parametrize("step", [torch.zeros(NUMEL), torch.full((NUMEL,), math.nan), torch.full((NUMEL,), math.inf)])
async def test_what_is_no_update_counts_as_none(step: Tensor) -> None:
    rule, at = fixed(CDP, step)
    assert torch.equal((await rule.local().train(at.learner, torch.ones(NUMEL), 0)).vector, torch.zeros(NUMEL))


def test_the_coordinator_adds_noise_to_the_sum_and_divides_by_a_fixed_number(known: Callable[[], Keyed]) -> None:
    """Two of four clients came; the cohort is to be of four."""
    rule, at = fixed(CDP, torch.zeros(NUMEL), seat=0)
    central, params, mean = rule.central(), torch.ones(NUMEL), torch.linspace(-0.1, 0.1, NUMEL)
    assert torch.equal(central.broadcast(params, 0), params)
    found = central.absorb(params, mean, 0.5, 0)
    expected = params + (2 * mean.double() + gaussian(known(), NUMEL, 2.0 * CLIP)) / 4
    assert torch.equal(found, expected.float())
    assert at.account.ledger.spent.mu_squared == 0.25


def test_the_coordinator_leaves_local_noise_as_it_is() -> None:
    rule, at = fixed(LDP, torch.zeros(NUMEL), seat=0)
    central, params, mean = rule.central(), torch.ones(NUMEL), torch.linspace(-0.1, 0.1, NUMEL)
    central.broadcast(params, 0)
    assert torch.allclose(central.absorb(params, mean, 0.5, 0), params + mean)
    assert not at.account.ledger.charges


async def test_the_bound_adapts(known: Callable[[], Keyed]) -> None:
    """Clients get the bound, tell in their update whether they kept it, and the next is found from a noisy count."""
    settings = replace(SETTINGS, fraction=0.8)
    spec = replace(CDP, quantile=0.5, noise_multiplier=1.0)
    given = {"settings": settings, "n": 51}
    rule, leading = fixed(spec, torch.zeros(NUMEL), seat=0, **given)
    central, params = rule.central(), torch.ones(NUMEL)
    sent = central.broadcast(params, 0)
    assert sent[-1] == CLIP
    votes = []
    for step in (torch.zeros(NUMEL), torch.ones(NUMEL), torch.full((NUMEL,), math.nan)):
        client, at = fixed(spec, step, **given)
        update = (await client.local().train(at.learner, sent, 0)).vector
        votes.append(float(update[-1]))
        assert float(torch.linalg.vector_norm(update[:-1])) <= CLIP
    assert votes == [0.5, -0.5, -0.5]
    mean = torch.cat([torch.full((NUMEL,), 0.01), torch.tensor([0.4])])
    found = central.absorb(params, mean, 0.8, 0)
    source, sigma = known(), 40 / 20
    noise = gaussian(source, NUMEL, update_multiplier(1.0, sigma) * CLIP)
    assert torch.allclose(found, (params + (0.4 + noise) / 40).float(), atol=1e-6)
    within = (16 + float(gaussian(source, 1, sigma))) / 40 + 0.5
    assert float(central.broadcast(found, 1)[-1]) == pytest.approx(next_bound(CLIP, within, 0.5), rel=1e-6)
    again = rule.central()
    again.resume(central.state())
    assert again.broadcast(found, 1)[-1] == central.broadcast(found, 1)[-1]
    assert leading.account.ledger.spent.mu_squared == 1.0


async def test_a_bound_that_is_none_is_refused() -> None:
    spec = replace(CDP, quantile=0.5, noise_multiplier=1.0)
    rule, at = fixed(spec, torch.ones(NUMEL), n=51)
    with pytest.raises(RemoteProtocolError, match=r"a bound of -1\.0 came"):
        await rule.local().train(at.learner, torch.cat([torch.ones(NUMEL), torch.tensor([-1.0])]), 0)
    assert not at.account.ledger.charges


def test_a_tree_adds_up_to_its_nodes(known: Callable[[], Keyed]) -> None:
    """After four rounds, the model has the noise of one node."""
    settings = replace(SETTINGS, rounds=4)
    rule, at = fixed(replace(CDP, mechanism="tree"), torch.zeros(NUMEL), seat=0, settings=settings)
    central, params = rule.central(), torch.zeros(NUMEL)
    for round in range(4):
        central.broadcast(params, round)
        params = central.absorb(params, torch.zeros(NUMEL), 1.0, round)
    source = known()
    nodes = [gaussian(source, NUMEL, 2.0 * CLIP) for _ in range(4)]
    assert torch.allclose(params, (nodes[3] / 4).float(), atol=1e-5)
    assert at.account.ledger.spent == at.account.plan.total
    assert not any(isinstance(value, Tensor) for value in central.state().values()), "draws of noise are kept nowhere"


# -- charge first ------------------------------------------------------------------------------------------------------


class Watched:
    """A source that notes how much was paid for when something is drawn."""

    def __init__(self) -> None:
        self.account: Account | None = None
        self.charged: list[int] = []

    def draw(self, size: int) -> bytes:
        self.charged.append(len(self.account.ledger.charges))
        return Keyed(bytes(32)).draw(size)


async def test_noise_is_paid_for_before_it_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """T-D5."""
    watched = Watched()
    monkeypatch.setattr(subject, "source_of", lambda *given: watched)
    rule, at = fixed(LDP, torch.ones(NUMEL))
    watched.account = at.account
    await rule.local().train(at.learner, torch.ones(NUMEL), 0)
    rule, at = fixed(CDP, torch.ones(NUMEL), seat=0)
    watched.account = at.account
    central = rule.central()
    central.broadcast(torch.ones(NUMEL), 0)
    central.absorb(torch.ones(NUMEL), torch.ones(NUMEL), 1.0, 0)
    assert watched.charged == [1, 1]


@pytest.mark.parametrize("spec", [CDP, LDP])
async def test_who_has_spent_its_budget_gives_no_update(spec: PrivacySpec) -> None:
    """T-D8, at a client."""
    spec = replace(spec, epsilon_max=account(spec).plan.total.epsilon(4**-1.1))
    rule, at = fixed(spec, torch.ones(NUMEL))
    local = rule.local()
    for round in range(ROUNDS):
        await local.train(at.learner, torch.ones(NUMEL), round)
    with pytest.raises(PrivacySpent, match="the privacy budget is spent: round 1 would make"):
        await local.train(at.learner, torch.ones(NUMEL), 0)


async def test_an_update_is_made_once_however_often_it_is_asked_for() -> None:
    rule, at = fixed(LDP, torch.ones(NUMEL))
    outbox = Outbox(at.learner, rule, Durable(None))
    asked = rule.down.tensors(torch.ones(NUMEL))
    first, second = [await outbox.update(None, 0, asked) for _ in range(2)]
    assert rule.up.vector(first.params).tolist() == rule.up.vector(second.params).tolist()
    assert len(at.account.ledger.charges) == 1
    await outbox.update(None, 0, rule.down.tensors(torch.zeros(NUMEL)))
    assert len(at.account.ledger.charges) == 2, "another model, another release"


async def test_a_client_that_crashes_pays_again_unless_its_update_was_safe() -> None:
    """T-D5: killed while the update is written, it makes a new one; after that, it has the old one."""
    disk = SimulatedDisk(Random(1))
    rule, at = fixed(LDP, torch.ones(NUMEL))
    asked = rule.down.tensors(torch.ones(NUMEL))

    def started() -> Outbox:
        return Outbox(at.learner, rule, Durable(Journal(disk, "run")))

    first = asyncio.create_task(started().update(Told(), 0, asked))
    await asyncio.sleep(disk.sync_seconds / 2)
    assert len(at.account.ledger.charges) == 1
    disk.crash()
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    second = await started().update(Told(), 0, asked)
    assert len(at.account.ledger.charges) == 2
    third = await started().update(Told(), 0, asked)
    assert torch.equal(rule.up.vector(second.params), rule.up.vector(third.params))
    assert len(at.account.ledger.charges) == 2


def test_a_coordinator_that_crashed_pays_for_the_round_again() -> None:
    """T-D5: it was not committed, so it is played again, under other noise."""
    rule, at = fixed(CDP, torch.zeros(NUMEL), seat=0)
    found = []
    for _ in range(2):
        central = rule.central()
        central.broadcast(torch.ones(NUMEL), 0)
        found.append(central.absorb(torch.ones(NUMEL), torch.zeros(NUMEL), 1.0, 0))
    assert not torch.equal(*found)
    assert [charge.round for charge in at.account.ledger.charges] == [0, 0]


def prepared(privacy: dict[str, Any], **tables: Any) -> Setup:
    course = {"name": "fedavg", "rounds": 2, "weights": "equal", **tables.pop("course", {})}
    small = {"topology": {"n": 5}, "data": {"subsample": 0.1}, "model": {"name": "logistic"}, **tables}
    return prepare(from_mapping({"course": course, "privacy": privacy, **small}))


NOISY = {"clip": CLIP, "noise_multiplier": 0.5}


@pytest.mark.parametrize("mode", ["cdp", "ldp"])
def test_a_whole_course_charges_every_round(mode: str) -> None:
    setup = prepared({"mode": mode, **NOISY})
    outcome = simulate(setup)
    assert len(outcome.rounds) == 2
    assert all("train_loss" not in done.metrics for done in outcome.rounds)
    accounts = setup.budgets.accounts
    assert {seat: len(paying.ledger.charges) for seat, paying in accounts.items()} == {
        0: 2 if mode == "cdp" else 0, 1: 2, 2: 2, 3: 2, 4: 2
    }  # fmt: skip
    report = setup.budgets.report()
    assert report.valid
    assert report.epsilon == pytest.approx(epsilon_of(math.sqrt(2) / 0.5, 4**-1.1))
    other = simulate(prepared({"mode": mode, **NOISY}))
    assert not torch.equal(outcome.params, other.params), "noise does not follow from the seed"


SECRET = {"privacy": "secagg+consistency", "secagg": {"dropouts": 0.25, "bits": 20}}


@pytest.mark.parametrize("privacy", ["secagg", "secagg+consistency"])
def test_shares_of_noise_add_up_to_noise_in_the_sum(privacy: str) -> None:
    """But for its noise, the model is that of a coordinator that clips, and hardly adds any. Three of four count."""
    ddp = {"mode": "ddp", "clip": CLIP, "noise_multiplier": 2.0}
    setup = prepared(ddp, course={"rounds": 1, **SECRET, "privacy": privacy})
    outcome = simulate(setup)
    exact = simulate(prepared({**ddp, "mode": "cdp", "noise_multiplier": 1e-7}, course={"rounds": 1}))
    assert float((outcome.params - exact.params).std()) == pytest.approx(2.0 * CLIP * math.sqrt(4 / 3) / 4, rel=0.15)
    (done,) = outcome.rounds
    assert not {"train_loss", "clipped"} & done.metrics.keys(), "they would tell of clients, and have no noise"
    charges = {seat: len(paying.ledger.charges) for seat, paying in setup.budgets.accounts.items()}
    assert charges == {0: 0, 1: 1, 2: 1, 3: 1, 4: 1}
    report = setup.budgets.report()
    noise = Distributed(NUMEL, 4, CLIP, 2.0, 20, 0.25, 0.05)
    assert report.epsilon == noise.cost().epsilon(4**-1.1)
    assert report.valid and "a curious aggregator" in report.view


def test_without_noise_to_speak_of_the_sum_is_exact() -> None:
    given = {"mode": "ddp", "clip": CLIP, "noise_multiplier": 1e-4}
    found = simulate(prepared(given, course={**SECRET, "secagg": {"dropouts": 0.25, "bits": 24}}))
    exact = simulate(prepared({**given, "mode": "cdp", "noise_multiplier": 1e-7}))
    assert torch.allclose(found.params, exact.params, rtol=0, atol=2e-4)


def test_shares_of_noise_are_paid_for_before_they_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """T-D5."""
    setup = prepared({"mode": "ddp", **NOISY}, course=SECRET)
    sources: dict[int, Watched] = {}

    def watched(deterministic: bool, seed: int, purpose: str, seat: int) -> Watched:
        return sources.setdefault(seat, Watched())

    monkeypatch.setattr(secagg, "source_of", watched)
    for seat in range(1, 5):
        setup.roles(seat, Inline())
        sources[seat].account = setup.budgets.accounts[seat]
    simulate(setup)
    assert {seat: source.charged for seat, source in sources.items() if seat} == {
        1: [1, 2],
        2: [1, 2],
        3: [1, 2],
        4: [1, 2],
    }


def test_who_has_spent_its_budget_gives_no_share() -> None:
    """T-D8."""
    setup = prepared({"mode": "ddp", "epsilon_max": 50.0, **NOISY}, course=SECRET)
    for seat in range(1, 5):
        paying = setup.budgets.account(seat, setup.shards[seat], "")
        with suppress(PrivacySpent):
            for round in itertools.count():
                paying.charge(round)
    told: list[str] = []
    with pytest.raises(CourseError, match="none of 2 rounds brought an update"):
        simulate(setup, told=lambda at, seat, event: told.append(str(event)) if _missing(event) else None)
    assert any("the privacy budget is spent" in sentence for sentence in told)


@pytest.mark.parametrize("name", ["fedprox", "fedopt", "feddyn"])
def test_relatives_of_fedavg_share_noise_too(name: str) -> None:
    setup = prepared({"mode": "ddp", **NOISY}, course={"name": name, **SECRET})
    assert simulate(setup).params.isfinite().all()
    assert len(setup.budgets.accounts[1].ledger.charges) == 2


@pytest.mark.parametrize(
    ("mode", "course", "sentence"),
    [
        ("ddp", {}, "sums of masked updates, and course.privacy is 'plain'; set course.privacy to 'secagg' or"),
        ("ddp", {"privacy": "additive"}, "and course.privacy is 'additive'; set course.privacy to 'secagg' or"),
        ("cdp", SECRET, "noise does not come in shares; set privacy.mode to 'ddp', or course.privacy to 'plain'"),
        ("ldp", SECRET, "noise does not come in shares; set privacy.mode to 'ddp', or course.privacy to 'plain'"),
        ("ddp", {**SECRET, "weights": "examples"}, "updates must weigh the same; set course.weights to 'equal'"),
        ("ddp", {**SECRET, "name": "scaffold"}, "scaffold sends more than a model, which cannot be clipped as one"),
        ("ddp", {**SECRET, "name": "fedper"}, "fedper sends a part of the model, for which no noise is found"),
        ("ddp", {"name": "fedbuff"}, "which fedbuff does not do; it must be one of plain"),
        ("ddp", {**SECRET, "secagg": {"adversaries": 0.5, "dropouts": 0.5}}, "nobody is counted on to add noise"),
    ],
)  # fmt: skip
def test_what_shares_of_noise_do_not_go_with(mode: str, course: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        prepared({"mode": mode, **NOISY}, course={"evaluate": "server", **course}, model={"name": "mlp", "hidden": [8]})


def test_deterministic_noise_is_for_tests_and_says_so() -> None:
    found = []
    for _ in range(2):
        with pytest.warns(DeterministicNoise, match="PROTECTS NOBODY"):
            setup = prepared({"mode": "ldp", "deterministic_noise": True, **NOISY})
            found.append(simulate(setup).params)
        assert not setup.budgets.report().valid
    assert torch.equal(*found)


def test_a_spent_coordinator_ends_the_course_and_says_why() -> None:
    """T-D8, at the coordinator, whose ledger was charged by somebody else before."""
    setup = prepared({"mode": "cdp", "epsilon_max": 6.0, **NOISY})
    paying = setup.budgets.account(0, None, "")
    for round in range(2):
        paying.charge(round)
    with pytest.raises(PrivacySpent, match="the privacy budget is spent: round 1 would make epsilon"):
        simulate(setup)


def test_a_spent_client_is_missing_and_says_why() -> None:
    setup = prepared({"mode": "ldp", "epsilon_max": 6.0, **NOISY})
    for seat in range(1, 5):
        paying = setup.budgets.account(seat, setup.shards[seat], "")
        for round in range(2):
            paying.charge(round)
    told: list[str] = []
    with pytest.raises(CourseError, match="none of 2 rounds brought an update"):
        simulate(setup, told=lambda at, seat, event: told.append(str(event)) if _missing(event) else None)
    assert any("the privacy budget is spent" in sentence for sentence in told)


def _missing(event: object) -> bool:
    return isinstance(event, UpdateMissing)


# -- what does not go together -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ({"course": {"weights": "examples"}}, "updates must weigh the same; set course.weights to 'equal'"),
        ({"course": {"sampler": "oort", "fraction": 0.5}}, "set course.sampler to 'uniform'"),
        ({"course": {"evaluate": "both"}}, "what clients evaluate would go without noise"),
        ({"course": {"coordinator": "elect"}}, r"\[privacy\] does not go with course.coordinator = 'elect'"),
        ({"course": {"name": "scaffold"}}, "scaffold sends more than a model"),
        ({"course": {"name": "fednova"}}, "fednova sends more than a model"),
        ({"course": {"name": "qfedavg"}}, "qfedavg sends more than a model"),
        ({"course": {"name": "fedbuff"}}, "privacy.mode is 'cdp', which fedbuff does not do; it must be one of plain"),
        ({"course": {"name": "hierarchical"}}, "which hierarchical does not do"),
        ({"compress": {"up": {"values": "qsgd"}}}, "compression would undo the clipping"),
    ],
)
def test_what_would_let_more_out_is_refused(tables: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        prepared({"mode": "cdp", **NOISY}, **tables)


def test_running_statistics_cannot_have_noise() -> None:
    data = dataset()
    module = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
    with pytest.raises(ConfigError, match="the model has running statistics"):
        check_model(Model.of(module, nn.functional.cross_entropy, data.x[:8], data.y[:8]), "cdp")


def test_small_cohorts_have_no_adaptive_bound() -> None:
    with pytest.raises(
        ConfigError, match=r"needs a larger cohort: with 4 clients, the noise multiplier must be less than"
    ):
        prepared({"mode": "cdp", "quantile": 0.5, **NOISY})


@pytest.mark.parametrize("name", ["fedprox", "fedopt", "fedavgm", "feddyn", "fedper", "ditto"])
def test_relatives_of_fedavg_have_noise_too(name: str) -> None:
    setup = prepared(
        {"mode": "cdp", **NOISY},
        course={"name": name, "evaluate": "server"},
        model={"name": "mlp", "hidden": [8]},
    )
    assert simulate(setup).params.isfinite().all()
    assert len(setup.budgets.account(1, None, "").ledger.charges) == 2


def test_local_noise_may_be_compressed() -> None:
    setup = prepared({"mode": "ldp", **NOISY}, compress={"up": {"values": "qsgd", "feedback": False}})
    assert simulate(setup).params.isfinite().all()


# -- an attack ---------------------------------------------------------------------------------------------------------

SURE = 0.99
THRESHOLD, DELTA = 1.0, 0.05


def _tail(successes: int, tries: int, chance: float) -> float:
    """P(at least so many)."""
    logs = (
        math.lgamma(tries + 1) - math.lgamma(k + 1) - math.lgamma(tries - k + 1)
        + k * math.log(chance) + (tries - k) * math.log1p(-chance)
        for k in range(successes, tries + 1)
    )  # fmt: skip
    return math.fsum(math.exp(each) for each in logs)


def _at_least(successes: int, tries: int) -> float:
    """A chance that is no larger than the true one, surely (C. Clopper, E. Pearson, 1934)."""
    low, high = 0.0, successes / tries
    for _ in range(30 if successes else 0):
        middle = (low + high) / 2
        low, high = (middle, high) if _tail(successes, tries, middle) < 1 - SURE else (low, middle)
    return low


async def _audit(spec: PrivacySpec) -> float:
    """The epsilon that a threshold attack proves, in one run with a canary in each of many clients.

    T. Steinke, M. Nasr, M. Jagielski: "Privacy Auditing with One (1) Training Run", NeurIPS 2023. Each client's update
    is far beyond the bound in a direction of its own, or zero, by a coin.
    """
    rng, nothing = Random(1), torch.zeros(NUMEL)
    scores: dict[bool, list[float]] = {True: [], False: []}
    settings = replace(SETTINGS, rounds=ROUNDS)
    step = torch.zeros(NUMEL)
    client, at = fixed(spec, step, settings=settings, n=NUMEL + 1)
    leader, _ = fixed(spec, step, settings=settings, n=NUMEL + 1, seat=0)
    local, central = client.local(), leader.central()
    for round in range(ROUNDS):
        coins = [rng.random() < 0.5 for _ in range(NUMEL)]
        own, total = [], torch.zeros(NUMEL)
        for canary, coin in enumerate(coins):
            step.zero_()[canary] = 100.0 * coin
            sent = (await local.train(at.learner, nothing, round)).vector
            own.append(float(sent[canary]))
            total += sent
        central.broadcast(nothing, round)
        released = central.absorb(nothing, total / NUMEL, 1.0, round) * NUMEL
        for coin, score in zip(coins, own if spec.mode == "ldp" else released.tolist(), strict=True):
            scores[coin].append(score / CLIP)
    return _proven(scores)


def _proven(scores: dict[bool, list[float]]) -> float:
    """The epsilon without which so many guesses would not be right."""
    inside, outside = scores[True], scores[False]
    hits, quiet = sum(score > THRESHOLD for score in inside), sum(score <= THRESHOLD for score in outside)
    return math.log((_at_least(hits, len(inside)) - DELTA) / (1 - _at_least(quiet, len(outside))))


@pytest.mark.parametrize("mode", ["cdp", "ldp"])
async def test_an_attack_proves_no_more_than_is_claimed_and_more_if_noise_is_halved(
    mode: str, known: Callable[[], Keyed], monkeypatch: pytest.MonkeyPatch
) -> None:
    """T-D4."""
    source = known()
    monkeypatch.setattr(subject, "source_of", lambda *given: source)
    spec = PrivacySpec(mode, clip=CLIP, noise_multiplier=2.0)
    claimed = epsilon_of(1 / spec.noise_multiplier, DELTA)
    assert await _audit(spec) <= claimed
    monkeypatch.setattr(subject, "gaussian", lambda source, numel, sigma: gaussian(source, numel, sigma / 2))
    assert await _audit(spec) > claimed


def _audit_shares(way: Distributed) -> float:
    """The same attack on sums of shares, by an aggregator that sees all of each."""
    rng, source, key = Random(1), Keyed(bytes(32)), bytes(32)
    scores: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(ROUNDS):
        coins = [rng.random() < 0.5 for _ in range(way.clients)]
        total = np.zeros(way.dim, dtype=way.ring(way.clients).dtype)
        for canary, coin in enumerate(coins):
            step = torch.zeros(way.numel)
            step[canary] = 100.0 * coin
            total += way.encode(step, key, source)
        for coin, score in zip(coins, way.decode(total, key).tolist(), strict=True):
            scores[coin].append(score / way.clip)
    return _proven(scores)


def test_an_attack_on_shares_proves_no_more_than_is_claimed_and_more_if_noise_is_halved() -> None:
    """T-D4."""
    way = Distributed(512, 512, CLIP, 2.0, absent=0.0, dishonest=0.0)
    gaussian_noise = epsilon_of(1 / 2.0, DELTA)
    assert gaussian_noise < way.cost().epsilon(DELTA)
    assert _audit_shares(way) <= gaussian_noise < _audit_shares(replace(way, multiplier=1.0))
