"""pasta's options one by one: what each argument must be, and the line as far as it is read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from netd.dialects.getopt import Option
from netd.dialects.pasta.addresses import SPACE, Address, address, ipv4, ipv6, is_broadcast, literal, number
from netd.dialects.pasta.portspec import IFNAMSIZ

# In the order in which getopt_long lists the possibilities of an ambiguous abbreviation.
OPTIONS = (
    Option("debug", "debug", "d"),
    Option("quiet", "quiet", "q"),
    Option("foreground", "foreground", "f"),
    Option("stderr", "stderr", "e"),
    Option("log-file", "log-file", "l", argument=True),
    Option("help", "help", "h"),
    Option("socket", "socket", "s", argument=True),
    Option("fd", "fd", "F", argument=True),
    Option("ns-ifname", "ns-ifname", "I", argument=True),
    Option("pcap", "pcap", "p", argument=True),
    Option("pid", "pid", "P", argument=True),
    Option("mtu", "mtu", "m", argument=True),
    Option("address", "address", "a", argument=True),
    Option("netmask", "netmask", "n", argument=True),
    Option("mac-addr", "mac-addr", "M", argument=True),
    Option("gateway", "gateway", "g", argument=True),
    Option("interface", "interface", "i", argument=True),
    Option("outbound", "outbound", "o", argument=True),
    Option("dns", "dns", "D", argument=True),
    Option("search", "search", "S", argument=True),
    Option("hostname", "hostname", "H", argument=True),
    Option("no-tcp", "no-tcp"),
    Option("no-udp", "no-udp"),
    Option("no-icmp", "no-icmp"),
    Option("no-dhcp", "no-dhcp"),
    Option("no-dhcpv6", "no-dhcpv6"),
    Option("no-ndp", "no-ndp"),
    Option("no-ra", "no-ra"),
    Option("no-splice", "no-splice"),
    Option("splice-only", "splice-only"),
    Option("freebind", "freebind"),
    Option("no-map-gw", "no-map-gw"),
    Option("ipv4-only", "ipv4-only", "4"),
    Option("ipv6-only", "ipv6-only", "6"),
    Option("one-off", "one-off", "1"),
    Option("t", "tcp-ports", "t", argument=True),
    Option("u", "udp-ports", "u", argument=True),
    Option("T", "tcp-ns", "T", argument=True),
    Option("U", "udp-ns", "U", argument=True),
    Option("userns", "userns", argument=True),
    Option("netns", "netns", argument=True),
    Option("ns-mac-addr", "ns-mac-addr", argument=True),
    Option("dhcp-dns", "dhcp-dns"),
    Option("no-dhcp-dns", "no-dhcp-dns"),
    Option("dhcp-search", "dhcp-search"),
    Option("no-dhcp-search", "no-dhcp-search"),
    Option("dns-forward", "dns-forward", argument=True),
    Option("no-netns-quit", "no-netns-quit"),
    Option("trace", "trace"),
    Option("runas", "runas", argument=True),
    Option("log-size", "log-size", argument=True),
    Option("version", "version"),
    Option("outbound-if4", "outbound-if4", argument=True),
    Option("outbound-if6", "outbound-if6", argument=True),
    Option("config-net", "config-net"),
    Option("no-copy-routes", "no-copy-routes"),
    Option("no-copy-addrs", "no-copy-addrs"),
    Option("netns-only", "netns-only"),
    Option("map-host-loopback", "map-host-loopback", argument=True),
    Option("map-guest-addr", "map-guest-addr", argument=True),
    Option("host-lo-to-ns-lo", "host-lo-to-ns-lo"),
    Option("dns-host", "dns-host", argument=True),
    Option("vhost-user", "vhost-user"),
    Option("print-capabilities", "print-capabilities"),
    Option("socket", "socket-path", argument=True),
    Option("fqdn", "fqdn", argument=True),
    Option("repair-path", "repair-path", argument=True),
    Option("migrate-exit", "migrate-exit"),
    Option("migrate-no-linger", "migrate-no-linger"),
    Option("stats", "stats", argument=True),
    Option("conf-path", "conf-path", "c", argument=True),
    Option("chroot-fallback", "chroot-fallback"),
    Option("no-pidns", "no-pidns"),
)

DEFAULT_MTU = 65520
INT_MAX = 2**31 - 1
_MTU_MAX = 65521
_LOG_SIZE_MIN = 40960  # bytes
_PATH_MAX = 4095  # bytes, limits.h, without the last NUL
_SUN_PATH_MAX = 107  # likewise, unix(7)
_NAME_MAX = 253  # of a domain name in text, RFC 1035, 2.3.4
_MAX_DNS = 3  # of a family
_MAX_SEARCH = 6

_NOT_FOR_PASTA = {
    "socket": "-s is for passt / vhost-user mode only",
    "fd": "--fd is for passt mode only",
    "one-off": "--one-off is for passt mode only",
    "no-dhcp-dns": "--no-dhcp-dns is for passt mode only",
    "no-dhcp-search": "--no-dhcp-search is for passt mode only",
    "vhost-user": "--vhost-user is for vhost-user mode only",
    "print-capabilities": "--print-capabilities is for vhost-user mode only",
    "repair-path": "--repair-path is for vhost-user mode only",
    "migrate-exit": "--migrate-exit is for vhost-user mode only",
    "migrate-no-linger": "--migrate-no-linger is for vhost-user mode only",
}
_DEPRECATED = ("stderr", "no-copy-routes", "no-copy-addrs")


class Refused(Exception):
    """A line for stderr."""


@dataclass(slots=True)
class Line:
    """The command line as far as it is read."""

    said: list[str] = field(default_factory=list)  # warnings
    flags: set[str] = field(default_factory=set)
    values: dict[str, str] = field(default_factory=dict)  # of options whose argument is kept as it is, and by family
    ports: list[tuple[str, str]] = field(default_factory=list)
    mtu: int = DEFAULT_MTU
    log_size: int = 1048576
    stats: int = 0
    only: str = ""  # "4" | "6"
    prefix4: int | None = None
    length: bool = False  # the last address has a prefix length
    dns: list[Address] | None = None
    forward: list[Address] = field(default_factory=list)
    search: list[str] | None = None
    host_loopback: dict[int, str] = field(default_factory=dict)  # by IP version
    guest: dict[int, str] = field(default_factory=dict)


def take(line: Line, key: str, value: str) -> None:
    """Read one option. Refused if it cannot be."""
    if key in _NOT_FOR_PASTA:
        if key == "fd" and not 0 <= (-1 if (fd := number(value)) is None else fd) <= INT_MAX:
            raise Refused(f"Invalid --fd: {value}")
        raise Refused(_NOT_FOR_PASTA[key])
    if key in _DEPRECATED:
        line.said.append(f"--{key} will be dropped soon\n")
    match key:
        case "t" | "u" | "T" | "U":
            line.ports.append((key, value))
        case "debug" | "trace":
            line.flags = (line.flags - {"quiet"}) | {"debug", key}
        case "quiet":
            line.flags = (line.flags - {"debug", "trace"}) | {key}
        case "ipv4-only" | "ipv6-only":
            line.only = key[3]
        case "netns-only":
            line.flags.add(key)
            line.values.pop("userns", None)
        case "stats":
            if "foreground" not in line.flags:
                raise Refused("Can't display statistics if not running in foreground")
            line.stats = min(number(value) or 0, INT_MAX)
        case "log-size":
            size = number(value)
            if size is None or size < _LOG_SIZE_MIN:
                raise Refused(f"Invalid --log-size: {value}")
            line.log_size = size
        case "mtu":
            mtu = number(value)
            if mtu is None:
                raise Refused(f"Invalid MTU: {value}")
            if mtu > _MTU_MAX:
                raise Refused(f"MTU {mtu} too large (max {_MTU_MAX})")
            line.mtu = mtu
        case "address":
            _take_address(line, value)
        case "netmask":
            _take_netmask(line, value)
        case "gateway" | "outbound" | "dns-host":
            _take_one_per_family(line, key, value)
        case "dns-forward":
            line.forward.append(_plain(value, key))
        case "dns":
            _take_dns(line, value)
        case "search":
            _take_search(line, value)
        case "map-host-loopback":
            line.host_loopback |= _mapped(value)
        case "map-guest-addr":
            line.guest |= _mapped(value)
        case _:
            _take_text(line, key, value)


def _take_text(line: Line, key: str, value: str) -> None:
    """What is kept as it is written, and options without an argument."""
    match key:
        case "mac-addr" | "ns-mac-addr":
            if re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", value) is None:
                raise Refused(f"Invalid MAC address: {value}")
        case "hostname" | "fqdn":
            if len(_raw(value)) > _NAME_MAX or (key == "fqdn" and value and not _is_domain(value)):
                raise Refused(f"Invalid {'hostname' if key == 'hostname' else 'FQDN'}: {value}")
        case "ns-ifname" | "outbound-if4" | "outbound-if6":
            if not 0 < len(_raw(value)) <= IFNAMSIZ or (key == "ns-ifname" and not _is_ifname(value)):
                raise Refused(f"Invalid interface name: {value}")
        case "interface":
            if not 0 < len(_raw(value)) <= IFNAMSIZ:
                raise Refused(f"Invalid interface name {value}: No such device")
        case "pcap":
            _check_path(value, _PATH_MAX, "pcap path")
        case "pid":
            _check_path(value, _PATH_MAX, "PID file")
        case "conf-path":
            _check_path(value, _SUN_PATH_MAX, "configuration path")
        case "userns":
            _check_path(value, _PATH_MAX, "userns")
            line.flags.discard("netns-only")
        case "netns":
            value = value if "/" in value else f"/run/netns/{value}"
            if len(_raw(value)) > _PATH_MAX + 1:
                raise Refused(f"Network namespace name/path {value.removeprefix('/run/netns/')} too long")
        case "log-file" | "runas":
            pass
        case _:
            line.flags.add(key)
            return
    line.values[key] = value


def _take_address(line: Line, value: str) -> None:
    host, slash, bits = value.partition("/")
    found = address(host)
    if found is None or found.is_unspecified or found.is_loopback or found.is_multicast or is_broadcast(found):
        raise Refused(f"Invalid guest address: {value}")
    family = str(found.version)
    line.length = bool(slash)
    if slash:
        digits = re.match(SPACE + "[+-]?[0-9]+", bits, re.ASCII)
        length = None if digits is None else number(digits[0], 10)
        mapped = ":" in host and family == "4"  # ::ffff:192.0.2.1
        if length is not None and length > (128 if mapped else found.max_prefixlen):
            raise Refused(f"Invalid prefix length: {value}")
        if length is None or digits is None or digits.end() != len(bits):
            raise Refused(f"Invalid guest address: {value}")
        if mapped and length > 32:
            length = max(length - 96, 0)
        if "netmask" in line.values:
            raise Refused("Redundant prefix length specification")
        if family == "4":
            line.prefix4 = length or None
    elif family == "4" and "netmask" not in line.values:
        line.prefix4 = None
    line.values["address" + family] = literal(found)


def _take_netmask(line: Line, value: str) -> None:
    bits = number(value)
    mask = ipv4(value)
    if mask is not None:
        ones = int(mask)
        bits = bin(ones).count("1")
        if ones != (2**32 - 1) ^ (2 ** (32 - bits) - 1) or is_broadcast(mask):  # inet_addr(3) takes that for an error
            bits = None
    if bits is None or bits > 32:
        raise Refused(f"Invalid prefix length: {value}")
    if line.length:
        raise Refused("Redundant prefix length specification")
    line.values["netmask"] = value
    line.prefix4 = bits or None


def _take_one_per_family(line: Line, key: str, value: str) -> None:
    found = _plain(value, key)
    line.values[f"{key}{found.version}"] = literal(found)


def _take_dns(line: Line, value: str) -> None:
    if value == "none":
        line.dns = []
        return
    found = ipv4(value) or ipv6(value)
    if found is None:
        raise Refused(f"Cannot use DNS address {value}")
    if found.is_unspecified:
        return
    line.dns = line.dns or []
    if sum(other.version == found.version for other in line.dns) < _MAX_DNS:
        line.dns.append(found)


def _take_search(line: Line, value: str) -> None:
    if value == "none":
        line.search = []
        return
    domains = value.split()
    line.search = line.search or []
    if not domains or len(line.search) + len(domains) > _MAX_SEARCH or not all(map(_is_domain, domains)):
        raise Refused(f"Cannot use DNS search domain {value}")
    line.search += domains


def _plain(value: str, key: str) -> Address:
    """An address without brackets, such as makes sense for ``key``."""
    found = ipv4(value) or ipv6(value)
    wrong = found is None or found.is_unspecified or is_broadcast(found)
    if found is not None and key != "dns-host":
        wrong |= found.is_loopback and (key != "outbound" or found.version == 6)
    if found is not None and key == "outbound":
        wrong |= found.is_multicast or address(value) != found  # an IPv4-mapped one
    if found is None or wrong:
        complaint = {
            "gateway": "Invalid gateway address",
            "outbound": "Invalid or redundant outbound address",
            "dns-forward": "Invalid DNS forwarding address",
            "dns-host": "Invalid host nameserver address",
        }[key]
        raise Refused(f"{complaint}: {value}")
    return found


def _mapped(value: str) -> dict[int, str]:
    if value == "none":
        return {4: "", 6: ""}
    found = ipv4(value) or ipv6(value)
    if found is None or found.is_unspecified or found.is_loopback or found.is_multicast:
        raise Refused(f"Invalid address to remap to host: {value}")
    return {found.version: literal(found)}


def _check_path(value: str, limit: int, what: str) -> None:
    if not 0 < len(_raw(value)) <= limit:
        raise Refused(f"Invalid {what}: {value}")


def _is_ifname(value: str) -> bool:
    """dev_valid_name() of Linux."""
    return value not in (".", "..") and not re.search(r"[/:\s]", value)


def _is_domain(value: str) -> bool:
    labels = [_raw(label) for label in value.removesuffix(".").split(".")]
    return all(0 < len(label) < 64 for label in labels) and len(_raw(value)) <= _NAME_MAX + 1


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
