"""A TAP that the caller has opened, and maybe set up, itself: what it is, and whether a network can be served on it.

Sources: Documentation/networking/tuntap.rst, include/uapi/linux/if_tun.h, drivers/net/tun.c.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from dataclasses import dataclass

from netd.errors import TapUnavailable
from netd.netns.plan import OpenTap
from netd.netns.tun import (
    IFF_NO_PI,
    IFF_TAP,
    IFF_VNET_HDR,
    IFREQ,
    TUN_F_CSUM,
    TUN_F_TSO4,
    TUN_F_TSO6,
    TUNGETIFF,
    TUNSETOFFLOAD,
    TUNSETVNETHDRSZ,
    VNET_HDR_SIZE,
    identity,
)

_TUNGETDEVNETNS = 0x54E3  # linux/if_tun.h, Linux 5.2
_FPROG = struct.Struct("@HP")  # struct sock_fprog: how many instructions, and where they are
_TUNATTACHFILTER, _TUNDETACHFILTER = (0x40000000 | _FPROG.size << 16 | 0x5400 | number for number in (213, 214))
_TUNGETFILTER = 0x80000000 | _FPROG.size << 16 | 0x5400 | 219
_ACCEPT_ALL = struct.pack("HBBI", 0x06, 0, 0, 0xFFFFFFFF)  # struct sock_filter: BPF_RET|BPF_K, every byte


@dataclass(frozen=True, slots=True)
class HandedTap:
    """``tap.fd`` is the one that was handed over. ``netns_fd`` is the device's namespace, a new descriptor, or -1."""

    tap: OpenTap
    ifname: str
    netns_fd: int


def handed_tap(fd: int, offload: bool) -> HandedTap:
    """Look at ``fd`` and make it ready: not blocking, and with a vnet header of our size where it has one.

    Whether frames carry a vnet header was decided at TUNSETIFF and cannot be changed any more (EEXIST); offloads can.
    TapUnavailable when it is no TAP that we can read; ``fd`` stays the caller's.
    """
    try:
        _check(fd)
        ifname, _, mac = identity(fd)
        vnet_hdr = bool(_flags(fd) & IFF_VNET_HDR)
        if vnet_hdr:
            fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", VNET_HDR_SIZE))
        offloads = vnet_hdr and offload and _offloads(fd)
        if not offloads:
            # The device keeps what its last reader asked for; frames beyond the MTU would be lost on us.
            fcntl.ioctl(fd, TUNSETOFFLOAD, 0)
        os.set_blocking(fd, False)
    except OSError as e:
        raise TapUnavailable(f"the TAP of descriptor {fd} cannot be used: {e.strerror}") from e
    return HandedTap(OpenTap(fd=fd, mac=mac, vnet_hdr=vnet_hdr, offload=offloads), ifname, _namespace(fd))


def _check(fd: int) -> None:
    try:
        flags = _flags(fd)
    except OSError as e:
        if e.errno == errno.EBADFD:
            raise TapUnavailable("the descriptor is one of /dev/net/tun without a device (TUNSETIFF)") from None
        raise TapUnavailable("the descriptor is not a TAP's") from None
    if not flags & IFF_TAP:
        raise TapUnavailable("the descriptor is a TUN's; netd needs Ethernet frames (IFF_TAP)")
    if not flags & IFF_NO_PI or not _without_packet_information(fd):
        raise TapUnavailable("the TAP puts packet information before each frame; open it with IFF_NO_PI")
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
        raise TapUnavailable("the descriptor of the TAP is not open for reading and writing")


def _flags(fd: int) -> int:
    return int(IFREQ.unpack(fcntl.ioctl(fd, TUNGETIFF, bytes(IFREQ.size)))[1])


def _without_packet_information(fd: int) -> bool:
    """Whether IFF_NO_PI was given, which TUNGETIFF hides as long as the device has no filter.

    It sets IFF_NOFILTER then, and that is the same bit. So give it one for a moment that lets everything pass, unless
    somebody's is there already: one of a single instruction is what an earlier call of this function has left behind.
    """
    count, _ = _FPROG.unpack(fcntl.ioctl(fd, _TUNGETFILTER, bytes(_FPROG.size)))
    if count > 1:
        return True  # the bit that was seen is the right one
    code = ctypes.create_string_buffer(_ACCEPT_ALL, len(_ACCEPT_ALL))
    fcntl.ioctl(fd, _TUNATTACHFILTER, _FPROG.pack(1, ctypes.addressof(code)))
    try:
        return bool(_flags(fd) & IFF_NO_PI)
    finally:
        fcntl.ioctl(fd, _TUNDETACHFILTER, bytes(_FPROG.size))


def _offloads(fd: int) -> bool:
    """Whether the kernel takes TSO, for both families or for IPv4."""
    for tso in (TUN_F_TSO4 | TUN_F_TSO6, TUN_F_TSO4):
        try:
            fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | tso)
        except OSError:
            continue
        return True
    return False


def _namespace(fd: int) -> int:
    """A descriptor of the device's namespace, or -1: only who has CAP_NET_ADMIN in there is told."""
    try:
        return fcntl.ioctl(fd, _TUNGETDEVNETNS)
    except OSError:
        return -1
