"""From a command line and a host to what is attached: every option that has a say in it."""

from __future__ import annotations

from typing import Any

import pytest

from netd.blueprint import addressing_of
from netd.dialects.pasta.grammar import Invocation, parse
from netd.dialects.pasta.layout import network_spec_of
from netd.netns.plan import HostInterface, HostRoute, HostView
from netd.specs import NetworkSpec

ETH = HostInterface(2, "eth0", 1500, "02:00:00:00:00:02", True, False, ("192.0.2.7/24", "2001:db8::7/64", "fe80::2/64"))
WIFI = HostInterface(3, "wlan0", 1500, "02:00:00:00:00:03", True, False, ("198.51.100.4/28",))
HOST = HostView(
    (ETH, WIFI),
    (
        HostRoute("0.0.0.0/0", 2, "192.0.2.1"),
        HostRoute("0.0.0.0/0", 3, "198.51.100.1", 600),
        HostRoute("192.0.2.0/24", 2),
        HostRoute("::/0", 2, "fe80::1", 1024),
    ),
)
NOWHERE = HostView((), ())


def spec_of(line: str, view: HostView = HOST) -> NetworkSpec:
    call = parse("pasta", [*line.split(), "42"], range(32768, 61000))
    assert isinstance(call, Invocation), call
    return network_spec_of(call, view, ["127.0.0.53", "198.51.100.53", "2001:db8::53"], ["host.example"])


BOTH: dict[str, Any] = {"cidr": "192.0.2.0/24", "guest_ip": "192.0.2.7", "cidr6": "2001:db8::/64",
                        "guest_ip6": "2001:db8::7", "gateway_ip": "192.0.2.1", "gateway_ip6": "fe80::1"}  # fmt: skip


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("", {**BOTH, "ifname": "eth0", "mtu": 65520, "configure": False, "host_like": True, "origin": "pasta",
              "host_loopback_ip": "192.0.2.1", "host_loopback_ip6": "fe80::1", "gateway_mac": "9a:55:9a:55:9a:55",
              "router_ip6": "fe80::1", "zone": "eth0", "dhcp_dns": (), "dhcp_search": (), "without": ()}),
        ("--config-net", {"configure": True, "without": ("ra",), "addresses": ("192.0.2.7/24", "2001:db8::7/64"),
                          "routes": ("0.0.0.0/0 via 192.0.2.1", "::/0 via fe80::1 metric 1024")}),
        ("-4", {"guest_ip": "192.0.2.7", "cidr6": "", "gateway_ip6": "", "addresses": ("192.0.2.7/24",)}),
        ("-6", {"guest_ip": "", "cidr": "", "gateway_ip": "", "cidr6": "2001:db8::/64"}),
        ("-4 -6", {"guest_ip": "", "cidr6": "2001:db8::/64"}),
        ("-a 10.0.2.100 -n 24 -g 10.0.2.2", {"guest_ip": "10.0.2.100", "cidr": "10.0.2.0/24",
                                            "gateway_ip": "10.0.2.2", "guest_ip6": "2001:db8::7"}),
        ("-a 10.1.2.3/16", {"guest_ip": "10.1.2.3", "cidr": "10.1.0.0/16", "gateway_ip": "192.0.2.1"}),
        ("-a fc00::3 -g fc00::1", {"guest_ip6": "fc00::3", "gateway_ip6": "fc00::1", "cidr6": "fc00::/64",
                                   "router_ip6": "fe80::1", "guest_ip": "192.0.2.7"}),
        ("-i wlan0", {"guest_ip": "198.51.100.4", "ifname": "wlan0", "gateway_ip": "198.51.100.1"}),
        ("--outbound-if4 wlan0", {"outbound_interface": "wlan0", "guest_ip": "198.51.100.4", "outbound_interface6": ""}),
        ("-o 192.0.2.7 -o 2001:db8::7", {"outbound_ip": "192.0.2.7", "outbound_ip6": "2001:db8::7"}),
        ("-I net0 --ns-mac-addr 02:00:00:00:00:09 -M 02:00:00:00:00:08",
         {"ifname": "net0", "mac": "02:00:00:00:00:09", "gateway_mac": "02:00:00:00:00:08"}),
        ("-m 1400", {"mtu": 1400}),
        ("-m 0", {"mtu": 1500}),
        ("-m 10", {"mtu": 68}),
        ("--no-map-gw", {"host_loopback_ip": "", "host_loopback_ip6": ""}),
        ("--map-host-loopback 169.254.9.9", {"host_loopback_ip": "169.254.9.9", "host_loopback_ip6": "fe80::1"}),
        ("--map-host-loopback none", {"host_loopback_ip": "", "host_loopback_ip6": ""}),
        ("--map-guest-addr 169.254.1.2 --map-guest-addr fc00::2", {"host_ips": ("169.254.1.2", "fc00::2")}),
        ("--dns-forward 169.254.1.1", {"dns_ip": "169.254.1.1", "dns_ip6": ""}),
        ("--dns-forward 169.254.1.1 --dns-forward 169.254.1.9 --dns-forward fd00::53",
         {"dns_ip": "169.254.1.1", "dns_ip6": "fd00::53", "more_dns_ips": ("169.254.1.9",)}),
        ("--dns-host 9.9.9.9", {"dns_hosts": ("9.9.9.9",)}),
        ("--dhcp-dns", {"dhcp_dns": ("198.51.100.53", "2001:db8::53")}),
        ("--dhcp-dns --dns-forward 169.254.1.1", {"dhcp_dns": ("169.254.1.1",)}),
        ("--dhcp-dns -D 9.9.9.9 -D fd00::9", {"dhcp_dns": ("9.9.9.9", "fd00::9")}),
        ("--dhcp-dns -D none", {"dhcp_dns": ()}),
        ("--dhcp-search", {"dhcp_search": ("host.example",)}),
        ("--dhcp-search -S a.example -S b.example", {"dhcp_search": ("a.example", "b.example")}),
        ("-H box --fqdn box.example", {"hostname": "box", "fqdn": "box.example"}),
        ("--no-icmp --no-dhcp --no-dhcpv6", {"without": ("icmp", "dhcp", "dhcpv6", "ndp")}),
        ("--host-lo-to-ns-lo", {"host_lo_to_ns_lo": True}),
        ("--splice-only --config-net", {"configure": False, "host_lo_to_ns_lo": True}),
    ],
)  # fmt: skip
def test_an_option_has_its_say(line: str, fields: dict[str, Any]) -> None:
    spec = spec_of(line)
    assert {name: getattr(spec, name) for name in fields} == fields


