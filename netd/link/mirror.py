"""A link whose frames are shown to somebody else as well: the same interface, round any link."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from netd.link.tap import Buffer
from netd.wire import vnet_hdr

Deliver = Callable[[memoryview, bool, int, float], None]

Show = Callable[[bool, Buffer, Buffer], bool]
"""``show(from_guest, head, rest)``: one Ethernet frame in two pieces, without vnet header, in views that end with the
call. It must not raise. False: no more of this."""


class Link(Protocol):
    """What a ``Network`` needs of its device (``link.tap.Tap``)."""

    @property
    def fd(self) -> int:
        """To wait for frames on; -1 when closed."""

    @property
    def drops(self) -> int:
        """Frames the device did not take."""

    def receive(self, deliver: Deliver, now: float, turn: float) -> bool:
        """As ``Tap.receive``."""

    def transmit(self, header: Buffer, payload: Buffer) -> bool:
        """As ``Tap.transmit``."""

    def close(self) -> None:
        """Close the device."""


class Mirror:
    """Owns ``link``. Shows what the guest sent before it is delivered, and what the device has taken."""

    __slots__ = ("_link", "_show")

    def __init__(self, link: Link, show: Show) -> None:
        self._link = link
        self._show: Show | None = show

    @property
    def fd(self) -> int:
        """The link's."""
        return self._link.fd

    @property
    def drops(self) -> int:
        """The link's."""
        return self._link.drops

    def receive(self, deliver: Deliver, now: float, turn: float) -> bool:
        """As ``Tap.receive``."""
        if self._show is None:
            return self._link.receive(deliver, now, turn)

        def both(frame: memoryview, vouched: bool, segment: int, at: float) -> None:
            if self._show is not None and not self._show(True, frame, b""):
                self._show = None
            deliver(frame, vouched, segment, at)

        return self._link.receive(both, now, turn)

    def transmit(self, header: Buffer, payload: Buffer) -> bool:
        """As ``Tap.transmit``."""
        taken = self._link.transmit(header, payload)
        if taken and self._show is not None and not self._show(False, memoryview(header)[vnet_hdr.SIZE :], payload):
            self._show = None
        return taken

    def close(self) -> None:
        """Close the link."""
        self._show = None
        self._link.close()
