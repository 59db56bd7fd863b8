"""What the agent is to do inside a namespace, as plain data, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TapPlan:
    """One TAP device. Applying the same plan twice leaves the same state (Podman 5 re-runs on a populated netns)."""

    ifname: str
    mtu: int
    mac: str = ""  # "" lets the kernel choose
    configure: bool = True  # link and lo up, address, default route; else the device is made, down and bare
    address: str = ""  # "10.0.2.100/24"
    gateway: str = ""  # default route via this address
    address6: str = ""  # "fd00::5/64"; a network ("fd00::/64") is completed with the EUI-64 of the MAC
    gateway6: str = ""  # with address6: IPv6 default route via this address, mostly a link-local one
    offload: bool = True  # ask for IFF_VNET_HDR with TUN_F_CSUM|TSO4|TSO6
    uso: bool = False  # with offload: ask for USO4|USO6 as well, for a stack that takes UDP super-frames
    txqueuelen: int = 10000  # frames the device queues for us (DESIGN §1.10)
    lo: bool = False  # without ``configure``: lo up and the MAC set, nothing else
    addresses: tuple[str, ...] = ()  # instead of address and address6: any number, of both families, "192.0.2.2/24"
    routes: tuple[str, ...] = ()  # instead of gateway and gateway6, in this order: "DST [via GATEWAY] [metric N]"


@dataclass(frozen=True, slots=True)
class OpenTap:
    """The TAP as opened: ``fd`` is non-blocking and the caller's."""

    fd: int
    mac: str
    vnet_hdr: bool  # each frame is preceded by a struct virtio_net_hdr of 10 bytes
    offload: bool  # TUNSETOFFLOAD took CSUM and TSO4
    uso: bool = False  # and USO4|USO6: UDP super-frames both ways (Linux 6.2)
    address6: str = ""  # "fd00::5/64": what it really has; "" is none, by plan or because there is no IPv6 in there


@dataclass(frozen=True, slots=True)
class HostInterface:
    """An interface of the host, as an example for a guest's."""

    index: int
    name: str
    mtu: int
    mac: str
    up: bool
    loopback: bool
    addresses: tuple[str, ...] = ()  # "192.0.2.2/24", in the kernel's order; no tentative or deprecated ones


@dataclass(frozen=True, slots=True)
class HostRoute:
    """A unicast route of the host's main table."""

    destination: str  # "192.0.2.0/24", "0.0.0.0/0"
    interface: int  # index; of a multipath route the first
    gateway: str = ""  # "" is on the link itself
    metric: int = 0


@dataclass(frozen=True, slots=True)
class HostView:
    """The host's network, in the kernel's order."""

    interfaces: tuple[HostInterface, ...]
    routes: tuple[HostRoute, ...]


@dataclass(frozen=True, slots=True)
class SocketPlan:
    """A socket to be made inside a namespace; it stays there, whoever has the descriptor.

    kind: "diag" (NETLINK_SOCK_DIAG), "connect" (a bare non-blocking socket of ``family`` and ``protocol``),
    "listen" (bound to ``ip``:``port`` and ``interface``, TCP listening).
    """

    kind: str
    family: int = 4  # 4 or 6
    protocol: str = "tcp"  # "tcp" | "udp"
    ip: str = ""
    port: int = 0
    interface: str = ""  # SO_BINDTODEVICE, "lo" for what only the guest itself may reach
