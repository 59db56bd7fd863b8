"""From a command line and the host's network to what is to be attached. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from netd.dialects.pasta.grammar import Invocation
from netd.dialects.pasta.template import Family, Wish, family, interface_name, network_of
from netd.netns.plan import HostView
from netd.specs import NetworkSpec

GATEWAY_MAC = "9a:55:9a:55:9a:55"


def network_spec_of(
    call: Invocation, view: HostView, host_servers: Sequence[str], host_search: Sequence[str]
) -> NetworkSpec:
    """The guest's network. NoSuchInterface. ``host_servers`` and ``host_search``: of the host's resolv.conf."""
    four = family(view, 4, _wish(call, 4)) if call.ipv4 else None
    six = family(view, 6, _wish(call, 6)) if call.ipv6 else None
    example = (four.interface if four else "") or (six.interface if six else "")
    families = [f for f in (four, six) if f is not None]
    forward4, forward6 = next(iter(call.dns_forward4), ""), next(iter(call.dns_forward6), "")
    dns = call.dns
    if dns is None:  # a name server on the host's loopback is reached by the address that is forwarded
        forwarded = tuple(filter(None, (forward4, forward6)))
        dns = forwarded or tuple(server for server in host_servers if not server.startswith(("127.", "::1")))
    search = tuple(host_search) if call.search is None else call.search
    return NetworkSpec(
        origin="pasta",
        ifname=call.ifname or interface_name(view, example),
        configure=call.config_net and not call.splice_only,
        mtu=max(call.mtu, LEAST_MTU) if call.mtu else DEFAULT_LINK_MTU,
        mac=call.ns_mac,
        cidr=network_of(four) if four else "",
        guest_ip=four.address if four else "",
        gateway_ip=four.gateway if four else "",
        dns_ip=forward4 if four else "",
        outbound_ip=call.outbound4,
        cidr6=network_of(six) if six else "",
        guest_ip6=six.address if six else "",
        gateway_ip6=six.gateway if six else "",
        dns_ip6=forward6 if six else "",
        router_ip6=six.gateway if six and _is_link_local(six.gateway) else "fe80::1",
        outbound_ip6=call.outbound6,
        outbound_interface=call.outbound_if4,
        outbound_interface6=call.outbound_if6,
        zone=call.outbound_if6 or (six.interface if six else ""),
        host_like=True,
        host_loopback_ip=_loopback(four, call.map_host_loopback4),
        host_loopback_ip6=_loopback(six, call.map_host_loopback6),
        more_dns_ips=(*call.dns_forward4[1:], *call.dns_forward6[1:]),
        host_ips=call.map_guest,
        gateway_mac=call.mac or GATEWAY_MAC,
        addresses=tuple(address for f in families for address in f.addresses),
        routes=tuple(route for f in families for route in f.routes),
        dns_hosts=tuple(filter(None, (call.dns_host4, call.dns_host6))),
        dhcp_dns=dns if call.dhcp_dns else (),
        dhcp_search=search if call.dhcp_search else (),
        hostname=call.hostname,
        fqdn=call.fqdn,
        without=call.without,
        splice=not call.no_splice,
        host_lo_to_ns_lo=call.host_lo_to_ns_lo,
    )


LEAST_MTU = 68  # of IPv4 (RFC 791); pasta only warns of a smaller one, the kernel refuses it
DEFAULT_LINK_MTU = 1500  # of Ethernet, where --mtu 0 leaves the device as it is


def _wish(call: Invocation, version: int) -> Wish:
    if version == 4:
        address, prefix, gateway, outbound = call.address4, call.prefix4 or 0, call.gateway4, call.outbound_if4
    else:
        address, prefix, gateway, outbound = call.address6, 0, call.gateway6, call.outbound_if6
    return Wish(
        interface=call.interface,
        outbound=outbound,
        address=address,
        prefix=prefix,
        gateway=gateway,
        copy_addresses=not call.no_copy_addrs,
        copy_routes=not call.no_copy_routes,
    )


def _loopback(found: Family | None, mapped: str | None) -> str:
    """What stands for the host's loopback: what the command line says, "" there for none, else the gateway."""
    if found is None:
        return ""
    return found.gateway if mapped is None else mapped


def _is_link_local(text: str) -> bool:
    return text.lower().startswith(("fe8", "fe9", "fea", "feb"))
