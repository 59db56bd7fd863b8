"""Headers of one flow's frames to the guest: what never changes is packed once, the rest in place for each frame.

A header is virtio_net_hdr, Ethernet, IPv4 or IPv6, and TCP or UDP. ``pack`` reuses one buffer: valid until the next
call. Without offload the virtio_net_hdr stays zero and the caller brings the payload's sum.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from struct import Struct
from typing import Final

from netd.wire import checksum, ethernet, ipv4, ipv6, tcp, udp, vnet_hdr

TTL: Final = 64  # as the host's own

_AT_IP: Final = vnet_hdr.SIZE + ethernet.SIZE
_AT_L4: Final = _AT_IP + ipv4.SIZE
_AT_L4_6: Final = _AT_IP + ipv6.SIZE

_GSO: Final = Struct("=BHH")  # gso_type hdr_len gso_size, at 1
# From the length field on. IPv4: length id fragment ttl/protocol checksum, addresses and ports; IPv6: length next
# header, hop limit, addresses and ports. Then TCP: seq ack offset/flags wnd checksum urg, or UDP: length checksum.
_SEGMENT: Final = Struct("!HHHHH12sIIHHHH")
_SEGMENT6: Final = Struct("!HBB36sIIHHHH")
_DATAGRAM: Final = Struct("!HHHHH12sHH")
_DATAGRAM6: Final = Struct("!HBB36sHH")
_CLASS_FLOW: Final = Struct("!I")

_TTL_TCP: Final = TTL << 8 | ipv4.TCP
_TTL_UDP: Final = TTL << 8 | ipv4.UDP


class Header:
    """The parts that do not change."""

    __slots__ = ("_addresses", "_flow", "_gso_size", "_ip_sum", "_pseudo", "_scratch", "_sum", "offload")

    def __init__(
        self, offload: bool, scratch: bytearray, addresses: bytes, ports: bytes, number: int, protocol: int
    ) -> None:
        """``scratch`` is ``_front``'s, ``number`` the sum of the ``addresses``; ``ports``: source and destination as on
        the wire, 4 bytes."""
        self.offload = offload
        self._scratch = scratch
        self._addresses = addresses
        self._flow = addresses + ports
        self._gso_size = 0
        self._sum = number
        self._ip_sum = (0x4500 + ipv4.DF + (TTL << 8 | protocol) + number) % 0xFFFF
        self._pseudo = (number + protocol) % 0xFFFF

    def aim(self, dst_mac: bytes) -> None:
        """The guest has another MAC now."""
        self._scratch[vnet_hdr.SIZE : vnet_hdr.SIZE + 6] = dst_mac

    def _cut(self, kind: int, gso_size: int) -> None:
        """From now on super-frames to be cut into ``gso_size`` bytes of payload each; 0: whole frames."""
        self._gso_size = gso_size
        length = len(self._scratch) - vnet_hdr.SIZE if gso_size else 0
        _GSO.pack_into(self._scratch, 1, kind if gso_size else vnet_hdr.GSO_NONE, length, gso_size)


class SegmentHeader(Header, ABC):
    """Of TCP segments."""

    __slots__ = ()

    @abstractmethod
    def between(self, ports: bytes) -> SegmentHeader:
        """Another one of the same addresses; before this one is used."""

    @abstractmethod
    def pack(
        self,
        seq: int,
        ack: int,
        flags: int,
        wnd: int,
        length: int,
        options: bytes = b"",
        payload_sum: int = 0,
        gso_size: int = 0,
    ) -> bytearray:
        """The header of a segment of ``length`` payload bytes, to be cut by the device where ``gso_size`` is not 0.

        ``payload_sum`` is the payload's ``checksum.total``; with offload it does not count, the device sums.
        """

    def _finish(self, at: int, payload_sum: int, options: bytes) -> None:
        """Fill in the checksum at layer 4, which begins at ``at`` and holds the pseudo-header's sum."""
        scratch = self._scratch
        number = payload_sum + checksum.total(memoryview(scratch)[at:]) + checksum.total(options)
        scratch[at + 16 : at + 18] = checksum.finish(number).to_bytes(2, "big")


class SegmentHeader4(SegmentHeader):
    """TCP over IPv4."""

    __slots__ = ()

    def between(self, ports: bytes) -> SegmentHeader:
        """See ``SegmentHeader``."""
        return SegmentHeader4(self.offload, self._scratch[:], self._addresses, ports, self._sum, ipv4.TCP)

    def pack(
        self,
        seq: int,
        ack: int,
        flags: int,
        wnd: int,
        length: int,
        options: bytes = b"",
        payload_sum: int = 0,
        gso_size: int = 0,
    ) -> bytearray:
        """See ``SegmentHeader``."""
        scratch = self._scratch
        if gso_size != self._gso_size:
            self._cut(vnet_hdr.GSO_TCPV4, gso_size)
        size = tcp.SIZE + len(options) if options else tcp.SIZE
        length += size
        _SEGMENT.pack_into(
            scratch,
            _AT_IP + 2,
            length + ipv4.SIZE,
            0,
            ipv4.DF,
            _TTL_TCP,
            0xFFFF - (self._ip_sum + length + ipv4.SIZE) % 0xFFFF,
            self._flow,
            seq,
            ack,
            size << 10 | flags,
            wnd,
            (self._pseudo + length) % 0xFFFF,
            0,
        )
        if not self.offload:
            self._finish(_AT_L4, payload_sum, options)
        return scratch + options if options else scratch


