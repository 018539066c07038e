"""Compressed courses: what is sent, what both halves make of it, and that it learns all the same."""

import math
from dataclasses import replace
from random import Random

import pytest
import torch
from torch import nn

from p2pfl.app.build import prepare
from p2pfl.app.config import from_mapping
from p2pfl.app.simulate import simulate
from p2pfl.courses.coded import Coded, compressed
from p2pfl.courses.durable import Durable
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.outbox import Outbox
from p2pfl.courses.parts import Parts
from p2pfl.courses.rules import Averaging, Rule, Training, averaging
from p2pfl.errors import ConfigError, RemoteProtocolError
from p2pfl.journal.journal import Journal
from p2pfl.learn.compression import CompressSpec, DownSpec, UpSpec
from p2pfl.learn.entropy import Tally, codec
from p2pfl.learn.model import Model
from p2pfl.sim.disk import SimulatedDisk
from p2pfl.topology.families import build
from p2pfl.wire.tensor import Tensors, schema_bytes
from tests.courses.kit import Normalised, Played, dataset
from tests.courses.test_durable import Told

PLAYED = Played(FEDAVG, FedAvgSettings(), build("star", 3))
MODEL = PLAYED.model
NUMEL = MODEL.layout.numel
SPARSE = UpSpec(select="top-k", fraction=0.1, values="qsgd", bits=4)


def learner(seat=1):
    return PLAYED.learner(seat)


def test_nothing_to_compress_leaves_the_rule_alone():
    rule = averaging(learner())
    assert compressed(rule, learner(), CompressSpec()) is rule


@pytest.mark.parametrize(
    "spec", [SPARSE, UpSpec(values="bfloat16"), UpSpec(select="random-k"), DownSpec(values="sign")]
)
def test_what_is_encoded_comes_as_it_was_meant(spec):
    coded, vector = Coded(Parts(MODEL), MODEL, spec.transform), torch.randn(NUMEL)
    packed, _ = coded.encode(vector, {}, seed=1)
    tensors = coded.tensors(packed)
    assert tensors.schema == coded.schema and tensors.nbytes == len(packed) == schema_bytes(coded.schema)
    assert torch.equal(coded.packed(tensors), packed), "it can be kept, and sent again"
    assert torch.equal(coded.vector(tensors), coded.decode(packed))
    again, _ = coded.encode(vector, {}, seed=1)
    assert torch.equal(again, packed), "equal seeds, equal bytes"


def test_only_parts_as_long_as_the_model_are_encoded():
    plain = Parts(MODEL, control=NUMEL, tau=1)
    coded = Coded(plain, MODEL, SPARSE.transform)
    vector = torch.randn(plain.numel)
    vector[-1] = 1e-3
    decoded = coded.decode(coded.encode(vector, {}, seed=0)[0])
    split = coded.split(decoded)
    assert split["tau"].item() == vector[-1].item()
    for part in (split["params"], split["control"]):
        assert 1 < int((part != 0).sum()) <= round(0.1 * NUMEL)


def test_running_statistics_go_as_they_are():
    data = dataset()
    model = Model.of(Normalised(), nn.functional.cross_entropy, data.x[:8], data.y[:8])
    trainable = model.layout.trainable_numel
    played = Played(FEDAVG, FedAvgSettings(), build("star", 3))
    own = replace(played.learner(1), model=model)
    rule = compressed(averaging(own), own, CompressSpec(SPARSE, DownSpec(values="sign")))
    params = torch.randn(model.layout.numel).abs()
    for coded in (rule.up, rule.down):
        decoded = coded.decode(coded.encode(params, {}, 0)[0])
        assert torch.equal(decoded[trainable:], params[trainable:]) and not torch.equal(decoded, params)
    received = rule.local()._codec.received(rule.down.decode(rule.central().broadcast(params, 0)))
    assert torch.equal(received[trainable:], params[trainable:])
    partial = Rule(Parts(model, params=trainable), Parts(model, params=trainable), Averaging, Training)
    with pytest.raises(ConfigError, match="running statistics, which must stay exact; leave out"):
        compressed(partial, own, CompressSpec(SPARSE))


