"""What must hold of every run, whatever goes wrong in it: one checker for each invariant, over a recorded history.

I1   at most one contribution of a peer enters the aggregate of a round
I2   the aggregate is the rule applied to just the updates that the round's certificate names
I3   rounds only go up, and what was committed stays
I4   no update leaves unprotected where a course protects them
I5   a privacy ledger never goes down, its epsilon stays within its limit, and it is charged before release
I6   one reveal for each session of a secure aggregation
I7   no more lies in memory than the limits allow
I8   nothing runs on after the end, and no error goes unheard
I9   with a coordinator all who come to the end hold one model
I10  where nothing was missing, the models are those of a run in which nothing went wrong
I11  what nobody hinders comes to its end
I12  the weights of an average add up to one, and exchanges keep the sum
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from p2pfl.aggregators.mean import WeightedMean
from p2pfl.council.motions import LeaderElected
from p2pfl.courses.dpsgd import Model
from p2pfl.courses.durable import RoundCommitted
from p2pfl.courses.mass import whole
from p2pfl.courses.messages import Score, Update
from p2pfl.courses.secagg import Masked
from p2pfl.errors import ConfigError
from p2pfl.learn.params import model_hash
from p2pfl.node.events import CourseEnded, RoundEnded, RoundStarted, UpdateMissing
from p2pfl.privacy.spec import PrivacySpec
from p2pfl.sim.history import Charged, Entry, History, Injected, Opened, Sent
from p2pfl.sim.nemesis import Crash, Rot
from p2pfl.sim.tracer import traces
from p2pfl.wire.session import SessionLimits

__all__ = ["CHECKERS", "Evidence", "Violation", "check", "checked"]

_TOLERANCE = 1e-3  # of what is 1 but for rounding
_MOST_CLEAR = 0.25  # of a masked update's entries that may look as if they were not
_RELEASES = (Update.tag, Masked.tag, Model.tag)  # what a node makes of its own data; all else is made of these
_CONTROL_BYTES = 64 * 1024  # that cancellations, pings and credit take up on a link at most


@dataclass(frozen=True, slots=True)
class Evidence:
    """A run, and what it is held against. Its nodes trained with a Tracer."""

    history: History
    initial: Tensor
    """The model that all began from."""
    leading: tuple[int, ...] = ()
    """Seats that coordinate; none in gossip."""
    equal: bool = True
    """Whether all updates of a round weigh the same in it."""
    plain: History | None = None
    """The same run with nothing going wrong."""
    limits: SessionLimits = field(default_factory=SessionLimits)
    central: bool = False
    """Whether the models of who coordinates are paid for: the noise is its own."""


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that does not hold, why, and where in the history that is seen."""

    invariant: str
    sentence: str
    entries: tuple[Entry, ...] = ()

    def __str__(self) -> str:
        return f"{self.invariant} is violated: {self.sentence}"


Checker = Callable[[Evidence], Iterator[Violation]]


def once(evidence: Evidence) -> Iterator[Violation]:
    """I1: nobody is named twice in a certificate, and in each model all of a round have the same share.

    The second is for equal weights, and so is seen even if the certificate does not tell.
    """
    for entry, event in evidence.history.of(RoundCommitted):
        named = [each.peer for each in event.certificate.contributions] if event.certificate else []
        for peer in sorted({peer for peer in named if named.count(peer) > 1}):
            yield Violation("I1", f"{peer} is in the certificate of round {event.round} twice", (entry,))
    for seat, shares in _shares(evidence) if evidence.equal else ():
        for round, row in enumerate(shares):
            there = row[row > _TOLERANCE]
            if len(there) and float(there.max() - there.min()) > _TOLERANCE:
                sentence = (
                    f"the model of seat {seat} holds shares of {_shown(row)} of round {round + 1}; all must be equal"
                )
                yield Violation("I1", sentence)


def certified(evidence: Evidence) -> Iterator[Violation]:
    """I2: the mean of the updates that the certificate names, as their senders sent them, has the hash it gives.

    What a coordinator that is elected has trained itself was sent to nobody: such a round is passed over. Of masked
    updates, it is that they were sent; that the sum is that of all of them is seen by I1 and I12 in the model.
    """
    led = {(entry.seat, event.round) for entry, event in evidence.history.of(RoundStarted)}
    sent: dict[int, set[str]] = {}
    for entry, packet in evidence.history.of(Sent):
        sent.setdefault(entry.seat, set()).update(packet.hashes)
    for entry, event in evidence.history.of(RoundCommitted):
        if event.certificate is None or not event.certificate.contributions:
            continue
        contributions = event.certificate.contributions
        unknown = [each for each in contributions if each.update_hash not in sent.get(each.seat, ())]
        if unknown and all((each.seat, event.round) in led for each in unknown):
            continue
        if unknown:
            sentence = f"the certificate of round {event.round} names an update that seat {unknown[0].seat} never sent"
            yield Violation("I2", sentence, (entry,))
            continue
        if any(each.update_hash in evidence.history.masked for each in contributions):
            continue
        mean = WeightedMean(range(len(contributions)))
        for rank, each in enumerate(contributions):
            mean.add(rank, evidence.history.vectors[each.update_hash], each.weight)
        value = mean.value()
        if value is None or model_hash(value) != event.certificate.aggregate_hash:
            yield Violation("I2", f"round {event.round} is not the mean of what its certificate names", (entry,))


