"""When the loop sleeps, and how long one network may keep it. One for all networks of a loop.

*Staying awake* (what the kernel calls halt polling). A request and its answer pass through here as two events some tens
of microseconds apart. Going to sleep between them costs a wake-up each, on a virtual machine up to 50 µs, and cold
caches: more than all the work. While events come in quick succession the loop therefore polls on for ``STAY`` after the
last one instead of sleeping. Measured with one request at a time, guest and server on other CPUs: 70 µs a round trip
instead of 150. Where guest, server and netd share one CPU polling is in their way: who waits for it goes first, which
brings 145 µs a round trip to 105.

*Turns.* A network with much to do is served in turns of ``ALONE`` seconds, and of ``SHARED`` while another network has
something to do as well: a bulk transfer's super-frames take 30 µs each, and whoever exchanges small messages meanwhile
waits for one such turn twice a round trip. Measured with a bulk transfer beside it: 630 µs a round trip with turns of
six super-frames, 175 with turns of one, which costs the bulk transfer 5 %. 30 µs are often two super-frames (300-340 µs
a round trip on a crowded machine), 20 µs hardly ever (130-205); 10 µs are no better, and a flood of datagrams costs a
third more.

Some things take longer than a turn: a guest's SYN is a connect(2) here, which carries the packet to the other end and
back where that is near, 100 µs. Whoever has taken more than its turn is not served again until it has waited as long as
that was too much (``Turns``): the other network's next packet comes meanwhile, it is about to be sent. Measured, a
round trip beside a bulk transfer: 330 µs before, 185 with it, at the price of a quarter of the transfer; half the wait
is 230 and a fifth. Beside SYNs it is 420 and 220-300, beside somebody who opens connections 480-620 and 180-225.

*Putting off.* When a connection has ended both ways, nobody waits for the host's socket to be closed, which takes 15 to
25 µs, but the next connection's SYN is often on its way: what can wait is done when a round of the loop has had nothing
to do. Measured, one client that connects, asks and closes: 3 % more connections a second.
"""

from __future__ import annotations

import os
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

STAY: Final = 50e-6  # how long to poll on after an event
YIELD: Final = 8e-6  # when nothing has happened for so long, whoever is to answer may wait for this very CPU
NEAR: Final = 200e-6  # events this close together make it worthwhile
CREDIT: Final = 8  # so many more near events than far ones are remembered

ALONE: Final = 200e-6
SHARED: Final = 20e-6
MEMORY: Final = 0.1  # how long another network's event counts
LATE: Final = 1e-3  # what has been put off for so long is done, as much as a turn has time for
MANY: Final = 64  # so much can be put off: for one more the oldest is done

DEBT: Final = 200e-6  # no longer than that does anybody wait: the clock runs on while another program has the CPU


class Turns:
    """Those of one network. ``begin`` before what it has to do, ``Pace.event`` or ``end`` after it."""

    __slots__ = ("_pace", "began", "owes_until")

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self.began = 0.0
        self.owes_until = 0.0

    def begin(self, now: float) -> float:
        """For how many seconds to go on from ``now``; 0: it is not this network's turn, the loop is to ask again."""
        if now < self.owes_until:
            return 0.0
        self.began = now
        return self._pace.turn

    def end(self) -> None:
        """Of a turn in which nothing was left to do: no ``Pace.event`` is to come."""
        self.began = 0.0


class Work(Protocol):
    """What can be put off."""

    def do_now(self) -> None:
        """Nothing else is to be done, or it has been put off for long enough."""


class Pace:
    """``event`` after every event of the packet path; ``turn`` is for how many seconds to go on with one of them."""

    __slots__ = ("_clock", "_credit", "_last", "_loop", "_off", "_owner", "_polling", "_seen", "_shared_until", "turn")

    def __init__(self, loop: AbstractEventLoop, clock: Callable[[], float]) -> None:
        self._loop = loop
        self._clock = clock
        self._last = 0.0
        self._credit = 0
        self._polling = False
        self._off: deque[tuple[float, Work]] = deque()
        self._seen = 0.0  # the last event that the last round knew of
        self._owner: Turns | None = None
        self._shared_until = 0.0
        self.turn = ALONE

    def event(self, owner: Turns) -> None:
        """Something has been done in ``owner``'s network: poll on if that is likely to happen again at once."""
        now = self._clock()
        if owner is not self._owner:
            self._owner = owner
            self._shared_until = now + MEMORY
            self.turn = SHARED
        elif now > self._shared_until:
            self.turn = ALONE
        if owner.began:
            over = now - owner.began - SHARED
            if over > 0 and now < self._shared_until:
                owner.owes_until = now + min(over, DEBT)
            owner.began = 0.0
        credit = self._credit
        if now - self._last < NEAR:
            if credit < CREDIT:
                self._credit = credit + 1
        elif credit:
            self._credit = credit - 1
        self._last = now
        if credit and not self._polling:
            self._polling = True
            self._loop.call_soon(self._poll)

    def put_off(self, work: Work) -> None:
        """Until a round of the loop has nothing else to do."""
        off = self._off
        off.append((self._clock(), work))
        if not self._polling:
            self._polling = True
            self._loop.call_soon(self._poll)
        if len(off) > MANY:
            off.popleft()[1].do_now()

    def _poll(self) -> None:
        """A callback that is ready keeps the loop from sleeping: it looks at its descriptors and comes back."""
        now = self._clock()
        calm = self._seen == self._last  # no event since the last time
        self._seen = self._last
        idle = now - self._last
        off = self._off
        if off or (idle < STAY and self._credit):
            if idle > YIELD and not off:
                os.sched_yield()
            self._loop.call_soon(self._poll)
        else:
            self._polling = False
        if calm and off:
            off.popleft()[1].do_now()
        until = now + self.turn
        while off and now - off[0][0] > LATE and now < until:
            off.popleft()[1].do_now()
            now = self._clock()
