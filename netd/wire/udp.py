"""UDP header (RFC 768): sport dport length checksum."""

from __future__ import annotations

from struct import Struct
from typing import Final

HEADER: Final = Struct("!HHHH")
SIZE: Final = 8
CHECKSUM_OFFSET: Final = 6
