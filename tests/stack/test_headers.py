"""Frame headers against the oracle: TCP and UDP, both families, with the device's help and without."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st
from wire import oracle
from wire.prop import quick

from netd.stack.headers import TTL, datagram_header, segment_header
from netd.wire import checksum

MACS = st.binary(min_size=6, max_size=6)
PAYLOADS = st.binary(max_size=100) | st.sampled_from([b"\xff" * 1460, bytes(1460), b"\x00\x01" * 30_000])
U16, U32 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)


@dataclass(frozen=True)
class Flow:
    src: bytes
    dst: bytes
    src_mac: bytes
    dst_mac: bytes
    sport: int
    dport: int

    @property
    def ports(self) -> bytes:
        return self.sport.to_bytes(2, "big") + self.dport.to_bytes(2, "big")


def of(size: int) -> st.SearchStrategy[Flow]:
    address = st.binary(min_size=size, max_size=size) | st.sampled_from([bytes(size), b"\xff" * size])
    return st.builds(Flow, address, address, MACS, MACS, U16, U16)


flows = of(4) | of(16)


def read(
    header: bytes, payload: bytes, flow: Flow, offload: bool, offset: int, gso: tuple[int, int]
) -> tuple[oracle.Packet, bytes]:
    """The packet and its layer 4 as the device finishes it."""
    flags, kind, length, size, start, at = struct.unpack_from("=BBHHHH", header)
    frame = bytes(header)[10:] + payload
    packet = oracle.read_ip(frame)
    assert (packet.dst_mac, packet.src_mac, packet.src, packet.dst) == (flow.dst_mac, flow.src_mac, flow.src, flow.dst)
    assert packet.ttl == TTL and packet.fragment is None
    if not offload:
        assert header[:10] == bytes(10)
        return packet, packet.payload
    assert (flags, start, at) == (1, 14 + (20 if len(flow.src) == 4 else 40), offset)
    assert (kind, size) == gso
    assert length == (len(header) - 10 if size else 0)
    return packet, oracle.complete(packet, offset)


@quick
@given(flows, st.booleans(), st.data())
def test_segments(flow: Flow, offload: bool, data: st.DataObject) -> None:
    """A header is used again and again: nothing of the frame before may be left in it."""
    header = segment_header(offload, flow.dst_mac, flow.src_mac, flow.src, flow.dst, flow.ports)
    for _ in range(data.draw(st.integers(1, 4))):
        payload = data.draw(PAYLOADS)
        seq, ack, flags, wnd = data.draw(U32), data.draw(U32), data.draw(st.integers(0, 63)), data.draw(U16)
        options = data.draw(st.sampled_from([b"", b"\x02\x04\x05\xb4", b"\x01\x01\x05\x0a" + bytes(8)]))
        gso = data.draw(st.integers(1, 1448)) if offload and not options and len(payload) > 1448 else 0
        total = checksum.total(payload)
        head = header.pack(seq, ack, flags, wnd, len(payload), options, total, gso)
        kind = (1 if len(flow.src) == 4 else 4) if gso else 0
        packet, layer4 = read(bytes(head), payload, flow, offload, 16, (kind, gso))
        assert packet.protocol == 6 and packet.tos == 0
        segment = oracle.read_tcp(packet, layer4)
        assert (segment.sport, segment.dport) == (flow.sport, flow.dport)
        assert (segment.seq, segment.ack, segment.flags, segment.wnd) == (seq, ack, flags, wnd)
        assert segment.payload == payload and layer4[20 : 20 + len(options)] == options


@quick
@given(flows, st.booleans(), st.data())
def test_datagrams(flow: Flow, offload: bool, data: st.DataObject) -> None:
    header = datagram_header(offload, flow.dst_mac, flow.src_mac, flow.src, flow.dst, flow.ports)
    for _ in range(data.draw(st.integers(1, 4))):
        payload, tos = data.draw(PAYLOADS), data.draw(st.integers(0, 255))
        gso = data.draw(st.integers(1, 1448)) if offload and len(payload) > 1448 else 0
        head = header.pack(payload, tos, gso)
        packet, layer4 = read(bytes(head), payload, flow, offload, 6, (5 if gso else 0, gso))
        assert packet.protocol == 17 and packet.tos == tos
        assert layer4[6:8] != bytes(2), "RFC 768: zero says that there is no sum"
        assert oracle.read_udp(packet, layer4) == (flow.sport, flow.dport, payload)
