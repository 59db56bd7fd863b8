"""Who plays whom: scripts are written with IPv4 names, and can be played in IPv6 with every address recast.

``real`` is what goes on the wire for a name, ``name`` the way back; both are one to one.
"""

from __future__ import annotations


def ip(text: str) -> bytes:
    return bytes(int(part) for part in text.split("."))


def ip6(text: str) -> bytes:
    head, _, tail = text.partition("::")
    before = b"".join(int(part, 16).to_bytes(2, "big") for part in head.split(":") if part)
    after = b"".join(int(part, 16).to_bytes(2, "big") for part in tail.split(":") if part)
    return before + bytes(16 - len(before) - len(after)) + after


LINK, LINK6 = ip("10.0.2.0")[:3], ip6("fd00::")[:15]
GROUP6 = ip6("ff0e::")[:12]
WORLD6 = ip6("2001:db8::")[:12]
LOOPBACK, LOOPBACK6 = ip("127.0.0.1"), ip6("::1")

# ICMP type and code to ICMPv6 (RFC 792, RFC 4443)
ICMP6 = {
    (0, 0): (129, 0),
    (8, 0): (128, 0),
    (3, 0): (1, 0),
    (3, 1): (1, 3),
    (3, 3): (1, 4),
    (3, 13): (1, 1),
    (3, 4): (2, 0),
    (11, 0): (3, 0),
    (11, 1): (3, 1),
}


class Cast:
    """Of one family."""

    def __init__(self, family: int) -> None:
        self.family = family
        self.ethertype = 0x0800 if family == 4 else 0x86DD
        self.icmp = 1 if family == 4 else 58

    def real(self, name: bytes) -> bytes:
        if self.family == 4 or len(name) != 4:
            return name
        if name == LOOPBACK:
            return LOOPBACK6
        if name == bytes(4):
            return bytes(16)
        if name[:3] == LINK:
            return LINK6 + name[3:]
        return (GROUP6 if name[0] >= 224 else WORLD6) + name

    def name(self, real: bytes) -> bytes:
        if self.family == 4:
            return real
        if real == LOOPBACK6:
            return LOOPBACK
        if real[:15] == LINK6:
            return LINK + real[15:]
        return real[12:] if real[:12] in (GROUP6, WORLD6) else real  # nobody of this cast
