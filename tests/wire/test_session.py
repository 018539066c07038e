from __future__ import annotations

from dataclasses import dataclass, field

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from p2pfl.errors import LinkSilent, RemoteProtocolError
from p2pfl.wire.codec import Body, decode, encode, pack, unpack
from p2pfl.wire.message import Message
from p2pfl.wire.packet import Packet
from p2pfl.wire.session import (
    Asked,
    Cancelled,
    Credited,
    Failed,
    Farewell,
    Pinged,
    Ponged,
    Replied,
    Session,
    SessionLimits,
    Told,
)  # fmt: skip

LIMITS = SessionLimits(tells=4, asks=3, silence_seconds=8.0)


class Note(Message):
    number: int


def body(number: int = 0) -> Body:
    return encode(Note(number))


def session(limits: SessionLimits = LIMITS) -> Session:
    return Session(0.0, limits)


def head(kind: str, number: int, **fields: object) -> Packet:
    return pack(kind, number, **fields)


# -- one by one --------------------------------------------------------------------------------------------------------


def test_tell() -> None:
    near, far = session(), session()
    event = far.receive(near.tell(body(5)), 0)
    assert isinstance(event, Told)
    assert decode(Note, event.content) == Note(5)


def test_ask_and_reply() -> None:
    near, far = session(), session()
    number, packet = near.ask(body(1))
    assert not near.idle
    asked = far.receive(packet, 0)
    assert isinstance(asked, Asked)
    assert asked.number == number
    assert not far.idle
    answer = near.receive(far.reply(asked.number, body(2)), 0)
    assert isinstance(answer, Replied)
    assert (answer.number, decode(Note, answer.content)) == (number, Note(2))
    assert near.idle
    assert far.idle


def test_ask_and_fail() -> None:
    near, far = session(), session()
    number, packet = near.ask(body())
    far.receive(packet, 0)
    assert near.receive(far.fail(number, "no such round"), 0) == Failed(number, "no such round")
    assert near.asks_left == LIMITS.asks


def test_a_failure_says_whether_somebody_may_handle_it_later() -> None:
    near, far = session(), session()
    number, packet = near.ask(body())
    far.receive(packet, 0)
    failure = near.receive(far.fail(number, "nobody handles it", unready=True), 0)
    assert failure == Failed(number, "nobody handles it", unready=True)


@pytest.mark.parametrize("say", [lambda far, text: far.fail(1, text), lambda far, text: far.bye(text)])
def test_reasons_are_bounded_and_always_encodable(say) -> None:
    near, far = session(), session()
    far.receive(near.ask(body())[1], 0)
    event = near.receive(say(far, "\udcff" + "x" * 2000), 0)
    assert event.reason == "?" + "x" * 999


def test_bye() -> None:
    near, far = session(), session()
    assert not near.said_bye
    assert far.receive(near.bye("the node stops"), 0) == Farewell("the node stops")
    assert near.said_bye
    assert not far.said_bye


def test_cancelled_ask_keeps_its_place_until_it_is_answered() -> None:
    near, far = session(), session()
    number, packet = near.ask(body())
    far.receive(packet, 0)
    cancel = near.cancel(number)
    assert near.asks_left == LIMITS.asks - 1
    assert far.receive(cancel, 0) == Cancelled(number)
    assert near.receive(far.fail(number, "cancelled"), 0) == Credited()
    assert near.asks_left == LIMITS.asks
    assert near.idle


def test_cancel_and_reply_cross() -> None:
    near, far = session(), session()
    number, packet = near.ask(body())
    far.receive(packet, 0)
    reply, cancel = far.reply(number, body()), near.cancel(number)
    assert far.receive(cancel, 0) is None
    assert near.receive(reply, 0) == Credited()
    assert near.idle
    assert far.idle


def test_withdrawn_ask_frees_its_place_at_once() -> None:
    near = session()
    number, _ = near.ask(body())
    near.withdrawn(number)
    assert near.asks_left == LIMITS.asks
    assert near.idle


def test_short_packets_may_overtake_bulk() -> None:
    near, far = session(), session()
    bulk, short = near.ask(body(1)), near.ask(body(2))
    assert far.receive(short[1], 0).number == short[0]
    assert far.receive(near.tell(body()), 0)[0].tag == "Note"
    assert far.receive(bulk[1], 0).number == bulk[0]


def test_credit_comes_for_half_a_window() -> None:
    near, far = session(), session()
    for _ in range(LIMITS.tells):
        far.receive(near.tell(body()), 0)
    assert near.tells_left == 0
    assert far.handled() is None
    credit = far.handled()
    assert credit is not None
    assert near.receive(credit, 0) == Credited()
    assert near.tells_left == 2


