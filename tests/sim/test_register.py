from p2pfl.sim.register import Register


async def test_records_are_made_when_they_are_asked_for_and_stay_the_same_object():
    register = Register(1_000_000)
    views = [register.membership(seat) for seat in (0, 999_999)]
    member = views[0].at(999_999)
    assert member is views[1].own is views[0].get(member.id)
    assert (member.seat, member.name) == (999_999, "seat 999999")
    assert member.addresses == (f"memory:{member.id}",)
    assert register.seat_of(member.id) == 999_999
    assert len(register._made) == 2


def test_there_is_nobody_beyond_the_seats():
    register = Register(3)
    assert register.member(3) is register.member(-1) is None
    assert register.seat_of("somebody") == -1
    assert register.membership(0).get("somebody") is None


def test_who_sleeps_is_on_call():
    view = Register(5, range(2, 4)).membership(0)
    assert [seat for seat in range(5) if view.on_call(seat)] == [2, 3]


def test_a_record_that_was_dropped_can_be_made_again():
    register = Register(2)
    first = register.member(1)
    register.drop(1)
    register.drop(1)
    assert register.member(1) == first


async def test_there_is_nothing_to_gossip_about():
    view, told = Register(2).membership(0), []
    view.bind(lambda: None, lambda ids, source: told.append(ids))
    assert not view.greeting()
    await view.announce(addresses=("memory:elsewhere",))
    assert not told


def test_who_is_away_would_not_wake():
    view = Register(4, range(1, 4), online=lambda seat: seat != 2).membership(0)
    assert [seat for seat in range(4) if view.would_wake(seat)] == [1, 3]
    assert view.on_call(2)
