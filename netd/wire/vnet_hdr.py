"""struct virtio_net_hdr (linux/virtio_net.h), native byte order as TUN/TAP has it: flags gso_type hdr_len gso_size
csum_start csum_offset. What of layer 4 the device has done, or is to do. Offsets count from the Ethernet header."""

from __future__ import annotations

from struct import Struct
from typing import Final

HEADER: Final[Struct] = Struct("=BBHHHH")
SIZE: Final = 10

NEEDS_CSUM: Final = 1
DATA_VALID: Final = 2

GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_TCPV6: Final = 4
GSO_UDP_L4: Final = 5  # Linux 6.2, TUN_F_USO4 and TUN_F_USO6

PLAIN: Final = bytes(SIZE)
"""The device has nothing to do."""


def partial(checksum_at: int, checksum_offset: int) -> bytes:
    """The device completes the checksum at ``checksum_at + checksum_offset``, which holds the pseudo-header's sum, over
    all that follows ``checksum_at``."""
    return HEADER.pack(NEEDS_CSUM, GSO_NONE, 0, 0, checksum_at, checksum_offset)
