"""What a node waits for, told again and again until it is there: a course that stands still says why."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from p2pfl.node.events import Waiting

if TYPE_CHECKING:
    from p2pfl.node.node import Node
    from p2pfl.node.peer import Peer

__all__ = ["Change", "Waits"]


class Change:
    """Lets any number wait for the next change, whatever it is."""

    def __init__(self) -> None:
        self.count = 0
        """How many there have been."""
        self._next: asyncio.Future[None] | None = None  # made by who waits first

    async def wait(self, since: int | None = None) -> None:
        """Until the next `notify`; not at all if there has been one since there were so many."""
        if since is not None and since != self.count:
            return
        if self._next is None or self._next.done():
            self._next = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._next)

    def notify(self) -> None:
        """Wake all who wait."""
        self.count += 1
        if self._next is not None and not self._next.done():
            self._next.set_result(None)


class Waits:
    """Waits that roles declare, and asks whose answers have not come. One timer serves all, while there are any."""

    def __init__(self, node: Node, peers: Iterable[Peer]) -> None:
        self._node = node
        self._peers = peers
        self._declared: dict[object, tuple[str, float]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._over = False

    @contextmanager
    def declared(self, what: str) -> Iterator[Callable[[str], None]]:
        """See Node.waiting."""
        key = object()
        since = asyncio.get_running_loop().time()

        def reword(words: str) -> None:
            self._declared[key] = (words, since)

        reword(what)
        self.watch()
        try:
            yield reword
        finally:
            del self._declared[key]

    def watch(self) -> None:
        """Something is being waited for: look after a while whether it still is."""
        period = self._node.settings.report_seconds
        if self._timer is None and math.isfinite(period) and not self._over:
            self._timer = asyncio.get_running_loop().call_later(period, self._report, period)

    def stop(self) -> None:
        """Report no more."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()

    def now(self) -> list[tuple[str, float]]:
        """All that is waited for at this moment, and since when on the loop's clock."""
        asked: dict[str, tuple[list[str], float]] = {}
        for peer in self._peers:
            for connection in peer.connections:
                for tag, since in connection.open_asks():
                    names, first = asked.get(tag, ([], since))
                    asked[tag] = ([*names, peer.name], min(first, since))
        answers = [(f"answers to {tag} from {_some(names)}", since) for tag, (names, since) in asked.items()]
        return [*self._declared.values(), *answers]

    def _report(self, period: float) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        waits = self.now()
        for what, since in waits:
            if now - since >= 0.99 * period:
                self._node.emit(Waiting(what, now - since))
        if waits:
            self.watch()


def _some(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
