"""Which host TCP sockets of a network are ready: one epoll of its own, a single descriptor to the loop.

The loop's ``add_reader`` and ``remove_reader`` cost a connection eight system calls (libuv probes the descriptor, adds
it through io_uring, and removes it three times) and a handle of 660 bytes that stays as long as it is waited for; here
it is two, and 90 bytes. Measured: 2 to 5 % less CPU time a connection, 1.3 us more for a lone event. Level-triggered,
as the loop's is.
"""

from __future__ import annotations

import select
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

READ: Final = select.EPOLLIN | select.EPOLLRDHUP
WRITE: Final = select.EPOLLOUT
END: Final = select.EPOLLRDHUP  # no more than what is there will come
EVENT: Final = 25e-6  # seconds that one takes, about: so many are taken at once as fit a turn


class Owner(Protocol):
    """Whoever waits for a descriptor."""

    def on_ready(self, events: int) -> None:
        """What epoll_wait(2) says of it, END among it; EPOLLERR and EPOLLHUP are told whether wanted or not."""

    def on_outcome(self, error: int) -> None:
        """Its connect has ended at once: an errno, 0 where it is connected."""


class Turns(Protocol):
    """When to go on, and for how long (``pace.Turns``)."""

    def begin(self, now: float) -> float:
        """For how many seconds; 0: ask again later."""

    def end(self) -> None:
        """There is no more to do."""


class Poller:
    """Of one network. The descriptor is opened with its first connection."""

    __slots__ = ("_clock", "_epoll", "_gone", "_loop", "_outcomes", "_owners", "_turns")

    def __init__(self, loop: AbstractEventLoop, clock: Callable[[], float], turns: Turns) -> None:
        self._loop = loop
        self._clock = clock
        self._turns = turns
        self._epoll: select.epoll | None = None
        self._owners: dict[int, Owner] = {}
        self._outcomes: deque[tuple[Owner, int]] = deque()
        self._gone: set[int] = set()  # in this round; their numbers may be others' by now

    def begin(self, fd: int, events: int, owner: Owner) -> None:
        """Wait for READ, WRITE or both. OSError: out of descriptors, memory, or the user's watches (epoll_ctl(2))."""
        epoll = self._epoll
        if epoll is None:
            epoll = self._epoll = select.epoll()
            self._loop.add_reader(epoll.fileno(), self._on_events)
        epoll.register(fd, events)
        self._owners[fd] = owner

    def change(self, fd: int, events: int) -> None:
        """Wait for something else."""
        assert self._epoll is not None
        self._epoll.modify(fd, events)

    def end(self, fd: int) -> None:
        """Wait no longer; before ``fd`` is closed."""
        assert self._epoll is not None
        self._epoll.unregister(fd)
        del self._owners[fd]
        self._gone.add(fd)

    def forget(self, fd: int) -> None:
        """Wait no longer; ``fd`` is closed right after, which the kernel takes for the same: no other process has the
        socket. (The only one that this one starts stops it until it has closed what it inherited: netns/spawn.)"""
        del self._owners[fd]
        self._gone.add(fd)

    def tell_later(self, owner: Owner, error: int) -> None:
        """``owner.on_outcome`` is called by the next ``tell``."""
        self._outcomes.append((owner, error))

    def tell(self) -> None:
        """Of connects that ended at once; call at the end of each batch of frames."""
        while self._outcomes:
            owner, error = self._outcomes.popleft()
            owner.on_outcome(error)

    def _on_events(self) -> None:
        epoll = self._epoll
        assert epoll is not None
        gone = self._gone
        owners = self._owners
        clock = self._clock
        turns = self._turns
        now = clock()
        turn = turns.begin(now)
        at_once = max(round(turn / EVENT), 1)  # what is taken must be done: the kernel puts it behind the others
        until = now + turn
        while now < until:
            gone.clear()
            ready = epoll.poll(0, at_once)
            for fd, events in ready:
                owner = owners.get(fd) if fd not in gone else None
                if owner is not None:  # else closed, and its description lives on in a process that is being made
                    owner.on_ready(events)
            if len(ready) < at_once or at_once > 1 or epoll.closed:
                break
            now = clock()
            if now >= until or not turns.begin(now):
                break
        turns.end()

    def close(self) -> None:
        """The network ends; all its connections have."""
        if self._epoll is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def __len__(self) -> int:
        return len(self._owners)
