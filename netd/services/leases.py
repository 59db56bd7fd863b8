"""Who has which address, until when. There are as many leases as addresses, so nothing here grows.

A client is known by its identifier. One that gives none is known by its hardware address, and is then the same as
whoever else speaks from that address, with an identifier or without: firmware, initramfs and the system behind them
differ in this, and must still find the one address that port forwards lead to. Two identifiers are two clients, also
behind one hardware address (RFC 2131 §4.2).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class Client:
    """``id`` is the hardware address where the client has given no other."""

    id: bytes
    hardware: bytes

    def same(self, other: Client) -> bool:
        """True if both are one."""
        return self.id == other.id or (self.hardware == other.hardware and self.hardware in (self.id, other.id))


@dataclass(slots=True)
class _Lease:
    client: Client | None = None  # who has it, or had it last
    until: float = _NEVER


class Leases:
    """The leases of one link. The order of the addresses is the order in which they are given out."""

    def __init__(self, addresses: Iterable[bytes]) -> None:
        self._leases = {address: _Lease() for address in addresses}

    def held(self, client: Client) -> bytes | None:
        """The address that is or was ``client``'s and has not become anybody else's."""
        fallback = None
        for address, lease in self._leases.items():
            if lease.client is not None and lease.client.same(client):
                if lease.client.id == client.id:
                    return address
                fallback = fallback or address
        return fallback

    def free(self, address: bytes, now: float) -> bool:
        """True if ``address`` is one of ours and nobody's."""
        lease = self._leases.get(address)
        return lease is not None and lease.until <= now

    def offer(self, client: Client, wanted: bytes, now: float, until: float) -> bytes | None:
        """Choose in the order of RFC 2131 §4.3.1 (the client's, the wanted, the next) and keep it until then."""
        address = self.held(client)
        if address is None and self.free(wanted, now):
            address = wanted
        if address is None:
            address = next((a for a in self._leases if self.free(a, now)), None)
        if address is not None:
            lease = self._leases[address]
            lease.client = client
            lease.until = max(lease.until, until)
        return address

    def grant(self, client: Client, address: bytes, now: float, until: float) -> bool:
        """Bind ``address``; False if it is not ours to give or another's. A client's former address becomes free."""
        held = self.held(client)
        if address != held and not self.free(address, now):
            return False
        if held is not None:
            self._leases[held] = _Lease()
        self._leases[address] = _Lease(client, until)
        return True

    def release(self, client: Client) -> None:
        """What the client has is free again, though it may come back to it (RFC 2131 §4.3.4)."""
        address = self.held(client)
        if address is not None:
            self._leases[address].until = _NEVER

    def decline(self, client: Client, until: float) -> None:
        """What the client has is taken by somebody unknown: nobody gets it before ``until`` (RFC 2131 §4.3.3)."""
        address = self.held(client)
        if address is not None:
            self._leases[address] = _Lease(None, until)
