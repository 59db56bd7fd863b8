"""pasta's command line: argv in, an Invocation or an Outcome out. Pure: nothing is opened or looked up.

Options are read in their order, so the first mistake is the one that is told; what only the whole line shows comes
after them, in pasta's own order: contradictions, then the MTU, then the ports, then what to attach to.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from netd.dialects.getopt import UsageError, getopt_long
from netd.dialects.outcome import Outcome
from netd.dialects.pasta import texts
from netd.dialects.pasta.addresses import literal
from netd.dialects.pasta.options import DEFAULT_MTU, INT_MAX, OPTIONS, Line, Refused, take
from netd.dialects.pasta.portspec import PROTOCOL, PortError, PortSpec, PortTable, parse_ports

_MTU_MIN = {"IPv4": 68, "IPv6": 1280}  # RFC 791, RFC 8200
_SERVICES = ("tcp", "udp", "icmp", "dhcp", "dhcpv6", "ndp", "ra")
_LONG_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Invocation:
    """What is asked for, with every syntax checked. One of ``command``, ``pid`` and ``netns`` says where.

    The ending 4 or 6 of a name is a family; an address of a family that is switched off does not count.
    """

    command: tuple[str, ...] | None = None  # to be run in new namespaces; () is the caller's shell
    pid: int = -1  # whose namespaces to join
    netns: str = ""  # the path of one
    userns: str = ""  # "" is that of the pid, or with a netns the caller's own
    netns_only: bool = False  # join no user namespace, and make none
    no_netns_quit: bool = False
    ipv4: bool = True
    ipv6: bool = True
    ifname: str = ""  # "" is the template's
    mtu: int = DEFAULT_MTU  # 0: none is told or set
    mac: str = ""  # ours, as it was written
    ns_mac: str = ""
    address4: str = ""
    prefix4: int | None = None  # bits; None is that of the host's address, or by class (``class_prefix``)
    address6: str = ""  # its prefix is 64, whatever was written
    gateway4: str = ""
    gateway6: str = ""
    interface: str = ""  # the template
    outbound4: str = ""
    outbound6: str = ""
    outbound_if4: str = ""
    outbound_if6: str = ""
    dns: tuple[str, ...] | None = None  # None is the host's resolv.conf
    dns_forward4: tuple[str, ...] = ()
    dns_forward6: tuple[str, ...] = ()
    dns_host4: str = ""
    dns_host6: str = ""
    search: tuple[str, ...] | None = None  # None is the host's resolv.conf
    dhcp_dns: bool = False
    dhcp_search: bool = False
    hostname: str = ""
    fqdn: str = ""
    without: tuple[str, ...] = ()  # NetworkSpec.without
    freebind: bool = False
    map_host_loopback4: str | None = None  # None is the gateway, "" is none
    map_host_loopback6: str | None = None
    map_guest: tuple[str, ...] = ()  # at most one of each family
    config_net: bool = False
    no_copy_routes: bool = False  # of both families; an address or gateway that is given implies it for its own
    no_copy_addrs: bool = False
    host_lo_to_ns_lo: bool = False
    no_splice: bool = False
    splice_only: bool = False
    tcp_ports: tuple[PortSpec, ...] = ()
    udp_ports: tuple[PortSpec, ...] = ()
    tcp_ns: tuple[PortSpec, ...] = ()
    udp_ns: tuple[PortSpec, ...] = ()
    foreground: bool = False
    debug: bool = False
    trace: bool = False
    quiet: bool = False
    stats: int = 0  # seconds; 0: none
    log_file: str = ""
    log_size: int = 1048576  # bytes
    pid_file: str = ""
    pcap: str = ""
    conf_path: str = ""
    runas: str = ""  # to be looked up
    no_pidns: bool = False
    chroot_fallback: bool = False
    warnings: str = ""  # lines for stderr, to be printed whatever ``quiet`` says


def parse(argv0: str, argv: Sequence[str], ephemeral: range) -> Invocation | Outcome:
    """Read the command line as pasta does. ``ephemeral``: net.ipv4.ip_local_port_range, for ports that are "all"."""
    line = Line()
    words: list[str] = []
    try:
        for key, value in getopt_long(argv, OPTIONS, words, stop_at_first=True):
            if key == "help":
                return Outcome(0, texts.usage(argv0), "".join(line.said))
            if key == "version":
                return Outcome(0, texts.version(), "".join(line.said))
            take(line, key, value)
        return _invocation(line, words, ephemeral)
    except UsageError as error:
        return Outcome(1, stderr="".join(line.said) + f"{argv0}: {error}\n" + texts.usage(argv0))
    except (Refused, PortError) as error:
        return Outcome(1, stderr="".join(line.said) + f"{error}\n")


def class_prefix(text: str) -> int:
    """The prefix length of an IPv4 address's network by its class (RFC 791, 3.2): what holds if nothing was said."""
    first = int(text.partition(".")[0])
    return 8 if first < 128 else 16 if first < 192 else 24 if first < 224 else 32