def monotone(evidence: Evidence) -> Iterator[Violation]:
    """I3: a round that was committed is neither played nor committed again, and no round begins before an earlier."""
    committed: dict[int, tuple[int, Entry]] = {}  # by seat
    started: dict[int, tuple[int, Entry]] = {}  # by seat, since its process began
    for entry in evidence.history.entries:
        match entry.what:
            case Injected(Crash(seat=seat), True) | LeaderElected(seat=seat):
                started.pop(seat, None)  # who leads anew plays the round again that it had not committed
            case Injected(Rot(seat=seat), True):
                committed.pop(seat, None)  # the last good state may be older than what was committed
            case RoundStarted(round):
                for what, before in (("committed", committed), ("begun", started)):
                    if entry.seat in before and before[entry.seat][0] >= round:
                        sentence = f"seat {entry.seat} begins round {round} after it has {what} {before[entry.seat][0]}"
                        yield Violation("I3", sentence, (before[entry.seat][1], entry))
                started[entry.seat] = round, entry
            case RoundCommitted(round):
                if entry.seat in committed and committed[entry.seat][0] >= round:
                    yield Violation(
                        "I3", f"seat {entry.seat} commits round {round} again", (committed[entry.seat][1], entry)
                    )
                committed[entry.seat] = round, entry


def hidden(evidence: Evidence) -> Iterator[Violation]:
    """I4: no client sends a model or a score, and what it does send is under a mask."""
    for entry, packet in evidence.history.of(Sent):
        if entry.seat in evidence.leading:
            continue
        if packet.tag in (Update.tag, Score.tag):
            yield Violation("I4", f"seat {entry.seat} has sent its {packet.tag} in the clear", (entry,))
        for found in packet.hashes:
            if found in evidence.history.vectors:
                yield Violation("I4", f"seat {entry.seat} has sent a model in the clear", (entry,))
            if evidence.history.masked.get(found, 0.0) > _MOST_CLEAR:
                yield Violation("I4", f"what seat {entry.seat} has sent as masked is not", (entry,))


def paid_for(evidence: Evidence) -> Iterator[Violation]:
    """I5: no ledger forgets or goes beyond its limit, and nobody has sent more that its data are in than it paid for.

    Those are the updates of a client, masked or not, its models in gossip, and where the noise is the coordinator's own
    the models that it makes. What is sent again is the same to the last bit, and is paid for once.
    """
    paid: dict[int, list[Charged]] = {}
    released: dict[int, set[str]] = {}
    initial = model_hash(evidence.initial)
    for entry in evidence.history.entries:
        seat, what = entry.seat, entry.what
        if isinstance(what, Charged):
            before = paid.setdefault(seat, [])
            if before and what.before < before[-1].after * (1 - _TOLERANCE):
                yield Violation("I5", f"the ledger of seat {seat} has gone down to epsilon {what.before:.4g}", (entry,))
            if what.most and what.after > what.most * (1 + _TOLERANCE):
                yield Violation(
                    "I5", f"seat {seat} has spent epsilon {what.after:.4g}, and {what.most:g} is allowed", (entry,)
                )
            before.append(what)
        elif isinstance(what, Sent) and (what.tag in _RELEASES or (evidence.central and seat in evidence.leading)):
            there = released.setdefault(seat, set())
            there.update(what.hashes)
            there.discard(initial)
            if len(there) > (count := len(paid.get(seat, ()))):
                yield Violation("I5", f"seat {seat} has paid for {count} releases, and this is another", (entry,))


def revealed_once(evidence: Evidence) -> Iterator[Violation]:
    """I6: in a session each client reveals for one set, and of nobody are both seeds revealed."""
    first: dict[tuple[int, str], Opened] = {}
    own: dict[str, set[str]] = {}
    mask: dict[str, set[str]] = {}
    for opened in evidence.history.seeds:
        before = first.setdefault((opened.seat, opened.session), opened)
        if before != opened:
            yield Violation("I6", f"seat {opened.seat} has revealed for two sets in session {opened.session[:8]}")
        own.setdefault(opened.session, set()).update(opened.own)
        mask.setdefault(opened.session, set()).update(opened.mask)
    for session in own:
        for peer in sorted(own[session] & mask[session]):
            yield Violation("I6", f"shares of both seeds of {peer} were revealed in session {session[:8]}")


