"""Arrivals: each at its time, those of one time in order, and an error in one does not hold up the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from p2pfl.link.agenda import Agenda
from p2pfl.sim.loop import run_virtual


class Noted:
    """Calls back as it arrives."""

    def __init__(self, arrived: Callable[[], None]) -> None:
        self.arrive = arrived


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20))
def test_everything_arrives_at_its_time_in_the_order_in_which_it_was_added(added: list[tuple[int, int]]) -> None:
    """Things are added at several times, earlier ones after later ones."""
    seen: list[tuple[float, int]] = []

    async def play() -> None:
        loop, agenda = asyncio.get_running_loop(), Agenda()

        def note(number: int) -> Callable[[], None]:
            return lambda: seen.append((loop.time(), number))

        for number, (at, later) in sorted(enumerate(added), key=lambda item: item[1][0]):
            await asyncio.sleep(at - loop.time())
            agenda.add(at + later, Noted(note(number)))
        await asyncio.sleep(30)

    run_virtual(play())
    order = sorted(range(len(added)), key=lambda number: added[number][0])
    assert seen == sorted(((sum(added[number]), number) for number in order), key=lambda item: item[0])


async def test_an_error_of_one_is_told_to_the_loop_and_the_others_arrive() -> None:
    told: list[BaseException] = []
    seen: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["exception"]))

    def fail() -> None:
        raise LookupError("lost")

    agenda = Agenda()
    agenda.add(1.0, Noted(fail))
    agenda.add(1.0, Noted(lambda: seen.append("other")))
    assert repr(agenda) == "<Agenda of 2>"
    await asyncio.sleep(2)
    assert [str(error) for error in told] == ["lost"]
    assert seen == ["other"]
