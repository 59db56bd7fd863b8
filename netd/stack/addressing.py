"""Who is who on the link: the addresses of one network as bytes."""

from __future__ import annotations

from dataclasses import dataclass

from netd.wire.ethernet import BROADCAST

LOOPBACK = b"\x7f\x00\x00\x01"


@dataclass(frozen=True, slots=True)
class Addressing:
    """IPv4 addresses (4 bytes) and MACs (6 bytes) of one network; ``dns`` is empty where there is none."""

    guest: bytes
    gateway: bytes
    dns: bytes
    network: int  # the subnet's address as a number
    mask: int
    gateway_mac: bytes
    dns_mac: bytes
    guest_mac: bytes = BROADCAST  # until the guest has spoken, where the agent could not tell

    @property
    def broadcast(self) -> bytes:
        """The subnet's directed broadcast address (RFC 919 §7)."""
        return (self.network | ~self.mask & 0xFFFFFFFF).to_bytes(4, "big")

    def on_link(self, ip: bytes) -> bool:
        """True if ``ip`` is in the guest's own subnet."""
        return int.from_bytes(ip, "big") & self.mask == self.network


def is_loopback(ip: bytes) -> bool:
    """127.0.0.0/8 (RFC 1122 §3.2.1.3)."""
    return ip[0] == 127


def is_group(ip: bytes) -> bool:
    """Multicast, class E and the limited broadcast address (RFC 1112, RFC 919)."""
    return ip[0] >= 224
