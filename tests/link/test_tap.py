"""A TAP at both ends: what the kernel gets and gives, with and without a vnet header."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

import pytest

from netd.link.tap import BATCH, FEW, FRAME_MAX, Tap, is_attached
from netd.netns.plan import TapPlan
from netd.netns.tun import open_tap
from netd.wire import checksum, ethernet, ipv4, tcp, udp, vnet_hdr
from tests.lab import Netns, missing, open_fds

ETH_P_ALL = 3
OTHER = b"\x02\x00\x00\x00\x00\x01"


class Link:
    """A TAP, and a packet socket on the guest's side of it."""

    def __init__(self, offload: bool, mtu: int = 1500) -> None:
        self.netns = Netns.bare()
        self.netns.run("sysctl", "-q", "-w", "net.ipv6.conf.default.disable_ipv6=1", check=False)
        with self.netns.entered():
            fd, vnet, self.offload = open_tap(TapPlan("tap0", mtu, offload=offload))
        self.tap = Tap(fd, vnet)
        self.netns.ip(f"link set tap0 mtu {mtu} up\naddress add 10.0.2.100/24 dev tap0")
        self.guest = self.netns.socket(socket.SOCK_RAW, socket.htons(ETH_P_ALL), socket.AF_PACKET)
        self.guest.bind(("tap0", ETH_P_ALL))
        self.mac = self.guest.getsockname()[4]
        self.take()

    def take(self) -> list[tuple[bytes, bool]]:
        """All frames that wait for us now, with what the device vouches for."""
        frames: list[tuple[bytes, bool]] = []
        before = -1
        while len(frames) != before:
            before = len(frames)
            assert self.tap.receive(lambda view, vouched, segment, now: frames.append((bytes(view), vouched)), 1.5, 1e9)
        return frames

    def close(self) -> None:
        self.guest.close()
        self.tap.close()
        self.netns.close()


@pytest.fixture(params=[True, False], ids=["vnet", "plain"])
def link(request: pytest.FixtureRequest) -> Iterator[Link]:
    if why := missing():
        pytest.skip(why)
    before = open_fds()
    link = Link(request.param)
    if link.tap.vnet is not request.param:
        link.close()
        pytest.skip("this kernel has no vnet header")
    yield link
    link.close()
    assert open_fds() == before


def frame(payload: bytes, ethertype: int = 0x88B5) -> bytes:  # an ethertype for experiments (IEEE 802)
    return ethernet.HEADER.pack(OTHER, OTHER, ethertype) + payload


def test_frames_come_in_order_and_no_more_than_a_batch_at_once(link: Link) -> None:
    sent = [frame(struct.pack("!I", number) + bytes(60)) for number in range(BATCH * 2 + 10)]
    for one in sent:
        link.guest.send(one)
    for size in (BATCH, BATCH, 10, 0):
        got: list[tuple[bytes, float]] = []
        assert link.tap.receive(lambda view, vouched, segment, now, got=got: got.append((bytes(view), now)), 7.0, 1e9)  # type: ignore[misc]
        assert got == [(one, 7.0) for one in sent[:size]]
        del sent[:size]


def test_all_that_wait_come_in_one_turn(link: Link) -> None:
    for count in (1, 2, FEW - 1, FEW, FEW + 1, 3 * FEW, FEW, 1, 2):
        for _ in range(count):
            link.guest.send(frame(bytes(60)))
        got: list[int] = []
        assert link.tap.receive(lambda view, vouched, segment, now, got=got: got.append(len(view)), 1.5, 1e9)  # type: ignore[misc]
        assert got == [74] * count


def test_every_size_up_to_the_mtu(link: Link) -> None:
    for size in (14, 15, 60, 1513, 1514):
        link.guest.send(frame(os.urandom(size - 14)))
        [(got, _)] = link.take()
        assert len(got) == size


def test_the_view_is_the_frame_alone(link: Link) -> None:
    """A short frame after a long one: nothing of the long one shows."""
    link.guest.send(frame(b"\xaa" * 1500))
    link.guest.send(frame(b"\xbb"))
    assert [got for got, _ in link.take()] == [frame(b"\xaa" * 1500), frame(b"\xbb")]


def test_what_the_device_vouches_for(link: Link) -> None:
    link.guest.send(frame(b"by hand"))
    [(_, vouched)] = link.take()
    assert not vouched
    link.netns.ip("neighbor add 10.0.2.2 lladdr 52:55:0a:00:02:02 dev tap0")
    with link.netns.datagrams() as sender:
        sender.sendto(b"by the kernel", ("10.0.2.2", 9))
        [(got, vouched)] = link.take()
    assert vouched is link.tap.vnet  # partial: the sum is ours to complete, or to leave
    pseudo = checksum.pseudo(got[26:30], got[30:34], ipv4.UDP, len(got) - 34)
    assert checksum.valid(pseudo + checksum.total(got[34:])) is not vouched


def ipv4_frame(link: Link, protocol: int, segment: bytes) -> bytes:
    head = ipv4.build(b"\x0a\0\2\2", b"\x0a\0\2\x64", protocol, len(segment))
    return ethernet.HEADER.pack(link.mac, OTHER, ethernet.IPV4) + head + segment


