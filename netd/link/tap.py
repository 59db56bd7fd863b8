"""A TAP device: batches of frames in, single frames out, with or without a vnet header."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import select
from collections.abc import Callable
from time import monotonic
from typing import Final

from netd.wire import vnet_hdr

FRAME_MAX: Final = 65535 + 14 + 18  # the largest IP packet, Ethernet, room for VLAN tags
BATCH: Final = 64  # frames per wake-up at most
# Frames: whether there is one more is asked before it is read, but where the last batch had as many at least.
FEW: Final = 8

Buffer = bytes | bytearray | memoryview

_unpack: Final = vnet_hdr.HEADER.unpack_from

# One batch runs at a time in a process, and no view of it outlives its call: all networks share the buffer.
_buffer = bytearray(vnet_hdr.SIZE + FRAME_MAX)
_view = memoryview(_buffer)


_TUNGETIFF: Final = 0x800454D2  # linux/if_tun.h


def is_attached(fd: int) -> bool:
    """True if ``fd`` is a TAP whose device still exists."""
    try:
        fcntl.ioctl(fd, _TUNGETIFF, bytes(40))
    except OSError:
        return False
    return True


class Tap:
    """Owns ``fd`` (non-blocking). ``vnet``: frames carry a virtio_net_hdr of 10 bytes."""

    __slots__ = ("_file", "_many", "_poll", "_skip", "drops", "fd", "vnet")

    def __init__(self, fd: int, vnet: bool) -> None:
        self.fd = fd
        self.vnet = vnet
        self.drops = 0  # frames the device did not take
        self._skip = vnet_hdr.SIZE if vnet else 0
        self._many = False  # in the last batch
        # Its readinto says None where there is nothing, and makes an exception for that all the same, 10 us with cold
        # caches. An empty poll is 1.
        self._file = io.FileIO(fd, "r+b", closefd=False)
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def receive(self, deliver: Callable[[memoryview, bool, int, float], None], now: float, turn: float) -> bool:
        """Hand up to ``BATCH`` frames to ``deliver(frame, vouched, segment, now)``, or as many as ``turn`` seconds from
        ``now`` allow, one at least; False once the device is gone.

        ``vouched``: the device says the layer-4 checksum is right or still to be completed (virtio_net.h).
        ``segment`` > 0: several UDP datagrams of that payload size in one frame (GSO_UDP_L4).
        """
        if self.fd < 0:
            return False  # its number may be another's by now
        skip = self._skip
        readinto, poll, clock = self._file.readinto, self._poll.poll, monotonic
        view, buffer = _view, _buffer
        count = 0
        few = 0 if self._many else FEW
        try:
            until = now + turn
            while count < BATCH:
                size = readinto(buffer)
                if size is None:
                    break
                count += 1
                if skip:
                    segment = _unpack(buffer)[3] if buffer[1] == vnet_hdr.GSO_UDP_L4 else 0
                    deliver(view[skip:size], buffer[0] != 0, segment, now)
                else:
                    deliver(view[:size], False, 0, now)
                if clock() > until or (count < few and not poll(0)):
                    break
            self._many = count >= FEW
        except OSError as e:
            # EIO: the interface is down. EBADFD: the device was deleted under us (drivers/net/tun.c).
            return e.errno in (errno.EIO, errno.EINTR)
        return True

    def transmit(self, header: Buffer, payload: Buffer) -> bool:
        """Write one frame (``stack.ports.Transmit``). False: not taken, counted in ``drops``."""
        try:
            if self._skip:
                os.writev(self.fd, (header, payload))
            else:
                os.writev(self.fd, (memoryview(header)[vnet_hdr.SIZE :], payload))
        except OSError:
            self.drops += 1
            return False
        return True

    def close(self) -> None:
        """Close the device; a TAP that is not persistent vanishes with it, at once."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
