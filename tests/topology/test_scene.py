from p2pfl.topology import Topology, build, load
from p2pfl.topology.scene import COLOURS, PAPER, Dot, Line, Scene, Shape, Text, scene


def words(found: Scene) -> list[str]:
    return [part.text for part in found.parts if isinstance(part, Text)]


def count(found: Scene, kind: type) -> int:
    return sum(isinstance(part, kind) for part in found.parts)


def test_every_link_and_seat_is_there() -> None:
    found = scene(build("torus", 16))
    assert (count(found, Line), count(found, Dot), count(found, Shape)) == (32, 16, 0)
    assert {str(seat) for seat in range(16)} <= set(words(found))
    assert words(found)[:2] == ["torus", "16 seats, 32 edges, degree 4"]


def test_one_way_links_have_heads() -> None:
    assert count(scene(build("exponential", 8)), Shape) == 24


def test_roles_have_colours_and_a_legend() -> None:
    found = scene(build("hierarchy", 11))
    assert words(found)[-3:] == ["server", "edge", "client"]
    assert {part.fill for part in found.parts if isinstance(part, Dot)} == {COLOURS[r] for r in words(found)[-3:]}
    assert "peer" not in words(scene(build("ring", 5)))
    odd = Topology.from_edges(2, [(0, 1)], roles=("judge", "witness"))
    assert len({part.fill for part in scene(odd).parts if isinstance(part, Dot)}) == 2


def test_members_that_only_dial_out_are_hollow() -> None:
    file = load("three-hospitals")
    found = scene(file.schedule, title="Hospitals", dial_only=file.dial_only)
    assert sum(part.fill == PAPER for part in found.parts if isinstance(part, Dot)) == 3 + 1  # and the legend's
    assert words(found)[0] == "Hospitals" and words(found)[-1] == "only dials out"


def test_names_stay_on_the_paper() -> None:
    for name in ("three-hospitals", "campus-mesh"):
        found = scene(load(name).schedule)
        for text in (part for part in found.parts if isinstance(part, Text)):
            wide = 0.62 * text.size * len(text.text)  # of a common sans serif
            left = text.at[0] - {"start": 0, "middle": wide / 2, "end": wide}[text.anchor]
            assert left >= 0 and left + wide <= found.width


def test_schedules_are_drawn_round_by_round() -> None:
    found = scene(build("one-peer-exponential", 16))
    assert [text for text in words(found) if text.startswith("round")] == ["round 0", "round 1", "round 2", "round 3"]
    assert count(found, Shape) == 4 * 16
    assert count(scene(build("random-matching", 6), panels=2), Line) == 2 * 3


def test_large_graphs_have_small_dots_without_words() -> None:
    found = scene(build("regular", 256))
    assert len(words(found)) == 2
    assert all(3 <= part.radius < 7 for part in found.parts if isinstance(part, Dot))
