import asyncio
import math
import re
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
import torch

from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings, Server, Trainer
from p2pfl.courses.learner import seed_of
from p2pfl.courses.messages import Finish, Finished, Train, Update
from p2pfl.courses.rounds import ClientExcluded, ClientReadmitted
from p2pfl.courses.scores import ClientsEvaluated
from p2pfl.errors import ConfigError, CourseError
from p2pfl.learn.data import load_dataset
from p2pfl.learn.evaluate import evaluate
from p2pfl.learn.params import as_buffer
from p2pfl.learn.specs import DataSpec, MetricsSpec, ModelSpec, PartitionSpec, TrainSpec
from p2pfl.node.events import CourseEnded, PeerLost, RoundEnded, RoundStarted, UpdateMissing
from p2pfl.sim.devices import DeviceSpec
from p2pfl.sim.loop import run_virtual
from p2pfl.sim.network import NetworkSpec
from p2pfl.topology.families import build
from p2pfl.wire.tensor import Tensors, TensorSpec
from tests.courses.kit import Played, fit


def fedavg(clients=5, recast=None, **more):
    """A course with so many clients. `more` are fields of Played, or settings."""
    own = {name: more.pop(name) for name in list(more) if name in Played.__dataclass_fields__}
    settings = FedAvgSettings(**{"rounds": 3} | more)
    return Played(FEDAVG, settings, build("star", clients + 1), recast=recast or (lambda seat, roles: roles), **own)


def by_hand(played):
    """McMahan et al., Algorithm 1, in as few lines as it takes. Gives the model after every round."""
    settings, params, models = played.settings, played.model.initial, []
    seats = sorted(played.shards)
    for number in range(settings.rounds):
        size = max(1, round(settings.fraction * len(seats)))
        cohort = sorted(Random(seed_of(played.seed, "cohort", number)).sample(seats, size))
        total, weight = torch.zeros_like(params), 0
        for seat in cohort:
            seed = seed_of(played.seed, "fit", number, seat)
            update = fit(params, played.model, played.shards[seat], played.train, seed, number)
            share = update.num_examples if settings.weights == "examples" else 1
            total, weight = total.add_(update.params, alpha=share), weight + share
        params = total / weight
        models.append(params)
    return models


@pytest.mark.parametrize("weights", ["examples", "equal"])
@pytest.mark.parametrize("fraction", [1.0, 0.6, 0.1])
def test_it_is_the_loop_that_the_paper_has(fraction, weights):
    played = fedavg(fraction=fraction, weights=weights, train=TrainSpec(lr=0.5, batch_size=8, momentum=0.5)).play()
    models = by_hand(played)
    assert torch.equal(played.params[0], models[-1])
    accuracies = [evaluate(model, played.model, played.data.test).accuracy for model in models]
    assert played.metric("accuracy") == accuracies
    assert [event.participants for event in played.told(RoundEnded, 0)] == [max(1, round(fraction * 5))] * 3


def test_everybody_ends_with_the_final_model():
    played = fedavg().play()
    assert all(torch.equal(params, played.params[0]) for params in played.params)
    (ended,) = played.told(CourseEnded)
    assert str(ended) == "the course ended after round 3: all 3 rounds are done"


def test_the_network_does_not_change_the_result():
    still = fedavg().play()
    for seed in range(3):
        network = NetworkSpec(latency_ms=50, latency_spread=2.0, jitter=3.0, uplink_mbps=0.5)
        shaken = fedavg(network=network, devices=DeviceSpec(spread=1.0))
        shaken.world.seed = shaken.world.wire._seed = seed
        shaken.play()
        assert shaken.bytes == still.bytes
        assert shaken.world.wire.trace != still.world.wire.trace
        assert shaken.metric("train_loss") == still.metric("train_loss")


# -- who is waited for -------------------------------------------------------------------------------------------------


def slow(*seats, factor=100.0):
    """Let the devices of some seats be slower than all others."""

    def recast(seat, roles):
        if seat in seats:
            (trainer,) = roles
            trainer._learner.compute.examples_per_second /= factor
        return roles

    return recast


