"""Which MAC the guest's addresses have. A guest may use many, so the table is bounded. Whether they still have it:
``reachability``."""

from __future__ import annotations

from netd.stack.addressing import is_link_local
from netd.wire.ethernet import BROADCAST


class Neighbors:
    """Address to MAC, learned from ARP, neighbor discovery and frames; ``default`` answers for the unknown.

    ``moves`` counts what has changed for an address that may be in use. ``doubted`` are addresses that do not answer,
    and how often they have been asked for; whatever is learned of one ends that.
    """

    __slots__ = ("_limit", "_macs", "default", "doubted", "moves")

    def __init__(self, default: bytes, limit: int) -> None:
        self.default = default
        self.moves = 0
        self.doubted: dict[bytes, int] = {}
        self._limit = limit
        self._macs: dict[bytes, bytes] = {}

    def learn(self, ip: bytes, mac: bytes) -> None:
        """Remember; the oldest entry makes room. Group addresses are nobody's."""
        if mac[0] & 1:
            return
        if self.doubted:
            self.doubted.pop(ip, None)
        macs = self._macs
        if macs.get(ip) == mac:
            return
        if len(macs) >= self._limit and ip not in macs and macs.pop(next(iter(macs))) != self.default:
            self.moves += 1
        if mac != self.mac_of(ip):
            self.moves += 1
        macs[ip] = mac
        if self.default == BROADCAST:
            self.default = mac

    def forget(self, ip: bytes) -> None:
        """Nobody answers for it any more."""
        self.doubted.pop(ip, None)
        if self._macs.pop(ip, self.default) != self.default:
            self.moves += 1

    def mac_of(self, ip: bytes) -> bytes:
        """The MAC to send to."""
        return self._macs.get(ip, self.default)

    def address_of_guest(self, planned: bytes) -> bytes:
        """Where a guest that configures itself is to be reached: at ``planned``, unless it has spoken from others alone
        (SLAAC, another DHCP lease), of which the latest counts."""
        if planned in self._macs:
            return planned
        for ip in reversed(self._macs):
            if len(ip) == len(planned) and not is_link_local(ip):
                return ip
        return planned

    def __len__(self) -> int:
        return len(self._macs)
