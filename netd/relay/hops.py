"""TTL and TOS, hop limit and traffic class: the guest's are those of the host's datagram (ip(7), ipv6(7)).

``hops`` is TTL << 8 | TOS. A socket is told only what differs from what it was told before.
"""

from __future__ import annotations

import socket
from typing import Final

UNSET: Final = -1


def carry(sock: socket.SocketType, before: int, hops: int) -> int:
    """Let the next datagram of ``sock`` have them; what to remember. Never raises."""
    six = sock.family == socket.AF_INET6
    try:
        if before < 0 or before >> 8 != hops >> 8:
            ttl = hops >> 8 or 1  # 0 is no value; the stack has no such datagram
            if six:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
            else:
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        if before < 0 or before & 0xFF != hops & 0xFF:
            if six:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, hops & 0xFF)
            else:
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, hops & 0xFF)
    except OSError:
        return UNSET
    return hops
