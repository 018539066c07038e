"""Noise in gossip: what each node gives, what cancels, and what does not when keys are lost."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from p2pfl.app.build import Setup, prepare
from p2pfl.app.config import from_mapping
from p2pfl.app.simulate import simulate
from p2pfl.courses import decor as subject
from p2pfl.courses.course import Place
from p2pfl.courses.decor import AgreeOnNoise, Noisy, Pairing, noisy
from p2pfl.courses.dpsgd import DPSGD, DpsgdSettings
from p2pfl.errors import ConfigError, PrivacySpent, RemoteProtocolError
from p2pfl.privacy.account import Account
from p2pfl.privacy.clipping import clipped
from p2pfl.privacy.gaussian import epsilon_of
from p2pfl.privacy.ledger import PrivacyLedger
from p2pfl.privacy.noise import Keyed, gaussian
from p2pfl.privacy.plan import plan_of
from p2pfl.privacy.spec import PrivacySpec
from p2pfl.privacy.views import worst_mu
from p2pfl.topology.families import build
from tests.courses.kit import Played

RING = build("ring", 5)
PLAYED = Played(DPSGD, DpsgdSettings(rounds=2), RING)
NUMEL = PLAYED.model.layout.numel
CLIP, SIGMA, TIMES = 0.5, 1e-6, 1e6
DECOR = PrivacySpec(
    "decor", clip=CLIP, noise_multiplier=SIGMA / CLIP, correlated=TIMES
)  # all but nothing is not shared
NOISY = {"clip": CLIP, "noise_multiplier": 0.5}


class Neighbour:
    """As much of a peer as an answer looks at."""

    def __init__(self, seat: int) -> None:
        self.seat = seat
        self.label = f"seat {seat}"


def paired(graph: Any = RING) -> list[Pairing]:
    """All seats, each of which knows the key of each neighbour."""
    pairings = [Pairing(graph.neighbors(seat)) for seat in range(graph.n)]
    for seat, pairing in enumerate(pairings):
        for other in graph.neighbors(seat):
            pairings[other]._take(Neighbour(seat), pairing._own.public.hex())
    return pairings


def nodes(spec: PrivacySpec, pairings: list[Pairing | None]) -> list[Noisy]:
    found = []
    for seat, pairing in enumerate(pairings):
        (plan, *_) = plan_of(spec, RING.n, [(1.0, 1.0)] * RING.n)
        account = Account(PrivacyLedger("data"), plan, "run")
        found.append(Noisy(PLAYED.learner(seat), account, RING, pairing))
    return found


def given(node: Noisy, round: int, params: Tensor, trained: Tensor) -> Tensor:
    """What it gives, once it has paid."""
    node._account.charge(round)
    node._round = round
    return node.give(params, trained)


def test_what_neighbours_add_cancels() -> None:
    """T-D6: each is far from what it has trained, and the mean of all is not."""
    generator = torch.Generator().manual_seed(1)
    all_nodes = nodes(DECOR, paired())
    for round in range(2):
        params = [torch.randn(NUMEL, generator=generator) for _ in all_nodes]
        trained = [each + 0.01 * torch.randn(NUMEL, generator=generator) for each in params]
        shared = [given(node, round, *each) for node, *each in zip(all_nodes, params, trained, strict=True)]
        plain = [(p + clipped(t - p, CLIP)).float() for p, t in zip(params, trained, strict=True)]
        for noisy_one, exact in zip(shared, plain, strict=True):
            assert float((noisy_one - exact).std()) == pytest.approx(math.sqrt(2) * SIGMA * TIMES, rel=0.15)
        difference = torch.stack(shared).double().mean(0) - torch.stack(plain).double().mean(0)
        assert float(difference.abs().max()) < 1e-5


def test_rounds_and_links_have_noise_of_their_own() -> None:
    pairings = paired()
    draws = [gaussian(pairings[seat].source(other, round), 2000, 1.0)
             for round in (0, 1) for seat, other in ((0, 1), (0, 4), (2, 3))]  # fmt: skip
    for at, one in enumerate(draws):
        for other in draws[:at]:
            assert abs(float((one * other).mean())) < 0.1
    again = gaussian(pairings[1].source(0, 0), 2000, 1.0)
    assert torch.equal(again, draws[0]), "the other end draws the same"


def test_noise_hides_one_update_only() -> None:
    pairing = paired()[0]
    assert pairing.source(1, 3) is not None
    assert pairing.source(1, 3) is None
    assert pairing.source(1, 2) is None
    assert pairing.source(4, 3) is not None
    assert pairing.source(1, 4) is not None


def test_who_has_no_key_is_hidden_as_well() -> None:
    """The noise for a neighbour that is gone is there, drawn in secret: no less, but it does not cancel."""
    (node, *_) = nodes(DECOR, [Pairing(RING.neighbors(seat)) for seat in range(5)])
    shared = given(node, 0, torch.zeros(NUMEL), torch.zeros(NUMEL))
    assert float(shared.std()) == pytest.approx(math.sqrt(2) * SIGMA * TIMES, rel=0.15)


async def test_keys_are_agreed_on_with_neighbours_only() -> None:
    one, other = Pairing([1]), Pairing([0])
    key = await one.answer(AgreeOnNoise(other._own.public.hex()), Neighbour(1))
    other._take(Neighbour(0), key.public)
    assert one._secrets[1] == other._secrets[0]
    with pytest.raises(RemoteProtocolError):
        await one.answer(AgreeOnNoise(other._own.public.hex()), Neighbour(2))
    with pytest.raises(RemoteProtocolError, match="low order"):
        await one.answer(AgreeOnNoise(bytes(32).hex()), Neighbour(1))
    with pytest.raises(ValueError, match="32 bytes"):
        AgreeOnNoise("aa")


async def test_who_was_restarted_has_a_new_key() -> None:
    one, other, restarted = Pairing([1]), Pairing([0]), Pairing([0])
    first = await one.answer(AgreeOnNoise(other._own.public.hex()), Neighbour(1))
    before = one._secrets[1]
    key = await one.answer(AgreeOnNoise(restarted._own.public.hex()), Neighbour(1))
    restarted._take(Neighbour(0), key.public)
    assert one._secrets[1] == restarted._secrets[0] != before
    assert key.public == first.public


def test_local_noise_is_a_nodes_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "source_of", lambda *given: Keyed(bytes(32)))
    spec = PrivacySpec("ldp", clip=CLIP, noise_multiplier=2.0)
    (node, *_) = nodes(spec, [None] * 5)
    params, trained = torch.ones(NUMEL), torch.linspace(0, 2, NUMEL)
    expected = params + clipped(trained - params, CLIP) + gaussian(Keyed(bytes(32)), NUMEL, 2.0 * CLIP)
    assert torch.equal(given(node, 0, params, trained), expected.float())


def test_nothing_is_given_that_was_not_paid_for() -> None:
    (node, *_) = nodes(DECOR, paired())
    with pytest.raises(AssertionError, match="is paid for"):
        node.give(torch.zeros(NUMEL), torch.zeros(NUMEL))
    given(node, 0, torch.zeros(NUMEL), torch.zeros(NUMEL))
    with pytest.raises(AssertionError, match="is paid for"):
        node.give(torch.zeros(NUMEL), torch.zeros(NUMEL))


# -- whole courses -----------------------------------------------------------------------------------------------------


def prepared(privacy: dict[str, Any], family: str = "ring", **course: Any) -> Setup:
    tables = {"topology": {"n": 6, "family": family}, "data": {"subsample": 0.1}, "model": {"name": "logistic"}}
    return prepare(from_mapping({"course": {"name": "dpsgd", "rounds": 2, **course}, "privacy": privacy, **tables}))


def test_the_mean_of_all_nodes_is_as_without_noise() -> None:
    """Over links, with keys that nodes agree on by themselves; without one, noise of 1 would be in the mean."""
    shared = {"clip": 1.0, "noise_multiplier": 1e-7}
    exact = simulate(prepared({"mode": "ldp", **shared}, rounds=1)).params
    found = simulate(prepared({"mode": "decor", "correlated": 1e7, **shared}, rounds=1)).params
    assert float((found - exact).abs().max()) < 1e-5
    assert not torch.equal(found, exact)


@pytest.mark.parametrize("mode", ["ldp", "decor"])
def test_every_node_is_charged_for_every_round(mode: str) -> None:
    setup = prepared({"mode": mode, **NOISY})
    simulate(setup)
    assert [len(account.ledger.charges) for account in setup.budgets.accounts.values()] == [2] * 6
    mu = 1.0 if mode == "ldp" else worst_mu(build("ring", 6), 1.0, 10.0, 1)[0]
    report = setup.budgets.report()
    assert report.epsilon == pytest.approx(epsilon_of(math.sqrt(2) * mu / 0.5, 6**-1.1))
    assert (mu < 0.5) == (mode == "decor")


def test_who_has_spent_its_budget_gives_no_model() -> None:
    """T-D8: nothing of the round leaves the node."""
    setup = prepared({"mode": "ldp", "epsilon_max": 7.0, **NOISY})
    paying = setup.budgets.account(3, setup.shards[3], "")
    paying.charge(0)
    paying.charge(1)
    with pytest.raises(PrivacySpent, match="the privacy budget is spent: round 1"):
        simulate(setup)
    assert len(paying.ledger.charges) == 2


def test_all_modes_of_signing_go_with_noise() -> None:
    assert simulate(prepared({"mode": "decor", **NOISY}, signed=True)).params.isfinite().all()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"order": "combine"}, r"goes with course\.order = 'adapt' only"),
        ({"private": ["1.*"]}, r"does not go with course\.private; leave one of them out"),
        ({"name": "choco"}, "privacy.mode is 'decor', which choco does not do; it must be one of plain"),
        ({"name": "pushsum"}, "which pushsum does not do"),
        ({"family": "one-peer-exponential"}, "links must go both ways"),
    ],
)
def test_what_would_let_more_out_is_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        prepared({"mode": "decor", **NOISY}, **given)


def test_the_role_that_agrees_is_there_where_it_is_needed() -> None:
    for mode, roles in (("ldp", 1), ("decor", 2)):
        spec = PrivacySpec(mode, noise_multiplier=1.0)
        (plan, *_) = plan_of(spec, 5, [(1.0, 1.0)] * 5)
        place = Place(
            0, RING, PLAYED.learner(0), PLAYED.settings, privacy=spec, account=Account(PrivacyLedger("data"), plan)
        )
        assert len(DPSGD.play(place)) == roles
        assert (noisy(place)[1] is None) == (mode == "ldp")
