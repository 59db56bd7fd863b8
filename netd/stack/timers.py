"""Lazy deadlines: many owners, one alarm.

An owner's ``deadline`` is the truth; the heap holds hints. Moving a deadline later costs nothing (the hint is looked
at again when it is due), so a busy flow touches the heap once per timeout, an idle one never.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from itertools import count
from typing import Final, Protocol

NEVER: Final = float("inf")
_PURGE_MIN: Final = 1024


class Timed(Protocol):
    """Who may wait: ``deadline`` (NEVER: not waiting) and ``hinted``, the earliest hint in the heap, are its own."""

    deadline: float
    hinted: float

    def on_deadline(self, now: float) -> None:
        """Called once ``deadline`` has passed; it has been set to NEVER before."""


class Timers:
    """The deadlines of one network."""

    __slots__ = ("_heap", "_order", "_purge_at")

    def __init__(self) -> None:
        self._purge_at = _PURGE_MIN
        self._heap: list[tuple[float, int, Timed]] = []
        self._order = count()

    def arm(self, owner: Timed, deadline: float) -> None:
        """Set ``owner``'s deadline, earlier or later than it was."""
        owner.deadline = deadline
        if deadline < owner.hinted:
            owner.hinted = deadline
            heappush(self._heap, (deadline, next(self._order), owner))
            if len(self._heap) > self._purge_at:
                self._purge()

    def _purge(self) -> None:
        """Let go of owners that wait no longer. The heap has doubled since the last time, so this costs O(1) a push."""
        kept = []
        for entry in self._heap:
            hint, _, owner = entry
            if owner.deadline == NEVER:
                owner.hinted = NEVER
            elif hint == owner.hinted:
                kept.append(entry)
        heapify(kept)
        self._heap[:] = kept
        self._purge_at = max(_PURGE_MIN, 2 * len(kept))

    def poll_at(self) -> float:
        """When ``poll`` is due next: never later than the earliest deadline, perhaps earlier."""
        return self._heap[0][0] if self._heap else NEVER

    def poll(self, now: float) -> None:
        """Fire what is due."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            hint, _, owner = heappop(heap)
            if hint != owner.hinted:
                continue  # an earlier hint has been followed already
            owner.hinted = NEVER
            deadline = owner.deadline
            if deadline <= now:
                owner.deadline = NEVER
                owner.on_deadline(now)
            elif deadline != NEVER:
                owner.hinted = deadline
                heappush(heap, (deadline, next(self._order), owner))

    def __len__(self) -> int:
        return len(self._heap)
