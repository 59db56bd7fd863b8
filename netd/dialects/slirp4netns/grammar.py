"""slirp4netns' command line: argv in, an Invocation or an Outcome out. Pure: nothing is opened or looked up."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network

from netd.dialects.getopt import Option, UsageError, getopt_long
from netd.dialects.slirp4netns import texts

# In the order in which getopt_long lists the possibilities of an ambiguous abbreviation.
OPTIONS = (
    Option("configure", "configure", "c"),
    Option("exit-fd", "exit-fd", "e", argument=True),
    Option("ready-fd", "ready-fd", "r", argument=True),
    Option("mtu", "mtu", "m", argument=True),
    Option("cidr", "cidr", argument=True),
    Option("disable-host-loopback", "disable-host-loopback"),
    Option("no-host-loopback", "no-host-loopback"),
    Option("netns-type", "netns-type", argument=True),
    Option("userns-path", "userns-path", argument=True),
    Option("api-socket", "api-socket", "a", argument=True),
    Option("enable-ipv6", "enable-ipv6", "6"),
    Option("enable-sandbox", "enable-sandbox"),
    Option("create-sandbox", "create-sandbox"),
    Option("enable-seccomp", "enable-seccomp"),
    Option("help", "help", "h"),
    Option("version", "version", "v"),
    Option("outbound-addr", "outbound-addr", argument=True),
    Option("outbound-addr6", "outbound-addr6", argument=True),
    Option("disable-dns", "disable-dns"),
    Option("macaddress", "macaddress", argument=True),
    Option("target-type", "target-type", argument=True),
)
_CANONICAL = {"no-host-loopback": "disable-host-loopback", "create-sandbox": "enable-sandbox"}

_MTU_MAX = 65521
_MTU_MIN = 68  # RFC 791; libslirp refuses less after the TAP was made
_IFNAMSIZ = 15  # bytes of an interface's name, net/if.h


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a call: what to print and the exit status."""

    status: int
    stdout: str = ""
    stderr: str = ""


@dataclass(frozen=True, slots=True)
class Invocation:
    """What is asked for, with every syntax checked."""

    target: str  # a pid in decimal, or a path; "" with tap_fd
    by_path: bool
    ifname: str  # "" with tap_fd
    network: IPv4Network
    warnings: str  # lines for stdout
    tap_fd: int = -1  # the caller's open TAP, in place of a target; -1: none
    configure: bool = False
    exit_fd: int = -1  # -1: none
    ready_fd: int = -1
    mtu: int = 1500
    api_socket: str = ""
    userns_path: str = ""
    disable_host_loopback: bool = False
    disable_dns: bool = False
    enable_ipv6: bool = False
    sandbox: bool = False
    outbound: str = ""  # an IPv4 address or the name of an interface
    outbound6: str = ""
    mac: str = ""


class _Refused(Exception):
    """A message for stderr; with the usage on stdout unless told otherwise."""

    def __init__(self, message: str = "", with_usage: bool = True) -> None:
        super().__init__(message)
        self.with_usage = with_usage


def parse(argv0: str, argv: Sequence[str], podman: bool = False) -> Invocation | Outcome:
    """Read the command line as slirp4netns does. ``podman``: the caller is Podman (see ``texts.usage``)."""
    said: list[str] = []
    try:
        return _parse(argv0, argv, podman, said)
    except UsageError as error:
        return Outcome(1, "".join(said) + texts.usage(argv0, podman), f"{argv0}: {error}\n")
    except _Refused as error:
        usage = texts.usage(argv0, podman) if error.with_usage else ""
        return Outcome(1, "".join(said) + usage, str(error))


def _parse(argv0: str, argv: Sequence[str], podman: bool, said: list[str]) -> Invocation | Outcome:
    values: dict[str, str] = {}
    words: list[str] = []
    numbers: dict[str, int] = {"mtu": 1500}
    for key, value in getopt_long(argv, OPTIONS, words):
        said.append(texts.warning(key))
        values[_CANONICAL.get(key, key)] = value
        if key == "help":
            return Outcome(0, "".join(said) + texts.usage(argv0, podman))
        if key == "version":
            return Outcome(0, "".join(said) + texts.version())
        if key in ("exit-fd", "ready-fd"):
            numbers[key] = _integer(value)
            if numbers[key] < 0:
                raise _Refused(f"{key} must be a non-negative integer\n")
        if key == "mtu":
            numbers[key] = _integer(value)
            if not 0 < numbers[key] <= _MTU_MAX:
                raise _Refused("MTU must be a positive integer (< 65522)\n")

    if "macaddress" in values and "configure" not in values:
        raise _Refused("--macaddr cannot be specified when --configure or -c is not specified\n")
    _check_target_type(values, words)
    kind = values.get("netns-type", "pid")
    expected = 1 if kind == "tapfd" else 2
    if len(words) < expected:
        raise _Refused()
    tap_fd, target, ifname = -1, "", ""
    if kind == "tapfd":
        tap_fd = _tap_fd(words[0])
    else:  # any other word means a path
        target, ifname = str(_pid(words[0])) if kind == "pid" else words[0], _ifname(words[1])
    if len(words) > expected:
        said.append(texts.warning("too-many"))
    network = _network(values.get("cidr", "10.0.2.0/24"))
    mac = _mac(values["macaddress"]) if "macaddress" in values else ""
    if "outbound-addr" in values and not values["outbound-addr"]:
        raise _Refused("outbound-addr has to be valid ipv4 address or interface name.", with_usage=False)
    if "outbound-addr6" in values and not values["outbound-addr6"]:
        raise _Refused("outbound-addr has to be valid ipv4 address or iterface name.", with_usage=False)
    if numbers["mtu"] < _MTU_MIN:
        raise _Refused(
            f"netd: the smallest MTU of IPv4 is {_MTU_MIN} (RFC 791)\n"
            "slirp_new failed\ncreate_slirp failed\ndo_slirp is exiting\ndo_slirp failed\nparent failed\n",
            with_usage=False,
        )
    return Invocation(
        target=target,
        by_path=kind not in ("pid", "tapfd"),
        ifname=ifname,
        network=network,
        warnings="".join(said),
        tap_fd=tap_fd,
        configure="configure" in values,
        exit_fd=numbers.get("exit-fd", -1),
        ready_fd=numbers.get("ready-fd", -1),
        mtu=numbers["mtu"],
        api_socket=values.get("api-socket", ""),
        userns_path=values.get("userns-path", ""),
        disable_host_loopback="disable-host-loopback" in values,
        disable_dns="disable-dns" in values,
        enable_ipv6="enable-ipv6" in values,
        sandbox="enable-sandbox" in values,
        outbound=values.get("outbound-addr", ""),
        outbound6=values.get("outbound-addr6", ""),
        mac=mac,
    )


