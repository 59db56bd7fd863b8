"""Ports that are published while somebody listens on them (pasta(1), "auto").

Every second the sockets of the one namespace are compared with what is published in the other. As pasta does it: UDP
follows the bound UDP sockets and, where the numbers are not changed, the listening TCP sockets, too; what we listen on
ourselves for the other direction does not count, or each direction would publish the other. Ephemeral ports are left
out by the ranges of the rules and not here: who names them gets them.

Unlike pasta, what cannot be reached is not published: of the guest's sockets those on its loopback, unless the host's
loopback leads there, and of the host's those that are not on its own. pasta (2025-05, 2026-10) listens on such a port,
too, and closes or resets every connection. And where numbers are changed, the one that
somebody listens on counts, as pasta(1) has it; pasta itself (2026-10) looks for the other one.
"""

from __future__ import annotations

import heapq
import logging
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from netd.errors import NetdError
from netd.relay.sockaddr import is_loopback
from netd.relay.sockdiag import Listening

logger = logging.getLogger(__name__)

PERIOD: Final = 1.0  # seconds
ATTEMPTS: Final = 256  # ports published per scan; the others have to wait for the next one
TOLD_MAX: Final = 64  # ports that could not be published and were complained about

_LO: Final = 1  # every namespace's lo (LOOPBACK_IFINDEX, net/flow.h)
_MAPPED: Final = bytes(10) + b"\xff\xff"  # RFC 4291 §2.5.5.2


class AutoRule(NamedTuple):
    """Which ports may be published, and where: ``first``..``last`` lead to ``to_first`` and on."""

    protocol: str  # "tcp" | "udp"
    first: int
    last: int
    to_first: int
    address: str = ""  # to listen on
    interface: str = ""
    target: str = ""  # instead of the guest's address


class AutoPort(NamedTuple):
    """A port to be published."""

    protocol: str
    port: int  # to listen on
    to_port: int  # that somebody listens on
    rule: AutoRule


Key = tuple[str, str, str, int]  # protocol, address, interface, port: what is listened on can be so once


def _key(port: AutoPort) -> Key:
    return port.protocol, port.rule.address, port.rule.interface, port.port


def _ip(listening: Listening) -> bytes:
    ip = listening.address
    return ip[12:] if ip[:12] == _MAPPED else ip


def reachable_in_guest(listening: Listening) -> bool:
    """By the guest's addresses: not on its loopback alone."""
    return listening.interface != _LO and not is_loopback(_ip(listening))


def reachable_anywhere(listening: Listening) -> bool:
    """By the guest's addresses, or its loopback's."""
    return True


def reachable_on_host(listening: Listening) -> bool:
    """By 127.0.0.1 or ::1."""
    ip = _ip(listening)
    return listening.interface in (0, _LO) and (not any(ip) or ip in (b"\x7f\0\0\1", bytes(15) + b"\1"))


