"""Plain data that crosses the doors: what is asked for (specs) and what is there (statuses).

No I/O, no validation beyond what the types say; the doors (api, dialects) validate, the inner rooms take it as it is.
Addresses are literals here (``"10.0.2.100"``); inside the packet path they are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ForwardSpec:
    """One published port or range. Keys are libpod's (``podman inspect``, PortMapping)."""

    protocol: str  # "tcp" | "udp"
    host_port: int  # 0: the kernel chooses (only with range 1)
    container_port: int
    host_ip: str = ""  # an IPv4 or IPv6 literal; "" is every address of the host, of both families
    range: int = 1  # how many consecutive ports
    container_ip: str = ""  # "" is the network's guest address


@dataclass(frozen=True, slots=True)
class ForwardStatus:
    """A forward as it stands. ``spec.host_port`` is the real port, also where 0 was asked for."""

    id: int  # counts from 1 within its network and is never reused
    spec: ForwardSpec
    origin: str  # "run" | "api" | "slirp4netns"
    state: str  # "listening"
    connections: int  # open connections (TCP) or peers (UDP) now


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """What one attached namespace is to get. Addresses default to slirp4netns' (network+100, +2, +3)."""

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


@dataclass(frozen=True, slots=True)
class Lifeline:
    """The one thing that ends a network (DESIGN §5). The daemon owns ``fd`` from attach on.

    kind: "exit_fd" (a pipe; its hang-up), "shim" (a connected socket; its hang-up), "pidfd" (the process's end),
    "path" (the file's unlink, no fd), "explicit" (only DELETE).
    """

    kind: str
    fd: int = -1
    path: str = ""


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