def test_a_window_of_one() -> None:
    near, far = session(SessionLimits(tells=1)), session(SessionLimits(tells=1))
    for _ in range(3):
        far.receive(near.tell(body()), 0)
        credit = far.handled()
        assert credit is not None
        near.receive(credit, 0)
    assert near.tells_left == 1


# -- keepalive ---------------------------------------------------------------------------------------------------------


def test_heartbeat_pings_after_a_quarter_of_silence() -> None:
    near = session()
    assert near.heartbeat(0.0) == (None, 2.0)
    near.receive(head("credit", 0), 1.0)
    assert near.heartbeat(2.0) == (None, 3.0)
    beat = near.heartbeat(3.0)
    assert beat.packet is not None
    assert unpack(beat.packet)[0] == "ping"
    assert beat.next_at == 9.0


def test_ping_and_pong_measure_the_round_trip() -> None:
    near, far = session(), session()
    ping = near.heartbeat(2.0).packet
    assert ping is not None
    pinged = far.receive(ping, 2.1)
    assert isinstance(pinged, Pinged)
    ponged = near.receive(pinged.answer, 2.25)
    assert isinstance(ponged, Ponged)
    assert ponged.seconds == pytest.approx(0.25)
    assert near.heartbeat(9.0).packet is not None  # idle again since 2.25


def test_heartbeat_does_not_ping_twice_for_one_silence() -> None:
    near = session()
    assert near.heartbeat(2.0).packet is not None
    assert near.heartbeat(5.0) == (None, 8.0)


def test_silence_ends_the_link() -> None:
    near = session()
    near.heartbeat(2.0)
    near.heartbeat(7.9)
    with pytest.raises(LinkSilent, match=r"nothing was heard for 8\.0 s"):
        near.heartbeat(8.0)


def test_any_packet_breaks_the_silence() -> None:
    near, far = session(), session()
    near.receive(far.tell(body()), 7.0)
    assert near.heartbeat(14.9).packet is not None
    with pytest.raises(LinkSilent):
        near.heartbeat(15.0)


def test_bytes_of_a_packet_on_its_way_break_the_silence_and_the_peer_is_pinged_all_the_while() -> None:
    near = session()
    for look in range(1, 50):
        beat = near.heartbeat(2.0 * look, arriving=100 * look)
        assert beat.packet is not None, "it hears nothing else of us"
        assert beat.next_at == 2.0 * (look + 1)
    for now in (100.0, 102.0, 104.0):
        near.heartbeat(now, arriving=4900)  # they stand still since 98.0
    with pytest.raises(LinkSilent, match=r"nothing was heard for 8\.0 s"):
        near.heartbeat(106.0, arriving=4900)


def test_a_whole_packet_counts_bytes_anew() -> None:
    near, far = session(), session()
    near.heartbeat(2.0, arriving=1000)
    near.receive(far.tell(body()), 3.0)
    near.heartbeat(10.0, arriving=5)
    assert near.heartbeat(17.9, arriving=5).packet is not None
    with pytest.raises(LinkSilent):
        near.heartbeat(18.0, arriving=5)


def test_excuse_starts_the_silence_anew() -> None:
    near = session()
    near.heartbeat(2.0)
    near.excuse(100.0)
    assert near.heartbeat(100.0) == (None, 102.0)
    assert near.heartbeat(102.0).packet is not None


@given(st.lists(st.floats(0.01, 3.0), max_size=30))
def test_a_peer_that_answers_is_never_given_up(round_trips) -> None:
    """Whatever the round trips, up to 3 s of the 8 s: looked at when it said, and answered, the link lives."""
    near, far, now = session(), session(), 0.0
    for seconds in round_trips:
        beat = near.heartbeat(now)
        if beat.packet is not None:
            pinged = far.receive(beat.packet, now + seconds / 2)
            near.receive(pinged.answer, now + seconds)
        now = max(beat.next_at, now + seconds)


def test_a_pong_that_was_not_asked_for_says_nothing() -> None:
    assert session().receive(head("pong", 7), 1.0) is None


# -- a peer that breaks the rules --------------------------------------------------------------------------------------


def test_too_many_tells() -> None:
    far = session()
    for number in range(LIMITS.tells):
        far.receive(pack("tell", number, body()), 0)
    with pytest.raises(RemoteProtocolError, match="more than 4 messages were told without credit"):
        far.receive(pack("tell", 99, body()), 0)


def test_handled_tells_give_no_room_before_the_credit_has_gone() -> None:
    far = session()
    for number in range(LIMITS.tells):
        far.receive(pack("tell", number, body()), 0)
    assert far.handled() is None
    with pytest.raises(RemoteProtocolError):
        far.receive(pack("tell", 99, body()), 0)


