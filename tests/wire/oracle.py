"""The other opinion: frames built and read from the RFCs' diagrams, without a line of ``netd.wire``.

Checksums are the word loop of RFC 1071 §4.1, offsets are written out, everything read is checked.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32


def checksum(data: bytes) -> int:
    """RFC 1071 §4.1 in words: add, fold the carries, invert."""
    if len(data) % 2:
        data += b"\x00"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo_header(src: bytes, dst: bytes, protocol: int, length: int) -> bytes:
    if len(src) == 16:  # RFC 8200 §8.1
        return src + dst + length.to_bytes(4, "big") + bytes((0, 0, 0, protocol))
    return src + dst + bytes((0, protocol)) + length.to_bytes(2, "big")


def ip6(
    src: bytes,
    dst: bytes,
    protocol: int,
    payload: bytes,
    *,
    extensions: bytes = b"",
    ttl: int = 64,
    tos: int = 0,
    length: int | None = None,
) -> bytes:
    """RFC 8200 §3. ``extensions`` stand before the payload; then ``protocol`` is the first one's."""
    length = len(extensions) + len(payload) if length is None else length
    first = bytes((6 << 4 | tos >> 4, (tos & 15) << 4, 0, 0))
    return first + length.to_bytes(2, "big") + bytes((protocol, ttl)) + src + dst + extensions + payload


def icmp6(src: bytes, dst: bytes, type_: int, code: int, rest: bytes, payload: bytes = b"") -> bytes:
    """RFC 4443 §2.1; ``rest`` is the 4 bytes behind the checksum."""
    message = bytes((type_, code, 0, 0)) + rest + payload
    number = checksum(pseudo_header(src, dst, 58, len(message)) + message)
    return message[:2] + number.to_bytes(2, "big") + message[4:]


def eth(dst: bytes, src: bytes, ethertype: int, payload: bytes) -> bytes:
    return dst + src + ethertype.to_bytes(2, "big") + payload


def ip4(
    src: bytes,
    dst: bytes,
    protocol: int,
    payload: bytes,
    *,
    options: bytes = b"",
    ttl: int = 64,
    tos: int = 0,
    ident: int = 0,
    fragment: int = 0,
    length: int | None = None,
) -> bytes:
    ihl = 5 + len(options) // 4
    length = ihl * 4 + len(payload) if length is None else length
    words = bytearray(ihl * 4)
    words[0] = 4 << 4 | ihl
    words[1] = tos
    words[2:4] = length.to_bytes(2, "big")
    words[4:6] = ident.to_bytes(2, "big")
    words[6:8] = fragment.to_bytes(2, "big")
    words[8], words[9] = ttl, protocol
    words[12:16], words[16:20], words[20:] = src, dst, options
    words[10:12] = checksum(bytes(words)).to_bytes(2, "big")
    return bytes(words) + payload


def udp(src: bytes, dst: bytes, sport: int, dport: int, payload: bytes, *, summed: bool = True) -> bytes:
    length = 8 + len(payload)
    head = b"".join(n.to_bytes(2, "big") for n in (sport, dport, length))
    value = checksum(pseudo_header(src, dst, 17, length) + head + b"\x00\x00" + payload) or 0xFFFF
    return head + (value if summed else 0).to_bytes(2, "big") + payload


def tcp(
    src: bytes,
    dst: bytes,
    sport: int,
    dport: int,
    seq: int,
    ack: int,
    flags: int,
    wnd: int,
    payload: bytes = b"",
    options: bytes = b"",
) -> bytes:
    options += b"\x00" * (-len(options) % 4)
    head = bytearray(20)
    head[0:2], head[2:4] = sport.to_bytes(2, "big"), dport.to_bytes(2, "big")
    head[4:8], head[8:12] = seq.to_bytes(4, "big"), ack.to_bytes(4, "big")
    head[12] = (20 + len(options)) // 4 << 4
    head[13] = flags
    head[14:16] = wnd.to_bytes(2, "big")
    segment = bytes(head) + options + payload
    value = checksum(pseudo_header(src, dst, 6, len(segment)) + segment)
    return segment[:16] + value.to_bytes(2, "big") + segment[18:]


def icmp(type_: int, code: int, rest: bytes, payload: bytes = b"") -> bytes:
    message = bytes((type_, code, 0, 0)) + rest + payload
    return message[:2] + checksum(message).to_bytes(2, "big") + message[4:]


def arp(oper: int, sha: bytes, spa: bytes, tha: bytes, tpa: bytes) -> bytes:
    return b"\x00\x01\x08\x00\x06\x04" + oper.to_bytes(2, "big") + sha + spa + tha + tpa


def tcp_options(options: bytes) -> dict[int, bytes]:
    """Kind to value; a malformed list is an error, for it is the stack that wrote it."""
    found: dict[int, bytes] = {}
    while options and options[0] != 0:
        if options[0] == 1:
            options = options[1:]
            continue
        length = options[1]
        assert 2 <= length <= len(options), "malformed option"
        assert options[0] not in found, "an option twice"
        found[options[0]] = options[2:length]
        options = options[length:]
    return found


@dataclass(frozen=True)
class Packet:
    """An IP packet that has been found right in every field that can be wrong."""

    dst_mac: bytes
    src_mac: bytes
    src: bytes
    dst: bytes
    protocol: int
    ttl: int
    payload: bytes
    tos: int = 0
    fragment: tuple[int, int, bool] | None = None  # identification, offset in bytes, more to come