def test_a_finished_frame_arrives_as_it_is(link: Link) -> None:
    one = ethernet.HEADER.pack(link.mac, OTHER, 0x88B5)
    for payload in (b"x", os.urandom(1500)):
        for header, rest in ((one, payload), (one + payload, b""), (bytearray(one), memoryview(payload))):
            assert link.tap.transmit(vnet_hdr.PLAIN + header, rest)
            assert link.guest.recv(2000) == one + payload
    assert link.tap.drops == 0


@pytest.mark.parametrize("link", [True], ids=["vnet"], indirect=True)
def test_a_checksum_left_to_the_device(link: Link) -> None:
    with link.netns.datagrams("10.0.2.100", 5000) as receiver:
        receiver.settimeout(5)
        for payload in (b"", b"odd", os.urandom(1400)):
            pseudo = checksum.pseudo(b"\x0a\0\2\2", b"\x0a\0\2\x64", ipv4.UDP, 8 + len(payload))
            header = ipv4_frame(link, ipv4.UDP, udp.HEADER.pack(9, 5000, 8 + len(payload), pseudo) + payload)
            header = header[: len(header) - len(payload)]
            assert link.tap.transmit(vnet_hdr.partial(34, udp.CHECKSUM_OFFSET) + header, payload)
            assert receiver.recv(2000) == payload


@pytest.mark.parametrize("link", [True], ids=["vnet"], indirect=True)
def test_a_super_frame_is_taken_whole(link: Link) -> None:
    """The kernel's own TCP has it as one; forwarded out of another device it would be cut (net/core/gso.c)."""
    if not link.offload:
        pytest.skip("this kernel takes no super-frames")
    payload = os.urandom(1460 * 20 + 7)
    segment = tcp.HEADER.pack(80, 5000, 1, 1, 5 << 12 | tcp.ACK, 512, 0, 0)
    pseudo = checksum.pseudo(b"\x0a\0\2\2", b"\x0a\0\2\x64", ipv4.TCP, len(segment) + len(payload))
    segment = segment[:16] + pseudo.to_bytes(2, "big") + segment[18:]
    whole = ipv4_frame(link, ipv4.TCP, segment + payload)
    vnet = vnet_hdr.HEADER.pack(vnet_hdr.NEEDS_CSUM, vnet_hdr.GSO_TCPV4, 54, 1460, 34, tcp.CHECKSUM_OFFSET)
    assert link.tap.transmit(vnet + whole[:54], payload)
    got = link.guest.recv(65536)
    assert got[54:] == payload and got[14:34] == whole[14:34]
    assert link.tap.drops == 0


def test_a_frame_the_kernel_will_not_have_is_counted(link: Link) -> None:
    assert not link.tap.transmit(vnet_hdr.PLAIN + b"short", b"")
    assert link.tap.drops == 1
    if link.tap.vnet:
        header = ethernet.HEADER.pack(link.mac, OTHER, ethernet.IPV4)
        assert not link.tap.transmit(vnet_hdr.partial(60000, 6) + header, b"")  # a checksum beyond the end
        assert link.tap.drops == 2


def test_down_is_not_gone(link: Link) -> None:
    link.netns.ip("link set tap0 down")
    link.take()
    assert is_attached(link.tap.fd)
    assert not link.tap.transmit(vnet_hdr.PLAIN + ethernet.HEADER.pack(link.mac, OTHER, 0x88B5), b"x")
    assert link.tap.drops == 1
    link.netns.ip("link set tap0 up")
    assert link.tap.transmit(vnet_hdr.PLAIN + ethernet.HEADER.pack(link.mac, OTHER, 0x88B5), b"x")
    link.take()
    assert link.guest.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ENETDOWN  # told once
    link.guest.send(frame(b"again"))
    assert (frame(b"again"), False) in link.take()


def test_deleted_is_gone(link: Link) -> None:
    link.guest.send(frame(b"still queued"))
    link.netns.ip("link delete tap0")
    assert not is_attached(link.tap.fd)
    assert not link.tap.receive(lambda *_: pytest.fail("a frame of a device that is gone"), 0.0, 1.0)
    assert not link.tap.transmit(vnet_hdr.PLAIN + bytes(14), b"x")


def test_closing_removes_the_device_at_once_and_once(link: Link) -> None:
    assert link.netns.has_link("tap0")
    link.tap.close()
    assert not link.netns.has_link("tap0")
    link.tap.close()


def test_what_is_no_tap_is_not_attached() -> None:
    with open("/dev/null") as file, socket.socket() as sock:
        assert not is_attached(file.fileno()) and not is_attached(sock.fileno())
    fd = os.open("/dev/null", os.O_RDONLY)
    os.close(fd)
    assert not is_attached(fd)


def test_the_header_is_the_kernels() -> None:
    """linux/virtio_net.h: struct virtio_net_hdr without num_buffers."""
    assert vnet_hdr.HEADER.size == vnet_hdr.SIZE == len(vnet_hdr.PLAIN) == 10
    assert vnet_hdr.HEADER.unpack(vnet_hdr.PLAIN) == (0, 0, 0, 0, 0, 0)
    assert FRAME_MAX >= 65535 + 14
