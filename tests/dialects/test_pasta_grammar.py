"""pasta's command line: every option with valid arguments, without one, and with malformed ones."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import netd
from netd.dialects.outcome import Outcome
from netd.dialects.pasta import texts
from netd.dialects.pasta.grammar import Invocation, class_prefix, parse
from netd.dialects.pasta.options import OPTIONS
from netd.dialects.pasta.portspec import PortRule, PortSpec, parse_ports

ME = "/usr/bin/pasta"
PLUGIN = Path(__file__).parents[2] / "plugin"
EPHEMERAL = range(32768, 61000)
PORTS = {"tcp_ports": "t", "udp_ports": "u", "tcp_ns": "T", "udp_ns": "U"}
NOT_FOR_PASTA = {
    *("socket", "fd", "one-off", "no-dhcp-dns", "no-dhcp-search", "vhost-user", "print-capabilities", "repair-path"),
    *("migrate-exit", "migrate-no-linger"),
}


def ports(option: str, *texts_: str) -> tuple[PortSpec, ...]:
    return tuple(parse_ports(text, option, EPHEMERAL) for text in texts_)


DEFAULTS: dict[str, Any] = {
    "command": None,
    "pid": 42,
    "netns": "",
    "userns": "",
    "netns_only": False,
    "no_netns_quit": False,
    "ipv4": True,
    "ipv6": True,
    "ifname": "",
    "mtu": 65520,
    "mac": "",
    "ns_mac": "",
    "address4": "",
    "prefix4": None,
    "address6": "",
    "gateway4": "",
    "gateway6": "",
    "interface": "",
    "outbound4": "",
    "outbound6": "",
    "outbound_if4": "",
    "outbound_if6": "",
    "dns": None,
    "dns_forward4": (),
    "dns_forward6": (),
    "dns_host4": "",
    "dns_host6": "",
    "search": None,
    "dhcp_dns": False,
    "dhcp_search": False,
    "hostname": "",
    "fqdn": "",
    "without": (),
    "freebind": False,
    "map_host_loopback4": None,
    "map_host_loopback6": None,
    "map_guest": (),
    "config_net": False,
    "no_copy_routes": False,
    "no_copy_addrs": False,
    "host_lo_to_ns_lo": False,
    "no_splice": False,
    "splice_only": False,
    **{name: ports(option, "auto") for name, option in PORTS.items()},
    "foreground": False,
    "debug": False,
    "trace": False,
    "quiet": False,
    "stats": 0,
    "log_file": "",
    "log_size": 1048576,
    "pid_file": "",
    "pcap": "",
    "conf_path": "",
    "runas": "",
    "no_pidns": False,
    "chroot_fallback": False,
    "warnings": "",
}
STDERR = "--stderr will be dropped soon\n"
NO_ROUTES = "--no-copy-routes will be dropped soon\n"
NO_ADDRS = "--no-copy-addrs will be dropped soon\n"


def small_mtu(mtu: int, *families: str) -> str:
    return "".join(f"MTU {mtu} is too small for {f} (minimum {68 if f == 'IPv4' else 1280})\n" for f in families)


def run(words: str) -> Invocation | Outcome:
    return parse(ME, shlex.split(words), EPHEMERAL)


def changed(call: Invocation) -> dict[str, Any]:
    """What is not the default; -4 and -6 make a narrower "auto" of that."""
    found = {f.name: getattr(call, f.name) for f in fields(call) if getattr(call, f.name) != DEFAULTS[f.name]}
    return {
        name: value for name, value in found.items() if name not in PORTS or [spec.text for spec in value] != ["auto"]
    }


# Each with the target 42 after it.
VALID: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    # what is said
    ("-d", {"debug": True}),
    ("--debug", {"debug": True}),
    ("--trace", {"debug": True, "trace": True}),
    ("-q", {"quiet": True}),
    ("--quiet", {"quiet": True}),
    ("-dq", {"quiet": True}),
    ("-qd", {"debug": True}),
    ("--trace -q", {"quiet": True}),
    ("-q --trace", {"debug": True, "trace": True}),
    ("-f", {"foreground": True}),
    ("--foreground", {"foreground": True}),
    ("-f --stats 5", {"foreground": True, "stats": 5}),
    ("-f --stats=0", {"foreground": True}),
    ("-f --stats x", {"foreground": True}),
    ("-f --stats 5 --stats 7", {"foreground": True, "stats": 7}),
    ("-e", {"warnings": STDERR}),
    ("--stderr -q", {"quiet": True, "warnings": STDERR}),
    ("-l /tmp/log", {"log_file": "/tmp/log"}),
    ("--log-file=log", {"log_file": "log"}),
    ("-l a -l b", {"log_file": "b"}),
    ("--log-size 40960", {"log_size": 40960}),
    ("--log-size 0xa000", {"log_size": 40960}),
    ("--log-size=99999999999", {"log_size": 99999999999}),
    ("-p /tmp/cap", {"pcap": "/tmp/cap"}),
    ("--pcap=-", {"pcap": "-"}),
    ("-P /tmp/pid", {"pid_file": "/tmp/pid"}),
    ("--pid /tmp/pid", {"pid_file": "/tmp/pid"}),
    ("-c /run/p.sock", {"conf_path": "/run/p.sock"}),
    ("--conf-path=none", {"conf_path": "none"}),
    ("-c " + "p" * 107, {"conf_path": "p" * 107}),
    ("--runas nobody", {"runas": "nobody"}),
    ("--runas=65534:65534", {"runas": "65534:65534"}),
    ("--chroot-fallback", {"chroot_fallback": True}),
    # the interface
    ("-I tap0", {"ifname": "tap0"}),
    ("--ns-ifname=abcdefghijklmno", {"ifname": "abcdefghijklmno"}),
    ("-I a -I b", {"ifname": "b"}),
    ("-m 1500", {"mtu": 1500}),
    ("--mtu=65521", {"mtu": 65521}),
    ("-m 0x5dc", {"mtu": 1500}),
    ("-m 02734", {"mtu": 1500}),
    ("-m ' +1500'", {"mtu": 1500}),
    ("-m 1300 -m 1400", {"mtu": 1400}),
    ("-m 0", {"mtu": 0, "warnings": small_mtu(0, "IPv4", "IPv6")}),
    ("-m 67", {"mtu": 67, "warnings": small_mtu(67, "IPv4", "IPv6")}),
    ("-m 68", {"mtu": 68, "warnings": small_mtu(68, "IPv6")}),
    ("-m 1279", {"mtu": 1279, "warnings": small_mtu(1279, "IPv6")}),
    ("-m 1280", {"mtu": 1280}),
    ("-M 02:00:00:00:00:01", {"mac": "02:00:00:00:00:01"}),
    ("--mac-addr AA:bb:CC:dd:EE:ff", {"mac": "AA:bb:CC:dd:EE:ff"}),
    ("--ns-mac-addr 02:00:00:00:00:02", {"ns_mac": "02:00:00:00:00:02"}),
    ("-i eth0", {"interface": "eth0"}),
    ("--interface=eth0 -i eth1", {"interface": "eth1"}),
    ("--config-net", {"config_net": True, "without": ("ra",)}),
    ("--config-net --no-copy-routes", {"config_net": True, "without": ("ra",), "no_copy_routes": True, "warnings": NO_ROUTES}),
    ("--no-copy-addrs --config-net", {"config_net": True, "without": ("ra",), "no_copy_addrs": True, "warnings": NO_ADDRS}),
    # addresses
    ("-a 192.0.2.1", {"address4": "192.0.2.1"}),
    ("--address 192.0.2.1/24", {"address4": "192.0.2.1", "prefix4": 24}),
    ("-a 192.0.2.1/024", {"address4": "192.0.2.1", "prefix4": 24}),
    ("-a 192.0.2.1/32", {"address4": "192.0.2.1", "prefix4": 32}),
    ("-a 192.0.2.1/0", {"address4": "192.0.2.1"}),  # as if there were none
    ("-a '192.0.2.1/ +8'", {"address4": "192.0.2.1", "prefix4": 8}),
    ("-a 169.254.1.1", {"address4": "169.254.1.1"}),
    ("-a 2001:DB8::5", {"address6": "2001:db8::5"}),
    ("-a [2001:db8::5]", {"address6": "2001:db8::5"}),
    ("-a 2001:db8::5/48", {"address6": "2001:db8::5"}),  # it is 64
    ("-a 2001:db8::5/128", {"address6": "2001:db8::5"}),
    ("-a fe80::5", {"address6": "fe80::5"}),
    ("-a ::ffff:192.0.2.1", {"address4": "192.0.2.1"}),
    ("-a ::ffff:192.0.2.1/24", {"address4": "192.0.2.1", "prefix4": 24}),
    ("-a ::ffff:192.0.2.1/120", {"address4": "192.0.2.1", "prefix4": 24}),
    ("-a 192.0.2.1 -a 2001:db8::5", {"address4": "192.0.2.1", "address6": "2001:db8::5"}),
    ("-a 192.0.2.1/24 -a 192.0.2.2", {"address4": "192.0.2.2"}),
    ("-a 192.0.2.1/24 -a 192.0.2.2/25", {"address4": "192.0.2.2", "prefix4": 25}),
    ("-n 24", {"prefix4": 24}),
    ("--netmask=255.255.0.0", {"prefix4": 16}),
    ("-n 0x10", {"prefix4": 16}),
    ("-n 32", {"prefix4": 32}),
    ("-n 0", {}),
    ("-n 0.0.0.0", {}),
    ("-n 24 -n 16", {"prefix4": 16}),
    ("-n 24 -a 192.0.2.1", {"address4": "192.0.2.1", "prefix4": 24}),
    ("-a 192.0.2.1 -n 24", {"address4": "192.0.2.1", "prefix4": 24}),
    ("-a 2001:db8::5 -n 24", {"address6": "2001:db8::5", "prefix4": 24}),
    ("-a 192.0.2.1/24 -a 2001:db8::5 -n 8", {"address4": "192.0.2.1", "address6": "2001:db8::5", "prefix4": 8}),
    ("-a 192.0.2.1/24 -a 192.0.2.2 -n 8", {"address4": "192.0.2.2", "prefix4": 8}),
    ("-g 192.0.2.1", {"gateway4": "192.0.2.1"}),
    ("--gateway fe80::1", {"gateway6": "fe80::1"}),
    ("-g 192.0.2.1 -g fe80::1 -g 192.0.2.2", {"gateway4": "192.0.2.2", "gateway6": "fe80::1"}),
    ("-o 192.0.2.1", {"outbound4": "192.0.2.1"}),
    ("--outbound=2001:db8::1 -o 127.0.0.1", {"outbound6": "2001:db8::1", "outbound4": "127.0.0.1"}),
    ("-o 192.0.2.1 -o 192.0.2.2", {"outbound4": "192.0.2.2"}),
    ("--outbound-if4 eth0", {"outbound_if4": "eth0"}),
    ("--outbound-if6=eth0 --outbound-if6 eth1", {"outbound_if6": "eth1"}),
    ("-4", {"ipv6": False}),
    ("--ipv4-only", {"ipv6": False}),
    ("-6", {"ipv4": False}),
    ("--ipv6-only", {"ipv4": False}),
    ("-64", {"ipv6": False}),
    ("-46", {"ipv4": False}),
    ("-4 -m 1279", {"ipv6": False, "mtu": 1279}),
    ("-m 60 -6", {"ipv4": False, "mtu": 60, "warnings": small_mtu(60, "IPv6")}),
    # names
    ("-D 192.0.2.53", {"dns": ("192.0.2.53",)}),
    ("--dns=2001:db8::53 -D 127.0.0.1", {"dns": ("2001:db8::53", "127.0.0.1")}),
    ("-D none", {"dns": ()}),
    ("-D 192.0.2.53 -D none", {"dns": ()}),
    ("-D none -D 192.0.2.53", {"dns": ("192.0.2.53",)}),
    ("-D 0.0.0.0 -D ::", {}),  # no address, no effect
    ("-D ::2 -D 1.0.0.1 -D 1.0.0.2 -D 1.0.0.3 -D 1.0.0.4 -D ::3", {"dns": ("::2", "1.0.0.1", "1.0.0.2", "1.0.0.3", "::3")}),
    ("--dns-forward 192.0.2.53", {"dns_forward4": ("192.0.2.53",)}),
    ("--dns-forward=fe80::53", {"dns_forward6": ("fe80::53",)}),
    ("--dns-forward 1.0.0.1 --dns-forward 1.0.0.2 --dns-forward ::2", {
        "dns_forward4": ("1.0.0.1", "1.0.0.2"), "dns_forward6": ("::2",),
    }),
    ("--dns-host 127.0.0.53", {"dns_host4": "127.0.0.53"}),
    ("--dns-host=::1 --dns-host 1.0.0.1 --dns-host 1.0.0.2", {"dns_host4": "1.0.0.2", "dns_host6": "::1"}),
    ("-S example.org", {"search": ("example.org",)}),
    ("--search=a.example -S b.example.", {"search": ("a.example", "b.example.")}),
    ("-S 'a.example b.example'", {"search": ("a.example", "b.example")}),
    ("-S none", {"search": ()}),
    ("-S none.", {"search": ("none.",)}),
    ("-S a -S none", {"search": ()}),
    ("-S none -S a", {"search": ("a",)}),
    ("-S a -S b -S c -S d -S e -S f", {"search": tuple("abcdef")}),
    ("--dhcp-dns", {"dhcp_dns": True}),
    ("--dhcp-search", {"dhcp_search": True}),
    ("-H box", {"hostname": "box"}),
    ("--hostname=a.b", {"hostname": "a.b"}),
    ("-H ''", {}),
    ("-H " + "h" * 253, {"hostname": "h" * 253}),
    ("--fqdn box.example.org", {"fqdn": "box.example.org"}),
    ("--fqdn=a -H b", {"fqdn": "a", "hostname": "b"}),
    # services
    ("--no-tcp", {"without": ("tcp",), "tcp_ports": (), "tcp_ns": ()}),
    ("--no-udp", {"without": ("udp",), "udp_ports": (), "udp_ns": ()}),
    ("--no-icmp", {"without": ("icmp", "ndp")}),
    ("--no-dhcp", {"without": ("dhcp",)}),
    ("--no-dhcpv6", {"without": ("dhcpv6",)}),
    ("--no-ndp", {"without": ("ndp",)}),
    ("--no-ra", {"without": ("ra",)}),
    ("--no-ra --no-ndp --no-dhcp --no-dhcpv6 --config-net", {"config_net": True, "without": ("dhcp", "dhcpv6", "ndp", "ra")}),
    # ways to the host
    ("--map-host-loopback 192.0.2.9", {"map_host_loopback4": "192.0.2.9"}),
    ("--map-host-loopback=2001:db8::9", {"map_host_loopback6": "2001:db8::9"}),
    ("--map-host-loopback none", {"map_host_loopback4": "", "map_host_loopback6": ""}),
    ("--map-host-loopback 1.0.0.1 --map-host-loopback ::2", {"map_host_loopback4": "1.0.0.1", "map_host_loopback6": "::2"}),
    ("--map-host-loopback 1.0.0.1 --map-host-loopback 1.0.0.2", {"map_host_loopback4": "1.0.0.2"}),
    ("--map-host-loopback 1.0.0.1 --map-host-loopback none", {"map_host_loopback4": "", "map_host_loopback6": ""}),
    ("--map-host-loopback none --map-host-loopback 1.0.0.1", {"map_host_loopback4": "1.0.0.1", "map_host_loopback6": ""}),
    ("--no-map-gw", {"map_host_loopback4": "", "map_host_loopback6": ""}),
    ("--no-map-gw --map-host-loopback ::2", {"map_host_loopback4": "", "map_host_loopback6": "::2"}),
    ("--map-host-loopback ::2 --no-map-gw", {"map_host_loopback4": "", "map_host_loopback6": "::2"}),
    ("--map-guest-addr 169.254.1.2", {"map_guest": ("169.254.1.2",)}),
    ("--map-guest-addr=fc00::2 --map-guest-addr 169.254.1.2", {"map_guest": ("169.254.1.2", "fc00::2")}),
    ("--map-guest-addr 169.254.1.2 --map-guest-addr 169.254.1.3", {"map_guest": ("169.254.1.3",)}),
    ("--map-guest-addr none", {}),
    ("--map-guest-addr 169.254.1.2 --map-guest-addr none", {}),
    ("--map-guest-addr none --map-guest-addr 169.254.1.2", {"map_guest": ("169.254.1.2",)}),
    ("--host-lo-to-ns-lo", {"host_lo_to_ns_lo": True}),
    ("--no-splice", {"no_splice": True}),
    ("--splice-only", {"splice_only": True, "host_lo_to_ns_lo": True, "without": ("icmp", "ndp"), "dns": ()}),
    ("--splice-only --host-lo-to-ns-lo -D 1.0.0.1", {"splice_only": True, "host_lo_to_ns_lo": True, "without": ("icmp", "ndp"), "dns": ()}),
    ("--freebind", {"freebind": True}),
    # ports
    ("-t 22", {"tcp_ports": ports("t", "22")}),
    ("-t22", {"tcp_ports": ports("t", "22")}),
    ("--tcp-ports=22", {"tcp_ports": ports("t", "22")}),
    ("--tcp-p 22", {"tcp_ports": ports("t", "22")}),
    ("-t 22 --tcp-ports 23", {"tcp_ports": ports("t", "22", "23")}),
    ("-t 23 -u 5 -t 22", {"tcp_ports": ports("t", "23", "22"), "udp_ports": ports("u", "5")}),
    ("-t none", {"tcp_ports": ports("t", "none")}),
    ("-t none -t 22", {"tcp_ports": ports("t", "none", "22")}),
    ("-t all", {"tcp_ports": ports("t", "all")}),
    ("-t auto -u auto -T auto -U auto", {}),
    ("-u 53", {"udp_ports": ports("u", "53")}),
    ("--udp-ports=192.0.2.1%eth0/53:54", {"udp_ports": ports("u", "192.0.2.1%eth0/53:54")}),
    ("-T 8080", {"tcp_ns": ports("T", "8080")}),
    ("--tcp-ns=8080-8090,~8085", {"tcp_ns": ports("T", "8080-8090,~8085")}),
    ("-U 53", {"udp_ns": ports("U", "53")}),
    ("--udp-ns none", {"udp_ns": ports("U", "none")}),
    ("-t 22 -u 22 -T 22 -U 22", {name: ports(option, "22") for name, option in PORTS.items()}),
    ("-T 22 -t none", {"tcp_ports": ports("t", "none"), "tcp_ns": ports("T", "22")}),
    ("--no-tcp -t none -T none", {"without": ("tcp",), "tcp_ports": ports("t", "none"), "tcp_ns": ports("T", "none")}),
    # namespaces
    ("--userns /proc/1/ns/user", {"userns": "/proc/1/ns/user"}),
    ("--userns=a --userns b", {"userns": "b"}),
    ("--netns-only", {"netns_only": True}),
    ("--netns-only --userns u", {"userns": "u"}),  # the last one
    ("--userns u --netns-only", {"netns_only": True}),
    ("--no-netns-quit", {"no_netns_quit": True}),
    # getopt_long's
    ("--", {}),
    ("-dfq", {"foreground": True, "quiet": True}),
    ("-fm1500", {"foreground": True, "mtu": 1500}),
    ("--no-dhcpv", {"without": ("dhcpv6",)}),
    ("--dns-f 1.0.0.1", {"dns_forward4": ("1.0.0.1",)}),
    ("-f --stat 5", {"foreground": True, "stats": 5}),
]  # fmt: skip


@pytest.mark.parametrize(("words", "expected"), VALID, ids=[words or "nothing" for words, _ in VALID])
def test_valid(words: str, expected: dict[str, Any]) -> None:
    call = run(words + " 42")
    assert isinstance(call, Invocation), call
    assert changed(call) == expected


TARGETS: list[tuple[str, dict[str, Any]]] = [
    ("", {"command": ()}),
    ("--", {"command": ()}),
    ("true", {"command": ("true",)}),
    ("sh -c 'exit 7'", {"command": ("sh", "-c", "exit 7")}),
    ("-- sh -c x", {"command": ("sh", "-c", "x")}),
    ("true -d --foo", {"command": ("true", "-d", "--foo")}),  # the first word that is no option ends them
    ("true --", {"command": ("true", "--")}),
    ("- -d", {"command": ("-", "-d")}),
    ("''", {"command": ("",)}),
    ("-d true", {"command": ("true",), "debug": True, "quiet": False}),
    ("-q true", {"command": ("true",)}),
    ("--no-pidns true", {"command": ("true",), "no_pidns": True}),
    ("--userns /u true", {"command": ("true",), "userns": "/u"}),
    ("--netns-only true", {"command": ("true",), "netns_only": True}),
    ("42 -d", {"command": ("42", "-d")}),
    ("42 43", {"command": ("42", "43")}),
    ("42x", {"command": ("42x",)}),
    ("0x2a", {"command": ("0x2a",)}),
    ("99999999999999999999999", {"command": ("99999999999999999999999",)}),  # more than a long
    ("9" * 5000, {"command": ("9" * 5000,)}),
    ("\u0664\u0662", {"command": ("\u0664\u0662",)}),
    ("42", {"pid": 42}),
    ("-- 42", {"pid": 42}),
    ("0", {"pid": 0}),
    ("042", {"pid": 42}),
    ("+42", {"pid": 42}),
    ("' 42'", {"pid": 42}),
    ("2147483647", {"pid": 2147483647}),
    ("--netns /proc/42/ns/net", {"netns": "/proc/42/ns/net", "netns_only": True}),
    ("--netns=blue", {"netns": "/run/netns/blue", "netns_only": True}),
    ("--netns ./blue", {"netns": "./blue", "netns_only": True}),
    ("--netns none", {"netns": "/run/netns/none", "netns_only": True}),
    ("--netns ''", {"netns": "/run/netns/", "netns_only": True}),
    ("--netns a --netns b/c", {"netns": "b/c", "netns_only": True}),
    ("--netns a --", {"netns": "/run/netns/a", "netns_only": True}),
    ("--netns a --userns /u", {"netns": "/run/netns/a", "userns": "/u"}),
    ("--userns /u --netns a --netns-only", {"netns": "/run/netns/a", "netns_only": True}),
]


@pytest.mark.parametrize(("words", "expected"), TARGETS)
def test_what_to_attach_to(words: str, expected: dict[str, Any]) -> None:
    """A command stays in the foreground and has nothing said into its output."""
    call = run(words)
    assert isinstance(call, Invocation), call
    forced = {"foreground": True, "quiet": True} if "command" in expected else {}
    expected = {"pid": -1, **forced, **expected}
    assert changed(call) == {key: value for key, value in expected.items() if value != DEFAULTS[key]}


MTU_MAX = "too large (max 65521)"
INVALID: list[tuple[str, str]] = [
    ("--stats 5", "Can't display statistics if not running in foreground"),
    ("--stats x", "Can't display statistics if not running in foreground"),
    ("--stats 5 -f", "Can't display statistics if not running in foreground"),
    ("-l ''", "Couldn't open log file : No such file or directory"),
    *[(f"--log-size '{text}'", f"Invalid --log-size: {text}") for text in ("40959", "0", "x", "", "40960x", "9" * 30, "\u0664" * 5)],
    *[(f"-p '{text}'", f"Invalid pcap path: {text}") for text in ("", "/" + "p" * 4095)],
    *[(f"-P '{text}'", f"Invalid PID file: {text}") for text in ("", "/" + "p" * 4095)],
    *[(f"-c '{text}'", f"Invalid configuration path: {text}") for text in ("", "p" * 108)],
    *[
        (f"-I '{text}'", f"Invalid interface name: {text}")
        for text in ("", "abcdefghijklmnop", "\u00e9" * 8, "a b", "a/b", "a:b", ".", "..")
    ],
    *[(f"-m '{text}'", f"Invalid MTU: {text}") for text in ("", "x", "1500x", "15 00", "0x", "08", "9" * 20, "9" * 5000)],
    *[(f"-m {text}", f"MTU {text} {MTU_MAX}") for text in ("65522", "18446744073709551615")],
    ("-m -1", f"MTU 18446744073709551615 {MTU_MAX}"),
    ("-m 1300 -m x", "Invalid MTU: x"),
    *[
        (f"{option} '{text}'", f"Invalid MAC address: {text}")
        for option in ("-M", "--ns-mac-addr")
        for text in ("", "x", "2:0:0:0:0:1", "02-00-00-00-00-01", "02:00:00:00:00", "02:00:00:00:00:0g", "02:00:00:00:00:01x", "local")
    ],
    *[(f"-i '{text}'", f"Invalid interface name {text}: No such device") for text in ("", "abcdefghijklmnop")],
    ("--no-copy-routes", NO_ROUTES + "--no-copy-routes needs --config-net"),
    ("--no-copy-addrs", NO_ADDRS + "--no-copy-addrs needs --config-net"),
    *[
        (f"-a '{text}'", f"Invalid guest address: {text}")
        for text in (
            *("", "x", "192.0.2", "192.0.2.1.1", "0.0.0.0", "127.0.0.1", "127.0.0.1/8", "224.0.0.1", "255.255.255.255"),
            *("::", "::1", "ff02::1", "::ffff:127.0.0.1", "fe80::1%eth0", "[192.0.2.1", "*", "none", "/24"),
            *("192.0.2.1/", "192.0.2.1/x", "192.0.2.1/24x", "192.0.2.1/0x8", "192.0.2.1/24/24", "[2001:db8::5/64]", "192.0.2.1/" + "9" * 5000),
        )
    ],
    *[
        (f"-a '{text}'", f"Invalid prefix length: {text}")
        for text in ("192.0.2.1/33", "192.0.2.1/33x", "192.0.2.1/-8", "192.0.2.1/255.255.255.0", "2001:db8::5/129")
    ],
    *[
        (f"-n '{text}'", f"Invalid prefix length: {text}")
        for text in ("", "x", "/24", "24x", "33", "-5", "08", "255.0.255.0", "0.0.0.255", "255.255.255.255", "255.255.0", "0255.0.0.0")
    ],
    *[
        (words, "Redundant prefix length specification")
        for words in (
            *("-a 192.0.2.1/24 -n 24", "-n 24 -a 192.0.2.1/24", "-n 24 -a 2001:db8::5/64", "-a 2001:db8::5/64 -n 24"),
            *("-n 0 -a 192.0.2.1/24", "-a 192.0.2.1/0 -n 24", "-a 2001:db8::5 -a 192.0.2.1/24 -n 24"),
        )
    ],
    *[
        (f"-g '{text}'", f"Invalid gateway address: {text}")
        for text in ("", "x", "none", "0.0.0.0", "127.0.0.1", "255.255.255.255", "::", "::1", "[fe80::1]", "192.0.2.1/24", "fe80::1%eth0")
    ],
    *[
        (f"-o '{text}'", f"Invalid or redundant outbound address: {text}")
        for text in ("", "x", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "::1", "ff02::1", "[2001:db8::2]", "::ffff:192.0.2.2")
    ],
    *[
        (f"--outbound-if{family} '{text}'", f"Invalid interface name: {text}")
        for family in (4, 6)
        for text in ("", "abcdefghijklmnop")
    ],
    *[(f"-D '{text}'", f"Cannot use DNS address {text}") for text in ("", "x", "192.0.2", "[::1]", "fe80::1%eth0", "NONE", "1.0.0.1,1.0.0.2")],
    *[
        (f"--dns-forward '{text}'", f"Invalid DNS forwarding address: {text}")
        for text in ("", "x", "none", "0.0.0.0", "127.0.0.1", "255.255.255.255", "::", "::1", "[fe80::53]")
    ],
    *[
        (f"--dns-host '{text}'", f"Invalid host nameserver address: {text}")
        for text in ("", "x", "none", "0.0.0.0", "255.255.255.255", "::", "[::1]")
    ],
    *[
        (f"-S '{text}'", f"Cannot use DNS search domain {text}")
        for text in ("", " ", "a..b", ".", "l" * 64, "a." * 127 + "b", "a b c d e f g")
    ],
    ("-S a -S b -S c -S d -S e -S f -S g", "Cannot use DNS search domain g"),
    ("-H " + "h" * 254, "Invalid hostname: " + "h" * 254),
    *[(f"--fqdn {text}", f"Invalid FQDN: {text}") for text in ("a." * 127, "..", "a..b", "l" * 64)],
    *[
        (f"--map-{what} '{text}'", f"Invalid address to remap to host: {text}")
        for what in ("host-loopback", "guest-addr")
        for text in ("", "x", "0.0.0.0", "127.0.0.1", "224.0.0.1", "::", "::1", "ff02::1", "[fe80::1]", "192.0.2.1/24", "NONE")
    ],
    ("--host-lo-to-ns-lo --no-splice", "--host-lo-to-ns-lo is incompatible with --no-splice"),
    ("--no-splice --splice-only", "--splice-only is incompatible with --no-splice"),
    # ports: the texts are test_pasta_portspec's, the order of the options counts
    ("-t x", "Invalid port specifier 'x'"),
    ("-u 22-", "Invalid port specifier '22-'"),
    ("-T 127.0.0.1/22", "Listening address not allowed for -T 127.0.0.1/22"),
    ("--udp-ns /22", "Listening address not allowed for -U /22"),
    ("-u y -t x", "Invalid port specifier 'y'"),
    ("-U y -t x", "Invalid port specifier 'y'"),
    ("-t 22 -t 22", "Forwarding configuration conflict: TCP [*]:22  =>  22  versus TCP [*]:22  =>  22 \nUnable to add rule TCP [*]:22  =>  22 "),
    ("-T 22 -T 22:23", "Forwarding configuration conflict: TCP [*]%lo:22  =>  23  versus TCP [*]%lo:22  =>  22 \nUnable to add rule TCP [*]%lo:22  =>  23 "),
    ("-4 -t 22 -t 0.0.0.0/22", "Forwarding configuration conflict: TCP [0.0.0.0]:22  =>  22  versus TCP [0.0.0.0]:22  =>  22 \nUnable to add rule TCP [0.0.0.0]:22  =>  22 "),
    ("-t 22 -t none", "-t none conflicts with previous options"),
    ("--tcp-ports 22 --tcp-ports none", "-t none conflicts with previous options"),
    ("-U 22 -U none", "-U none conflicts with previous options"),
    ("-t 22 -6 -t 127.0.0.1/23", "IPv4 forward, but IPv4 not enabled\nUnable to add rule TCP [127.0.0.1]:23  =>  23 "),
    ("-t ::1/23 -4", "IPv6 forward, but IPv6 not enabled\nUnable to add rule TCP [::1]:23  =>  23 "),
    ("-t 22 --no-tcp", "Can't add TCP forwarding rule, TCP not enabled\nUnable to add rule TCP [*]:22  =>  22 "),
    ("--no-udp -U auto", "Can't add UDP forwarding rule, UDP not enabled\nUnable to add rule UDP [*]%lo:1-32767  =>  1-32767  (best effort) (auto-scan)"),
    ("-t " + ",".join(str(2 * i) for i in range(1, 200)) + " -u " + ",".join(str(2 * i) for i in range(1, 58)),
     "Too many rules (maximum 255)\nUnable to add rule UDP [*]:114  =>  114 "),
    # namespaces
    *[(f"--userns '{text}'", f"Invalid userns: {text}") for text in ("", "/" + "p" * 4095)],
    ("--netns " + "p" * 4086, f"Network namespace name/path {'p' * 4086} too long"),
    ("--netns /x", "Both --netns and PID or command given"),  # there is a 42
    ("--no-pidns", "--no-pidns is incompatible with PID or --netns"),
    # for passt
    ("-s /s", "-s is for passt / vhost-user mode only"),
    ("--socket /s", "-s is for passt / vhost-user mode only"),
    ("--socket-path=/s", "-s is for passt / vhost-user mode only"),
    ("-1", "--one-off is for passt mode only"),
    ("--one-off", "--one-off is for passt mode only"),
    ("-F 3", "--fd is for passt mode only"),
    *[(f"--fd '{text}'", f"Invalid --fd: {text}") for text in ("x", "", "-1", "2147483648")],
    ("--no-dhcp-dns", "--no-dhcp-dns is for passt mode only"),
    ("--no-dhcp-search", "--no-dhcp-search is for passt mode only"),
    ("--vhost-user", "--vhost-user is for vhost-user mode only"),
    ("--print-capabilities", "--print-capabilities is for vhost-user mode only"),
    ("--repair-path none", "--repair-path is for vhost-user mode only"),
    ("--migrate-exit", "--migrate-exit is for vhost-user mode only"),
    ("--migrate-no-linger", "--migrate-no-linger is for vhost-user mode only"),
    # what was warned of before, stands before
    ("-e -m x", STDERR + "Invalid MTU: x"),
    ("-m x -e", "Invalid MTU: x"),
    ("-m 60 -t x", small_mtu(60, "IPv4", "IPv6") + "Invalid port specifier 'x'"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), INVALID, ids=[words[:60] for words, _ in INVALID])
def test_invalid(words: str, message: str) -> None:
    assert run(words + " 42") == Outcome(1, "", message + "\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--netns /x true", "Both --netns and PID or command given"),
        ("--netns /x 99999999999", "Both --netns and PID or command given"),
        ("--netns /x --no-pidns", "--no-pidns is incompatible with PID or --netns"),
        ("--netns /x --no-pidns true", "Both --netns and PID or command given"),
        ("2147483648", "Invalid PID 2147483648"),
        ("99999999999", "Invalid PID 99999999999"),
        ("-- -42", "Invalid PID -42"),
        ("--no-pidns 99999999999", "Invalid PID 99999999999"),
    ],
)
def test_nothing_to_attach_to(words: str, message: str) -> None:
    assert run(words) == Outcome(1, "", message + "\n")


# Of two mistakes that only the whole line shows, pasta tells this one, in whatever order they stand.
LAYERS = [
    ("--host-lo-to-ns-lo --no-splice", "--host-lo-to-ns-lo is incompatible with --no-splice"),
    ("--no-copy-routes", "--no-copy-routes needs --config-net"),
    ("--no-copy-addrs", "--no-copy-addrs needs --config-net"),
    ("--splice-only --no-splice", "--splice-only is incompatible with --no-splice"),
    ("-l ''", "Couldn't open log file : No such file or directory"),
    ("-t x", "Invalid port specifier 'x'"),
    ("--netns /x", "Both --netns and PID or command given"),
    ("--no-pidns", "--no-pidns is incompatible with PID or --netns"),
]


@pytest.mark.parametrize("first", range(len(LAYERS)))
@pytest.mark.parametrize("second", range(len(LAYERS)))
def test_which_of_two_mistakes_is_told(first: int, second: int) -> None:
    end = run(f"{LAYERS[first][0]} {LAYERS[second][0]} 42")
    assert isinstance(end, Outcome)
    assert end.stderr.splitlines()[-1] == LAYERS[min(first, second)][1]


def test_a_mistake_in_an_option_comes_before_all_of_them() -> None:
    for words, _ in LAYERS:
        end = run(f"{words} -m x 42")
        assert isinstance(end, Outcome) and end.stderr.endswith("Invalid MTU: x\n")


# --- getopt_long ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", OPTIONS, ids=[option.long for option in OPTIONS])
def test_every_option_with_and_without_an_argument(option: Any) -> None:
    usage = texts.usage(ME)
    if option.argument:
        assert run(f"--{option.long}") == Outcome(
            1, "", f"{ME}: option '--{option.long}' requires an argument\n{usage}"
        )
        if option.short:
            assert run(f"-{option.short}") == Outcome(
                1, "", f"{ME}: option requires an argument -- '{option.short}'\n{usage}"
            )
    else:
        assert run(f"--{option.long}=1 42") == Outcome(
            1, "", f"{ME}: option '--{option.long}' doesn't allow an argument\n{usage}"
        )
    whole = run(f"--{option.long}" + " 1" * option.argument + " 42")
    assert isinstance(whole, Invocation | Outcome)
    assert not (isinstance(whole, Outcome) and "Usage" in whole.stderr)


def test_the_tables_above_have_every_option() -> None:
    def used(table: list[tuple[str, Any]]) -> set[str]:
        words = {word.partition("=")[0] for words, _ in table for word in shlex.split(words)}
        return {
            o.key
            for o in OPTIONS
            if f"--{o.long}" in words or any(w.startswith(f"-{o.short}") for w in words if o.short)
        }

    keys = {option.key for option in OPTIONS}
    with_argument = {option.key for option in OPTIONS if option.argument}
    assert keys - used(VALID + TARGETS) == NOT_FOR_PASTA | {"help", "version"}
    # without an argument there is only "doesn't allow an argument"; any text can be looked up as a user
    assert with_argument - used(INVALID) == {"runas"}
    assert used(INVALID) >= NOT_FOR_PASTA


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--foo", "unrecognized option '--foo'"),
        ("--foo=1 42", "unrecognized option '--foo=1'"),
        ("--map-gw", "unrecognized option '--map-gw'"),  # Podman keeps that to itself
        ("-Z", "invalid option -- 'Z'"),
        ("-dZ", "invalid option -- 'Z'"),
        ("-v", "invalid option -- 'v'"),
        ("--tcp 22", "option '--tcp' is ambiguous; possibilities: '--tcp-ports' '--tcp-ns'"),
        ("--out", "option '--out' is ambiguous; possibilities: '--outbound' '--outbound-if4' '--outbound-if6'"),
        (
            "--m 1",
            "option '--m' is ambiguous; possibilities: '--mtu' '--mac-addr' '--map-host-loopback' '--map-guest-addr' "
            "'--migrate-exit' '--migrate-no-linger'",
        ),
        (
            "--s",
            "option '--s' is ambiguous; possibilities: '--stderr' '--socket' '--search' '--splice-only' "
            "'--socket-path' '--stats'",
        ),
        (
            "--no-d",
            "option '--no-d' is ambiguous; possibilities: '--no-dhcp' '--no-dhcpv6' '--no-dhcp-dns' '--no-dhcp-search'",
        ),
    ],
)
def test_no_such_option(words: str, complaint: str) -> None:
    """Podman up to 6.0 searches the output for one of these, with exit status 1, and tries again without it."""
    assert run(words) == Outcome(1, "", f"{ME}: {complaint}\n{texts.usage(ME)}")


def test_one_family_alone_listens_on_its_own_addresses() -> None:
    for words, address in (("-4", "0.0.0.0"), ("-6", "::"), ("", "")):
        call = run(f"{words} -t 22 -u auto -T 23 42")
        assert isinstance(call, Invocation)
        for specs in (call.tcp_ports, call.udp_ports, call.tcp_ns, call.udp_ns):
            assert {rule.address for spec in specs for rule in spec.rules} == {address}


def test_of_two_spellings_of_one_option_either_will_do() -> None:
    assert run("--soc x 42") == Outcome(1, "", "-s is for passt / vhost-user mode only\n")


# --- help and version ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["-h", "--help", "-dh", "--he", "-h -m x", "-f --help 42", "-h --foo"])
def test_help(words: str) -> None:
    assert run(words) == Outcome(0, texts.usage(ME))


@pytest.mark.parametrize(
    "words", ["--version", "--vers", "--version -m x", "--host-lo-to-ns-lo --version", "-t x --version"]
)
def test_version(words: str) -> None:
    """RootlessKit tries --host-lo-to-ns-lo so, to see whether there is such an option."""
    assert run(words) == Outcome(0, texts.version())


def test_what_is_wrong_before_help_comes_first() -> None:
    assert run("-m x --help") == Outcome(1, "", "Invalid MTU: x\n")
    assert run("--foo --version") == Outcome(1, "", f"{ME}: unrecognized option '--foo'\n{texts.usage(ME)}")
    assert run("-e --version") == Outcome(0, texts.version(), STDERR)


def test_help_has_every_option_as_a_word() -> None:
    """Callers search it for whole words."""
    words = set(texts.usage(ME).replace(",", " ").split())
    for option in OPTIONS:
        assert (f"--{option.long}" in words) is (option.key not in NOT_FOR_PASTA), option.long
        assert not option.short or (f"-{option.short}" in words) is (option.key not in NOT_FOR_PASTA), option.short


def test_version_names_a_date_and_netd() -> None:
    first = texts.version().splitlines()[0]
    assert first == f"pasta 2026_10_02.netd-{netd.__version__}"


def test_the_texts_beside_the_shim_are_these() -> None:
    """To write them again: {argv0} stands for itself in the file."""
    for kind, said in (("help", texts.usage("{argv0}")), ("version", texts.version())):
        path = PLUGIN / f"pasta.{kind}"
        assert path.read_text() == said, f"{path} is out of date"
        assert path.stat().st_mode & 0o111 == 0, "nothing that a search for programs would find"


def test_what_is_said_when_a_port_cannot_be_had() -> None:
    rule = PortRule("tcp", 15201, 15201, 80)
    assert (
        texts.listen_failed(rule, 15201, "Address already in use")
        == "Listen failed for HOST TCP port */15201: Address already in use\n"
    )
    bound = PortRule("udp", 50, 60, 50, "192.0.2.1", "eth0")
    assert (
        texts.listen_failed(bound, 55, "No such device")
        == "Listen failed for HOST UDP port 192.0.2.1%eth0/55: No such device\n"
    )
    inside = parse_ports("all", "T", EPHEMERAL).rules[1]
    assert texts.listen_failed(inside, 61000, "x") == "Listen failed for SPLICE TCP port *%lo/61000: x\n"
    assert texts.all_listens_failed(inside) == "All listens failed for SPLICE TCP *%lo/61000-65535\n"
    assert texts.COULD_NOT_LISTEN == "Couldn't listen on requested ports\n"


# --- real callers --------------------------------------------------------------------------------------------------

NETNS = "/run/user/1000/netns/netns-1b2c"
NONE = {name: ports(option, "none") for name, option in PORTS.items()}
PODMAN: dict[str, Any] = {
    "pid": -1,
    "netns": NETNS,
    "netns_only": True,
    "config_net": True,
    "without": ("ra",),
    "dns_forward4": ("169.254.1.1",),
    "map_host_loopback4": "",
    "map_host_loopback6": "",
    "quiet": True,
    "map_guest": ("169.254.1.2",),
    **NONE,
}
TAIL = f"--dns-forward 169.254.1.1 -t none -u none -T none -U none --no-map-gw --quiet --netns {NETNS} --map-guest-addr 169.254.1.2"
CALLERS: list[tuple[str, str, dict[str, Any]]] = [
    ("Podman 4.4", f"--config-net -t none -u none -T none -U none --no-map-gw --netns {NETNS}",
     PODMAN | {"dns_forward4": (), "quiet": False, "map_guest": ()}),
    ("Podman 5.0", f"--config-net -t none -u none -T none -U none --no-map-gw --dns none --quiet --netns {NETNS}",
     PODMAN | {"dns_forward4": (), "dns": (), "map_guest": ()}),
    ("Podman 5.4", f"--config-net {TAIL}", PODMAN),
    ("Podman 6.1", "--config-net --dns-forward 169.254.1.1 -t none -u none -T none -U none --no-map-gw --quiet "
     f"--map-guest-addr 169.254.1.2 --netns {NETNS}", PODMAN),
    ("podman run -p", "--config-net -t 12345-12345:80-80 -t ::1/6000-6000:6000-6000 -u 127.0.0.1/53-54:153-154 "
     f"--dns-forward 169.254.1.1 -T none -U none --no-map-gw --quiet --netns {NETNS} --map-guest-addr 169.254.1.2",
     PODMAN | {"tcp_ports": ports("t", "12345-12345:80-80", "::1/6000-6000:6000-6000"), "udp_ports": ports("u", "127.0.0.1/53-54:153-154")}),
    ("podman run, options of its own", "--config-net -I myname --ns-mac-addr 9a:dd:31:ea:92:98 -a 192.0.2.9 -g 192.0.2.1 -n 24 -m 1280 "
     f"--tcp-ports [2001:db8::2]%eth0/5000:5001 --dns-forward 198.51.100.1 -u none -T none -U none --no-map-gw --quiet --netns {NETNS}",
     PODMAN | {"ifname": "myname", "ns_mac": "9a:dd:31:ea:92:98", "address4": "192.0.2.9", "prefix4": 24, "gateway4": "192.0.2.1",
               "mtu": 1280, "tcp_ports": ports("t", "[2001:db8::2]%eth0/5000:5001"), "dns_forward4": ("198.51.100.1",), "map_guest": ()}),
    ("rootless-netns 5.4", f"--config-net --pid /run/c/rootless-netns-conn.pid {TAIL}", PODMAN | {"pid_file": "/run/c/rootless-netns-conn.pid"}),
    ("rootless-netns 6.1", "--config-net --pid /run/c/conn.pid -c /run/c/pasta.sock --map-guest-addr 169.254.1.2 --map-guest-addr fc00::2 "
     "--address fc00::3 --gateway fc00::1 --dns-forward 169.254.1.1 -t none -u none -T none -U none --no-map-gw --quiet "
     f"--netns {NETNS}",
     PODMAN | {"pid_file": "/run/c/conn.pid", "conf_path": "/run/c/pasta.sock", "map_guest": ("169.254.1.2", "fc00::2"),
               "address6": "fc00::3", "gateway6": "fc00::1"}),
    ("podman build", "--config-net --dns-forward 169.254.1.1 -t none -u none -T none -U none --no-map-gw --quiet --netns /proc/4711/ns/net "
     "--map-guest-addr 169.254.1.2", PODMAN | {"netns": "/proc/4711/ns/net"}),
    ("Podman's e2e", f"--config-net --trace --log-file /tmp/pasta.log {TAIL.replace('--quiet ', '')}",
     PODMAN | {"quiet": False, "debug": True, "trace": True, "log_file": "/tmp/pasta.log"}),
    ("RootlessKit", "--stderr --ns-ifname=tap0 --mtu=65520 --config-net --address=10.0.2.100 --netmask=24 --gateway=10.0.2.2 "
     "--dns-forward=10.0.2.3 --no-map-gw --ipv4-only --tcp-ports=auto --udp-ports=none --host-lo-to-ns-lo 4711",
     {"pid": 4711, "ifname": "tap0", "config_net": True, "without": ("ra",), "address4": "10.0.2.100", "prefix4": 24,
      "gateway4": "10.0.2.2", "dns_forward4": ("10.0.2.3",), "map_host_loopback4": "", "map_host_loopback6": "", "ipv6": False, "udp_ports": NONE["udp_ports"],
      "host_lo_to_ns_lo": True, "warnings": STDERR}),
    ("RootlessKit, detached", "--stderr --ns-ifname=tap0 --mtu=1500 --config-net --address=10.0.2.100 --netmask=24 --gateway=10.0.2.2 "
     "--dns-forward=10.0.2.3 --tcp-ports=none --udp-ports=none --userns=/proc/4711/ns/user --netns=/run/x/netns",
     {"pid": -1, "netns": "/run/x/netns", "userns": "/proc/4711/ns/user", "ifname": "tap0", "mtu": 1500, "config_net": True,
      "without": ("ra",), "address4": "10.0.2.100", "prefix4": 24, "gateway4": "10.0.2.2", "dns_forward4": ("10.0.2.3",),
      "tcp_ports": NONE["tcp_ports"], "udp_ports": NONE["udp_ports"], "warnings": STDERR}),
    ("passt's slirp4netns.sh", "-q --ipv4-only -a 10.0.2.0 -n 24 -g 10.0.2.2 --dns-forward 10.0.2.3 -m 1500 --no-ndp --no-dhcpv6 --no-dhcp "
     "--no-map-gw -t none 4711",
     {"pid": 4711, "quiet": True, "ipv6": False, "address4": "10.0.2.0", "prefix4": 24, "gateway4": "10.0.2.2", "dns_forward4": ("10.0.2.3",),
      "mtu": 1500, "without": ("dhcp", "dhcpv6", "ndp"), "map_host_loopback4": "", "map_host_loopback6": "", "tcp_ports": NONE["tcp_ports"]}),
]  # fmt: skip


@pytest.mark.parametrize(("words", "expected"), [case[1:] for case in CALLERS], ids=[case[0] for case in CALLERS])
def test_real_callers(words: str, expected: dict[str, Any]) -> None:
    call = run(words)
    assert isinstance(call, Invocation), call
    assert changed(call) == {key: value for key, value in expected.items() if value != DEFAULTS[key]}


# --- properties ----------------------------------------------------------------------------------------------------

WORDS = st.one_of(
    st.sampled_from([f"--{option.long}" for option in OPTIONS] + [f"-{o.short}" for o in OPTIONS if o.short] + ["--", "-", "42"]),
    st.sampled_from([word for words, _ in VALID + INVALID for word in shlex.split(words) if len(word) < 99]),
    st.text(),
    st.text("0123456789abcdefx:./,-~%[]*=", max_size=20),
)  # fmt: skip


@settings(max_examples=500)
@given(st.lists(WORDS, max_size=8), st.integers(0, 65535), st.integers(0, 65535))
@example(["-t", "\udcff/\udcff", "\udc80"], 1, 2)
@example(["-a", "::ffff:1.2.3.4/97"], 1, 2)
def test_any_command_line_is_understood_or_refused(argv: list[str], low: int, high: int) -> None:
    end = parse(ME, argv, range(low, high + 1))
    if isinstance(end, Outcome):
        assert end.status in (0, 1) and (end.status == 1) == (not end.stdout)
        assert (end.stdout + end.stderr).endswith("\n")
        return
    assert (end.command is not None) + (end.pid >= 0) + bool(end.netns) == 1
    assert end.ipv4 or end.ipv6
    assert 0 <= end.mtu <= 65521
    assert end.prefix4 is None or 0 < end.prefix4 <= 32


@given(st.permutations(["-t 22", "-u 53", "-T 80", "-4", "--no-icmp", "-a 192.0.2.1", "-i eth0", "--config-net"]))
def test_the_order_of_ports_and_others_does_not_count(words: list[str]) -> None:
    assert run(" ".join([*words, "42"])) == run("-4 --no-icmp -a 192.0.2.1 -i eth0 --config-net -t 22 -u 53 -T 80 42")


@pytest.mark.parametrize(
    ("address", "prefix"),
    [("10.0.2.100", 8), ("127.255.255.255", 8), ("128.0.0.1", 16), ("172.16.0.1", 16), ("192.0.2.1", 24), ("224.0.0.1", 32), ("240.0.0.1", 32)],
)  # fmt: skip
def test_prefix_by_class(address: str, prefix: int) -> None:
    assert class_prefix(address) == prefix
