"""A packet capture of a link, for tcpdump and Wireshark (draft-ietf-opsawg-pcap; pcap-savefile(5))."""

from __future__ import annotations

import logging
import os
import stat
from struct import Struct
from time import time_ns
from typing import Final

from netd.link.mirror import Link, Mirror
from netd.link.tap import FRAME_MAX, Buffer

log = logging.getLogger(__name__)

FILE_HEADER: Final = Struct("=IHHiIII")  # magic major minor zone accuracy snaplen linktype
RECORD_HEADER: Final = Struct("=IIII")  # seconds microseconds captured length
MAGIC: Final = 0xA1B2C3D4  # microseconds; in the writer's byte order, which the reader learns from it
LINKTYPE_ETHERNET: Final = 1
SNAPLEN: Final = FRAME_MAX  # also of a super-frame all is kept


class Pcap:
    """Owns ``fd``, and writes each frame to it with one system call. ``resumed``: the file's header is there already.

    Nothing raises. The first write that fails, on a full disk or to a pipe that is closed or full, ends the capture: it
    is logged, and a record of which only the beginning was written is taken back where the file allows that.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int, resumed: bool = False) -> None:
        self.fd = fd
        if not resumed:
            self._write([FILE_HEADER.pack(MAGIC, 2, 4, 0, 0, SNAPLEN, LINKTYPE_ETHERNET)])

    def frame(self, from_guest: bool, head: Buffer, rest: Buffer) -> bool:
        """One frame as it is (``mirror.Show``). False once the capture has ended."""
        seconds, fraction = divmod(time_ns(), 1_000_000_000)
        size = len(head) + len(rest)
        return self._write([RECORD_HEADER.pack(seconds & 0xFFFFFFFF, fraction // 1000, size, size), head, rest])

    def close(self) -> None:
        """Close the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _write(self, pieces: list[Buffer]) -> bool:
        if self.fd < 0:
            return False
        try:
            written = os.writev(self.fd, pieces)
            if written == sum(map(len, pieces)):
                return True
            reason = "there is no room"
            self._take_back(written)
        except OSError as error:
            reason = error.strerror or str(error)
        log.warning("the packet capture ends here: %s", reason)
        self.close()
        return False

    def _take_back(self, size: int) -> None:
        if stat.S_ISREG(os.fstat(self.fd).st_mode):
            os.ftruncate(self.fd, os.lseek(self.fd, -size, os.SEEK_CUR))


class Capture(Mirror):
    """A link with a capture of both directions in ``fd``, which becomes its own (``Pcap``)."""

    __slots__ = ("_pcap",)

    def __init__(self, link: Link, fd: int, resumed: bool = False) -> None:
        self._pcap = Pcap(fd, resumed)
        super().__init__(link, self._pcap.frame)

    def close(self) -> None:
        """Close the link and the file."""
        super().close()
        self._pcap.close()
