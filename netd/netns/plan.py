"""What the agent is to do inside a namespace, as plain data, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TapPlan:
    """One TAP device. Applying the same plan twice leaves the same state (Podman 5 re-runs on a populated netns).

    ``addresses``, of both families, are all that the device shall have (and each IPv6 device a link-local one besides,
    made of its MAC), in the order in which programs are to find them. IPv6 ones are usable at once.

    ``routes``, each "DST [via GATEWAY] [metric N]": DST is a network, an address, "default" (of the family of GATEWAY;
    IPv4 without one) or "default6". Without ``via`` DST lies on the link. A GATEWAY that is on no subnet of the
    guest's is taken to be on the link. A route that the kernel refuses is left out and logged, unless it leaves a
    family whose default route is planned without any. What is on the link is done first, else the order counts: of
    two routes to DST with one metric the first stands. One to the subnet of an address comes with the address.

    IPv6 is set up if an address or a route of it is planned, and otherwise left as it is.
    """

    ifname: str
    mtu: int
    mac: str = ""  # "" lets the kernel choose
    configure: bool = True  # link and lo up, addresses, routes; else the device is made, down and bare
    address: str = ""  # "10.0.2.100/24"
    gateway: str = ""  # default route via this address
    address6: str = ""  # "fd00::5/64"; a network ("fd00::/64") is completed with the EUI-64 of the MAC
    gateway6: str = ""  # with address6: IPv6 default route via this address, mostly a link-local one
    offload: bool = True  # ask for IFF_VNET_HDR with TUN_F_CSUM|TSO4|TSO6
    uso: bool = False  # with offload: ask for USO4|USO6 as well, for a stack that takes UDP super-frames
    txqueuelen: int = 10000  # frames the device queues for us (DESIGN §1.10)
    lo: bool = False  # without ``configure``: lo is set up and the TAP gets its MAC, nothing else
    addresses: tuple[str, ...] = ()  # instead of address and address6
    routes: tuple[str, ...] = ()  # instead of gateway and gateway6


@dataclass(frozen=True, slots=True)
class OpenTap:
    """The TAP as opened: ``fd`` is non-blocking and the caller's."""

    fd: int
    mac: str
    vnet_hdr: bool  # each frame is preceded by a struct virtio_net_hdr of 10 bytes
    offload: bool  # TUNSETOFFLOAD took CSUM and TSO4
    uso: bool = False  # and USO4|USO6: UDP super-frames both ways (Linux 6.2)
    address6: str = ""  # "fd00::5/64": the first it really has but for the link-local; "" is none
    no_ipv6: str = ""  # why there is no IPv6 in there although it is planned


@dataclass(frozen=True, slots=True)
class HostInterface:
    """An interface of the host, as an example for a guest's."""

    index: int
    name: str
    mtu: int
    mac: str  # "" where it has none of 48 bits
    up: bool
    loopback: bool
    # "192.0.2.2/24", IPv4 first, then IPv6 with the link-local; each in the kernel's order, none that is tentative or
    # deprecated. Temporary addresses (RFC 8981) are among them.
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HostRoute:
    """A unicast route of the host's main table."""

    destination: str  # "192.0.2.0/24", "0.0.0.0/0"
    interface: int  # index; of a multipath route the first
    gateway: str = ""  # "" is on the link itself, or a gateway of the other family (RFC 8950)
    metric: int = 0


@dataclass(frozen=True, slots=True)
class HostView:
    """The host's network, in the kernel's order.

    Routes: IPv4 by destination, the default ones first; then IPv6, the default ones mostly last. Of those to one
    destination the one with the lowest metric comes first, and is what the kernel uses: so the first default route of
    a family is the one in effect (but for IPv6 routers of different preference, RFC 4191). Routes for a type of
    service are left out; those for a source prefix (IPv6) are there without it.
    """

    interfaces: tuple[HostInterface, ...]
    routes: tuple[HostRoute, ...]


@dataclass(frozen=True, slots=True)
class SocketPlan:
    """A socket to be made inside a namespace; it stays there, and keeps the namespace, whoever has the descriptor.

    kind: "diag" (NETLINK_SOCK_DIAG; nothing else counts), "connect" (a bare socket of ``family`` and ``protocol``),
    "listen" (bound to ``ip``:``port`` and ``interface``, TCP listening with SO_REUSEADDR, IPv6 alone). All are
    non-blocking. ``count``: so many of them.
    """

    kind: str
    family: int = 4  # 4 or 6
    protocol: str = "tcp"  # "tcp" | "udp"
    ip: str = ""  # "" is every address of ``family``
    port: int = 0  # 0: the kernel chooses
    interface: str = ""  # SO_BINDTODEVICE, "lo" for what only the guest itself may reach
    count: int = 1