def bounded(evidence: Evidence) -> Iterator[Violation]:
    """I7: on no link lies more than the session's limits allow."""
    history, limits = evidence.history, evidence.limits
    most = (limits.tells + 2 * limits.asks) * history.largest + _CONTROL_BYTES  # tells, asks, and replies
    if history.most_queued > most:
        yield Violation("I7", f"{history.most_queued} bytes lay on one link; the limits allow {most}")


def clean(evidence: Evidence) -> Iterator[Violation]:
    """I8: no task is left, and every error was taken by somebody."""
    for left in evidence.history.leftovers:
        yield Violation("I8", left)


def agreed(evidence: Evidence) -> Iterator[Violation]:
    """I9: all who came to the end hold one model."""
    hashes = {seat: model_hash(model) for seat, model in evidence.history.models.items()}
    if len(set(hashes.values())) > 1:
        shown = ", ".join(f"seat {seat} {found[:8]}" for seat, found in sorted(hashes.items()))
        yield Violation("I9", f"the models that were held in the end differ: {shown}")


def unharmed(evidence: Evidence) -> Iterator[Violation]:
    """I10: models that hold what they hold where nothing goes wrong are the same to the last bit."""
    history, plain = evidence.history, evidence.plain
    if plain is None or _participants(history) != _participants(plain):
        return
    if any(True for _ in history.of(UpdateMissing)):
        return
    there, all_there = (_support(models, evidence) for models in (history.models, plain.models))
    for seat in sorted(history.models.keys() & plain.models.keys()):
        same = torch.equal(history.models[seat], plain.models[seat])
        if not same and torch.equal(there[seat], all_there[seat]):
            yield Violation(
                "I10", f"nothing was missing, and yet seat {seat} ends with another model than without faults"
            )


def progress(evidence: Evidence) -> Iterator[Violation]:
    """I11: all is well in the end, so who leads, or was never killed, comes to the end of the course."""
    history = evidence.history
    if history.failure is not None:
        yield Violation("I11", f"it ended with {type(history.failure).__name__}: {history.failure}")
    elif history.waits:
        yield Violation("I11", f"it does not come to its end: {'; '.join(history.waits)}")
    else:
        ended = {entry.seat for entry, _ in history.of(CourseEnded)}
        killed = {fault.fault.seat for _, fault in history.of(Injected) if isinstance(fault.fault, Crash)}
        for seat in evidence.leading or sorted(set(range(history.n)) - killed):
            if seat not in ended:
                yield Violation("I11", f"seat {seat} stopped before the course was over")


def unit_mass(evidence: Evidence) -> Iterator[Violation]:
    """I12: of each round a model holds shares that add up to 1, or nothing, if the round brought nothing."""
    for seat, shares in _shares(evidence):
        for round, row in enumerate(shares):
            total = float(row.sum())
            if float(row.min()) < -_TOLERANCE or min(abs(total), abs(total - 1)) > _TOLERANCE:
                sentence = f"the model of seat {seat} holds {total:.4f} of round {round + 1}, as {_shown(row)}"
                yield Violation("I12", sentence)


def total_mass(evidence: Evidence) -> Iterator[Violation]:
    """I12: where no exchange failed, all models together hold what was learned by all."""
    history = evidence.history
    harmed = any(True for _ in history.of(UpdateMissing)) or any(
        isinstance(fault.fault, Crash) for _, fault in history.of(Injected)
    )
    if harmed or len(history.models) < history.n:
        return
    total = sum(float(shares.sum()) for _, shares in _shares(evidence))
    learned = sum(1 for _ in history.of(RoundEnded))
    if abs(total - learned) > _TOLERANCE * learned:
        yield Violation("I12", f"all models together hold {total:.4f} of {learned} rounds, and no exchange has failed")


def weight_of_all(evidence: Evidence) -> Iterator[Violation]:
    """I12: what all nodes of push-sum hold, and what is under way, is what they have brought and not given up."""
    purses = evidence.history.purses
    if any(isinstance(fault.fault, Crash) for _, fault in evidence.history.of(Injected)):
        return  # who is killed loses what it holds, and says so
    there = whole(purses)[0] if purses else 0.0
    owed = sum(purse.ledger.born - purse.ledger.forfeited for purse in purses.values())
    if abs(there - owed) > _TOLERANCE:
        yield Violation("I12", f"all nodes together have a weight of {there:.6f}, and their books say {owed:.6f}")