def test_a_quorum_ends_the_round_and_cancels_the_stragglers():
    whole, quorum = fedavg(recast=slow(2, 4)).play(), fedavg(recast=slow(2, 4), quorum=0.6).play()
    assert [event.participants for event in quorum.told(RoundEnded, 0)] == [3, 3, 3]
    assert [event.participants for event in quorum.told(RoundStarted, 0)] == [5, 5, 5]
    assert not quorum.missing, "who is not needed is not missed"
    assert quorum.events[-1][0] < whole.events[-1][0] / 5
    server = quorum.world.seats[0]
    assert server.node.statistics().violations == 0
    without = by_hand(drop(quorum, 2, 4))
    assert torch.equal(quorum.params[0], without[-1])


def drop(played, *seats):
    """The same course with the shards of some seats taken away, for `by_hand`."""
    other = replace(played, settings=replace(played.settings, fraction=1.0), events=[])
    for seat in seats:
        del other.shards[seat]
    return other


def test_a_deadline_ends_the_round_with_what_has_arrived():
    played = fedavg(recast=slow(3, factor=1e6), deadline_seconds=5.0, evaluate="none").play()
    assert [event.participants for event in played.told(RoundEnded, 0)] == [4, 4, 4]
    assert played.missing == [(1, "seat 3"), (2, "seat 3"), (3, "seat 3")]
    assert {event.reason for event in played.told(UpdateMissing)} == {"nothing came before the deadline"}
    times = [seconds for seconds, seat, event in played.events if seat == 0 and isinstance(event, RoundEnded)]
    assert [b - a for a, b in pairwise(times)] == pytest.approx([5.0, 5.0])
    assert torch.equal(played.params[0], by_hand(drop(played, 3))[-1])


def test_rounds_without_any_update_change_nothing_and_are_no_success():
    everyone = slow(1, 2, 3, 4, 5, factor=1e6)
    played = fedavg(recast=everyone, deadline_seconds=1.0, evaluate="none")
    with pytest.raises(CourseError, match="none of 3 rounds brought an update"):
        played.play()
    assert [event.participants for event in played.told(RoundEnded, 0)] == [0, 0, 0]
    assert len(played.missing) == 15


def test_over_selection_asks_more_and_waits_for_as_many():
    played = fedavg(clients=10, fraction=0.5, over_selection=0.4, recast=slow(1, 2, 3)).play()
    assert [event.participants for event in played.told(RoundStarted, 0)] == [7, 7, 7]
    assert [event.participants for event in played.told(RoundEnded, 0)] == [5, 5, 5]


def expects_a_sixth(seat, roles):
    """A server that knows of a client more than there are."""
    return (Server(roles[0]._learner, roles[0]._settings, range(1, 7)),) if seat == 0 else roles


def test_the_first_round_waits_for_all_seats_but_for_min_clients():
    played = fedavg(recast=expects_a_sixth, min_clients=5).play()
    assert [event.participants for event in played.told(RoundStarted, 0)] == [5, 5, 5]
    waiting = fedavg(recast=expects_a_sixth)
    assert waits_of(waiting)[0].startswith("seat 0: links to 1 more of the seats 6")
    assert not waiting.told(RoundStarted)


def waits_of(played):
    """What a course that goes on for ever waits for after an hour."""

    async def watch():
        course = asyncio.create_task(played.run())
        await asyncio.sleep(3600)
        waits = played.world.waits()
        course.cancel()
        await asyncio.wait([course])
        return waits

    return run_virtual(watch())


# -- clients that fail -------------------------------------------------------------------------------------------------


class Answers:
    """A client that answers as the test wants, and stays for long enough."""

    def __init__(self, trainer, answer):
        self.params = trainer.params
        self._learner = trainer._learner
        self._answer = answer

    async def run(self, node):
        await asyncio.sleep(60)

    @Train.handler
    async def train(self, ask: Train, peer) -> Update:
        return self._answer(self._learner, ask)

    @Finish.handler
    async def finish(self, message: Finish, peer) -> Finished:
        return Finished()


def vector_of(learner, ask, values):
    return Update(ask.round, learner.tensors(values), 10, 0.0)


def not_a_number(learner, ask):
    values = learner.vector(ask.params).clone()
    values[3] = math.nan
    return vector_of(learner, ask, values)


