import math

import numpy as np
import pytest
import torch

from p2pfl.courses.parts import Parts
from p2pfl.courses.relaysgd import RELAYSGD, Relayed, RelaysgdSettings
from p2pfl.errors import ConfigError, RemoteProtocolError
from p2pfl.learn.specs import TrainSpec
from p2pfl.node.events import CourseEnded
from p2pfl.topology.families import build
from p2pfl.topology.graph import Topology
from tests.courses.kit import Played, first_models, last_models, local_training

TREES = [build("chain", 5), build("star", 4), build("tree", 7)]


def relaysgd(topology, **more):
    own = {name: more.pop(name) for name in list(more) if name in Played.__dataclass_fields__}
    return Played(RELAYSGD, RelaysgdSettings(**{"rounds": 6, "evaluators": 0} | more), topology, **own)


def by_distance(tree, trained, round):
    """What all the relaying comes to: the mean, over all whose models can have come, of what each had trained as many
    rounds ago as there are seats in between."""
    rows = []
    for seat in range(tree.n):
        late = {other: max(0, hops - 1) for other, hops in tree.distances(seat).items()}
        rows.append(np.mean([trained[round - d][other] for other, d in late.items() if d <= round], axis=0))
    return np.stack(rows).astype(np.float32)


@pytest.mark.parametrize("topology", TREES, ids=repr)
def test_every_model_counts_the_same_as_late_as_it_is_far(topology):
    played = relaysgd(topology).play()
    x, trained = first_models(played), []
    for number in range(6):
        trained.append(local_training(played, x, number))
        x = by_distance(topology, trained, number)
    np.testing.assert_allclose(last_models(played), x, atol=2e-5)


def relayed(topology, model, rounds, values, lost=lambda round, sender, receiver: False):
    """The steps of all seats, driven by hand: seat i gives values[i] in every round. What each holds in the end."""
    parts = Parts(model, count=1)
    steps = [Relayed(parts, topology.n) for _ in range(topology.n)]
    for number in range(rounds):
        shared = [each.give(value, value) for each, value in zip(steps, values, strict=True)]
        boxes = [
            {j: steps[j].to(shared[j], i) for j in topology.neighbors(i) if not lost(number, j, i)}
            for i in range(topology.n)
        ]
        for each in (vector for box in boxes for vector in box.values()):
            steps[0].check(each)
        mixed = [own + sum(box.values()) for own, box in zip(shared, boxes, strict=True)]
        found = [each.take(v, v, m, box) for each, v, m, box in zip(steps, values, mixed, boxes, strict=True)]
    return torch.stack(found), [float(m[-1]) for m in mixed]


@pytest.fixture
def nine():
    model = relaysgd(build("chain", 9)).model
    return model, torch.randn(9, model.layout.numel, generator=torch.Generator().manual_seed(3)).double()


def test_a_chain_of_nine_has_the_exact_mean_after_the_models_have_gone_eight_hops(nine):
    model, values = nine
    chain = build("chain", 9)
    found, counts = relayed(chain, model, 8, values)
    assert float((found - values.mean(0)).abs().max()) < 1e-15
    assert counts == [9.0] * 9
    _, counts = relayed(chain, model, 7, values)
    assert counts == [8.0, *[9.0] * 7, 8.0], "a round less, and the ends have not heard of each other"


def test_what_is_lost_on_the_way_is_counted_by_nobody(nine):
    """Each holds the mean of those whom it has counted, none twice, whatever is lost."""
    model, _ = nine
    values = torch.zeros(9, model.layout.numel, dtype=torch.float64)
    values[range(9), range(9)] = 1  # who is in a mean can be read off
    drops = torch.rand(40, 9, 9, generator=torch.Generator().manual_seed(1)) < 0.2
    found, counts = relayed(build("chain", 9), model, 40, values, lambda t, j, i: bool(drops[t, j, i]))
    for row, count in zip(found, counts, strict=True):
        shares = sorted(row[row != 0].tolist())
        assert shares == pytest.approx([1 / count] * int(count))
    assert 1 < np.mean(counts) < 9


class Gone:
    """A node that leaves as soon as its neighbours have seen it."""

    def __init__(self, params):
        self.params = params

    async def run(self, node):
        await node.meet([1, 3])


def test_a_tree_that_has_lost_a_node_goes_on_in_its_parts():
    chain = build("chain", 5)
    played = relaysgd(
        chain, recast=lambda seat, roles: (Gone(roles[0].params),) if seat == 2 else roles, train=TrainSpec(lr=0.0)
    )
    before = played.recast

    def recast(seat, roles):
        roles = before(seat, roles)
        roles[0].params = torch.full_like(played.model.initial, float(seat))
        return roles

    played.recast = recast
    played.play()
    assert len(played.told(CourseEnded)) == 4
    for seat in (0, 1):
        assert 0 <= float(played.params[seat].min()) <= float(played.params[seat].max()) <= 1
    for seat in (3, 4):
        assert 3 <= float(played.params[seat].min()) <= float(played.params[seat].max()) <= 4


@pytest.mark.parametrize("count", [0.0, -1.0, 5.0, 1.5, math.nan, math.inf])
def test_a_number_of_models_that_cannot_be_is_refused(count):
    steps = Relayed(None, 5)
    with pytest.raises(RemoteProtocolError, match="models came, where others have 4"):
        steps.check(torch.tensor([1.0, count]))
    steps.check(torch.tensor([1.0, 4.0]))


def test_what_is_not_finite_is_not_relayed():
    played = relaysgd(build("chain", 3))
    steps = Relayed(Parts(played.model, count=1), 3)
    own = steps.give(played.model.initial, played.model.initial)
    bad, good = torch.full_like(own, math.nan), torch.ones_like(own)
    steps.take(played.model.initial, played.model.initial, own + good, {0: bad, 2: good})
    assert steps.to(own, 2).equal(own) and steps.to(own, 0).equal(own + good)


def test_it_remembers_what_it_has_to_relay_and_forgets_it_with_a_foreign_model():
    played = relaysgd(build("chain", 3))
    parts = Parts(played.model, count=1)
    steps, again = Relayed(parts, 3), Relayed(parts, 3)
    own = steps.give(played.model.initial, played.model.initial)
    steps.take(played.model.initial, played.model.initial, own, {0: own})
    again.resume({"params": played.model.initial, "round": 1, **steps.state()})
    assert again.to(own, 2).equal(own + own)
    again.restart()
    assert again.to(own, 2).equal(own)


def test_only_trees_that_stay_will_do():
    assert RELAYSGD.needs(build("ring", 4)) == "the graph must be a tree, such as a chain, a star or a hierarchy"
    assert RELAYSGD.needs(Topology.from_edges(4, [(0, 1), (2, 3)]))
    assert all(RELAYSGD.needs(tree) is None for tree in TREES)
    with pytest.raises(ConfigError, match="which changes; choose one tree"):
        relaysgd(build("random-matching", 2)).play()
