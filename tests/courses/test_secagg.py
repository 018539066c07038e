import asyncio
import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from p2pfl.app.config import COURSES
from p2pfl.courses.course import Place
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.fedbuff import FedBuffSettings
from p2pfl.courses.hierarchical import HierarchicalSettings
from p2pfl.courses.rules import averaging
from p2pfl.courses.secagg import PRIVACY, Given, SecAggSpec, Secrecy, digest, distributed, signer_of, unhurried
from p2pfl.errors import ConfigError, RemoteProtocolError
from p2pfl.learn.compression import CompressSpec, UpSpec
from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.node import Node
from p2pfl.privacy.account import Account
from p2pfl.privacy.distributed import Distributed
from p2pfl.privacy.ledger import PrivacyLedger
from p2pfl.privacy.plan import shared_plan
from p2pfl.privacy.secagg import Session
from p2pfl.privacy.spec import PrivacySpec
from p2pfl.sim.signer import SimulatedSigner
from p2pfl.topology.families import build
from p2pfl.wire.tensor import Tensors
from tests.courses.kit import Played

CONSISTENT = PRIVACY[2]


def place(course: str = "fedavg", n: int = 6, **settings: object) -> Place:
    chosen = COURSES[course].settings(privacy=CONSISTENT, **settings)
    played = Played(FEDAVG, FedAvgSettings(), build("star", 3))
    return Place(0, build("star", n), played.learner(0), chosen)


def secrecy(**settings: object) -> Secrecy:
    at = place(**settings)
    return Secrecy.of(at, averaging(at.learner))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("coordinator", "elect"), ("sampler", "oort"), ("sampler", "power-of-choice"), ("sampler", "responsiveness"),
        ("evaluate", "clients"), ("evaluate", "both"),
    ],
)  # fmt: skip
def test_what_looks_at_one_client_does_not_go_with_it(setting: str, value: str) -> None:
    FedAvgSettings(**{setting: value})
    with pytest.raises(ConfigError, match=f"course.{setting} is '{value}'; with course.privacy = 'secagg'"):
        FedAvgSettings(**{setting: value}, privacy="secagg")


def test_other_modes_are_not_known() -> None:
    with pytest.raises(ConfigError, match=r"course.privacy is 'tls'; it must be one of plain, secagg, secagg"):
        FedAvgSettings(privacy="tls")


@pytest.mark.parametrize("kind", [FedBuffSettings, HierarchicalSettings])
def test_courses_whose_updates_are_not_summed_in_rounds_refuse_it(kind: type) -> None:
    with pytest.raises(ConfigError, match=r"course.privacy is"):
        kind(privacy="secagg")


@pytest.mark.parametrize(
    "course", ["scaffold", "fednova", "qfedavg", "feddyn", "fedopt", "fedprox", "fedswa", "fedavgm"]
)
def test_a_rule_is_taken_if_its_updates_are_models(course: str) -> None:
    at = place(course)
    at = replace(at, learner=replace(at.learner, train=replace(at.learner.train, lr=0.1)))
    if course in ("scaffold", "fednova", "qfedavg"):
        with pytest.raises(ConfigError, match=f"course.privacy does not go with {course}, whose clients send more"):
            COURSES[course].play(at)
    else:
        assert isinstance(COURSES[course].play(at)[0], COURSES[course].secret[CONSISTENT][0])


def test_compression_does_not_go_with_it() -> None:
    with pytest.raises(ConfigError, match=r"\[compress\] does not go with course.privacy"):
        FEDAVG.play(replace(place(), compress=CompressSpec(UpSpec(select="top-k"))))


