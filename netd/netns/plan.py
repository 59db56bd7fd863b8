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
    offload: bool = True  # ask for IFF_VNET_HDR with TUN_F_CSUM|TSO4|TSO6
    txqueuelen: int = 10000  # frames the device queues for us (DESIGN §1.10)


@dataclass(frozen=True, slots=True)
class OpenTap:
    """The TAP as opened: ``fd`` is non-blocking and the caller's."""

    fd: int
    mac: str
    vnet_hdr: bool  # each frame is preceded by a struct virtio_net_hdr of 10 bytes
    offload: bool  # TUNSETOFFLOAD took CSUM and TSO4
