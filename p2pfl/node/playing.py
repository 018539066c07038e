"""The roles of a node that have something to do by themselves, played side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Mapping
from typing import Any

__all__ = ["Stage"]


class Stage:
    """What runs on behalf of roles. To clear the stage is to end it in peace."""

    def __init__(self) -> None:
        self._playing: set[asyncio.Task[Any]] = set()

    async def play(self, parts: Mapping[str, Coroutine[Any, Any, object]]) -> None:
        """Run these until all are through, or cleared. The first error ends the others and is raised as it is."""
        try:
            async with asyncio.TaskGroup() as group:
                for name, part in parts.items():
                    task = group.create_task(part, name=name)
                    self._playing.add(task)
                    task.add_done_callback(self._playing.discard)
            return
        except BaseExceptionGroup as errors:
            first, *others = errors.exceptions
        for other in others:
            first.add_note(f"After it another role failed: {other!r}")
        raise first  # out of the except clause, so that its own cause and context stay

    def clear(self) -> Collection[asyncio.Task[Any]]:
        """End what runs; the tasks that end now."""
        for task in self._playing:
            task.cancel()
        return self._playing
