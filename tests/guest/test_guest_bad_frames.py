"""Frames no kernel would send, put on the TAP by the guest's root: counted, and nobody else notices."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
import struct
import time

import pytest

from netd.settings import Settings
from netd.wire import checksum
from tests.lab import HOST, OUTSIDE, World, aside, both_ways, connected, open_fds, until
from tests.stage import Attach, Guest

from .test_guest_ping import ECHO_REPLY, Pinger
from .test_guest_udp import ask

SOL_PACKET, PACKET_VNET_HDR = 263, 15
ETH_P_ALL = 3
PACKET_OUTGOING = 4
SO_RCVBUFFORCE = 33
VNET = struct.Struct("=BBHHHH")  # flags gso_type hdr_len gso_size csum_start csum_offset
NEEDS_CSUM, DATA_VALID, RSC_INFO = 1, 2, 4
GSO = {"none": 0, "tcpv4": 1, "udp": 3, "tcpv6": 4, "udp_l4": 5, "ecn": 0x80}


def raw(guest: Guest, vnet: bool = False) -> socket.socket:
    """A packet socket on the guest's TAP that only sends."""
    sock = guest.socket(socket.SOCK_RAW, 0, socket.AF_PACKET)
    if vnet:
        sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    with guest.entered():
        sock.bind(("tap0", 0))
    return sock


class Injector:
    """Sends frames as fast as the daemon takes them, and counts."""

    def __init__(self, guest: Guest, vnet: bool = False) -> None:
        self.sock = raw(guest, vnet)
        self.sent = self.refused = 0

    def __enter__(self) -> Injector:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, frame: bytes) -> None:
        while True:
            try:
                self.sock.send(frame)
                self.sent += 1
                return
            except OSError as e:
                if e.errno in (errno.ENOBUFS, errno.EAGAIN):
                    time.sleep(0.0005)
                    continue
                assert e.errno in (errno.EINVAL, errno.EMSGSIZE), e
                self.refused += 1  # the guest's kernel would not have it
                return


async def alive(world: World, *guests: Guest) -> None:
    """Everything works for everybody."""
    for guest in guests:
        with Pinger(guest) as pinger:
            assert (await aside(pinger.ping, "10.0.2.2", 1))[1] == ECHO_REPLY
        with guest.datagrams() as client, world.outside.datagrams(OUTSIDE) as server:
            await aside(ask, client, b"alive?", server.getsockname(), server)
        with guest.socket() as stream, world.outside.listener(OUTSIDE) as listener:
            with await connected(stream, listener.getsockname(), listener) as accepted:
                await both_ways(stream, accepted, 4000)


async def some_traffic(world: World, guest: Guest) -> list[bytes]:
    """Frames the guest's kernel really sent: ARP, ICMP, UDP, DNS, TCP in every phase."""
    with guest.socket(socket.SOCK_RAW, socket.htons(ETH_P_ALL), socket.AF_PACKET) as tap:
        with guest.entered():
            tap.bind(("tap0", ETH_P_ALL))
        tap.setblocking(False)
        tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        guest.run("ip", "neighbor", "flush", "all")
        await alive(world, guest)
        with guest.datagrams() as resolver:
            resolver.sendto(b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\3www\0\0\1\0\1", ("10.0.2.3", 53))
            await aside(resolver.recv, 512)
        frames: list[bytes] = []
        while True:
            try:
                frame, (_, _, kind, _, _) = tap.recvfrom(65600)
            except BlockingIOError:
                break
            if kind == PACKET_OUTGOING:
                frames.append(frame)
    assert {1, 6, 17} <= {frame[23] for frame in frames if frame[12:14] == b"\x08\0"} and len(frames) >= 8
    return frames


def fix_checksums(frame: bytearray) -> None:
    """IPv4 and TCP of a frame without IP options."""
    frame[24:26] = bytes(2)
    frame[24:26] = checksum.finish(checksum.total(frame[14:34])).to_bytes(2, "big")
    frame[50:52] = bytes(2)
    pseudo = checksum.pseudo(frame[26:30], frame[30:34], 6, len(frame) - 34)
    frame[50:52] = checksum.finish(pseudo + checksum.total(frame[34:])).to_bytes(2, "big")


def mutate(rng: random.Random, frame: bytes) -> bytes:
    """One to four changes: bytes, numbers at field borders, length."""
    changed = bytearray(frame)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed))
        kind = rng.randrange(5)
        if kind == 0:
            changed[at] = rng.randrange(256)
        elif kind == 1:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            changed[at : at + 2] = rng.choice((b"\0\0", b"\xff\xff", b"\x7f\xff", b"\x80\0", b"\0\1"))
        elif kind == 3:
            del changed[max(14, at) :]
        else:
            changed[at:at] = rng.randbytes(rng.randint(1, 40))
    if rng.random() < 0.7 and len(changed) >= 54:
        fix_checksums(changed)  # or nothing gets further than the IP header's
    return bytes(changed[:1514])