class Direction:
    """From the sockets of one namespace (``dump``, of ``sockdiag.Diag``) to ports of the other.

    ``add`` publishes and returns a number, or raises NetdError; what fails later is told by ``failed``. ``remove``
    takes the number. ``ours`` tells which ports of a protocol we listen on in the first namespace, beside those that
    the ``Direction`` back has published.
    """

    def __init__(
        self,
        name: str,
        dump: Callable[[], frozenset[Listening] | None],
        rules: Iterable[AutoRule],
        reachable: Callable[[Listening], bool],
        ours: Callable[[str], set[int]],
        add: Callable[[AutoPort], int],
        remove: Callable[[int], None],
    ) -> None:
        self.name = name  # for the log
        self.back: Direction | None = None
        self._dump = dump
        self._rules = tuple(rules)
        self._reachable = reachable
        self._ours = ours
        self._add = add
        self._remove = remove
        self._seen: frozenset[Listening] | None = None
        self._published: dict[Key, int] = {}
        self._leads_to: dict[Key, AutoPort] = {}
        self._failed: dict[Key, int] = {}  # and in which scan
        self._told: set[Key] = set()
        self._scans = 0
        self._blind = False

    def __len__(self) -> int:
        return len(self._published)

    def ports(self, protocol: str) -> set[int]:
        """Those that are published."""
        return {port for kind, _, _, port in self._published if kind == protocol}

    def adopt(self, port: AutoPort, number: int) -> None:
        """``port`` has been published as ``number`` in a life before this one."""
        self._published[_key(port)] = number
        self._leads_to[_key(port)] = port

    def hand_over(self, successor: Direction | None) -> None:
        """What is published is ``successor``'s now; without one it is unpublished."""
        for key in list(self._published):
            if successor is None:
                self._unpublish(key)
            else:
                successor.adopt(self._leads_to[key], self._published[key])
        self._published, self._leads_to = {}, {}

    def scan(self) -> None:
        """Compare, publish and unpublish."""
        if self._blind:
            return
        try:
            listening = self._dump()
        except OSError as e:
            self._blind = True
            logger.warning("%s: ports are not published by themselves: %s", self.name, e.strerror)
            return
        if listening is None or (listening is self._seen and not self._failed):
            return
        self._scans += 1
        wanted = self._wanted(listening)
        for key in [key for key in self._published if wanted.get(key) != self._leads_to[key]]:
            self._unpublish(key)
        self._failed = {key: scan for key, scan in self._failed.items() if key in wanted}
        missing = [key for key in wanted if key not in self._published]
        for key in heapq.nsmallest(ATTEMPTS, missing, key=lambda key: self._failed.get(key, 0)):
            self._publish(key, wanted[key])
        # Of the others none has been seen yet.
        self._seen = listening if len(missing) <= ATTEMPTS else None

    def _wanted(self, listening: frozenset[Listening]) -> dict[Key, AutoPort]:
        found: dict[str, set[int]] = {"tcp": set(), "udp": set()}
        reachable = self._reachable
        for there in listening:
            if reachable(there):
                found[there.protocol].add(there.port)
        back = self.back
        for protocol, ports in found.items():
            ports -= self._ours(protocol)
            if back is not None:
                ports -= back.ports(protocol)
        with_tcp = found["udp"] | found["tcp"]
        with_tcp -= self._ours("udp")
        if back is not None:
            with_tcp -= back.ports("udp")
        wanted: dict[Key, AutoPort] = {}
        for rule in self._rules:
            shift = rule.first - rule.to_first
            ports = with_tcp if rule.protocol == "udp" and not shift else found[rule.protocol]
            for to_port in ports:
                if rule.first <= to_port + shift <= rule.last:
                    port = AutoPort(rule.protocol, to_port + shift, to_port, rule)
                    wanted.setdefault(_key(port), port)
        return wanted

    def _publish(self, key: Key, port: AutoPort) -> None:
        try:
            number = self._add(port)
        except NetdError as e:
            self._fail(key, str(e))
        else:
            self._published[key] = number
            self._leads_to[key] = port
            self._failed.pop(key, None)

    def _unpublish(self, key: Key) -> None:
        del self._leads_to[key]
        try:
            self._remove(self._published.pop(key))
        except NetdError:
            pass  # somebody else has removed it

    def failed(self, number: int, why: str) -> None:
        """``add`` had promised ``number``, and it has not come true. It is tried again."""
        for key, published in self._published.items():
            if published == number:
                del self._published[key], self._leads_to[key]
                self._fail(key, why)
                break

    def _fail(self, key: Key, why: str) -> None:
        self._failed[key] = self._scans
        if key not in self._told and len(self._told) < TOLD_MAX:
            self._told.add(key)
            logger.warning("%s: %s", self.name, why)


class AutoPorts:
    """The directions of one network, and their timer: there is one if there is a direction."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._directions: list[Direction] = []
        self._timer: TimerHandle | None = None

    def start(self, directions: list[Direction]) -> None:
        """Scan now and every second from now on, these instead of those before. Of two each is the other's way back."""
        self.close()
        self._directions = directions
        for direction, back in zip(directions, reversed(directions), strict=True):
            direction.back = back if back is not direction else None
        if directions:
            self._on_timer()

    def scan(self) -> None:
        """Once."""
        for direction in self._directions:
            direction.scan()

    def _on_timer(self) -> None:
        self._timer = self._loop.call_later(PERIOD, self._on_timer)
        self.scan()

    def close(self) -> None:
        """No more. What is published stays so."""
        self._directions = []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
