"""The DHCPv6 server (RFC 8415): one link, one guest, one address.

The address is the spec's guest address, and whoever asks gets it: a guest that comes back with a new DUID (a fresh
file system, another client) is still the guest that port forwards lead to. So there are no bindings to keep, and none
to lose over a restart. A second host on the link finds the address in use (duplicate address detection) and declines
it; such a client is told NoAddrsAvail for a while. Temporary addresses (IA_TA) and prefixes (IA_PD) there are none.
"""

from __future__ import annotations

from dataclasses import dataclass

from netd.wire import dhcpv6
from netd.wire.dhcpv4 import domain_list

DECLINE_SECONDS = 600.0  # so long a client that declined the address is not given it again
MAX_DECLINED = 16  # clients remembered for that
MAX_ASSOCIATIONS = 8  # IA options of one message that are answered: with the next, a reply stays below 1280 octets
MAX_ADDRESSES = 2  # addresses of one IA that are answered

_IA_CODES = (dhcpv6.IA_NA, dhcpv6.IA_TA, dhcpv6.IA_PD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What the link looks like. Addresses are 16 bytes; what is empty is not told."""

    server_mac: bytes
    guest_ip: bytes
    prefix_length: int = 64
    dns: tuple[bytes, ...] = ()
    search: tuple[str, ...] = ()
    fqdn: str = ""
    preferred_seconds: int = 86400
    valid_seconds: int = 86400
    preference: int = 255  # there is no other server to wait for (RFC 8415 §18.2.1)


class Server:
    """Answers clients. Remembers who declined, no clock."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.duid = dhcpv6.duid_ll(config.server_mac)
        self._declined: dict[bytes, float] = {}  # DUID to the end of its time, the oldest first
        self._parameters = {
            dhcpv6.DNS_SERVERS: b"".join(config.dns),
            dhcpv6.DOMAIN_LIST: domain_list(config.search),
            # RFC 4704 §4.1: the name, and that we update no DNS (the N bit)
            dhcpv6.CLIENT_FQDN: b"\x04" + domain_list((config.fqdn,)) if config.fqdn else b"",
        }

    def answer(self, message: bytes | memoryview, now: float) -> bytes | None:
        """The reply to a message to port 547, to be sent to its source's port 546; None where there is none."""
        m = dhcpv6.parse(message)
        if m is None or not self._valid(m):
            return None
        client = m.first(dhcpv6.CLIENTID) or b""
        ias = _associations(m)
        if m.type == dhcpv6.SOLICIT:
            return self._solicit(m, ias, self._available(client, now))
        if m.type == dhcpv6.CONFIRM:
            return self._confirm(m, ias)
        if m.type in (dhcpv6.RELEASE, dhcpv6.DECLINE):
            if m.type == dhcpv6.DECLINE and any(self.config.guest_ip in ia.addresses for ia in ias):
                self._decline(client, now)
            return self._ended(m, ias)
        if m.type == dhcpv6.INFORMATION_REQUEST:
            return self._information(m)
        return self._reply(m, dhcpv6.REPLY, self._answered(m, ias, self._available(client, now)))

    def _valid(self, m: dhcpv6.Message) -> bool:
        """RFC 8415 §16.2 to §16.12: who must be named in which message; other types are not for a server."""
        client, server = m.first(dhcpv6.CLIENTID), m.first(dhcpv6.SERVERID)
        if client is not None and not dhcpv6.MIN_DUID <= len(client) <= dhcpv6.MAX_DUID:
            return False
        if m.type in (dhcpv6.SOLICIT, dhcpv6.CONFIRM, dhcpv6.REBIND):
            return client is not None and server is None
        if m.type in (dhcpv6.REQUEST, dhcpv6.RENEW, dhcpv6.RELEASE, dhcpv6.DECLINE):
            return client is not None and server == self.duid
        if m.type == dhcpv6.INFORMATION_REQUEST:
            return server in (None, self.duid) and not any(code in _IA_CODES for code, _ in m.options)
        return False

    def _solicit(self, m: dhcpv6.Message, ias: list[dhcpv6.Association], available: bool) -> bytes:
        """RFC 8415 §18.3.1. A rapid commit that would commit nothing is an Advertise."""
        answered = self._answered(m, ias, available)
        if m.first(dhcpv6.RAPID_COMMIT) is not None and available and any(ia.code == dhcpv6.IA_NA for ia in ias):
            return self._reply(m, dhcpv6.REPLY, [(dhcpv6.RAPID_COMMIT, b""), *answered])
        preference = (dhcpv6.PREFERENCE, bytes((self.config.preference,)))
        return self._reply(m, dhcpv6.ADVERTISE, [preference, *answered])

    def _answered(self, m: dhcpv6.Message, ias: list[dhcpv6.Association], available: bool) -> list[tuple[int, bytes]]:
        """Every IA with what it gets (RFC 8415 §18.3.1, §18.3.2, §18.3.4, §18.3.5).

        The address goes to the IA_NA that names it, or the first. A Renew that cannot be met is NoAddrsAvail, not
        NoBinding, which would have the client ask once more by a Request.
        """
        named = [ia for ia in ias if ia.code == dhcpv6.IA_NA]
        named.sort(key=lambda ia: self.config.guest_ip not in ia.addresses)
        lucky = named[0] if named and available else None
        but = self.config.guest_ip if lucky else b""
        answered = []
        for ia in ias:
            t1 = t2 = 0
            if m.type == dhcpv6.REQUEST and not all(map(self._on_link, ia.addresses)):
                inner = dhcpv6.status(dhcpv6.NOT_ON_LINK, "not on link")
            elif ia is lucky:
                t1, t2 = self.config.preferred_seconds // 2, self.config.preferred_seconds * 4 // 5  # §21.4
                address = dhcpv6.ia_address(but, self.config.preferred_seconds, self.config.valid_seconds)
                inner = address + _withdrawn(m, ia, but)
            elif ia.code == dhcpv6.IA_PD:
                inner = dhcpv6.status(dhcpv6.NO_PREFIX_AVAIL, "no prefixes here")
            else:
                inner = _withdrawn(m, ia, but) + dhcpv6.status(dhcpv6.NO_ADDRS_AVAIL, "no address left")
            answered.append(dhcpv6.ia(ia.code, ia.iaid, t1, t2, inner))
        return answered

    def _confirm(self, m: dhcpv6.Message, ias: list[dhcpv6.Association]) -> bytes | None:
        """RFC 8415 §18.3.3: is the client still on this link? Without an address it has not asked anything."""
        addresses = [address for ia in ias for address in ia.addresses]
        if not addresses:
            return None
        if all(map(self._on_link, addresses)):
            return self._told(m, dhcpv6.SUCCESS, "on link")
        return self._told(m, dhcpv6.NOT_ON_LINK, "not on link")

    def _ended(self, m: dhcpv6.Message, ias: list[dhcpv6.Association]) -> bytes:
        """RFC 8415 §18.3.7, §18.3.8: Success, and NoBinding for every IA that never had anything of us."""
        unknown = [
            dhcpv6.ia(ia.code, ia.iaid, 0, 0, dhcpv6.status(dhcpv6.NO_BINDING, "no binding"))
            for ia in ias
            if ia.code != dhcpv6.IA_NA or self.config.guest_ip not in ia.addresses
        ]
        return self._told(m, dhcpv6.SUCCESS, "", unknown)

    def _information(self, m: dhcpv6.Message) -> bytes:
        """RFC 8415 §18.3.6; the refresh time (§21.23) only for who asks."""
        refresh = (dhcpv6.INFORMATION_REFRESH_TIME, self.config.valid_seconds.to_bytes(4, "big"))
        asked = refresh[0] in (_requested(m) or ())
        return self._reply(m, dhcpv6.REPLY, [refresh] if asked else [])

    def _told(self, m: dhcpv6.Message, code: int, text: str, more: list[tuple[int, bytes]] | None = None) -> bytes:
        """A Reply that is a status, and carries no configuration."""
        status = dhcpv6.options(dhcpv6.status(code, text)) or ()
        options = (*self._identifiers(m), *status, *(more or ()))
        return dhcpv6.build(dhcpv6.Message(dhcpv6.REPLY, m.xid, options))

    def _reply(self, m: dhcpv6.Message, kind: int, more: list[tuple[int, bytes]]) -> bytes:
        """A message with the parameters of the Option Request option (§21.7), or all where there is none."""
        requested = _requested(m)
        parameters = [
            (code, value)
            for code, value in self._parameters.items()
            if value and (requested is None or code in requested)
        ]
        return dhcpv6.build(dhcpv6.Message(kind, m.xid, (*self._identifiers(m), *more, *parameters)))

    def _identifiers(self, m: dhcpv6.Message) -> list[tuple[int, bytes]]:
        client = m.first(dhcpv6.CLIENTID)
        known = [] if client is None else [(dhcpv6.CLIENTID, client)]
        return [*known, (dhcpv6.SERVERID, self.duid)]

    def _available(self, client: bytes, now: float) -> bool:
        return self._declined.get(client, now) <= now

    def _decline(self, client: bytes, now: float) -> None:
        self._declined.pop(client, None)
        if len(self._declined) >= MAX_DECLINED:
            del self._declined[next(iter(self._declined))]
        self._declined[client] = now + DECLINE_SECONDS

    def _on_link(self, address: bytes) -> bool:
        shift = 128 - self.config.prefix_length
        return int.from_bytes(address, "big") >> shift == int.from_bytes(self.config.guest_ip, "big") >> shift


def _associations(m: dhcpv6.Message) -> list[dhcpv6.Association]:
    """The well-formed ones, no more than the bounds say."""
    found = [ia for code, value in m.options if code in _IA_CODES and (ia := dhcpv6.association(code, value))]
    return [dhcpv6.Association(ia.code, ia.iaid, ia.addresses[:MAX_ADDRESSES]) for ia in found[:MAX_ASSOCIATIONS]]


def _withdrawn(m: dhcpv6.Message, ia: dhcpv6.Association, but: bytes) -> bytes:
    """What the client has of old and must give up: lifetimes of zero (RFC 8415 §18.3.4, §18.3.5)."""
    if m.type not in (dhcpv6.RENEW, dhcpv6.REBIND):
        return b""
    return b"".join(dhcpv6.ia_address(address, 0, 0) for address in ia.addresses if address != but)


def _requested(m: dhcpv6.Message) -> set[int] | None:
    """The codes of the Option Request option; None where there is none."""
    oro = m.first(dhcpv6.ORO)
    return None if oro is None else {int.from_bytes(oro[i : i + 2], "big") for i in range(0, len(oro), 2)}
