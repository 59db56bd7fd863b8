"""IP fragments put together again (RFC 791 §3.2, RFC 815, RFC 8200 §4.5), within bounds.

Overlapping fragments discard their datagram (RFC 5722 §4, RFC 8200 §4.5; for IPv4, too: no honest sender makes them).
A repeated fragment is ignored.
"""

from __future__ import annotations

from typing import Final

from netd.stack.counters import Counters
from netd.stack.limits import Limits
from netd.stack.timers import NEVER, Timers

PACKET_MAX: Final = 65535


class Partial:
    """One datagram under way."""

    __slots__ = ("deadline", "held", "hinted", "key", "pieces", "protocol", "quote", "reassembly", "size")

    def __init__(self, reassembly: Reassembly, key: bytes) -> None:
        self.reassembly = reassembly
        self.key = key
        self.pieces: dict[int, bytes] = {}  # by offset
        self.held = 0
        self.size = -1  # of the whole, once the last fragment has come
        self.protocol = -1  # what the first fragment says, RFC 8200 §4.5
        self.quote = b""  # of the first fragment: its header, and what an ICMP error is to quote
        self.deadline = self.hinted = NEVER

    def whole(self) -> bytes:
        """All of it, once all has come."""
        return b"".join(self.pieces[start] for start in sorted(self.pieces))

    def on_deadline(self, now: float) -> None:
        """It is not going to be whole."""
        self.reassembly.expire(self)


class Reassembly:
    """The fragments of one network, both families; a key says which datagram a fragment is of."""

    def __init__(self, limits: Limits, counters: Counters, timers: Timers) -> None:
        self.partials: dict[bytes, Partial] = {}  # oldest first
        self.held = 0
        self._limits = limits
        self._counters = counters
        self._timers = timers
        self.expired: list[Partial] = []  # with a first fragment: their sender is to hear of it

    def add(
        self, key: bytes, offset: int, more: bool, data: memoryview, protocol: int, quote: bytes, now: float
    ) -> Partial | None:
        """One fragment's payload at ``offset``; the datagram, no longer held, where it was the last that was missing.

        ``quote``: the packet's beginning, for the error when the rest never comes (RFC 792, RFC 4443 §3.3).
        """
        size = len(data)
        end = offset + size
        if not size or (more and size & 7) or end > PACKET_MAX:
            self._counters.drop_fragment += 1
            return None
        partial = self.partials.get(key)
        if partial is None:
            partial = self._begin(key, now)
        before = partial.pieces.get(offset)
        if before is not None and len(before) == size:
            self._counters.drop_fragment += 1
            return None
        overlaps = any(start < end and offset < start + len(piece) for start, piece in partial.pieces.items())
        last = partial.size
        contradicts = (last >= 0 and end > last) or (not more and last not in (-1, end))
        if not more and any(start + len(piece) > end for start, piece in partial.pieces.items()):
            contradicts = True
        if overlaps or contradicts or len(partial.pieces) >= self._limits.fragments_each:
            self._counters.drop_fragment += 1
            self._forget(partial)
            return None
        partial.pieces[offset] = bytes(data)
        partial.held += size
        self.held += size
        if not offset:
            partial.protocol, partial.quote = protocol, quote
        if not more:
            partial.size = end
        if partial.held == partial.size:
            self._forget(partial)
            self._counters.reassembled += 1
            return partial
        while self.held > self._limits.fragment_bytes:
            self._counters.drop_fragment += 1
            self._forget(next(iter(self.partials.values())))
        return None

    def _begin(self, key: bytes, now: float) -> Partial:
        if len(self.partials) >= self._limits.fragmented:
            self._counters.drop_fragment += 1
            self._forget(next(iter(self.partials.values())))
        partial = self.partials[key] = Partial(self, key)
        self._timers.arm(partial, now + self._limits.reassembly)
        return partial

    def _forget(self, partial: Partial) -> None:
        del self.partials[partial.key]
        self.held -= partial.held
        partial.deadline = NEVER

    def expire(self, partial: Partial) -> None:
        """The time for the missing fragments is over."""
        self._counters.drop_fragment += 1
        self._forget(partial)
        if partial.quote:
            self.expired.append(partial)
