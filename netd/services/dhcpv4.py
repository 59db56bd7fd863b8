"""The DHCP server (RFC 2131): one link, the guest's address first, a small pool for whoever else is on it.

It is the only server of its link and knows all of its addresses. So it is authoritative: an address that is free is
granted to whoever asks for it, which also carries leases over a restart of ours, and any other is refused aloud, for
silence (RFC 2131 §4.3.2, "no record") would only cost the guest its time-out. Relayed messages (giaddr) and BOOTP
without a message type are not answered: on a TAP there is no relay agent.
"""

from __future__ import annotations

from dataclasses import dataclass

from netd.services.leases import Client, Leases
from netd.wire import dhcpv4

OFFER_SECONDS = 60.0  # an offer is kept that long for who got it
DECLINE_SECONDS = 600.0  # an address that was found in use rests that long
MIN_LEASE_SECONDS = 60  # a client may ask for less than ``Config.lease_seconds``, not for less than this
MIN_DATAGRAM = 576  # what every client takes (RFC 2131 §2)

_ANY = dhcpv4.ANY
_BROADCAST_IP = b"\xff" * 4
_BROADCAST_MAC = b"\xff" * 6
_IP_UDP = 28


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What the link looks like. Addresses are 4 bytes; what is empty is not told."""

    server_ip: bytes
    mask: bytes
    guest_ip: bytes  # whoever comes first gets it
    router: bytes = b""
    dns: tuple[bytes, ...] = ()
    pool: tuple[bytes, ...] = ()  # for further clients
    mtu: int = 0
    lease_seconds: int = 86400
    hostname: str = ""
    fqdn: str = ""
    domain: str = ""
    search: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """A message from ``server_ip`` port 67 to ``dst_ip`` port 68; ``dst_mac`` saves an ARP that could not succeed."""

    message: bytes
    dst_ip: bytes
    dst_mac: bytes

    @property
    def broadcast(self) -> bool:
        """True if it goes to 255.255.255.255."""
        return self.dst_ip == _BROADCAST_IP


class Server:
    """Answers clients. Holds leases, no clock."""

    def __init__(self, config: Config) -> None:
        self.config = config
        ours = (config.server_ip, config.router, *config.dns)
        self._leases = Leases(a for a in (config.guest_ip, *config.pool) if a not in ours)
        self._parameters = _parameters(config)

    def answer(self, message: bytes | memoryview, src_mac: bytes, now: float) -> Reply | None:
        """The reply to what came from ``src_mac`` to port 67, None where there is none."""
        m = dhcpv4.parse(message)
        if m is None or m.op != dhcpv4.BOOTREQUEST or m.giaddr != _ANY:
            return None
        kind = m.options.get(dhcpv4.MESSAGE_TYPE, b"")
        server = m.options.get(dhcpv4.SERVER_IDENTIFIER, b"")
        chosen = server in (b"", self.config.server_ip)
        hardware = bytes((m.htype,)) + m.chaddr if m.chaddr else bytes((dhcpv4.ETHERNET,)) + src_mac
        client = Client(m.options.get(dhcpv4.CLIENT_IDENTIFIER) or hardware, hardware)
        mac = m.chaddr if m.htype == dhcpv4.ETHERNET and len(m.chaddr) == 6 else src_mac
        if kind == bytes((dhcpv4.DISCOVER,)):
            return self._discover(m, client, mac, now)
        if kind == bytes((dhcpv4.REQUEST,)):
            if chosen:
                return self._request(m, client, mac, now)
            self._leases.release(client)  # it took another server's offer (RFC 2131 §4.3.2)
        elif kind == bytes((dhcpv4.DECLINE,)):
            if chosen and m.options.get(dhcpv4.REQUESTED_ADDRESS) == self._leases.held(client):
                self._leases.decline(client, now + DECLINE_SECONDS)
        elif kind == bytes((dhcpv4.RELEASE,)):
            if chosen and m.ciaddr == self._leases.held(client):
                self._leases.release(client)
        elif kind == bytes((dhcpv4.INFORM,)):
            return self._inform(m, mac)
        return None

    def _discover(self, m: dhcpv4.Message, client: Client, mac: bytes, now: float) -> Reply | None:
        wanted = m.options.get(dhcpv4.REQUESTED_ADDRESS, b"")
        address = self._leases.offer(client, wanted, now, now + OFFER_SECONDS)
        if address is None:
            return None
        seconds = self._lease_seconds(m)
        if dhcpv4.RAPID_COMMIT not in m.options:
            return self._bound(m, dhcpv4.OFFER, address, mac, seconds)
        self._leases.grant(client, address, now, now + seconds)  # RFC 4039 §3.1
        return self._bound(m, dhcpv4.ACK, address, mac, seconds, {dhcpv4.RAPID_COMMIT: b""})

    def _request(self, m: dhcpv4.Message, client: Client, mac: bytes, now: float) -> Reply | None:
        """SELECTING and INIT-REBOOT name the address in option 50, RENEWING and REBINDING in ciaddr (§4.3.2)."""
        address = m.options.get(dhcpv4.REQUESTED_ADDRESS) or m.ciaddr
        if address == _ANY:
            return None
        seconds = self._lease_seconds(m)
        if self._leases.grant(client, address, now, now + seconds):
            return self._bound(m, dhcpv4.ACK, address, mac, seconds)
        options = {dhcpv4.MESSAGE: b"address not available"}
        return self._reply(m, dhcpv4.NAK, options, _BROADCAST_IP, mac)

    def _inform(self, m: dhcpv4.Message, mac: bytes) -> Reply | None:
        """RFC 2131 §4.3.5: no lease, no yiaddr. Who left its address out gets a broadcast."""
        if m.ciaddr == _ANY:
            return self._reply(m, dhcpv4.ACK, self._asked_for(m), _BROADCAST_IP, mac)
        if not self._on_link(m.ciaddr):
            return None
        return self._reply(m, dhcpv4.ACK, self._asked_for(m), m.ciaddr, mac)

    def _bound(
        self,
        m: dhcpv4.Message,
        kind: int,
        address: bytes,
        mac: bytes,
        seconds: int,
        more: dict[int, bytes] | None = None,
    ) -> Reply:
        """An OFFER or ACK of ``address``, sent where RFC 2131 §4.1 says."""
        options = {
            dhcpv4.LEASE_TIME: seconds.to_bytes(4, "big"),
            dhcpv4.RENEWAL_TIME: (seconds // 2).to_bytes(4, "big"),  # RFC 2131 §4.4.5
            dhcpv4.REBINDING_TIME: (seconds * 7 // 8).to_bytes(4, "big"),
            **(more or {}),
            **self._asked_for(m),
        }
        broadcast = m.ciaddr != address and m.flags & dhcpv4.BROADCAST
        return self._reply(m, kind, options, _BROADCAST_IP if broadcast else address, mac, address)

    def _reply(
        self, m: dhcpv4.Message, kind: int, options: dict[int, bytes], dst: bytes, mac: bytes, yiaddr: bytes = _ANY
    ) -> Reply:
        """The header by RFC 2131 §4.3.1, table 3; of the options as many as the client takes (§2, option 57)."""
        config = self.config
        always = {dhcpv4.MESSAGE_TYPE: bytes((kind,)), dhcpv4.SERVER_IDENTIFIER: config.server_ip}
        if m.options.get(dhcpv4.CLIENT_IDENTIFIER):
            always[dhcpv4.CLIENT_IDENTIFIER] = m.options[dhcpv4.CLIENT_IDENTIFIER]  # RFC 6842 §3
        datagram = max(MIN_DATAGRAM, int.from_bytes(m.options.get(dhcpv4.MAX_MESSAGE_SIZE, b"")[:2], "big"))
        if config.mtu:
            datagram = min(datagram, config.mtu)
        room = max(dhcpv4.MIN_SIZE, datagram - _IP_UDP) - dhcpv4.SIZE - 1
        fitting = {}
        for code, value in (always | options).items():
            size = len(dhcpv4.option(code, value))
            if size <= room:
                fitting[code] = value
                room -= size
        message = dhcpv4.Message(
            op=dhcpv4.BOOTREPLY,
            htype=m.htype,
            xid=m.xid,
            flags=m.flags,
            ciaddr=_ANY if kind in (dhcpv4.OFFER, dhcpv4.NAK) else m.ciaddr,
            yiaddr=yiaddr,
            chaddr=m.chaddr,
            options=fitting,
        )
        return Reply(dhcpv4.build(message), dst, _BROADCAST_MAC if dst == _BROADCAST_IP else mac)

    def _asked_for(self, m: dhcpv4.Message) -> dict[int, bytes]:
        """The parameters in the client's order, the mask first (RFC 2132 §3.3, §9.8); all where it has no list."""
        codes = m.options.get(dhcpv4.PARAMETER_REQUEST_LIST)
        if codes is None:
            return self._parameters
        order = sorted(dict.fromkeys(codes), key=lambda code: code != dhcpv4.SUBNET_MASK)
        return {code: self._parameters[code] for code in order if code in self._parameters}

    def _lease_seconds(self, m: dhcpv4.Message) -> int:
        asked = m.options.get(dhcpv4.LEASE_TIME, b"")
        if len(asked) != 4:
            return self.config.lease_seconds
        return min(max(int.from_bytes(asked, "big"), MIN_LEASE_SECONDS), self.config.lease_seconds)

    def _on_link(self, address: bytes) -> bool:
        return _network(address, self.config.mask) == _network(self.config.server_ip, self.config.mask)


