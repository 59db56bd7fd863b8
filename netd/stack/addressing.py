"""Who is who on the link: the addresses of one network as bytes, 4 for IPv4, 16 for IPv6."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from netd.wire import ipv6
from netd.wire.ethernet import BROADCAST

LOOPBACK: Final = b"\x7f\x00\x00\x01"


@dataclass(frozen=True, slots=True)
class Addressing:
    """Addresses and MACs of one network; an address is empty where there is none, and so is all of a family that the
    network has not.

    A private link has nobody on it but the guest and us. A ``host_like`` one looks as the host's own link does: the
    guest has the host's address, everybody else is out there, and we answer for all of them.
    """

    guest: bytes
    gateway: bytes  # of a private link: stands for the host
    dns: bytes
    network: int  # the subnet's address as a number
    mask: int
    gateway_mac: bytes
    dns_mac: bytes
    guest_mac: bytes = BROADCAST  # until the guest has spoken, where the agent could not tell
    guest6: bytes = b""
    gateway6: bytes = b""  # stands for the host, as ``gateway`` does
    dns6: bytes = b""
    router6: bytes = b""  # our link-local address, which advertises the prefix
    network6: int = 0
    mask6: int = 0
    loopback: bytes = b""  # stands for the host's 127.0.0.1
    loopback6: bytes = b""  # and ::1
    host_like: bool = False
    more_dns: tuple[bytes, ...] = ()  # further addresses like dns and dns6
    mapped: tuple[bytes, ...] = ()  # stand for the host's own address, which a host-like guest has as well
    own: frozenset[bytes] = frozenset()  # all that the guest is to have
    rdnss: bytes = b""  # the name server that our router advertisements tell of; dns6 where b"" and advertise_dns
    advertise_dns: bool = True

    @property
    def broadcast(self) -> bytes:
        """The subnet's directed broadcast address (RFC 919 §7)."""
        return (self.network | ~self.mask & 0xFFFFFFFF).to_bytes(4, "big")

    def private(self, ip: bytes) -> bool:
        """True if ``ip`` is of a link where nobody but the guest and us is: its subnet, or link-local in IPv6."""
        if self.host_like:
            return False
        if len(ip) == 4:
            return int.from_bytes(ip, "big") & self.mask == self.network
        if not self.gateway6:
            return False
        return int.from_bytes(ip, "big") & self.mask6 == self.network6 or is_link_local(ip)

    def ours(self, ip: bytes) -> bool:
        """True for an address that this side of the link has itself."""
        if not ip:
            return False
        if self.host_like:
            named = (self.loopback, self.loopback6, self.dns, self.dns6, self.router6)
            return ip in named or ip in self.mapped or ip in self.more_dns
        return ip in (self.gateway, self.dns, self.gateway6, self.dns6, self.router6)

    def answers_for(self, ip: bytes) -> bool:
        """True if we tell our MAC to who asks for ``ip``'s."""
        return self.ours(ip) or (self.host_like and ip not in self.own and not (is_group(ip) or is_nowhere(ip)))

    def may_be_guest(self, ip: bytes) -> bool:
        """Whether the guest may have that address: of the link, none of ours, and no broadcast address."""
        if self.host_like:
            return is_remote(ip) and not self.ours(ip) and ip not in (self.gateway, self.gateway6)
        return self.private(ip) and not self.ours(ip) and (ip != self.broadcast or ip == self.guest)

    def gateway_of(self, family: int) -> bytes:
        """The gateway for addresses of that length; b"" where there is none."""
        return self.gateway if family == 4 else self.gateway6

    def seen_as(self, ip: bytes, family: int) -> bytes:
        """How a guest's socket of that family (4 or 16 bytes) sees the peer ``ip`` of the host's.

        As itself, but for what could not be answered: the host's loopback, an address that the guest has, too, or one
        of the other family.
        """
        if len(ip) != family or is_loopback(ip):
            return (self.loopback if family == 4 else self.loopback6) or self.gateway_of(family)
        if ip in self.own or self.private(ip):
            return next((other for other in self.mapped if len(other) == family), self.gateway_of(family))
        return ip

    def mac_of(self, ip: bytes) -> bytes:
        """The MAC that frames from ``ip`` come from."""
        return self.dns_mac if ip and ip in (self.dns, self.dns6) else self.gateway_mac


def is_loopback(ip: bytes) -> bool:
    """127.0.0.0/8 (RFC 1122 §3.2.1.3), ::1."""
    return ip[0] == 127 if len(ip) == 4 else ip == ipv6.LOOPBACK


def is_link_local(ip: bytes) -> bool:
    """fe80::/10 (RFC 4291 §2.5.6)."""
    return len(ip) == 16 and ip[0] == 0xFE and ip[1] & 0xC0 == 0x80


def is_group(ip: bytes) -> bool:
    """Multicast, and in IPv4 class E and the limited broadcast address (RFC 1112, RFC 919, RFC 4291 §2.7)."""
    return ip[0] >= 224 if len(ip) == 4 else ip[0] == 0xFF


def is_nowhere(ip: bytes) -> bool:
    """Not an address anybody can be reached at: 0.0.0.0/8; ::, and IPv4 addresses in IPv6's clothes, which a host's
    socket would take for IPv4 and so for its own loopback (RFC 4291 §2.5.5)."""
    if len(ip) == 4:
        return ip[0] == 0
    return ip[:10] == bytes(10) and (ip[10:12] in (b"\x00\x00", b"\xff\xff")) and ip != ipv6.LOOPBACK


def is_remote(ip: bytes) -> bool:
    """An address that somebody beyond this machine may have."""
    return not (is_group(ip) or is_loopback(ip) or is_nowhere(ip))
