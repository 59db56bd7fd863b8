"""The TAP device of the namespace this process is in. No state; used by the agent's children alone.

Sources: Documentation/networking/tuntap.rst, include/uapi/linux/if_tun.h, drivers/net/tun.c.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import time

from netd.errors import NetdError, TapUnavailable
from netd.netns.plan import TapPlan

TUN_PATH = "/dev/net/tun"
BUSY_SECONDS = 0.5  # how long a busy TAP name is tried again: its last owner is being closed
BUSY_PAUSE = 0.005

# linux/if_tun.h, in the encoding of asm-generic/ioctl.h (x86, arm, riscv, s390, loongarch).
TUNSETIFF, TUNSETOFFLOAD, TUNGETIFF, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x800454D2, 0x400454D8
IFF_TAP, IFF_PERSIST, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x0800, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6 = 0x01, 0x02, 0x04, 0x20, 0x40
VNET_HDR_SIZE = 10  # struct virtio_net_hdr, without num_buffers
SIOCGIFHWADDR = 0x8927
IFREQ = struct.Struct("16sH22x")  # struct ifreq with ifr_flags
IFREQ_HWADDR = struct.Struct("16sH6s16x")  # struct ifreq with ifr_hwaddr
IFNAME_MAX = 15  # IFNAMSIZ less the NUL


def open_tun() -> int:
    """A fresh, non-blocking fd of /dev/net/tun. Raises TapUnavailable."""
    try:
        return os.open(TUN_PATH, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        if e.errno in (errno.EACCES, errno.EPERM):
            hint = f"as root: chmod 0666 {TUN_PATH}"
        elif e.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            hint = f"as root: modprobe tun; in a container: --device {TUN_PATH}"
        else:
            hint = ""
        raise TapUnavailable(f"{TUN_PATH} cannot be opened: {e.strerror}", hint) from e


def open_tap(plan: TapPlan) -> tuple[int, bool, bool]:
    """Makes the TAP, or attaches to a persistent one of that name: (fd, has a vnet header, offload is on).

    With ``plan.offload``: a vnet header and TUN_F_CSUM|TSO4|TSO6, or what of it the kernel takes; without it, or
    when the kernel refuses, a plain TAP. Raises TapUnavailable.
    """
    if plan.offload:
        fd = open_tun()
        try:
            attach(fd, plan.ifname, IFF_VNET_HDR)
            fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", VNET_HDR_SIZE))
            for tso in (TUN_F_TSO4 | TUN_F_TSO6, TUN_F_TSO4):
                try:
                    fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | tso)
                except OSError:
                    continue
                return fd, True, True
        except NetdError:
            os.close(fd)
            raise
        except OSError:
            pass  # no vnet header with this kernel: plain, below
        os.close(fd)
    fd = open_tun()
    try:
        attach(fd, plan.ifname, 0)
        # A persistent TAP keeps what its last reader asked for; without a header we could not read such frames.
        fcntl.ioctl(fd, TUNSETOFFLOAD, 0)
    except OSError as e:
        os.close(fd)
        raise TapUnavailable(f"{plan.ifname} cannot be made: {e.strerror}") from e
    except NetdError:
        os.close(fd)
        raise
    return fd, False, False


def offer_uso(fd: int) -> bool:
    """UDP super-frames besides what ``open_tap`` has agreed on (Linux 6.2, both families or none); did it take that?

    A kernel that knows the flags not says EINVAL and keeps what was set before (set_offload()).
    """
    try:
        fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_USO4 | TUN_F_USO6)
    except OSError:
        return False
    return True


def attach(fd: int, ifname: str, flags: int) -> None:
    """TUNSETIFF, tried again while the name is busy. Raises TapUnavailable."""
    name = os.fsencode(ifname)[:IFNAME_MAX]
    if not name or b"%" in name or b"\0" in name:  # the kernel takes % for a template
        raise TapUnavailable(f"{ifname!r} is not an interface name")
    request = IFREQ.pack(name, IFF_TAP | IFF_NO_PI | flags)
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            fcntl.ioctl(fd, TUNSETIFF, request)
            return
        except OSError as e:
            shown = os.fsdecode(name)
            if e.errno == errno.EBUSY:
                if time.monotonic() < deadline:
                    time.sleep(BUSY_PAUSE)
                    continue
                raise TapUnavailable(f"{shown} is in use: another process reads this TAP") from e
            if e.errno == errno.EINVAL:
                if shown in (there for _, there in socket.if_nameindex()):
                    raise TapUnavailable(f"{shown} is there already and is not a TAP with one queue") from e
                raise TapUnavailable(f"{ifname!r} is not an interface name") from e
            raise TapUnavailable(f"{shown} cannot be made: {e.strerror}") from e


def identity(fd: int) -> tuple[str, bool, str]:
    """What the kernel made of it: (name, persistent, MAC)."""
    name, flags = IFREQ.unpack(fcntl.ioctl(fd, TUNGETIFF, bytes(IFREQ.size)))
    _, _, mac = IFREQ_HWADDR.unpack(fcntl.ioctl(fd, SIOCGIFHWADDR, bytes(IFREQ_HWADDR.size)))
    return os.fsdecode(name.rstrip(b"\0")), bool(flags & IFF_PERSIST), mac.hex(":")
