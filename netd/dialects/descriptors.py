"""The descriptors that one call of a shim brings along, and what they are."""

from __future__ import annotations

import contextlib
import fcntl
import os
from types import TracebackType

_NS_GET_NSTYPE = 0xB703  # linux/nsfs.h
_CLONE_NEWNET = 0x40000000


class Descriptors:
    """Of one call, by name; those that nobody took over are closed in the end."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}

    def __enter__(self) -> Descriptors:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for fd in self._open.values():
            with contextlib.suppress(OSError):
                os.close(fd)

    def add(self, name: str, fd: int) -> None:
        """``fd`` is ours now."""
        self._open[name] = fd

    def get(self, name: str) -> int:
        """To look at; -1 if there is none."""
        return self._open.get(name, -1)

    def take(self, name: str) -> int:
        """Hand it over: the taker closes it. -1 if there is none."""
        return self._open.pop(name, -1)

    def close(self, name: str) -> None:
        """Close it, if it is there."""
        fd = self.take(name)
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)


def is_netns(fd: int) -> bool:
    """True for a network namespace (ioctl_ns(2))."""
    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE) == _CLONE_NEWNET
    except OSError:
        return False