def test_too_many_asks() -> None:
    far = session()
    for number in range(LIMITS.asks):
        far.receive(pack("ask", number, body()), 0)
    with pytest.raises(RemoteProtocolError, match="more than 3 asks are open"):
        far.receive(pack("ask", 99, body()), 0)


def test_an_open_ask_comes_again() -> None:
    far = session()
    far.receive(pack("ask", 5, body()), 0)
    with pytest.raises(RemoteProtocolError, match="ask 5 came again"):
        far.receive(pack("ask", 5, body()), 0)


@pytest.mark.parametrize("packet", [pack("reply", 1, body()), head("fail", 1, reason="x")])
def test_an_answer_to_no_ask(packet) -> None:
    with pytest.raises(RemoteProtocolError, match="an answer came to ask 1, which is not open"):
        session().receive(packet, 0)


def test_a_second_answer() -> None:
    near, far = session(), session()
    number, packet = near.ask(body())
    far.receive(packet, 0)
    near.receive(far.reply(number, body()), 0)
    with pytest.raises(RemoteProtocolError, match="which is not open"):
        near.receive(pack("reply", number, body()), 0)


def test_an_answer_after_a_withdrawal() -> None:
    near = session()
    number, _ = near.ask(body())
    near.withdrawn(number)
    with pytest.raises(RemoteProtocolError, match="which is not open"):
        near.receive(pack("reply", number, body()), 0)


def test_credit_that_was_not_earned() -> None:
    near = session()
    near.tell(body())
    with pytest.raises(RemoteProtocolError, match="credit was given for messages that were never told"):
        near.receive(head("credit", 2), 0)
    with pytest.raises(RemoteProtocolError):
        near.receive(head("credit", (1 << 64) - 1), 0)


def test_cancelling_what_is_not_open_means_nothing() -> None:
    assert session().receive(head("cancel", 12), 0) is None


@pytest.mark.parametrize("fields", [{}, {"reason": 5}, {"reason": None}])
@pytest.mark.parametrize("kind", ["fail", "bye"])
def test_no_reason(kind, fields) -> None:
    near = session()
    number, _ = near.ask(body())
    with pytest.raises(RemoteProtocolError, match="a head has no reason"):
        near.receive(head(kind, number, **fields), 0)


def test_unknown_kind() -> None:
    with pytest.raises(RemoteProtocolError, match="has the kind 'gossipgossipgossipgo', which is none of ours"):
        session().receive(head("gossip" * 10, 0), 0)


KINDS = ["tell", "ask", "reply", "fail", "cancel", "credit", "ping", "pong", "bye", "else"]


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 6), st.dictionaries(st.just("reason"), st.text()))))
def test_hostile_sequences_break_the_protocol_and_nothing_else(packets) -> None:
    near = session()
    for _ in range(LIMITS.asks):
        near.ask(body())
    near.tell(body())
    for kind, number, fields in packets:
        try:
            near.receive(Packet(orjson.dumps([kind, number, "Note", _sendable(fields)])), 0)
        except RemoteProtocolError:
            break
        assert near.tells_left <= LIMITS.tells
        assert 0 <= near.asks_left <= LIMITS.asks


def _sendable(fields: dict[str, str]) -> dict[str, str]:
    return {name: text.encode(errors="replace").decode() for name, text in fields.items()}


# -- two sessions, and a model of them ---------------------------------------------------------------------------------

NARROW = SessionLimits(tells=2, asks=2)


@dataclass
class End:
    """One of two ends, and what the model knows about it."""

    session: Session = field(default_factory=lambda: session(NARROW))
    wire: list[Packet] = field(default_factory=list)  # to the other end, in no order
    asks: dict[int, Packet] = field(default_factory=dict)  # ours that have not ended
    unwanted: set[int] = field(default_factory=set)  # those of them that were cancelled
    ended: set[int] = field(default_factory=set)
    to_answer: set[int] = field(default_factory=set)  # the other end's
    to_handle: int = 0  # tells of the other end
    last_id: int = 0

    def send(self, packet: Packet) -> None:
        self.wire.append(packet)

    def running(self, packet: Packet) -> None:
        """Ids of what is asked and told only grow."""
        number = unpack(packet)[1]
        assert number > self.last_id
        self.last_id = number

    def end(self, number: int) -> None:
        assert number not in self.ended
        self.ended.add(number)
        del self.asks[number]
        self.unwanted.discard(number)


