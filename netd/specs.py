"""Plain data that crosses the doors: what is asked for (specs) and what is there (statuses).

No I/O, no validation beyond what the types say; the doors (api, dialects) validate, the inner rooms take it as it is.
Addresses are literals here (``"10.0.2.100"``); inside the packet path they are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ForwardSpec:
    """One published port or range. Keys are libpod's (``podman inspect``, PortMapping)."""

    protocol: str  # "tcp" | "udp"
    host_port: int  # 0: the kernel chooses (only with range 1)
    container_port: int
    host_ip: str = ""  # an IPv4 or IPv6 literal; "" is every address of the host, of both families
    range: int = 1  # how many consecutive ports
    container_ip: str = ""  # "" is the network's guest address
    interface: str = ""  # only what comes in by this interface of the host (SO_BINDTODEVICE)
    best_effort: bool = False  # ports of the range that cannot be bound are left out, unless that is all of them
    freebind: bool = False  # host_ip need not be there yet (IP_FREEBIND)
    dual_stack: bool = False  # without a host_ip: one socket for both families, as pasta has it, instead of two


@dataclass(frozen=True, slots=True)
class ForwardStatus:
    """A forward as it stands. ``spec.host_port`` is the real port, also where 0 was asked for."""

    id: int  # counts from 1 within its network and is never reused
    spec: ForwardSpec
    origin: str  # "run" | "api" | "slirp4netns" | "pasta" | "auto" | "pesto"
    state: str  # "listening"
    connections: int  # open connections (TCP) or peers (UDP) now


@dataclass(frozen=True, slots=True)
class PortRule:
    """Consecutive ports that are led to as many others. Its text is pasta's notation."""

    protocol: str  # "tcp" | "udp"
    first: int
    last: int
    to_first: int
    address: str = ""  # to listen on; "" is every address of both families
    interface: str = ""  # only what comes in by it (SO_BINDTODEVICE); "lo" for -T and -U
    target: str = ""  # "" is the namespace, or for -T and -U the host
    best_effort: bool = False  # ports that cannot be bound are left out, unless that is all of them
    auto: bool = False  # only while the port it leads to is listened on

    @property
    def to_last(self) -> int:
        """The port that ``last`` is led to."""
        return self.to_first + self.last - self.first

    def __str__(self) -> str:
        device = f"%{self.interface}" if self.interface else ""
        target = f"{self.target}:" if self.target else ""
        flags = (" (best effort)" if self.best_effort else "") + (" (auto-scan)" if self.auto else "")
        return (
            f"{self.protocol.upper()} [{self.address or '*'}]{device}:{_span(self.first, self.last)}"
            f"  =>  {target}{_span(self.to_first, self.to_last)} {flags}"
        )


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """What one attached namespace is to get. Addresses default to slirp4netns' (network+100, +2, +3).

    The guest's link is a small private network behind ``gateway_ip``; or, ``host_like``, the guest has the host's own
    address on the host's own subnet, and all other addresses are led to whoever has them. An empty ``guest_ip`` or
    ``cidr6`` is no IPv4 or no IPv6.
    """

    name: str = ""  # "" is the id
    origin: str = "api"  # "slirp4netns" | "pasta" | "api" | "run"
    ifname: str = "tap0"
    configure: bool = True  # else the TAP is left down and unaddressed
    mtu: int = 65520  # 68..65521
    mac: str = ""  # the TAP's own address, "" lets the kernel choose
    cidr: str = "10.0.2.0/24"
    guest_ip: str = "10.0.2.100"
    gateway_ip: str = "10.0.2.2"
    dns_ip: str = "10.0.2.3"  # "" is no DNS address at all
    allow_host_loopback: bool = False
    outbound_ip: str = ""  # source address of the host's sockets, "" is the kernel's choice
    cidr6: str = ""  # "fd00::/64"; "" is no IPv6 at all, and the five below do not count
    guest_ip6: str = ""  # "" is the address that SLAAC makes of the prefix and the TAP's MAC (RFC 4291, appendix A)
    gateway_ip6: str = ""  # stands for the host, as ``gateway_ip`` does
    dns_ip6: str = ""
    router_ip6: str = "fe80::2"  # link-local: who advertises itself, and the default route's next hop
    outbound_ip6: str = ""
    outbound_interface: str = ""  # the host's sockets go out by this interface (SO_BINDTODEVICE), in IPv4
    outbound_interface6: str = ""
    zone: str = ""  # host_like: the host's interface that link-local IPv6 addresses are on
    host_like: bool = False
    host_loopback_ip: str = ""  # host_like: stands for the host's 127.0.0.1
    host_loopback_ip6: str = ""  # and ::1
    more_dns_ips: tuple[str, ...] = ()  # host_like: further ones like dns_ip and dns_ip6
    host_ips: tuple[str, ...] = ()  # host_like: stand for the host's own address, which the guest has as well
    gateway_mac: str = ""  # our side's, "" makes one of the gateway's address
    addresses: tuple[str, ...] = ()  # to be configured, "192.0.2.2/24"; () is guest_ip and guest_ip6
    routes: tuple[str, ...] = ()  # to be configured, "DST [via GATEWAY] [metric N]"; () is a default route
    dns_hosts: tuple[str, ...] = ()  # the name servers, instead of those of the host's resolv.conf
    dhcp_dns: tuple[str, ...] | None = None  # told to guests that configure themselves; None is dns_ip and dns_ip6
    dhcp_search: tuple[str, ...] | None = None  # likewise; None is the host's
    hostname: str = ""  # likewise (DHCP options 12 and 81)
    fqdn: str = ""
    without: tuple[str, ...] = ()  # of "tcp" "udp" "icmp" "dhcp" "dhcpv6" "ndp" "ra": not served
    trace: bool = False  # every frame is told to ``Network.on_trace``
    dialect: dict[str, Any] = field(default_factory=dict)  # what the dialect that made it keeps with it, as plain data
    splice: bool = False  # host_like: what comes to the host's loopback goes past the interface, from socket to socket
    host_lo_to_ns_lo: bool = False  # and to the guest's loopback, not to its address


