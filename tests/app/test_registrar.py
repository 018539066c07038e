"""Who gets which seat."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from p2pfl.app.registrar import Courier, CourseText, FetchCourse, Join, Registrar


def peer(name: str) -> Any:
    return SimpleNamespace(id=name)


def registrar(n: int = 4, **named: int) -> Registrar:
    return Registrar("right", n, 0, named)


async def seat(of: Registrar, who: str, name: str = "", wanted: int | None = None) -> int | str:
    """The seat, or why there is none."""
    seated = await of.join(Join("right", name, wanted), peer(who))
    return seated.refusal if seated.seat is None else seated.seat


async def test_free_seats_are_given_in_order_and_kept() -> None:
    office = registrar()
    assert [await seat(office, who) for who in ("a", "b", "a", "c", "b")] == [1, 2, 1, 3, 2]


async def test_all_seats_taken() -> None:
    office = registrar(2)
    await seat(office, "a")
    assert "all 2 seats are taken: raise topology.n" in str(await seat(office, "b"))


async def test_a_wanted_seat() -> None:
    office = registrar()
    assert await seat(office, "a", wanted=3) == 3
    assert "seat 3 is taken" in str(await seat(office, "b", wanted=3))
    assert "seat 0 is taken" in str(await seat(office, "b", wanted=0))
    assert "seats 0 to 3" in str(await seat(office, "b", wanted=4))


async def test_names_keep_their_seats_from_others() -> None:
    office = registrar(north=1, south=3)
    assert await seat(office, "a") == 2
    assert await seat(office, "b", name="south") == 3
    assert await seat(office, "c", name="north") == 1


async def test_another_course_is_refused() -> None:
    seated = await registrar().join(Join("wrong", "", None), peer("a"))
    assert seated.seat is None
    assert "has the hash wrong, the peers' right" in seated.refusal


async def test_a_courier_passes_the_course_on() -> None:
    course = CourseText("{}", "right", "registrar", "run")
    assert await Courier(course).fetch(FetchCourse(), peer("a")) is course