class TwoSessions(RuleBasedStateMachine):
    """Every ask ends exactly once, no window is exceeded, nothing is raised: in whatever order packets arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = (End(), End())
        self.now = 0.0

    sides = st.sampled_from([0, 1])

    @rule(side=sides)
    def tell(self, side: int) -> None:
        end = self.ends[side]
        if end.session.tells_left:
            packet = end.session.tell(body(side))
            end.running(packet)
            end.send(packet)

    @rule(side=sides)
    def ask(self, side: int) -> None:
        end = self.ends[side]
        assert end.session.asks_left == NARROW.asks - len(end.asks)
        if end.session.asks_left:
            number, packet = end.session.ask(body(side))
            end.running(packet)
            end.asks[number] = packet
            end.send(packet)

    @rule(side=sides, data=st.data())
    def cancel(self, side: int, data: st.DataObject) -> None:
        """As a node does it: take the ask back if it has not left, else say that it is not wanted."""
        end = self.ends[side]
        wanted = sorted(end.asks.keys() - end.unwanted)
        if not wanted:
            return
        number = data.draw(st.sampled_from(wanted))
        if end.asks[number] in end.wire and data.draw(st.booleans()):
            end.wire.remove(end.asks[number])
            end.session.withdrawn(number)
            end.end(number)
        else:
            end.unwanted.add(number)
            end.send(end.session.cancel(number))

    @rule(side=sides, good=st.booleans(), data=st.data())
    def answer(self, side: int, good: bool, data: st.DataObject) -> None:
        end = self.ends[side]
        if end.to_answer:
            number = data.draw(st.sampled_from(sorted(end.to_answer)))
            end.to_answer.remove(number)
            end.send(end.session.reply(number, body(number)) if good else end.session.fail(number, "no"))

    @rule(side=sides)
    def handle(self, side: int) -> None:
        end = self.ends[side]
        if end.to_handle:
            end.to_handle -= 1
            credit = end.session.handled()
            if credit is not None:
                end.send(credit)

    @rule(side=sides, seconds=st.floats(0, 1.9))
    def keep_alive(self, side: int, seconds: float) -> None:
        self.now += seconds
        for end in self.ends:
            end.session.excuse(self.now)  # silence has tests of its own
        beat = self.ends[side].session.heartbeat(self.now + 2)
        if beat.packet is not None:
            self.ends[side].send(beat.packet)

    @rule(side=sides)
    def bye(self, side: int) -> None:
        self.ends[side].send(self.ends[side].session.bye("enough"))

    @precondition(lambda self: any(end.wire for end in self.ends))
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        side = data.draw(st.sampled_from([side for side in (0, 1) if self.ends[side].wire]))
        wire = self.ends[side].wire
        self._received(self.ends[1 - side], wire.pop(data.draw(st.integers(0, len(wire) - 1))))

    def _received(self, end: End, packet: Packet) -> None:
        match end.session.receive(packet, self.now):
            case Told():
                end.to_handle += 1
            case Asked(number, _):
                assert number not in end.to_answer
                end.to_answer.add(number)
            case Replied(number, content):
                assert number not in end.unwanted
                assert decode(Note, content) == Note(number)
                end.end(number)
            case Failed(number, reason):
                assert number not in end.unwanted
                assert reason == "no"
                end.end(number)
            case Cancelled(number):
                assert number in end.to_answer
            case Pinged(answer):
                end.send(answer)
            case Credited() if unpack(packet)[0] != "credit":
                number = unpack(packet)[1]
                assert number in end.unwanted
                end.end(number)

    @invariant()
    def windows_hold(self) -> None:
        for end in self.ends:
            assert end.to_handle <= NARROW.tells
            assert len(end.to_answer) <= NARROW.asks
            assert end.session.asks_left == NARROW.asks - len(end.asks)

    @rule()
    def settle(self) -> None:
        """Let everything arrive and be answered."""
        while any(end.wire or end.to_answer or end.to_handle for end in self.ends):
            for side, end in enumerate(self.ends):
                for number in sorted(end.to_answer):
                    end.send(end.session.reply(number, body(number)))
                end.to_answer.clear()
                while end.to_handle:
                    self.handle(side)
                while end.wire:
                    self._received(self.ends[1 - side], end.wire.pop())

    def teardown(self) -> None:
        """In the end nothing is open, and all places are free."""
        self.settle()
        for end in self.ends:
            assert not end.asks
            assert end.session.idle
            assert end.session.asks_left == NARROW.asks
            assert end.session.tells_left > NARROW.tells / 2


TwoSessions.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTwoSessions = TwoSessions.TestCase


def test_a_flood_of_pings_breaks_the_protocol_and_what_a_stall_has_gathered_does_not() -> None:
    near = session()
    for number in range(20):
        assert isinstance(near.receive(pack("ping", number), 0.0), Pinged)
    with pytest.raises(RemoteProtocolError, match="pings come faster"):
        for number in range(20):
            near.receive(pack("ping", number), 0.01)
    calm = session()
    for second in range(1000):
        assert isinstance(calm.receive(pack("ping", second), LIMITS.silence_seconds / 4 * second), Pinged)