def infinite(learner, ask):
    return vector_of(learner, ask, torch.full_like(learner.model.initial, math.inf))


def misshapen(learner, ask):
    return Update(ask.round, Tensors((TensorSpec("params", "f32", (3,)),), (as_buffer(torch.zeros(3)),)), 10, 0.0)


def weightless(learner, ask):
    return Update(ask.round, ask.params, 0, None)


def failing(learner, ask):
    raise OSError("the disk is full")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (not_a_number, "NaN"),
        (infinite, "infinite"),
        (misshapen, "(another shape|agreed)"),
        (weightless, "weight"),
        (failing, "OSError: the disk is full"),
    ],
)
def test_who_cannot_be_used_is_named_and_the_course_goes_on(answer, reason):
    played = fedavg(recast=lambda seat, roles: (Answers(roles[0], answer),) if seat == 3 else roles)
    played.play()
    assert played.told(CourseEnded)
    rounds = [number for number, peer in played.missing if peer == "seat 3"]
    assert rounds[0] == 1 and {peer for _, peer in played.missing} == {"seat 3"}
    event = played.told(UpdateMissing)[0]
    assert str(event).startswith("round 1 goes on without seat 3: ")
    assert re.search(reason, event.reason)
    assert torch.equal(played.params[0], by_hand(drop(played, 3))[-1])


class Quits(Trainer):
    """A client that is gone in the middle of a round."""

    def __init__(self, trainer, last):
        super().__init__(trainer._learner, 0)
        self._last = last
        self._gone = asyncio.Event()

    async def run(self, node):
        node.agree(self._learner.schema)
        await self._gone.wait()

    @Train.handler
    async def train(self, ask: Train, peer) -> Update:
        if ask.round == self._last:
            self._gone.set()
            await asyncio.Event().wait()
        return await super().train(ask, peer)


def quits(last, *seats):
    return lambda seat, roles: (Quits(roles[0], last),) if seat in seats else roles


def test_a_client_that_is_lost_in_a_round_is_named_and_the_course_goes_on():
    played = fedavg(recast=quits(1, 2)).play()
    assert played.missing == [(2, "seat 2")]
    assert played.told(PeerLost, 0)
    assert [event.participants for event in played.told(RoundEnded, 0)] == [5, 4, 4]
    assert all(torch.equal(played.params[0], params) for seat, params in enumerate(played.params) if seat != 2)


def test_with_all_clients_lost_the_server_waits_for_them():
    played = fedavg(recast=quits(1, 1, 2, 3, 4, 5))

    (waits,) = waits_of(played)
    assert waits.startswith("seat 0: links to 1 more of the seats 1-5")
    assert not played.told(CourseEnded)


# -- who is obeyed -----------------------------------------------------------------------------------------------------


def test_only_clients_are_told_of_the_end():
    told = []

    class Bystander:
        """A peer of the server that has no part in the course."""

        async def run(self, node):
            (server,) = await node.meet([0])
            await server.gone()

        @Finish.handler
        async def finish(self, message: Finish, peer) -> None:
            told.append(peer)

    def recast(seat, roles):
        if seat == 0:
            return (Server(roles[0]._learner, roles[0]._settings, (1, 2)),)
        return (Bystander(),) if seat == 3 else roles

    assert fedavg(clients=3, recast=recast, devices=DeviceSpec(5.0)).play().told(CourseEnded)
    assert not told


# -- evaluation and the end --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("server", {"accuracy", "loss"}),
        ("clients", {"client_accuracy", "client_loss"}),
        ("both", {"accuracy", "loss", "client_accuracy", "client_loss"}),
        ("none", set()),
    ],
)
def test_evaluation_happens_where_it_was_wanted(where, names):
    played = fedavg(evaluate=where).play()
    assert all(set(event.metrics) == names | {"train_loss"} for event in played.told(RoundEnded, 0))


def test_evaluate_every_counts_rounds_and_never_leaves_out_the_last():
    played = fedavg(rounds=5, evaluate_every=2).play()
    assert ["accuracy" in event.metrics for event in played.told(RoundEnded, 0)] == [False, True, False, True, True]


