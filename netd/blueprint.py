"""What a NetworkSpec means to each room: the stack's addresses, the agent's plan, the sockets' source, DHCP's answers.

Pure. This is where literals become bytes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from netd.netns.plan import TapPlan
from netd.relay.source import Source
from netd.services import dhcpv4, dhcpv6
from netd.services.gateway import Gateway
from netd.specs import NetworkSpec
from netd.stack.addressing import Addressing
from netd.wire.ipv6 import MTU_MIN, interface_identifier

DHCP_POOL = range(15, 31)  # offsets in the network, as slirp4netns'


def addressing_of(spec: NetworkSpec, guest_mac: bytes) -> Addressing:
    """The addresses of ``spec`` as bytes; without a MAC of its own the gateway has slirp4netns' (52:55 and the IPv4
    octets)."""
    four = bool(spec.guest_ip)
    six = bool(spec.cidr6) and spec.mtu >= MTU_MIN  # RFC 8200 §5: no IPv6 on a smaller link
    network = ipaddress.IPv4Network(spec.cidr if four else "0.0.0.0/32")
    network6 = ipaddress.IPv6Network(spec.cidr6 or "::/128")
    gateway = _packed(spec.gateway_ip) if four else b""
    gateway6 = _packed(spec.gateway_ip6) if six else b""
    dns_ip = _packed(spec.dns_ip) if four else b""
    guest = _packed(spec.guest_ip)
    guest6 = _packed(spec.guest_ip6) or network6.network_address.packed[:8] + interface_identifier(guest_mac)
    loopback, loopback6 = _packed(spec.host_loopback_ip), _packed(spec.host_loopback_ip6)
    if spec.allow_host_loopback and not spec.host_like:
        loopback, loopback6 = gateway, gateway6
    gateway_mac = bytes.fromhex(spec.gateway_mac.replace(":", "")) or b"\x52\x55" + (gateway or b"\x0a\x00\x02\x02")
    own = [ipaddress.ip_interface(text).ip.packed for text in spec.addresses]
    rdnss = [ip for ip in map(_packed, spec.dhcp_dns or ()) if len(ip) == 16]
    return Addressing(
        guest=guest,
        gateway=gateway,
        dns=dns_ip,
        network=int(network.network_address),
        mask=int(network.netmask),
        gateway_mac=gateway_mac,
        dns_mac=gateway_mac if spec.host_like else b"\x52\x55" + (dns_ip or gateway_mac[2:]),
        guest_mac=guest_mac,
        guest6=guest6 if six else b"",
        gateway6=gateway6,
        dns6=_packed(spec.dns_ip6) if six else b"",
        router6=_packed(spec.router_ip6) if six else b"",
        network6=int(network6.network_address),
        mask6=int(network6.netmask),
        loopback=loopback if four else b"",
        loopback6=loopback6 if six else b"",
        host_like=spec.host_like,
        more_dns=tuple(map(_packed, spec.more_dns_ips)) if spec.host_like else (),
        mapped=tuple(map(_packed, spec.host_ips)) if spec.host_like else (),
        own=frozenset((guest, guest6, *own)) - {b""} if spec.host_like else frozenset(),
        rdnss=rdnss[0] if rdnss else b"",
        advertise_dns=spec.dhcp_dns is None,
    )


def gateway_of(spec: NetworkSpec, addressing: Addressing, search: Sequence[str]) -> Gateway:
    """The DHCP servers of a network: the guest's address for whoever comes first, slirp4netns' pool for the others.

    ``search``: the host's, for a spec that says nothing of it.
    """
    if spec.dhcp_search is not None:
        search = spec.dhcp_search
    dns = [addressing.dns, addressing.dns6] if spec.dhcp_dns is None else [_packed(text) for text in spec.dhcp_dns]
    pool = (addressing.network + offset for offset in DHCP_POOL)
    v4 = dhcpv4.Config(
        server_ip=addressing.gateway,
        mask=addressing.mask.to_bytes(4, "big"),
        guest_ip=addressing.guest,
        router=addressing.gateway,
        dns=tuple(ip for ip in dns if len(ip) == 4),
        pool=tuple(ip for number in pool if addressing.private(ip := number.to_bytes(4, "big"))),
        mtu=spec.mtu,
        hostname=spec.hostname,
        fqdn=spec.fqdn,
        domain=search[0] if search else "",
        search=tuple(search),
    )
    v6 = dhcpv6.Config(
        server_mac=addressing.gateway_mac,
        guest_ip=addressing.guest6,
        prefix_length=addressing.mask6.bit_count(),
        dns=tuple(ip for ip in dns if len(ip) == 16),
        search=tuple(search),
        fqdn=spec.fqdn,
    )
    return Gateway(
        v4 if addressing.guest and "dhcp" not in spec.without else None,
        v6 if addressing.guest6 and "dhcpv6" not in spec.without else None,
    )


def plan_of(spec: NetworkSpec, offload: bool) -> TapPlan:
    """What the agent is to set up in the namespace."""
    address = address6 = ""
    if spec.guest_ip and not spec.host_like:
        address = f"{spec.guest_ip}/{ipaddress.IPv4Network(spec.cidr).prefixlen}"
    if spec.cidr6 and not spec.host_like:
        network6 = ipaddress.IPv6Network(spec.cidr6)
        address6 = f"{spec.guest_ip6}/{network6.prefixlen}" if spec.guest_ip6 else spec.cidr6
    return TapPlan(
        ifname=spec.ifname,
        mtu=spec.mtu,
        mac=spec.mac,
        configure=spec.configure,
        address=address,
        gateway=spec.gateway_ip if address else "",
        address6=address6,
        gateway6=spec.router_ip6 if address6 else "",
        offload=offload,
        uso=offload,
        lo=spec.host_like,
        addresses=spec.addresses,
        routes=spec.routes,
    )


def source_of(spec: NetworkSpec) -> Source:
    """Where the host's sockets set out from."""
    return Source(spec.outbound_ip, spec.outbound_ip6, spec.outbound_interface, spec.outbound_interface6, spec.zone)


def _packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed if text else b""
