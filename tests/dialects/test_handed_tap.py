"""What netd makes of a descriptor that a caller says is a TAP."""

from __future__ import annotations

import fcntl
import os
import struct

import pytest

from netd.dialects.handed_tap import handed_tap
from netd.errors import TapUnavailable
from netd.netns.tun import TUNGETIFF, TUNSETOFFLOAD
from tests.attach.harness import open_fds
from tests.dialects.tap_maker import IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_TUN, IFF_VNET_HDR, Caller

TUNGETVNETHDRSZ = 0x800454D7  # linux/if_tun.h


@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize("more", [0, IFF_VNET_HDR, IFF_MULTI_QUEUE, IFF_VNET_HDR | IFF_MULTI_QUEUE])
def test_a_tap(more: int, offload: bool) -> None:
    before = open_fds()
    with Caller(IFF_TAP | IFF_NO_PI | more, "ip link set eth7 address 02:00:00:00:00:07", name="eth7") as caller:
        if more & IFF_VNET_HDR:
            fcntl.ioctl(caller.fd, 0x400454D8, struct.pack("i", 12))  # TUNSETVNETHDRSZ: as virtio 1.0 has it
        handed = handed_tap(caller.fd, offload)
        assert (handed.ifname, handed.tap.mac, handed.tap.fd) == ("eth7", "02:00:00:00:00:07", caller.fd)
        assert handed.tap.vnet_hdr == bool(more & IFF_VNET_HDR)
        assert handed.tap.offload == (handed.tap.vnet_hdr and offload)
        if handed.tap.vnet_hdr:
            assert struct.unpack("i", fcntl.ioctl(caller.fd, TUNGETVNETHDRSZ, bytes(4))) == (10,)
        assert not os.get_blocking(caller.fd)
        assert os.fstat(handed.netns_fd).st_ino == os.stat(f"/proc/{caller.pid}/ns/net").st_ino
        os.close(handed.netns_fd)
    assert open_fds() == before


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (0, "without a device"),
        (IFF_TUN | IFF_NO_PI, "TUN's"),
        (IFF_TAP, "IFF_NO_PI"),
    ],
)
def test_what_is_no_use(flags: int, complaint: str) -> None:
    with Caller(flags) as caller:
        for _ in range(2):  # the second time as well
            with pytest.raises(TapUnavailable, match=complaint):
                handed_tap(caller.fd, True)


@pytest.mark.parametrize("mode", [os.O_RDONLY, os.O_WRONLY])
def test_a_tap_that_is_open_one_way(mode: int) -> None:
    with Caller(mode=mode) as caller, pytest.raises(TapUnavailable, match="reading and writing"):
        handed_tap(caller.fd, True)


def test_one_more_look_changes_nothing() -> None:
    with Caller() as caller:
        for _ in range(2):
            os.close(handed_tap(caller.fd, True).netns_fd)


def test_a_tap_that_is_gone() -> None:
    with Caller() as caller:
        caller.run("ip", "link", "delete", "tap0")
        with pytest.raises(TapUnavailable, match="without a device"):
            handed_tap(caller.fd, True)


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "/etc/passwd", "/", "pipe"])
def test_what_is_no_tap(path: str) -> None:
    reading, writing = os.pipe()
    fd = reading if path == "pipe" else os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(TapUnavailable, match="not a TAP's"):
            handed_tap(fd, True)
    finally:
        for each in {fd, reading, writing}:
            os.close(each)


def test_offloads_of_an_earlier_reader_are_taken_back() -> None:
    """Without a vnet header, super-frames could not be told from frames."""
    with Caller() as caller:
        fcntl.ioctl(caller.fd, TUNSETOFFLOAD, 0x07)
        assert not handed_tap(caller.fd, True).tap.offload
        shown = caller.run("ethtool", "-k", "tap0")
        if "tcp-segmentation-offload" in shown:
            assert "tcp-segmentation-offload: off" in shown
        fcntl.ioctl(caller.fd, TUNGETIFF, bytes(40))