def test_clients_evaluate_the_new_model_on_their_own_examples():
    played = fedavg(evaluate="clients").play()
    for number, model in enumerate(by_hand(played)):
        found = [evaluate(model, played.model, shard) for _, shard in sorted(played.shards.items())]
        total = sum(one.num_examples for one in found)
        accuracy = sum(one.accuracy * one.num_examples for one in found) / total
        assert played.metric("client_accuracy")[number] == pytest.approx(accuracy)


OWN = "torch.nn.functional:cross_entropy"


def test_what_is_wanted_of_each_client_is_told_beside_the_mean():
    spec = MetricsSpec(own=(OWN,), clients=("mean", "fairness", "groups", "each"), groups={"odd": (1, 3, 5)})
    played = fedavg(rounds=1, evaluate="both", metrics=spec).play()
    (model,), (told,) = by_hand(played), played.told(ClientsEvaluated)
    found = {seat: evaluate(model, played.model, shard).accuracy for seat, shard in played.shards.items()}
    assert {seat: metrics["accuracy"] for seat, metrics in told.clients.items()} == found
    metrics = played.told(RoundEnded, 0)[0].metrics
    assert metrics["client_accuracy_mean"] == pytest.approx(sum(found.values()) / 5)
    assert metrics["client_accuracy_min"] == min(found.values())
    assert metrics["client_accuracy@odd"] == pytest.approx((found[1] + found[3] + found[5]) / 3)
    for where in ("", "client_"):
        assert metrics[f"{where}cross_entropy"] == pytest.approx(metrics[f"{where}loss"], rel=1e-5)


def test_a_metric_of_the_users_own_can_decide():
    spec = MetricsSpec(own=(OWN,))
    usual = fedavg(rounds=6, metrics=spec).play().metric("cross_entropy")
    settings = {"rounds": 6, "metrics": spec, "best_by": "cross_entropy"}
    played = fedavg(**settings, best_is="lowest", target=usual[2]).play()
    assert played.told(CourseEnded)[0].rounds == 3
    assert played.told(CourseEnded)[0].reason.startswith("cross_entropy")
    worst = fedavg(**settings, best_is="highest", keep="best").play()
    assert torch.equal(worst.params[0], by_hand(worst)[usual.index(max(usual))])


def test_what_is_not_measured_cannot_decide():
    with pytest.raises(
        ConfigError, match=r"course\.best_by is 'f1', which is not measured; take one of train_loss, acc"
    ):
        fedavg(best_by="f1").play()


def test_a_client_that_cannot_evaluate_in_time_is_left_out():
    played = fedavg(recast=slow(2, factor=1e6), evaluate="clients", deadline_seconds=5.0, rounds=1).play()
    assert played.missing == [(1, "seat 2"), (1, "seat 2")]
    assert "client_accuracy" in played.told(RoundEnded, 0)[0].metrics


def test_the_target_accuracy_ends_the_course():
    reference = fedavg(rounds=6).play().metric("accuracy")
    target = sorted(reference)[3]
    played = fedavg(rounds=6, target_accuracy=target).play()
    assert played.metric("accuracy") == reference[: next(i for i, a in enumerate(reference) if a >= target) + 1]
    assert "has reached the target" in played.told(CourseEnded)[0].reason


def test_patience_ends_the_course():
    played = fedavg(rounds=9, patience=2, train=TrainSpec(lr=0.0)).play()
    (ended,) = played.told(CourseEnded)
    assert (ended.rounds, ended.reason) == (3, "2 evaluations brought nothing better")


def test_the_best_model_is_kept_if_that_is_wanted():
    worse = TrainSpec(lr=0.5, schedule="step", schedule_rounds=3, schedule_factor=400.0)  # from round 4 on it diverges
    best, last = (fedavg(rounds=5, keep=keep, train=worse).play() for keep in ("best", "last"))
    accuracies = best.metric("accuracy")
    place = accuracies.index(max(accuracies))
    assert place < 4, "the last round must not be the best one here"
    assert torch.equal(best.params[0], by_hand(best)[place])
    assert torch.equal(last.params[0], by_hand(last)[-1])
    assert torch.equal(best.params[3], best.params[0]), "what is kept is what everybody gets"