def test_other_tensors_than_agreed_are_refused():
    coded = Coded(Parts(MODEL), MODEL, SPARSE.transform)
    plain = Parts(MODEL)
    with pytest.raises(RemoteProtocolError, match="was agreed"):
        coded.vector(plain.tensors(torch.zeros(NUMEL)))


@pytest.mark.parametrize("fill", [0xFF, 0x7F])
def test_bytes_that_no_vector_is_encoded_as_are_refused(fill):
    coded = Coded(Parts(MODEL), MODEL, UpSpec(select="top-k", fraction=0.01).transform)
    buffers = [memoryview(bytes([fill]) * spec.nbytes) for spec in coded.schema]
    with pytest.raises(RemoteProtocolError, match="params cannot be decoded: places came"):
        coded.vector(Tensors(coded.schema, buffers))
    halves = Coded(Parts(MODEL), MODEL, UpSpec(values="float16").transform)
    with pytest.raises(RemoteProtocolError, match="NaN"):
        halves.vector(Tensors(halves.schema, [memoryview(b"\xff" * halves.schema[0].nbytes)]))
    none = coded.encode(torch.zeros(NUMEL), {}, 0)[0].clone()
    none[-4:] = torch.tensor([math.nan]).view(torch.uint8)
    with pytest.raises(RemoteProtocolError, match="NaN"):
        coded.vector(coded.tensors(none))
    assert coded.vector(coded.tensors(none), finite=False).isnan().any()


