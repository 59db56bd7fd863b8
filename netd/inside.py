"""What of one network lies inside its namespace: sockets that the agent has made there, and the ways that lead by them.

A socket stays in the namespace it was made in, so the daemon uses these without ever entering one.

outward   listeners on the guest's loopback that lead to the host's (pasta's -T and -U)
inward    what comes to the host's loopback goes to the guest's address, or to its loopback (--host-lo-to-ns-lo)
diag      who listens in there
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from asyncio import AbstractEventLoop
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from netd.errors import AddressUnavailable, InvalidSpec, LimitReached, NetdError, PortInUse
from netd.netns.plan import SocketPlan
from netd.relay.inward import Inward
from netd.relay.outward import Outward
from netd.relay.sockdiag import Diag, open_diag
from netd.relay.splice import Splices
from netd.relay.stream import Pace
from netd.relay.udp_relay import UdpClients
from netd.specs import PortRule

logger = logging.getLogger(__name__)

OpenSockets = Callable[[Sequence[SocketPlan]], Awaitable[list[int | str]]]

_KINDS = {
    (version, protocol): (int(family), kind | socket.SOCK_NONBLOCK)  # as the agent has made them
    for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6))
    for protocol, kind in (("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM))
}
_AT_ONCE = 128  # sockets asked for in one request, fewer than the agent gives
PORTS_MAX = 4096  # of the guest's loopback; each is a listener of each family
_IN_USE = os.strerror(errno.EADDRINUSE)


class Inside:
    """Nothing is made before it is needed. ``on_event`` is called after every event of a socket."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        clock: Callable[[], float],
        pace: Pace,
        on_event: Callable[[], None],
        open_sockets: OpenSockets,
    ) -> None:
        self._loop = loop
        self._open_sockets = open_sockets
        self._splices = Splices(loop, clock, pace, on_event)
        self._clients = UdpClients(loop, clock, on_event)
        self.outward = Outward(loop, self._splices, self._clients, on_event)
        self.inward = Inward(loop, self._splices, self._clients, self._refill)
        self._diags: dict[str, Diag] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    # -- towards the host ------------------------------------------------------------------------------------------

    async def listen(self, rule: PortRule, first: int, last: int) -> None:
        """Have the ports ``first``..``last`` of ``rule`` on the guest's loopback lead to the host's: all or none, or as
        many as there are with ``best_effort``, one at least. PortInUse, AddressUnavailable, LimitReached."""
        room = PORTS_MAX - len(self.outward.listeners())
        if last - first + 1 > room:
            bound = f"at most {PORTS_MAX} ports of a guest's loopback lead to the host"
            if not rule.best_effort:
                raise LimitReached(bound)
            logger.warning("of %s some are left out: %s", rule, bound)
            last = first + room - 1
            if not room:
                return
        families = (6,) if ":" in rule.address else (4,) if rule.address else (4, 6)
        plans = [
            SocketPlan("listen", family, rule.protocol, port=port, interface="lo")
            for port in range(first, last + 1)
            for family in families
        ]
        made: list[int] = []
        refusal: NetdError | None = None
        for start in range(0, len(plans), _AT_ONCE):
            some = plans[start : start + _AT_ONCE]
            for plan, answer in zip(some, await self._open_sockets(some), strict=True):
                if isinstance(answer, int):
                    self._lead(socket.socket(fileno=answer), rule, plan.port)
                    made.append(plan.port)
                elif plan.family == 4 or families == (6,) or answer == _IN_USE:
                    refusal = refusal or _refusal(rule.protocol, plan.port, answer)  # else there is no IPv6 in there
            if refusal is not None and not rule.best_effort:
                break
        if refusal is not None and (not rule.best_effort or not made):
            for port in made:
                self.outward.remove(rule.protocol, port)
            raise refusal

    def _lead(self, listener: socket.socket, rule: PortRule, port: int) -> None:
        if self._closed:
            listener.close()
        else:
            self.outward.add(listener, rule.to_first + port - rule.first, rule.protocol)

    # -- from the host -----------------------------------------------------------------------------------------------

    def _refill(self, family: int, protocol: str, count: int) -> None:
        self.later(self._supply(family, protocol, count))

    async def _supply(self, family: int, protocol: str, count: int) -> None:
        sockets: list[socket.SocketType] = []
        try:
            answers = await self._open_sockets([SocketPlan("connect", family, protocol, count=min(count, _AT_ONCE))])
            kind = _KINDS[family, protocol]
            sockets = [socket.SocketType(*kind, 0, answer) for answer in answers if isinstance(answer, int)]
        except NetdError as error:
            logger.warning("no way to the guest's loopback: %s", error)
        self.inward.supply(family, protocol, sockets)

    # -- who listens ---------------------------------------------------------------------------------------------------

    async def diag(self) -> Diag:
        """For the guest's namespace. NetdError."""
        if "guest" in self._diags:
            return self._diags["guest"]
        [answer] = await self._open_sockets([SocketPlan("diag")])
        if isinstance(answer, str):
            raise InvalidSpec(f"who listens in the namespace cannot be told: {answer}")
        return self._kept("guest", Diag(socket.socket(fileno=answer)))

    def host_diag(self) -> Diag:
        """For the host's. OSError."""
        if "host" in self._diags:
            return self._diags["host"]
        return self._kept("host", open_diag())

    def _kept(self, name: str, diag: Diag) -> Diag:
        if self._closed:
            diag.close()  # the network has ended while it was made
            return diag
        there = self._diags.setdefault(name, diag)
        if there is not diag:
            diag.close()  # two were asked for at once
        return there

    def counters(self) -> dict[str, int]:
        """What came to nothing, by name."""
        splices, clients = self._splices, self._clients
        return {
            "spliced_refused": splices.refused,
            "spliced_over_limit": splices.over_limit + clients.evicted,
            "spliced_unavailable": splices.unavailable + self.outward.unavailable + self.inward.unavailable,
            "drop_spliced_udp": clients.dropped + clients.refused,
        }

    # -- ends ----------------------------------------------------------------------------------------------------------

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that takes the agent, unless the network ends before."""
        if self._closed:
            work.close()
            return
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("inside a namespace", exc_info=error)

    def close(self, kept: bool = False) -> None:
        """The network ends, or (``kept``) only this process."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        self.outward.close(kept)
        self.inward.close()
        self._splices.close()
        self._clients.close()
        for diag in self._diags.values():
            diag.close()


def _refusal(protocol: str, port: int, reason: str) -> NetdError:
    what = f"cannot listen on port {port}/{protocol} of the guest's loopback: {reason}"
    if reason == _IN_USE:
        return PortInUse(what, port=port)
    return AddressUnavailable(what, "", port, reason)