class SegmentHeader6(SegmentHeader):
    """TCP over IPv6."""

    __slots__ = ()

    def between(self, ports: bytes) -> SegmentHeader:
        """See ``SegmentHeader``."""
        return SegmentHeader6(self.offload, self._scratch[:], self._addresses, ports, self._sum, ipv4.TCP)

    def pack(
        self,
        seq: int,
        ack: int,
        flags: int,
        wnd: int,
        length: int,
        options: bytes = b"",
        payload_sum: int = 0,
        gso_size: int = 0,
    ) -> bytearray:
        """See ``SegmentHeader``."""
        scratch = self._scratch
        if gso_size != self._gso_size:
            self._cut(vnet_hdr.GSO_TCPV6, gso_size)
        size = tcp.SIZE + len(options) if options else tcp.SIZE
        length += size
        _SEGMENT6.pack_into(
            scratch,
            _AT_IP + 4,
            length,
            ipv6.TCP,
            TTL,
            self._flow,
            seq,
            ack,
            size << 10 | flags,
            wnd,
            (self._pseudo + length) % 0xFFFF,
            0,
        )
        if not self.offload:
            self._finish(_AT_L4_6, payload_sum, options)
        return scratch + options if options else scratch


class DatagramHeader(Header, ABC):
    """Of UDP datagrams."""

    __slots__ = ()

    @abstractmethod
    def pack(self, payload: bytes | memoryview, tos: int = 0, gso_size: int = 0) -> bytearray:
        """The header of one datagram, or of several of ``gso_size`` payload bytes each (UDP GSO; with offload only)."""

    def _checksum(self, length: int, payload: bytes | memoryview) -> int:
        pseudo = self._pseudo + length
        if self.offload:
            return pseudo % 0xFFFF
        return checksum.finish(pseudo + length + checksum.total(self._flow[-4:]) + checksum.total(payload))


class DatagramHeader4(DatagramHeader):
    """UDP over IPv4."""

    __slots__ = ()

    def pack(self, payload: bytes | memoryview, tos: int = 0, gso_size: int = 0) -> bytearray:
        """See ``DatagramHeader``."""
        scratch = self._scratch
        if gso_size != self._gso_size:
            self._cut(vnet_hdr.GSO_UDP_L4, gso_size)
        length = len(payload) + udp.SIZE
        scratch[_AT_IP + 1] = tos
        _DATAGRAM.pack_into(
            scratch,
            _AT_IP + 2,
            length + ipv4.SIZE,
            0,
            ipv4.DF,
            _TTL_UDP,
            0xFFFF - (self._ip_sum + tos + length + ipv4.SIZE) % 0xFFFF,
            self._flow,
            length,
            self._checksum(length, payload),
        )
        return scratch


class DatagramHeader6(DatagramHeader):
    """UDP over IPv6."""

    __slots__ = ()

    def pack(self, payload: bytes | memoryview, tos: int = 0, gso_size: int = 0) -> bytearray:
        """See ``DatagramHeader``."""
        scratch = self._scratch
        if gso_size != self._gso_size:
            self._cut(vnet_hdr.GSO_UDP_L4, gso_size)
        length = len(payload) + udp.SIZE
        _CLASS_FLOW.pack_into(scratch, _AT_IP, 0x60000000 | tos << 20)
        _DATAGRAM6.pack_into(
            scratch, _AT_IP + 4, length, ipv6.UDP, TTL, self._flow, length, self._checksum(length, payload)
        )
        return scratch


def _front(offload: bool, dst_mac: bytes, src_mac: bytes, family: int, protocol: int) -> bytearray:
    """A header of the addresses' length ``family`` with what is the same for all flows between two MACs; else zero."""
    at = _AT_L4 if family == 4 else _AT_L4_6
    size, offset = (tcp.SIZE, tcp.CHECKSUM_OFFSET) if protocol == ipv4.TCP else (udp.SIZE, udp.CHECKSUM_OFFSET)
    scratch = bytearray(at + size)
    if offload:
        scratch[: vnet_hdr.SIZE] = vnet_hdr.partial(at - vnet_hdr.SIZE, offset)
    ethernet.HEADER.pack_into(scratch, vnet_hdr.SIZE, dst_mac, src_mac, ethernet.IPV4 if family == 4 else ethernet.IPV6)
    scratch[_AT_IP] = 0x45 if family == 4 else 0x60
    return scratch


def _sum(src: bytes, dst: bytes) -> int:
    return int.from_bytes(src, "big") + int.from_bytes(dst, "big")


def segment_header(
    offload: bool, dst_mac: bytes, src_mac: bytes, src: bytes, dst: bytes, ports: bytes
) -> SegmentHeader:
    """For TCP of the addresses' family; ``ports`` as on the wire, 4 bytes."""
    kind = SegmentHeader4 if len(src) == 4 else SegmentHeader6
    scratch = _front(offload, dst_mac, src_mac, len(src), ipv4.TCP)
    return kind(offload, scratch, src + dst, ports, _sum(src, dst), ipv4.TCP)


def datagram_header(
    offload: bool, dst_mac: bytes, src_mac: bytes, src: bytes, dst: bytes, ports: bytes
) -> DatagramHeader:
    """For UDP of the addresses' family; ``ports`` as on the wire, 4 bytes."""
    kind = DatagramHeader4 if len(src) == 4 else DatagramHeader6
    scratch = _front(offload, dst_mac, src_mac, len(src), ipv4.UDP)
    return kind(offload, scratch, src + dst, ports, _sum(src, dst), ipv4.UDP)
