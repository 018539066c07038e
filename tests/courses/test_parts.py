import math

import pytest
import torch

from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.parts import Parts
from p2pfl.errors import RemoteProtocolError
from p2pfl.topology.families import build
from tests.courses.kit import Played

MODEL = Played(FEDAVG, FedAvgSettings(), build("star", 3)).model
NUMEL = MODEL.layout.numel


def test_a_model_alone_passes_without_a_copy():
    parts, vector = Parts(MODEL), torch.arange(float(NUMEL))
    found = parts.vector(parts.tensors(vector))
    assert torch.equal(found, vector)
    assert found.data_ptr() == vector.data_ptr()
    assert parts.split(vector)["params"] is vector
    assert parts.join(params=vector) is vector


def test_several_parts_come_back_in_their_order():
    parts = Parts(MODEL, control=NUMEL, tau=1)
    vector = torch.randn(2 * NUMEL + 1)
    assert parts.numel == len(vector)
    assert torch.equal(parts.vector(parts.tensors(vector)), vector)
    split = parts.split(vector)
    assert list(split) == ["params", "control", "tau"]
    assert torch.equal(parts.join(**split), vector)
    assert torch.equal(split["control"], vector[NUMEL:-1])


def test_only_a_part_of_the_model_can_be_sent():
    parts = Parts(MODEL, params=5)
    vector = torch.randn(5)
    assert torch.equal(parts.vector(parts.tensors(vector)), vector)


@pytest.mark.parametrize("other", [Parts(MODEL), Parts(MODEL, control=3), Parts(MODEL, other=NUMEL)])
def test_other_parts_than_agreed_are_refused(other):
    parts = Parts(MODEL, control=NUMEL)
    with pytest.raises(RemoteProtocolError, match="was agreed"):
        parts.vector(other.tensors(torch.zeros(other.numel)))


@pytest.mark.parametrize("at", [0, NUMEL, 2 * NUMEL])
def test_numbers_that_are_none_are_refused_wherever_they_are(at):
    parts = Parts(MODEL, control=NUMEL, tau=1)
    vector = torch.zeros(parts.numel)
    vector[at] = math.nan
    with pytest.raises(RemoteProtocolError, match="NaN"):
        parts.vector(parts.tensors(vector))
    assert parts.vector(parts.tensors(vector), finite=False).isnan().any()