def _network(address: bytes, mask: bytes) -> int:
    return int.from_bytes(address, "big") & int.from_bytes(mask, "big")


def _parameters(config: Config) -> dict[int, bytes]:
    """Everything that may be told, the more important first, since what comes last may find no room."""
    routes = b""
    if config.router:
        if _network(config.router, config.mask) != _network(config.guest_ip, config.mask):
            routes = b"\x20" + config.router + _ANY  # RFC 3442: a router off the subnet, reached on the link itself
        routes += b"\x00" + config.router  # its default route, for option 3 will not be looked at
    parameters = {
        dhcpv4.SUBNET_MASK: config.mask,
        dhcpv4.ROUTER: config.router,
        dhcpv4.CLASSLESS_ROUTE: routes,
        dhcpv4.DOMAIN_NAME_SERVER: b"".join(config.dns),
        dhcpv4.INTERFACE_MTU: config.mtu.to_bytes(2, "big") if config.mtu else b"",
        dhcpv4.HOST_NAME: _text(config.hostname),
        dhcpv4.DOMAIN_NAME: _text(config.domain),
        dhcpv4.CLIENT_FQDN: _fqdn(config.fqdn),
        dhcpv4.DOMAIN_SEARCH: dhcpv4.domain_list(config.search),
    }
    return {code: value for code, value in parameters.items() if value}


def _fqdn(name: str) -> bytes:
    """RFC 4702 §2: the name in DNS form (the E bit), no update of ours (the N bit), two result codes of no meaning."""
    encoded = dhcpv4.domain_list((name,)) if name else b""
    return b"\x0c\xff\xff" + encoded if encoded else b""


def _text(text: str) -> bytes:
    return text.encode() if text.isascii() and len(text) < 256 else b""