def test_it_needs_a_hub():
    assert "linked to every other seat" in FEDAVG.needs(build("ring", 5))
    assert FEDAVG.needs(build("full", 5)) is None


# -- it learns ---------------------------------------------------------------------------------------------------------


def test_it_learns_digits_from_skewed_clients():
    """8 clients, Dirichlet(0.3), MLP 64-32-10: here 0.40, 0.89, 0.92 and 0.947 after 1, 5, 10 and 30 rounds."""
    played = Played(
        FEDAVG,
        FedAvgSettings(rounds=30),
        build("star", 9),
        seed=1,
        data=load_dataset(DataSpec(), 1),
        model_spec=ModelSpec("mlp", hidden=(32,)),
        split=PartitionSpec("dirichlet", alpha=0.3),
        train=TrainSpec(lr=0.3, batch_size=10, epochs=2),
    ).play()
    curve = played.metric("accuracy")
    assert curve[0] < 0.6 < 0.8 <= curve[4]
    assert min(curve[25:]) >= 0.93


# -- who is cut off, and who fails again and again ------------------------------------------------------------


def offline(played, seat, since, until):
    """Weather in which a seat is cut off for a while."""

    async def weather():
        await asyncio.sleep(since)
        memory, peer_id = played.world.memory, played.world.seats[seat].node.id
        memory.take_offline(peer_id)
        await asyncio.sleep(until - since)
        memory.bring_online(peer_id)

    return weather()


def test_who_is_cut_off_for_a_moment_is_part_of_the_round_all_the_same():
    still = fedavg(devices=DeviceSpec(20.0)).play()
    shaken = fedavg(devices=DeviceSpec(20.0))
    shaken.play(offline(shaken, 2, 1.0, 3.0))
    assert shaken.told(PeerLost, 0)
    assert not shaken.missing
    assert torch.equal(shaken.params[0], still.params[0])


def test_who_stays_away_is_waited_for_once_and_then_no_more():
    played = fedavg(devices=DeviceSpec(20.0), rejoin_seconds=30.0, rounds=8)
    played.play(offline(played, 2, 1.0, 31.0 + 5))
    assert played.missing == [(1, "seat 2")]
    ends = [seconds for seconds, seat, event in played.events if seat == 0 and isinstance(event, RoundEnded)]
    assert 31 < ends[0] < 33


def test_without_patience_the_round_goes_on_at_once():
    played = fedavg(devices=DeviceSpec(20.0), rejoin_seconds=0.0)
    played.play(offline(played, 2, 1.0, 3.0))
    assert played.missing == [(1, "seat 2")]


def test_who_is_cut_off_at_the_end_gets_the_result():
    played = fedavg(rounds=1, devices=DeviceSpec(20.0), evaluate="none")
    quiet = fedavg(rounds=1, devices=DeviceSpec(20.0), evaluate="none").play()
    (duration,) = [seconds for seconds, _, event in quiet.events if isinstance(event, CourseEnded)]
    played.play(offline(played, 2, duration - 0.01, duration + 8))
    assert torch.equal(played.params[2], played.params[0])


def test_who_was_given_up_on_is_not_waited_for_at_the_end():
    played = fedavg(rounds=3, devices=DeviceSpec(20.0), rejoin_seconds=0.3, evaluate="none")
    played.world.mortal = True

    async def weather():
        await asyncio.sleep(1.0)
        played.world.kill(2, for_good=True)

    played.play(weather())
    ends = {type(event): at for at, seat, event in played.events if seat == 0}
    assert ends[CourseEnded] - ends[RoundEnded] < 1.0


def test_who_fails_again_and_again_is_left_out_for_a_while_and_let_in_again():
    rounds = []

    def moody(learner, ask):
        rounds.append(ask.round)
        if len(rounds) < 5:
            raise OSError("the disk is full")
        return vector_of(learner, ask, learner.vector(ask.params))

    played = fedavg(rounds=12, recast=lambda seat, roles: (Answers(roles[0], moody),) if seat == 3 else roles).play()
    assert rounds == [0, 1, 2, 4, 7, 8, 9, 10, 11]
    out = played.told(ClientExcluded)
    assert [(event.round, event.rounds) for event in out] == [(3, 1), (5, 2)]
    assert "seat 3 is left out for 1 rounds after round 3" in str(out[0])
    assert [str(event) for event in played.told(ClientReadmitted)] == ["seat 3 is back in round 8"]