def read_ip(frame: bytes) -> Packet:
    return read_ip6(frame) if frame[12:14] == b"\x86\xdd" else read_ip4(frame)


def read_ip6(frame: bytes) -> Packet:
    packet = frame[14:]
    assert packet[0] >> 4 == 6, "version"
    assert int.from_bytes(packet[4:6], "big") == len(packet) - 40, "IPv6 payload length"
    assert packet[7] > 0, "hop limit"
    protocol, payload, fragment = packet[6], packet[40:], None
    if protocol == 44:  # RFC 8200 §4.5
        offset = int.from_bytes(payload[2:4], "big")
        protocol, fragment = payload[0], (int.from_bytes(payload[4:8], "big"), offset & ~7, bool(offset & 1))
        payload = payload[8:]
    tos = (packet[0] & 15) << 4 | packet[1] >> 4
    return Packet(frame[:6], frame[6:12], packet[8:24], packet[24:40], protocol, packet[7], payload, tos, fragment)


def read_ip4(frame: bytes) -> Packet:
    dst_mac, src_mac, ethertype = frame[:6], frame[6:12], frame[12:14]
    assert ethertype == b"\x08\x00", ethertype
    packet = frame[14:]
    assert packet[0] == 0x45, "version 4, no options"
    assert checksum(packet[:20]) == 0, "IPv4 header checksum"
    assert int.from_bytes(packet[2:4], "big") == len(packet), "IPv4 total length"
    field = int.from_bytes(packet[6:8], "big")
    ident, fragment = int.from_bytes(packet[4:6], "big"), None
    if field & 0x3FFF:
        assert not field & 0x4000, "do not fragment, and a fragment"
        fragment = (ident, (field & 0x1FFF) * 8, bool(field & 0x2000))
    assert packet[8] > 0, "TTL"
    return Packet(
        dst_mac, src_mac, packet[12:16], packet[16:20], packet[9], packet[8], packet[20:], packet[1], fragment
    )


@dataclass(frozen=True)
class Segment:
    """A TCP segment; ``seq`` and ``ack`` as on the wire."""

    sport: int
    dport: int
    seq: int
    ack: int
    flags: int
    wnd: int
    options: dict[int, bytes]
    payload: bytes

    @property
    def length(self) -> int:
        """SEG.LEN (RFC 9293 §3.3.1)."""
        return len(self.payload) + (1 if self.flags & SYN else 0) + (1 if self.flags & FIN else 0)


def complete(packet: Packet, checksum_at: int) -> bytes:
    """The layer 4 of ``packet`` after the device has done what virtio's NEEDS_CSUM asks of it.

    The field at ``checksum_at`` must hold the pseudo-header's sum; sum from the start of layer 4, write it there.
    """
    data = bytearray(packet.payload)
    expected = ~checksum(pseudo_header(packet.src, packet.dst, packet.protocol, len(data))) & 0xFFFF
    found = int.from_bytes(data[checksum_at : checksum_at + 2], "big")
    assert found % 0xFFFF == expected % 0xFFFF, "the pseudo-header's sum"
    value = checksum(bytes(data))
    if packet.protocol == 17:
        value = value or 0xFFFF
    data[checksum_at : checksum_at + 2] = value.to_bytes(2, "big")
    return bytes(data)


def read_tcp(packet: Packet, data: bytes) -> Segment:
    """``data``: the layer 4 with a finished checksum."""
    assert checksum(pseudo_header(packet.src, packet.dst, 6, len(data)) + data) == 0, "TCP checksum"
    offset = (data[12] >> 4) * 4
    assert 20 <= offset <= len(data), "data offset"
    assert data[18:20] == b"\x00\x00", "urgent pointer"
    return Segment(
        sport=int.from_bytes(data[0:2], "big"),
        dport=int.from_bytes(data[2:4], "big"),
        seq=int.from_bytes(data[4:8], "big"),
        ack=int.from_bytes(data[8:12], "big"),
        flags=data[13],
        wnd=int.from_bytes(data[14:16], "big"),
        options=tcp_options(data[20:offset]),
        payload=data[offset:],
    )


def read_udp(packet: Packet, data: bytes) -> tuple[int, int, bytes]:
    """(sport, dport, payload)."""
    assert int.from_bytes(data[4:6], "big") == len(data), "UDP length"
    if data[6:8] != b"\x00\x00":
        assert checksum(pseudo_header(packet.src, packet.dst, 17, len(data)) + data) == 0, "UDP checksum"
    return int.from_bytes(data[0:2], "big"), int.from_bytes(data[2:4], "big"), data[8:]


def read_icmp(packet: Packet) -> tuple[int, int, bytes, bytes]:
    """(type, code, rest of the header, payload)."""
    pseudo = pseudo_header(packet.src, packet.dst, 58, len(packet.payload)) if len(packet.src) == 16 else b""
    assert checksum(pseudo + packet.payload) == 0, "ICMP checksum"
    return packet.payload[0], packet.payload[1], packet.payload[4:8], packet.payload[8:]


def read_arp(frame: bytes) -> tuple[int, bytes, bytes, bytes, bytes]:
    """(oper, sha, spa, tha, tpa)."""
    assert frame[12:14] == b"\x08\x06"
    packet = frame[14:]
    assert len(packet) == 28 and packet[:6] == b"\x00\x01\x08\x00\x06\x04"
    return int.from_bytes(packet[6:8], "big"), packet[8:14], packet[14:18], packet[18:24], packet[24:28]