def _check_target_type(values: dict[str, str], words: list[str]) -> None:
    kind = values.get("target-type", "netns")
    if kind not in ("netns", "bess"):
        raise _Refused('--target-type must be either "netns" or "bess"\n')
    if kind == "bess":
        _check_conflicts(values, ("configure", "netns-type", "userns-path"), "--target-type=bess")
        if not words:
            raise _Refused()
        if len(words) > 1:
            raise _Refused("too many arguments\n")
        raise _Refused("netd: --target-type=bess is not supported, only namespaces are\n", with_usage=False)
    if values.get("netns-type") == "tapfd":  # the caller made the device, and has its namespace
        _check_conflicts(values, ("configure", "userns-path"), "--netns-type=tapfd")


def _check_conflicts(values: dict[str, str], keys: tuple[str, ...], mode: str) -> None:
    for key in keys:
        if key in values:
            raise _Refused(f"--{key} conflicts with {mode}\n")


def _integer(text: str) -> int:
    """strtol(text, 0, 10) of the whole text, stored in an int; "" is 0. -1 for what is no number."""
    found = re.fullmatch(r"[ \t\n\v\f\r]*([+-]?)0*([0-9]*)", text, re.ASCII)
    if found is None or (text and not text[-1].isdigit()):
        return -1
    number = int(found[2] or "0") if len(found[2]) < 20 else 2**63
    number = max(-(2**63), -number) if found[1] == "-" else min(number, 2**63 - 1)
    return (number + 2**31) % 2**32 - 2**31


def _pid(text: str) -> int:
    number = _integer(text)
    if number <= 0:
        raise _Refused("PID must be a positive integer\n")
    return number


def _tap_fd(text: str) -> int:
    number = _integer(text)
    if number < 0:
        raise _Refused("tapfd must be a non-negative integer\n")
    return number


def _network(text: str) -> IPv4Network:
    """An IPv4 network that has room for the addresses of ours: a prefix of 1 to 25 bits."""
    found = re.fullmatch(r"([0-9]+\.[0-9]+\.[0-9]+\.[0-9]+)/([0-9]{1,9})", text, re.ASCII)
    if found is None:
        raise _Refused(f"invalid CIDR: {text}\n", with_usage=False)
    try:
        address = IPv4Address(found[1])
    except AddressValueError:
        raise _Refused(f"invalid network address: {found[1]}\n", with_usage=False) from None
    prefix = int(found[2])
    if not 1 <= prefix <= 25:
        raise _Refused("prefix length needs to be 1-25\n", with_usage=False)
    network = IPv4Network((address, prefix), strict=False)
    if network.network_address != address:
        raise _Refused(
            "CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24\n", with_usage=False
        )
    return network


def _mac(text: str) -> str:
    """Up to six numbers in hex with colons between; the missing ones are 0, what follows the last is not read."""
    octets: list[int] = []
    rest = ":" + text
    complaint = ""
    while rest.startswith(":") and not complaint:
        number = re.match(r"[ \t\n\v\f\r]*\+?(?:0[xX](?=[0-9a-fA-F]))?0*([0-9a-fA-F]{1,2})(?![0-9a-fA-F])", rest[1:])
        if len(octets) == 6:
            complaint = "  Is it too long?"
        elif number is None:
            complaint = "\n"
        else:
            octets.append(int(number[1], 16))
            rest = rest[1 + number.end() :]
    if complaint:
        raise _Refused(
            f'"{text}" is an invalid MAC address.{complaint.rstrip()}\n'
            "macaddress has to be a valid MAC address (hex string, 6 bytes, each byte separated by a ':').",
            with_usage=False,
        )
    octets += [0] * (6 - len(octets))
    return ":".join(f"{octet:02x}" for octet in octets)


def _ifname(text: str) -> str:
    return text.encode("utf-8", "surrogateescape")[:_IFNAMSIZ].decode("utf-8", "surrogateescape")
