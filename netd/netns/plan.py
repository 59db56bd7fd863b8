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


@dataclass(frozen=True, slots=True)
class OpenTap:
    """The TAP as opened: ``fd`` is non-blocking and the caller's."""

    fd: int
    mac: str
    vnet_hdr: bool  # each frame is preceded by a struct virtio_net_hdr of 10 bytes
    offload: bool  # TUNSETOFFLOAD took CSUM and TSO4
    uso: bool = False  # and USO4|USO6: UDP super-frames both ways (Linux 6.2)
    address6: str = ""  # "fd00::5/64": what it really has; "" is none, by plan or because there is no IPv6 in there