def test_with_nobody_else_there_who_fails_is_asked_all_the_same():
    played = fedavg(clients=1, rounds=6, recast=lambda seat, roles: (Answers(roles[0], failing),) if seat else roles)
    with pytest.raises(CourseError, match="none of 6 rounds brought an update"):
        played.play()
    assert [number for number, _ in played.missing] == [1, 2, 3, 4, 5, 6]


def test_an_update_of_another_round_is_refused():
    def stale(learner, ask):
        return replace(vector_of(learner, ask, learner.vector(ask.params)), round=ask.round - 1)

    played = fedavg(recast=lambda seat, roles: (Answers(roles[0], stale),) if seat == 3 else roles).play()
    assert played.told(UpdateMissing)[0].reason == "an update of round 0 came"
    assert torch.equal(played.params[0], by_hand(drop(played, 3))[-1])


def test_an_absurd_weight_is_refused():
    def greedy(learner, ask):
        return replace(vector_of(learner, ask, learner.vector(ask.params)), num_examples=10**12)

    played = fedavg(recast=lambda seat, roles: (Answers(roles[0], greedy),) if seat == 3 else roles).play()
    assert "course.most_examples is 100000000" in played.told(UpdateMissing)[0].reason
    assert torch.equal(played.params[0], by_hand(drop(played, 3))[-1])


def test_after_the_quorum_the_others_have_a_grace():
    kept = fedavg(recast=slow(2, 4, factor=3), quorum=0.6, grace_seconds=60.0).play()
    assert torch.equal(kept.params[0], fedavg().play().params[0])
    cut = fedavg(recast=slow(2, 4, factor=1e6), quorum=0.6, grace_seconds=2.0, rounds=1).play()
    assert [event.participants for event in cut.told(RoundEnded, 0)] == [3]
    assert cut.missing == [(1, "seat 2"), (1, "seat 4")]


def test_a_course_that_had_ended_early_is_not_gone_on_with():
    played = fedavg(rounds=9, target_accuracy=0.01).play()
    (ended,) = played.told(CourseEnded)
    assert ended.rounds < 9
    state = played.world.seats[0].roles[0].state()
    server = Server(played.learner(0), played.settings, (1, 2))
    server.resume(state)
    assert run_virtual(server.lead(None)) == ended.reason


@pytest.mark.parametrize("tuned", [0, 1])
def test_unseen_clients_never_train_and_are_told_apart(tuned):
    played = fedavg(clients=5, rounds=2, unseen=0.4, evaluate="both", finetune_epochs=tuned).play()
    (server,) = played.world.seats[0].roles
    unseen = server._clients.unseen
    assert len(unseen) == 2
    params = played.model.initial
    for number in range(2):
        found = [
            fit(params, played.model, shard, played.train, seed_of(0, "fit", number, seat), number)
            for seat, shard in played.shards.items() if seat not in unseen
        ]  # fmt: skip
        params = sum(each.params * each.num_examples for each in found) / sum(each.num_examples for each in found)
    assert torch.allclose(played.params[0], params, atol=1e-6)
    for name, seats in (("unseen", unseen), ("client", played.shards.keys() - unseen)):
        found = [evaluate(played.params[seat], played.model, played.shards[seat]) for seat in seats]
        mean = sum(each.accuracy * each.num_examples for each in found) / sum(each.num_examples for each in found)
        assert played.metric(f"{name}_accuracy")[-1] == pytest.approx(mean)
        assert len(played.metric(f"{name}_loss")) == 2


def test_without_unseen_clients_nothing_is_told_of_them():
    assert not fedavg(rounds=1, evaluate="clients").play().metric("unseen_accuracy")
    one = fedavg(clients=1, rounds=1, unseen=0.9, evaluate="clients").play()
    assert len(one.metric("client_accuracy")) == 1, "somebody has to train"
