"""What the gateway of one network answers by itself (``stack.ports.Services``): DHCP of both families."""

from __future__ import annotations

from netd.services import dhcpv4, dhcpv6


class Gateway:
    """The servers of one network; None where it has none of that family."""

    def __init__(self, v4: dhcpv4.Config | None, v6: dhcpv6.Config | None) -> None:
        self._v4 = dhcpv4.Server(v4) if v4 is not None else None
        self._v6 = dhcpv6.Server(v6) if v6 is not None else None

    def dhcpv4(self, message: bytes, mac: bytes, now: float) -> tuple[bytes, bytes] | None:
        """The answer to a message from ``mac`` and the address it goes to."""
        reply = self._v4.answer(message, mac, now) if self._v4 is not None else None
        return (reply.message, reply.dst_ip) if reply is not None else None

    def dhcpv6(self, message: bytes, now: float) -> bytes | None:
        """The answer to a message, for whoever asked."""
        return self._v6.answer(message, now) if self._v6 is not None else None