def network_spec(content: dict[str, Any]) -> NetworkSpec:
    """A spec from JSON, which knows lists only. TypeError for what it has no field for."""
    fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in content.items()}
    return NetworkSpec(**fields)


@dataclass(frozen=True, slots=True)
class Lifeline:
    """The one thing that ends a network (DESIGN §5). The daemon owns ``fd`` from attach on.

    kind: "exit_fd" (a pipe; its hang-up), "shim" (a connected socket; its hang-up), "pidfd" (the process's end),
    "path" (the file's unlink, no fd), "explicit" (only DELETE). With a ``path`` its unlink ends any of them.
    """

    kind: str
    fd: int = -1
    path: str = ""


@dataclass(frozen=True, slots=True)
class LoopbackPort:
    """A port of the guest's own loopback that leads to the host's."""

    protocol: str  # "tcp" | "udp"
    port: int  # in the guest
    host_port: int
    connections: int  # open connections (TCP) or clients (UDP) now


@dataclass(frozen=True, slots=True)
class NetworkStatus:
    """A network as it stands."""

    id: str  # 12 lower-case hex digits
    spec: NetworkSpec
    lifeline: str  # Lifeline.kind
    lifeline_path: str
    netns_inode: int
    created: float  # seconds since the epoch
    mac: str  # of the guest's interface
    offload: bool  # TSO and checksum offload are on
    forwards: tuple[ForwardStatus, ...]
    flows: dict[str, int]  # {"tcp": n, "udp": n, "icmp": n}
    counters: dict[str, int] = field(default_factory=dict)  # every named counter, drops included
    loopback_ports: tuple[LoopbackPort, ...] = ()


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
