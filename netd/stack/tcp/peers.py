"""What all connections between the same two addresses have in common: where to, and the header of their segments.

Made with the first one; a guest mostly talks to few.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from netd.stack import policy
from netd.stack.headers import SegmentHeader, segment_header

if TYPE_CHECKING:
    from netd.stack.addressing import Addressing
    from netd.stack.neighbor import Neighbors

_NO_PORTS: Final = bytes(4)


class Peer:
    """One guest's address and one peer's."""

    __slots__ = ("header", "moves", "target")

    def __init__(self, header: SegmentHeader, moves: int, target: policy.Target | None) -> None:
        self.header = header  # between no ports
        self.moves = moves  # ``Neighbors.moves`` when it was made
        self.target = target  # DIRECT, whatever the port; None: ask ``policy``


class Peers:
    """Those of one network, ``limit`` at most; the oldest makes room."""

    __slots__ = ("_addressing", "_limit", "_neighbors", "_offload", "_peers")

    def __init__(self, addressing: Addressing, neighbors: Neighbors, offload: bool, limit: int) -> None:
        self._addressing = addressing
        self._neighbors = neighbors
        self._offload = offload
        self._limit = limit
        self._peers: dict[bytes, Peer] = {}

    def of(self, key: bytes) -> Peer:
        """By a connection's key (``table``)."""
        pair = key[:-4]
        peer = self._peers.get(pair)
        if peer is None or peer.moves != self._neighbors.moves:
            peer = self._peers[pair] = self._meet(pair)
            if len(self._peers) > self._limit:
                del self._peers[next(iter(self._peers))]
        return peer

    def _meet(self, pair: bytes) -> Peer:
        half = len(pair) >> 1
        guest, ip = pair[:half], pair[half:]
        addressing, neighbors = self._addressing, self._neighbors
        mac, src_mac = neighbors.mac_of(guest), addressing.mac_of(ip)
        header = segment_header(self._offload, mac, src_mac, ip, guest, _NO_PORTS)
        target = policy.decide(addressing, ip, 0)
        return Peer(header, neighbors.moves, target if target.kind == policy.DIRECT else None)

    def __len__(self) -> int:
        return len(self._peers)
