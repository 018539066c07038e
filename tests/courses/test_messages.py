import math

import pytest

from p2pfl.courses.messages import Rating, Score, Update, number
from p2pfl.errors import RemoteProtocolError
from p2pfl.node.peer import require_seat
from p2pfl.wire.codec import Incoming, decode
from p2pfl.wire.tensor import Tensors
from tests.courses.kit import At


def test_who_has_a_say_is_told_by_its_seat():
    assert require_seat(At(3), 3) == 3
    assert require_seat(At(3), 1, 3) == 3
    for seat in (None, 0, 2):
        with pytest.raises(
            RemoteProtocolError, match=f"seat {seat} in seat {seat} has no say here: that is for seat 3"
        ):
            require_seat(At(seat), 3)
    with pytest.raises(RemoteProtocolError, match="that is for neighbours"):
        require_seat(At(0))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_json_has_no_such_number(value):
    assert number(value) is None
    assert number(0.0) == 0.0


def test_a_negative_number_of_examples_cannot_be_said():
    for message in (lambda: Update(0, Tensors((), ()), -1, None), lambda: Rating({}, -1)):
        with pytest.raises(ValueError, match="num_examples is -1"):
            message()


def test_nor_be_heard():
    said = Incoming("Score", {"rating": {"metrics": {}, "num_examples": -1}, "clients": {}}, ())
    with pytest.raises(RemoteProtocolError, match="num_examples is -1"):
        decode(Score, said)


def test_clients_go_by_their_seats():
    assert Score(Rating({}, 1), {"12": Rating({"loss": 0.5}, 2)}).clients["12"].num_examples == 2
    with pytest.raises(ValueError, match="'-1' is no seat"):
        Score(Rating({}, 1), {"-1": Rating({}, 1)})