@pytest.mark.parametrize("spec", [SPARSE, UpSpec(values="uniform", bits=4), UpSpec()])
def test_entropy_coding_is_seen_by_nobody_but_the_wire(spec):
    tally, vector = Tally(), torch.zeros(NUMEL)
    vector[: NUMEL // 2] = torch.randn(NUMEL // 2)
    plain = Coded(Parts(MODEL), MODEL, spec.transform)
    tight = Coded(Parts(MODEL), MODEL, spec.transform, codec("zlib"), tally)
    packed = tight.encode(vector, {}, seed=1)[0]
    tensors = tight.tensors(packed)
    assert tensors.nbytes == len(packed) and tensors.schema in tight.schemas
    assert torch.equal(tight.packed(tensors), packed), "it can be kept, and sent again"
    expected = plain.decode(plain.encode(vector, {}, seed=1)[0])
    assert torch.equal(tight.decode(packed), expected) and tally.came == 0
    assert torch.equal(tight.vector(tensors), expected)
    assert (tally.came, tally.whole) == (tensors.nbytes, schema_bytes(plain.schema)) and tally.came <= tally.whole


def test_what_expands_to_more_than_was_agreed_is_refused():
    coded = Coded(Parts(MODEL), MODEL, UpSpec(values="uniform").transform, codec("zlib"))
    bomb = codec("zlib").compress(bytes(1 << 16))
    schema = next(schema for schema in coded.schemas[1:] if schema_bytes(schema) >= len(bomb))
    tensors = Tensors(schema, [memoryview(bomb.ljust(schema_bytes(schema), b"\0"))])
    with pytest.raises(
        RemoteProtocolError, match="what came cannot be expanded: bytes came that do not expand to just"
    ):
        coded.vector(tensors)


class Shifted(Training):
    """Adds its step to every number instead of what it has learned."""

    def __init__(self, step):
        self.step = step

    async def train(self, learner, received, round):
        trained = await Training.train(self, learner, received, round)
        return trained._replace(vector=received + self.step)


async def test_updates_go_as_differences_to_what_was_received():
    """A step of equal numbers is exact in signs of one magnitude, whatever the model is: only differences are sent."""
    rule = compressed(
        Rule(Parts(MODEL), Parts(MODEL), Averaging, lambda: Shifted(0.25)),
        learner(),
        CompressSpec(UpSpec(values="sign")),
    )
    central, local, params = rule.central(), rule.local(), torch.randn(NUMEL) * 100
    received = rule.down.vector(rule.down.tensors(central.broadcast(params, 0)))
    assert torch.equal(received, params)
    trained = await local.train(learner(), received, 0)
    mean = rule.up.vector(rule.up.tensors(trained.vector))
    assert torch.allclose(mean, torch.tensor(0.25), atol=1e-4)
    assert torch.allclose(central.absorb(params, mean, 1.0, 0), params + 0.25, atol=1e-4)


async def test_an_update_that_is_a_difference_already_stays_what_it_is():
    class Difference(Shifted):
        async def train(self, learner, received, round):
            return (await Shifted.train(self, learner, received, round))._replace(vector=torch.full((NUMEL,), 0.5))

    plain = Rule(Parts(MODEL), Parts(MODEL), Averaging, lambda: Difference(0.0), relative=True)
    rule = compressed(plain, learner(), CompressSpec(UpSpec(values="sign")))
    central, local, params = rule.central(), rule.local(), torch.randn(NUMEL)
    trained = await local.train(learner(), central.broadcast(params, 0), 0)
    mean = rule.up.vector(rule.up.tensors(trained.vector))
    assert torch.allclose(central.absorb(params, mean, 1.0, 0), torch.tensor(0.5))


def test_what_goes_down_is_the_difference_to_the_first_model():
    rule = compressed(averaging(learner()), learner(), CompressSpec(down=DownSpec(values="uniform", bits=8)))
    central, local = rule.central(), rule.local()
    params = MODEL.initial + 1e-3 * torch.randn(NUMEL)
    got = local._codec.received(rule.down.vector(rule.down.tensors(central.broadcast(params, 3))))
    assert (got - params).abs().max() < 1e-3 * 9 / 255 / 2
    assert torch.equal(local._codec.received(rule.down.decode(central.broadcast(MODEL.initial, 0))), MODEL.initial)


async def test_what_is_withheld_survives_a_restart_and_the_bytes_of_an_update_do():
    plain = Rule(Parts(MODEL), Parts(MODEL), Averaging, lambda: Shifted(0.5))
    disk = SimulatedDisk(Random(0))
    sent = plain.down.tensors(torch.zeros(NUMEL))

    def opened():
        rule = compressed(plain, learner(), CompressSpec(SPARSE))
        return Outbox(learner(), rule, Durable(Journal(disk, "run")))

    first = opened()
    one = (await first.update(Told(), 0, sent)).params
    again = opened()
    assert (await again.update(Told(), 0, sent)).params == one, "not encoded anew"
    error = again.local.state()["codec.params.error"]
    assert torch.equal(error, first.local.state()["codec.params.error"]) and error.norm() > 0
    two = (await again.update(Told(), 1, sent)).params
    assert two == (await first.update(Told(), 1, sent)).params != one


async def test_with_ef21_the_server_knows_the_mean_of_what_it_knows_of_all_clients_whoever_gives():
    """And so goes the whole way that all take, though each sends a tenth, and only one of them in a round."""
    plain = Rule(Parts(MODEL), Parts(MODEL), Averaging, lambda: Shifted(0.25))
    rule = compressed(plain, learner(), CompressSpec(UpSpec(select="top-k", fraction=0.1, memory="ef21")))
    central, clients, params = rule.central(), [rule.local() for _ in range(2)], MODEL.initial
    for number in range(21):
        before, client = params, clients[number % 2]
        received = rule.down.vector(rule.down.tensors(central.broadcast(params, number)))
        given = rule.up.decode((await client.train(learner(), received, number)).vector)
        params = central.absorb(params, given, 0.5, number)
        known = [each.state().get("codec.params.known", torch.zeros(NUMEL)) for each in clients]
        assert torch.allclose(params - before, (known[0] + known[1]) / 2, atol=1e-5)
    again = rule.central()
    again.resume(central.state())
    assert torch.equal(again.state()["codec.known"], central.state()["codec.known"])
    assert torch.allclose(params - before, torch.tensor(0.25), atol=1e-5)


def test_ef21_needs_every_update():
    with pytest.raises(ConfigError, match=r"compress.up.memory is 'ef21', which needs equal weights and every update"):
        simulated({"up": {"values": "sign", "memory": "ef21"}}, course={"name": "fedavg", "rounds": 1})


TABLES = {
    "course": {"name": "fedavg", "rounds": 15}, "partition": {"alpha": 0.3}, "topology": {"n": 9}, "seed": 7,
    "model": {"name": "mlp", "hidden": [32]}, "train": {"lr": 0.2, "epochs": 3, "batch_size": 10},
}  # fmt: skip


def simulated(compress, **more):
    return simulate(prepare(from_mapping({**TABLES, "compress": compress, **more})))


def test_the_bytes_on_the_wire_shrink_by_the_ratio_and_digits_are_learned_all_the_same():
    plain = simulated({})
    up = {"select": "top-k", "fraction": 0.1, "values": "qsgd", "bits": 4, "feedback": False}
    small = simulated({"up": up, "down": {"values": "uniform"}})
    numel, messages = 64 * 32 + 32 + 32 * 10 + 10, 8 * 15
    k = round(0.1 * numel)
    one_up = math.ceil(3 * k / 8) + math.ceil((k + numel / 8) / 8) + math.ceil(k / 2) + 4
    assert 4 * numel / one_up > 20
    overhead = plain.up_bytes - 4 * numel * messages  # heads, joining, the last answer
    assert small.up_bytes - overhead == pytest.approx(one_up * messages, rel=0.3)
    assert plain.up_bytes / small.up_bytes > 10
    finish = 8 * 4 * numel  # the result is given to all as it is
    one_down = numel + 8 * math.ceil(numel / 512)
    saved = plain.down_bytes - small.down_bytes
    assert saved == pytest.approx((4 * numel - one_down) * messages, rel=0.02) and small.down_bytes > finish
    assert plain.rounds[-1].metrics["accuracy"] > 0.93 and small.rounds[-1].metrics["accuracy"] > 0.92


def test_entropy_coding_changes_bytes_and_no_model():
    fine = {"values": "uniform"}
    tight = {**fine, "entropy": "zlib"}
    course = {"name": "fedavg", "rounds": 4}
    plain = simulated({"up": fine, "down": fine}, course=course)
    setup = prepare(from_mapping({**TABLES, "course": course, "compress": {"up": tight, "down": tight}}))
    small = simulate(setup)
    assert torch.equal(small.params, plain.params)
    saved = setup.tally.whole - setup.tally.came
    assert saved <= plain.bytes - small.bytes == pytest.approx(saved, rel=0.1), "and heads, which name one tensor"
    assert saved > 0.1 * plain.bytes


@pytest.mark.parametrize(
    "compress",
    [
        {"up": {"select": "low-rank"}},
        {"up": {"select": "top-k", "fraction": 0.05, "values": "ternary"}, "down": {"values": "float16"}},
        {"up": {"select": "top-k", "fraction": 0.05, "values": "uniform", "memory": "ef21"}},
    ],
    ids=["low-rank", "sparse ternary", "ef21"],
)
def test_it_learns_under_heavy_compression(compress):
    course = {"name": "fedavg", "rounds": 15, "weights": "equal"}
    assert simulated(compress, course=course).rounds[-1].metrics["accuracy"] > 0.9


def test_every_rule_can_be_compressed():
    compress = {"up": {"values": "uniform"}, "down": {"values": "uniform"}}
    for name in ("scaffold", "fedopt", "fednova"):
        course = {"name": name, "rounds": 2, "evaluate": "none"}
        fine, plain = simulated(compress, course=course), simulated({}, course=course)
        assert fine.up_bytes < plain.up_bytes / 2.5, name
        step = (plain.params - prepare(from_mapping({**TABLES, "course": course})).model.initial).norm()
        assert (fine.params - plain.params).norm() < 0.05 * step, name


def test_courses_that_do_not_compress_say_so():
    for name in ("hierarchical", "dpsgd"):
        tables = {"course": {"name": name}, "compress": {"up": {"values": "sign"}}}
        with pytest.raises(ConfigError, match=f"{name} does not compress what it sends; leave out"):
            prepare(from_mapping(tables))
    elected = {"name": "fedavg", "coordinator": "elect"}
    with pytest.raises(ConfigError, match=r"\[compress\] does not go with course.coordinator = 'elect'"):
        simulated({"up": {"values": "sign"}}, course=elected)


def test_a_misspelt_field_is_named():
    with pytest.raises(ConfigError, match=r"compress.up.fractoin is not known; did you mean fraction\?"):
        from_mapping({"course": {"name": "fedavg"}, "compress": {"up": {"fractoin": 0.1}}})