def _invocation(line: Line, words: Sequence[str], ephemeral: range) -> Invocation:
    flags, values = line.flags, line.values
    if {"host-lo-to-ns-lo", "no-splice"} <= flags:
        raise Refused("--host-lo-to-ns-lo is incompatible with --no-splice")
    for key in ("no-copy-routes", "no-copy-addrs"):
        if key in flags and "config-net" not in flags:
            raise Refused(f"--{key} needs --config-net")
    if {"splice-only", "no-splice"} <= flags:
        raise Refused("--splice-only is incompatible with --no-splice")
    if values.get("log-file") == "":
        raise Refused("Couldn't open log file : No such file or directory")
    for family in ("IPv4", "IPv6"):
        if line.mtu < _MTU_MIN[family] and line.only in ("", family[-1]):
            line.said.append(f"MTU {line.mtu} is too small for {family} (minimum {_MTU_MIN[family]})\n")
    without = _without(flags)
    ports = _ports(line, without, ephemeral)
    command, pid = _target(words, flags, values)
    splice_only = "splice-only" in flags
    dns = None if line.dns is None else tuple(literal(server) for server in line.dns)
    no_gateway = "" if "no-map-gw" in flags else None
    return Invocation(
        command=command,
        pid=pid,
        netns=values.get("netns", ""),
        userns=values.get("userns", ""),
        netns_only="netns-only" in flags or ("netns" in values and "userns" not in values),
        no_netns_quit="no-netns-quit" in flags,
        ipv4=line.only != "6",
        ipv6=line.only != "4",
        ifname=values.get("ns-ifname", ""),
        mtu=line.mtu,
        mac=values.get("mac-addr", ""),
        ns_mac=values.get("ns-mac-addr", ""),
        address4=values.get("address4", ""),
        prefix4=line.prefix4,
        address6=values.get("address6", ""),
        gateway4=values.get("gateway4", ""),
        gateway6=values.get("gateway6", ""),
        interface=values.get("interface", ""),
        outbound4=values.get("outbound4", ""),
        outbound6=values.get("outbound6", ""),
        outbound_if4=values.get("outbound-if4", ""),
        outbound_if6=values.get("outbound-if6", ""),
        dns=() if splice_only else dns,
        dns_forward4=tuple(literal(one) for one in line.forward if one.version == 4),
        dns_forward6=tuple(literal(one) for one in line.forward if one.version == 6),
        dns_host4=values.get("dns-host4", ""),
        dns_host6=values.get("dns-host6", ""),
        search=None if line.search is None else tuple(line.search),
        dhcp_dns="dhcp-dns" in flags,
        dhcp_search="dhcp-search" in flags,
        hostname=values.get("hostname", ""),
        fqdn=values.get("fqdn", ""),
        without=without,
        freebind="freebind" in flags,
        map_host_loopback4=line.host_loopback.get(4, no_gateway),
        map_host_loopback6=line.host_loopback.get(6, no_gateway),
        map_guest=tuple(line.guest[version] for version in (4, 6) if line.guest.get(version)),
        config_net="config-net" in flags,
        no_copy_routes="no-copy-routes" in flags,
        no_copy_addrs="no-copy-addrs" in flags,
        host_lo_to_ns_lo="host-lo-to-ns-lo" in flags or splice_only,
        no_splice="no-splice" in flags,
        splice_only=splice_only,
        tcp_ports=ports["t"],
        udp_ports=ports["u"],
        tcp_ns=ports["T"],
        udp_ns=ports["U"],
        foreground="foreground" in flags or command is not None,
        debug="debug" in flags,
        trace="trace" in flags,
        quiet="quiet" in flags or (command is not None and "debug" not in flags),
        stats=line.stats,
        log_file=values.get("log-file", ""),
        log_size=line.log_size,
        pid_file=values.get("pid", ""),
        pcap=values.get("pcap", ""),
        conf_path=values.get("conf-path", ""),
        runas=values.get("runas", ""),
        no_pidns="no-pidns" in flags,
        chroot_fallback="chroot-fallback" in flags,
        warnings="".join(line.said),
    )


def _without(flags: set[str]) -> tuple[str, ...]:
    off = {name for name in _SERVICES if f"no-{name}" in flags}
    if "splice-only" in flags:
        off.add("icmp")
    if "icmp" in off:
        off.add("ndp")
    if "config-net" in flags:
        off.add("ra")
    return tuple(name for name in _SERVICES if name in off)


def _ports(line: Line, without: Sequence[str], ephemeral: range) -> dict[str, tuple[PortSpec, ...]]:
    """The specifications of each option. ``-t`` and ``-u`` share a table, and so do ``-T`` and ``-U``."""
    inbound, outbound = (PortTable(ipv4=line.only != "6", ipv6=line.only != "4", without=without) for _ in range(2))
    specs: dict[str, list[PortSpec]] = {option: [] for option in PROTOCOL}
    given = {option for option, _ in line.ports}
    defaults = [(option, "auto") for option in PROTOCOL if option not in given and PROTOCOL[option] not in without]
    for option, text in line.ports + defaults:
        table = outbound if option in "TU" else inbound
        specs[option].append(table.extend(parse_ports(text, option, ephemeral)))
    return {option: tuple(found) for option, found in specs.items()}


def _target(words: Sequence[str], flags: set[str], values: dict[str, str]) -> tuple[tuple[str, ...] | None, int]:
    if "netns" in values and words:
        raise Refused("Both --netns and PID or command given")
    pid = _pid(words[0]) if len(words) == 1 else -1
    if "no-pidns" in flags and (pid >= 0 or "netns" in values):
        raise Refused("--no-pidns is incompatible with PID or --netns")
    return None if pid >= 0 or "netns" in values else tuple(words), pid


def _pid(word: str) -> int:
    """strtol(3) of the whole word, or -1: then it is a command."""
    found = re.fullmatch(r"[ \t\n\v\f\r]*([+-]?)0*([0-9]{1,19})", word, re.ASCII)
    if found is None or int(found[2]) > _LONG_MAX:
        return -1
    if int(found[2]) > INT_MAX or (found[1] == "-" and int(found[2])):
        raise Refused(f"Invalid PID {found[1].replace('+', '')}{int(found[2])}")
    return int(found[2])
