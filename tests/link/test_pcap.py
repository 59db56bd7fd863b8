"""A capture of a real TAP, read by tcpdump and by a reader of our own."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from netd.link.pcap import Capture, Pcap
from netd.link.tap import FRAME_MAX
from netd.wire import ethernet, ipv4, tcp, udp, vnet_hdr
from tests.lab import missing, open_fds
from tests.link.test_tap import OTHER, Link, frame

GUEST, PEER = b"\x0a\x00\x02\x64", b"\x0a\x00\x02\x02"


def opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)


def records(path: Path) -> list[tuple[float, bytes]]:
    """A reader of its own, from pcap-savefile(5). Fails on a file that ends within a record."""
    data = path.read_bytes()
    magic, major, minor, zone, accuracy, snaplen, linktype = struct.unpack_from("=IHHiIII", data)
    assert (magic, major, minor, zone, accuracy, linktype) == (0xA1B2C3D4, 2, 4, 0, 0, 1)
    assert snaplen >= 65535 + 14
    at, found = 24, []
    while at < len(data):
        seconds, micros, kept, length = struct.unpack_from("=IIII", data, at)
        assert kept == length and micros < 1_000_000 and at + 16 + kept <= len(data)
        found.append((seconds + micros / 1e6, data[at + 16 : at + 16 + kept]))
        at += 16 + kept
    return found


def tcpdump(path: Path, *options: str) -> list[str]:
    if shutil.which("tcpdump") is None:
        pytest.skip("no tcpdump")
    done = subprocess.run(["tcpdump", "-nt", *options, "-r", path], capture_output=True, text=True, check=False)
    if "Couldn't change to" in done.stderr:
        pytest.skip("tcpdump wants to be another user, and there is none in this user namespace")
    assert done.returncode == 0, done.stderr
    assert "truncated" not in done.stderr
    return done.stdout.splitlines()


def datagram(payload: bytes, src: bytes = PEER, dst: bytes = GUEST) -> bytes:
    size = udp.SIZE + len(payload)
    return ipv4.build(src, dst, ipv4.UDP, size) + udp.HEADER.pack(53, 4711, size, 0) + payload


@pytest.fixture(params=[True, False], ids=["vnet", "plain"])
def link(request: pytest.FixtureRequest) -> Iterator[Link]:
    if why := missing():
        pytest.skip(why)
    before = open_fds()
    link = Link(request.param)
    yield link
    link.close()
    assert open_fds() == before


def test_both_directions_without_the_vnet_header(link: Link, tmp_path: Path) -> None:
    begin = time.time()
    capture = link.tap = Capture(link.tap, opened(tmp_path / "pcap"))  # type: ignore[assignment]
    assert capture.fd >= 0
    sent = [ethernet.HEADER.pack(OTHER, link.mac, ethernet.IPV4) + datagram(bytes(n), GUEST, PEER) for n in (50, 60)]
    for one in sent:
        link.guest.send(one)
    assert [got for got, _ in link.take()] == sent
    ours = ethernet.HEADER.pack(link.mac, OTHER, ethernet.IPV4) + datagram(b"x" * 100)
    header, payload = vnet_hdr.PLAIN + ours[:42], ours[42:]
    assert capture.transmit(header, payload)
    assert capture.transmit(memoryview(bytearray(header)), memoryview(payload))
    found = records(tmp_path / "pcap")
    assert [data for _, data in found] == [*sent, ours, ours]
    assert all(begin - 1 <= when <= time.time() + 1 for when, _ in found)
    assert [when for when, _ in found] == sorted(when for when, _ in found)
    lines = tcpdump(tmp_path / "pcap", "udp", "and", "dst", "port", "4711")
    assert len(lines) == 4 and lines[2].startswith("IP 10.0.2.2.53 > 10.0.2.100.4711")
    assert capture.drops == 0


def test_super_frames_are_recorded_whole(link: Link, tmp_path: Path) -> None:
    if not link.tap.vnet:
        pytest.skip("needs a vnet header")
    capture = link.tap = Capture(link.tap, opened(tmp_path / "pcap"))  # type: ignore[assignment]
    size = 60000
    head = ethernet.HEADER.pack(link.mac, OTHER, ethernet.IPV4) + ipv4.build(PEER, GUEST, ipv4.TCP, tcp.SIZE + size)
    head += tcp.HEADER.pack(80, 40000, 1, 1, 5 << 12 | tcp.ACK, 1000, 0, 0)
    vnet = vnet_hdr.HEADER.pack(vnet_hdr.NEEDS_CSUM, vnet_hdr.GSO_TCPV4, len(head), 1448, 34, tcp.CHECKSUM_OFFSET)
    assert capture.transmit(vnet + head, bytes(size))
    [(_, data)] = records(tmp_path / "pcap")
    assert data == head + bytes(size)
    [line] = tcpdump(tmp_path / "pcap")
    assert line.startswith("IP 10.0.2.2.80 > 10.0.2.100.40000: Flags [.], seq 1:60001,")


def test_a_frame_that_the_device_did_not_take_is_not_there(link: Link, tmp_path: Path) -> None:
    capture = link.tap = Capture(link.tap, opened(tmp_path / "pcap"))  # type: ignore[assignment]
    link.netns.ip("link set tap0 down")
    assert not capture.transmit(vnet_hdr.PLAIN + frame(bytes(60)), b"")
    assert capture.drops == 1
    link.netns.ip("link delete tap0")
    assert not capture.receive(lambda *_: None, 0.0, 1e9)
    assert records(tmp_path / "pcap") == []


def test_the_largest_frame_fits(tmp_path: Path) -> None:
    pcap = Pcap(opened(tmp_path / "pcap"))
    assert pcap.frame(True, bytes(FRAME_MAX), b"")
    pcap.close()
    pcap.close()
    assert len(records(tmp_path / "pcap")[0][1]) == FRAME_MAX
    assert len(tcpdump(tmp_path / "pcap")) == 1


def test_goes_on_where_an_earlier_one_ended(tmp_path: Path) -> None:
    fd = opened(tmp_path / "pcap")
    first = Pcap(os.dup(fd))
    first.frame(True, b"a" * 60, b"")
    first.close()
    second = Pcap(fd, resumed=True)
    second.frame(False, b"b" * 20, b"b" * 40)
    second.close()
    assert [data for _, data in records(tmp_path / "pcap")] == [b"a" * 60, b"b" * 60]


@pytest.mark.parametrize("how", ["closed pipe", "full pipe", "full disk", "limit", "not open for writing"])
def test_a_failing_write_ends_the_capture_and_not_the_traffic(
    link: Link, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    keep: list[int] = []
    if "pipe" in how:
        reader, fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        keep.append(reader)
    elif how == "full disk":
        fd = os.open("/dev/full", os.O_WRONLY | os.O_CLOEXEC)
    elif how == "limit":
        fd = opened(tmp_path / "pcap")
    else:
        fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with caplog.at_level(logging.INFO):
            if how == "limit":
                resource.setrlimit(resource.RLIMIT_FSIZE, (24 + 16 + 60 + 50, before[1]))
            capture = link.tap = Capture(link.tap, fd)  # type: ignore[assignment]
            if how == "closed pipe":
                os.close(keep.pop())
            sent = [frame(struct.pack("!I", n) + bytes(1400)) for n in range(100)]
            if how == "limit":
                sent.insert(0, frame(bytes(46)))
            got = []
            for one in sent:
                link.guest.send(one)
                got += [data for data, _ in link.take()]
                assert capture.transmit(vnet_hdr.PLAIN + one, b"")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert got == sent
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == 1 and lines[0].startswith("the packet capture ends here: "), lines
    with pytest.raises(OSError):
        os.fstat(fd)  # closed: a reader of a pipe must hear of it
    if how == "limit":
        assert [data for _, data in records(tmp_path / "pcap")] == [sent[0]], "the file ends within a record"
    for each in keep:
        os.close(each)
