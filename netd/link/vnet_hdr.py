"""struct virtio_net_hdr (linux/virtio_net.h), native byte order as TUN/TAP has it: flags gso_type hdr_len gso_size
csum_start csum_offset. What of layer 4 the device has done, or is to do."""

from __future__ import annotations

from struct import Struct

HEADER = Struct("=BBHHHH")
SIZE = 10

NEEDS_CSUM = 1
DATA_VALID = 2

GSO_NONE = 0
GSO_TCPV4 = 1

PLAIN = bytes(SIZE)