@pytest.mark.parametrize(
    ("n", "settings", "sentence"),
    [
        (3, {}, "content with 2 clients"),
        (11, {"fraction": 0.2}, "content with 2 clients"),
        (11, {"quorum": 0.2}, "content with 2 clients"),
        (1001, {}, "asks 1000 clients, and at most 600"),
        (101, {"secagg": SecAggSpec(adversaries=0.4, dropouts=0.4)}, "more than 100 clients can bear"),
    ],
)
def test_cohorts_that_cannot_be(n: int, settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        FEDAVG.play(place(n=n, **settings))


@pytest.mark.parametrize(
    ("setting", "value"), [("bits", 30), ("clip", 0.0), ("most_examples", 0), ("adversaries", 1.0), ("dropouts", -0.1)]
)
def test_mistakes_name_the_field(setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"course.secagg.{setting} is {value}"):
        SecAggSpec(**{setting: value})


def test_terms_are_those_of_the_course() -> None:
    one = secrecy(n=6)
    assert one.terms == secrecy(n=6).terms and one.terms.resilience.active
    assert one.terms.most_clients == 5 and one.size == one.rule.up.numel + 3
    others = [secrecy(n=7), secrecy(weights="equal"), secrecy(secagg=SecAggSpec(clip=1.0))]
    assert all(other.terms.digest != one.terms.digest for other in others)


def test_noise_is_counted_on_from_the_quorum_that_is_there_and_honest() -> None:
    spec = PrivacySpec("ddp", clip=0.5, noise_multiplier=2.0)
    settings = FedAvgSettings(
        fraction=0.8, quorum=0.5, privacy="secagg", secagg=SecAggSpec(bits=20, dropouts=0.2, adversaries=0.1)
    )
    found = distributed(settings, spec, 20, 100, 2.0)
    assert found == Distributed(100, 8, 0.5, 2.0, 20, 0.2, 0.1)
    assert found.local_variance == pytest.approx(1.0 / 6)  # of 8, 5.6 are counted on
    with pytest.raises(
        ConfigError, match=r"set course.privacy to 'secagg' or 'secagg\+consistency', or privacy.mode to another"
    ):
        distributed(FedAvgSettings(), spec, 20, 100, 2.0)


def noisy(seat: int, session_of: str = "nonce") -> tuple[Secrecy, Session]:
    at = place(n=6, weights="equal", secagg=SecAggSpec(bits=24, dropouts=0.2))
    spec = PrivacySpec("ddp", clip=1.0, noise_multiplier=1e-4)
    numel = at.learner.model.layout.numel
    plan = shared_plan(spec, 5, 10, lambda z: distributed(at.settings, spec, 5, numel, z))
    at = replace(at, seat=seat, privacy=spec, account=Account(PrivacyLedger("data"), plan))
    found = Secrecy.of(at, replace(averaging(at.learner), relative=True))
    return found, Session("run", 0, session_of, "model", found.terms)


def test_clients_and_coordinator_turn_by_what_the_session_tells_all() -> None:
    """Five sums of one update, in the clear, decoded by the coordinator of this session, and of another."""
    (secrecy, session), update = noisy(1), torch.linspace(-0.01, 0.01, noisy(1)[0].rule.up.numel)
    total = np.zeros(secrecy.size, dtype=secrecy.terms.ring.dtype)
    for seat in range(5):
        words = np.empty_like(total)
        given = Given(update, 1.0, 0.7, secrecy.seed(SimulatedSigner(f"seat{seat:07d}", "")))
        for _ in secrecy.encoding(words, given, session):
            pass
        total += words
    server, same = noisy(0)
    assert torch.allclose(torch.from_numpy(server.decode(total, 5, same).vector).float(), update, atol=1e-4)
    _, other = noisy(0, "another")
    assert not torch.allclose(torch.from_numpy(server.decode(total, 5, other).vector).float(), update, atol=5e-3)
    assert not secrecy.reference(update).any()
    assert server.terms.digest == secrecy.terms.digest


def test_noise_does_not_follow_from_what_a_node_draws_its_keys_from() -> None:
    (secrecy, _), signer = noisy(1), SimulatedSigner("seat0000001", "")
    again = SimulatedSigner("seat0000001", "")
    assert secrecy.seed(signer) != secrecy.seed(again)
    plain = Secrecy.of(place(), averaging(place().learner))
    assert plain.seed(signer) == plain.seed(again)


def test_weights_are_between_0_and_1() -> None:
    one = secrecy(secagg=SecAggSpec(most_examples=10))
    assert [one.weight(count) for count in (0, 5, 10, 50)] == [0.0, 0.5, 1.0, 1.0]
    assert secrecy(weights="equal").weight(3) == 1.0


@pytest.mark.parametrize("bits", [16, 24])
def test_masked_updates_travel_as_they_are(bits: int) -> None:
    one = secrecy(n=400, secagg=SecAggSpec(bits=bits))
    words = np.arange(one.size).astype(one.terms.ring.dtype) * 12345
    assert np.array_equal(one.words(one.tensors(words)), words)
    other = Tensors(one.schema[:0], ())
    with pytest.raises(RemoteProtocolError, match="was agreed"):
        one.words(other)


async def test_heavy_work_lets_others_go_on() -> None:
    done: list[str] = []

    def steps():
        for step in range(3):
            done.append(f"step {step}")
            yield

    async def other() -> None:
        done.append("other")

    task = asyncio.create_task(other())
    await unhurried(steps())
    await task
    assert done.index("other") == 1


async def test_a_digest_is_that_of_the_bytes() -> None:
    words = np.arange(1_000_000, dtype="<u4")
    assert await digest(words) == hashlib.sha256(words.tobytes()).digest()


def test_who_cannot_sign_has_no_part_in_it() -> None:
    with pytest.raises(ConfigError, match=r"course.privacy needs signatures, and .* cannot sign"):
        signer_of(Node(transport=MemoryNetwork().transport("a")))
