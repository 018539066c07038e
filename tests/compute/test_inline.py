from p2pfl.compute.inline import Inline
from tests.compute.kit import Call


async def test_it_computes_without_giving_way():
    step = Inline().run(Call(lambda: 7))
    try:
        step.send(None)
    except StopIteration as end:
        assert end.value == 7
    else:
        raise AssertionError("it waited for something")


def test_repr():
    assert repr(Inline()) == "<Inline>"
