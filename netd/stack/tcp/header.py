"""The headers of one connection's segments to the guest: static parts packed once, the rest in place."""

from __future__ import annotations

from struct import Struct

from netd.wire import checksum, ethernet, ipv4, tcp

_IP_CHANGING = Struct("!HHHHH")  # length id fragment ttl/protocol checksum, at 16
_TCP_CHANGING = Struct("!IIHHHH")  # seq ack offset/flags wnd checksum urg, at 38
_PORTS = Struct("!HH")

SIZE = ethernet.SIZE + ipv4.SIZE + tcp.SIZE
CHECKSUM_AT = ethernet.SIZE + ipv4.SIZE
_TTL_PROTOCOL = 64 << 8 | ipv4.TCP


class SegmentHeader:
    """Ethernet, IPv4 and TCP header to the guest. ``pack`` reuses one buffer: valid until the next call."""

    __slots__ = ("_ip_sum", "_pseudo", "_scratch")

    def __init__(self, dst_mac: bytes, src_mac: bytes, src: bytes, dst: bytes, sport: int, dport: int) -> None:
        scratch = bytearray(SIZE)
        ethernet.HEADER.pack_into(scratch, 0, dst_mac, src_mac, ethernet.IPV4)
        scratch[14] = 0x45
        scratch[26:30] = src
        scratch[30:34] = dst
        _PORTS.pack_into(scratch, 34, sport, dport)
        addresses = int.from_bytes(src, "big") + int.from_bytes(dst, "big")
        self._ip_sum = (0x4500 + ipv4.DF + _TTL_PROTOCOL + addresses) % 0xFFFF
        self._pseudo = (addresses + ipv4.TCP) % 0xFFFF
        self._scratch = scratch

    def pack(
        self, seq: int, ack: int, flags: int, wnd: int, length: int, options: bytes = b"", payload_sum: int = -1
    ) -> bytearray:
        """The header of a segment of ``length`` payload bytes.

        ``payload_sum`` -1 leaves the pseudo-header's sum in the checksum field for the device to complete (offload),
        else the checksum is finished with it (the payload's ``checksum.total``).
        """
        scratch = self._scratch
        size = tcp.SIZE + len(options)
        length += size
        ip_sum = 0xFFFF - (self._ip_sum + length + ipv4.SIZE) % 0xFFFF
        _IP_CHANGING.pack_into(scratch, 16, length + ipv4.SIZE, 0, ipv4.DF, _TTL_PROTOCOL, ip_sum)
        pseudo = (self._pseudo + length) % 0xFFFF
        _TCP_CHANGING.pack_into(scratch, 38, seq, ack, size << 10 | flags, wnd, pseudo if payload_sum < 0 else 0, 0)
        if payload_sum >= 0:
            number = pseudo + payload_sum + checksum.total(memoryview(scratch)[CHECKSUM_AT:]) + checksum.total(options)
            value = checksum.finish(number)
            scratch[50] = value >> 8
            scratch[51] = value & 0xFF
        return scratch + options if options else scratch
