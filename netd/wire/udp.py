"""UDP header (RFC 768): sport dport length checksum."""

from __future__ import annotations

from struct import Struct

HEADER = Struct("!HHHH")
SIZE = 8
CHECKSUM_OFFSET = 6