CHECKERS: Mapping[str, Checker] = {
    "I1": once,
    "I2": certified,
    "I3": monotone,
    "I4": hidden,
    "I5": paid_for,
    "I6": revealed_once,
    "I7": bounded,
    "I8": clean,
    "I9": agreed,
    "I10": unharmed,
    "I11": progress,
    "I12": unit_mass,
    "I12 in sum": total_mass,
    "I12 of weights": weight_of_all,
}
_ANY = ("I3", "I7", "I8", "I11")  # whatever the course is
_CHECKED: Mapping[str, tuple[str, ...]] = {
    "fedavg": ("I1", "I2", "I3", "I7", "I8", "I9", "I10", "I11", "I12"),
    "hierarchical": ("I1", "I2", "I3", "I7", "I8", "I9", "I10", "I11", "I12"),
    "fedbuff": (*_ANY, "I1", "I9"),
    "fedasync": (*_ANY, "I1", "I9"),
    "fedprox": ("I1", "I2", "I3", "I7", "I8", "I9", "I10", "I11", "I12"),
    "scaffold": ("I1", *_ANY, "I9", "I10", "I12"),
    "feddyn": (*_ANY, "I9", "I10"),
    "fedopt": (*_ANY, "I9", "I10"),
    "fedavgm": (*_ANY, "I9", "I10"),
    "diloco": (*_ANY, "I9", "I10"),
    "fednova": ("I1", *_ANY, "I9", "I10", "I12"),
    "qfedavg": (*_ANY, "I9", "I10"),
    "fedswa": (*_ANY, "I9", "I10"),
    "dpsgd": (*_ANY, "I10", "I12"),
    "adpsgd": (*_ANY, "I12 in sum"),
    "pushsum": (*_ANY, "I12 of weights"),
    "d2": (*_ANY, "I10"),  # corrections may take a share below zero for a while
    "gradtrack": (*_ANY, "I10"),
    "qgm": (*_ANY, "I10", "I12"),
    "dfedavgm": (*_ANY, "I10", "I12"),
    "gossip-diloco": (*_ANY, "I10"),  # momentum carries a share beyond one for a while
    "relaysgd": (*_ANY, "I10"),  # in the end, the last rounds are still on their way
    "plexus": (*_ANY, "I10", "I12"),
    "teleportation": (*_ANY, "I10", "I12"),
    "epidemic": (*_ANY, "I12"),
    "pens": _ANY,  # models of several rounds are averaged
    "swift": _ANY,  # the same
    "gossip-learning": _ANY,  # who trains more than once in a round has more of it in its model
}


def checked(course: str, settings: Any = None, privacy: PrivacySpec | None = None) -> tuple[str, ...]:
    """The invariants of a course, by its name; those that hold for every course, if it is none of ours.

    Of a common model nothing can be told by clients that end with models of their own. Where updates are hidden,
    roundings are drawn anew in every run, so that I10 does not hold to the last bit. Under the noise of differential
    privacy nothing can be told of who is in a model.
    """
    names = _ANY if getattr(settings, "finetune_epochs", 0) else _CHECKED.get(course, _ANY)
    if privacy is not None and not privacy.plain:
        names = (*(name for name in names if name in (*_ANY, "I9")), "I5")
    if getattr(settings, "privacy", "plain") == "plain":
        return names
    return (*(name for name in names if name != "I10"), "I4", "I6")


def check(evidence: Evidence, names: tuple[str, ...]) -> list[Violation]:
    """All violations of these invariants. Raises ConfigError for a name that is none of theirs."""
    for name in names:
        if name not in CHECKERS:
            raise ConfigError(f"invariants: {name!r} is not known; choose some of {', '.join(CHECKERS)}")
    return [violation for name in names for violation in CHECKERS[name](evidence)]


def _shares(evidence: Evidence) -> Iterator[tuple[int, Tensor]]:
    for seat, model in sorted(evidence.history.models.items()):
        yield seat, traces(model, evidence.initial, evidence.history.n)


def _support(models: Mapping[int, Tensor], evidence: Evidence) -> dict[int, Tensor]:
    """Whose training each model holds, by round."""
    n = evidence.history.n
    return {seat: traces(model, evidence.initial, n) > _TOLERANCE for seat, model in models.items()}


def _participants(history: History) -> dict[tuple[int, int], int]:
    return {(entry.seat, event.round): event.participants for entry, event in history.of(RoundEnded)}


def _shown(row: Tensor) -> str:
    return ", ".join(f"{float(share):.3f}" for share in row)