@pytest.mark.parametrize("offload", [True, False], ids=["offload", "plain"])
async def test_random_and_mutated_frames(world: World, attach: Attach, settings: Settings, offload: bool) -> None:
    guest, neighbour = await attach(mtu=1500), await attach()
    frames = await some_traffic(world, guest)
    rng = random.Random(1)

    def inject() -> int:
        with Injector(guest) as injector:
            for _ in range(1500):
                frame = rng.randbytes(rng.randint(14, 1514))
                injector.send(frame)
                injector.send(guest_mac_to_gateway + rng.choice((b"\x08\0", b"\x08\6", b"\x86\xdd")) + frame[14:])
                injector.send(guest_mac_to_gateway + b"\x08\0" + bytes([0x45]) + frame[15:])
            for _ in range(6000):
                injector.send(mutate(rng, rng.choice(frames)))
            return injector.sent

    guest_mac_to_gateway = frames[-1][:12]
    before = guest.counters()["rx_frames"]
    sent = await aside(inject)
    await until(lambda: guest.counters()["rx_frames"] >= before + sent)  # every frame is counted
    counters = guest.counters()
    for name in ("drop_short", "drop_ethertype", "drop_bad_header", "drop_protocol", "drop_arp", "drop_fragment"):
        assert counters[name] > 0, name
    await alive(world, guest, neighbour)


@pytest.fixture
def settings(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    callspec = getattr(request.node, "callspec", None)
    return settings.model_copy(update={"offload": callspec.params.get("offload", True) if callspec else True})


@pytest.mark.parametrize("offload", [True, False], ids=["offload", "plain"])
async def test_odd_virtio_net_headers(world: World, attach: Attach, settings: Settings, offload: bool) -> None:
    """What the guest's kernel passes of them: partial checksums in odd places, super-frames of every kind."""
    guest, neighbour = await attach(), await attach()
    frames = await some_traffic(world, guest)
    big = [frame + bytes(rng_size) for frame in frames for rng_size in (0, 3000, 60000)]
    rng = random.Random(2)

    def inject() -> tuple[int, int]:
        with Injector(guest, vnet=True) as injector:
            for _ in range(4000):
                frame = rng.choice(big)
                start = rng.choice((0, 14, 34, 34, 34, len(frame) - 2, rng.randrange(len(frame))))
                header = VNET.pack(
                    rng.choice((0, NEEDS_CSUM, NEEDS_CSUM, DATA_VALID, RSC_INFO, 0xFF)),
                    rng.choice((*GSO.values(), GSO["tcpv4"], GSO["tcpv4"] | GSO["ecn"], 0x7F)),
                    rng.choice((0, 14, 54, 66, len(frame), 0xFFFF, rng.randrange(200))),
                    rng.choice((0, 1, 536, 1460, 0xFFFF)),
                    start,
                    rng.choice((0, 6, 16, 2, rng.randrange(60))),
                )
                injector.send(header + (mutate(rng, frame) if rng.random() < 0.5 else frame)[: 65535 + 14])
            return injector.sent, injector.refused

    sent, refused = await aside(inject)
    assert sent > 400 and refused > 400
    await alive(world, guest, neighbour)


async def test_a_flood_does_not_starve_the_neighbour(world: World, attach: Attach) -> None:
    guest, neighbour = await attach(), await attach()
    stop = False

    def flood() -> None:
        with Injector(guest) as injector:
            frame = bytes(12) + b"\x08\0" + os.urandom(60)
            while not stop:
                injector.send(frame)

    flooding = [aside(flood)]
    task = asyncio.gather(*flooding)
    try:
        await until(lambda: guest.counters()["rx_frames"] > 10_000)
        start = time.monotonic()
        await alive(world, neighbour)
        assert time.monotonic() - start < 3
    finally:
        stop = True
        await task


async def test_syns_without_end_are_bounded(world: World, attach: Attach, caplog: pytest.LogCaptureFixture) -> None:
    """Half-open flows push out their elders; descriptors come back."""
    guest = await attach()
    [syn] = [f for f in await some_traffic(world, guest) if f[23] == 6 and f[47] == 2][:1]
    before = open_fds()

    def syns() -> None:
        with Injector(guest) as injector:
            for number in range(5000):
                frame = bytearray(syn)
                frame[30:34] = b"\xc0\x00\x02\x09"  # SILENT
                frame[34:38] = struct.pack("!HH", 1024 + number, 80)
                fix_checksums(frame)
                injector.send(bytes(frame))

    await aside(syns)
    await until(lambda: guest.counters()["tcp_evicted"] >= 5000 - 1024)
    await until(lambda: guest.network.status().flows["tcp"] <= 1024, "earlier flows are over")
    assert open_fds() - before <= 1024
    await alive(world, guest)
    await guest.daemon.detach(guest.network)
    await until(lambda: open_fds() <= before)


async def test_a_spoofed_source_opens_nothing(world: World, attach: Attach) -> None:
    guest = await attach()
    frames = await some_traffic(world, guest)
    [syn] = [f for f in frames if f[23] == 6 and f[47] == 2][:1]
    before = guest.counters()
    with Injector(guest) as injector:
        for source in (b"\x0a\0\2\2", b"\x0a\0\2\3", b"\x7f\0\0\1", b"\x08\x08\x08\x08", socket.inet_aton(HOST)):
            frame = bytearray(syn)
            frame[26:30] = source
            fix_checksums(frame)
            injector.send(bytes(frame))
    await until(lambda: guest.counters()["drop_martian"] == before["drop_martian"] + 5)
    assert guest.counters()["tcp_opened"] == before["tcp_opened"]
    await alive(world, guest)