def test_a_host_without_a_network() -> None:
    spec = spec_of("--config-net", NOWHERE)
    assert (spec.ifname, spec.guest_ip, spec.gateway_ip) == ("tap0", "169.254.2.1", "169.254.2.2")
    assert (spec.guest_ip6, spec.cidr6, spec.gateway_ip6) == ("", "fe80::/64", "fe80::1")
    assert spec.addresses == ("169.254.2.1/16",)
    assert spec.routes == ("0.0.0.0/0 via 169.254.2.2", "::/0 via fe80::1")
    addressing = addressing_of(spec, bytes.fromhex("020000000009"))
    assert addressing.guest6.hex() == "fe800000000000000000" + "00fffe000009"


def test_what_the_stack_is_told() -> None:
    spec = spec_of("--no-map-gw --map-guest-addr 169.254.1.2 --dns-forward 169.254.1.1 --dns-forward 169.254.1.9")
    addressing = addressing_of(spec, bytes(6))
    assert addressing.host_like and not addressing.loopback and not addressing.loopback6
    assert addressing.dns == bytes((169, 254, 1, 1)) and addressing.more_dns == (bytes((169, 254, 1, 9)),)
    assert addressing.mapped == (bytes((169, 254, 1, 2)),) and len(addressing.own) == 2
    assert addressing_of(spec_of("-6"), bytes(6)).guest == addressing_of(spec_of("-6"), bytes(6)).gateway == b""
    assert addressing_of(spec_of("-m 1000"), bytes(6)).gateway6 == b"", "RFC 8200 §5"
