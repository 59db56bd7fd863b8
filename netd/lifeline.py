"""What ends a network: a pipe's hang-up, a process's end, a shim's death, a file's unlink. Watched on the loop.

A hang-up is waited for with an epoll of its own, which the loop watches in turn: the loop's readers would also be
called, and without end, for data that lies in the pipe. Its content is its owner's and is not read.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import struct
from asyncio import AbstractEventLoop
from collections.abc import Callable

from netd.errors import NamespaceUnavailable
from netd.specs import Lifeline

_IN_MOVED_FROM, _IN_DELETE, _IN_DELETE_SELF, _IN_MOVE_SELF = 0x40, 0x200, 0x400, 0x800  # sys/inotify.h
_IN_UNMOUNT, _IN_Q_OVERFLOW = 0x2000, 0x4000
_EVENT = struct.Struct("=iIII")  # struct inotify_event: wd mask cookie len, then the name


class Watch:
    """Calls ``ended`` once. ``close`` stops watching and closes what this class opened, not the lifeline's own fd."""

    def __init__(self, loop: AbstractEventLoop, ended: Callable[[], None]) -> None:
        self._loop = loop
        self._ended = ended
        self._fds: list[int] = []
        self._own: list[int] = []
        self._hangups: select.epoll | None = None

    def add(self, lifeline: Lifeline) -> None:
        """Begin to watch. NamespaceUnavailable if it has ended already."""
        if lifeline.path:
            self._add_path(lifeline.path)
        if lifeline.kind == "pidfd":
            self._add_event(lifeline.fd, select.EPOLLIN)
        elif lifeline.kind == "exit_fd":
            self._add_event(lifeline.fd, 0)  # EPOLLHUP and EPOLLERR come unasked
        elif lifeline.kind == "shim":
            self._add_event(lifeline.fd, select.EPOLLRDHUP)

    def _add_event(self, fd: int, event: int) -> None:
        if self._hangups is None:
            self._hangups = select.epoll()
            self._loop.add_reader(self._hangups.fileno(), self._fire)
        with contextlib.suppress(PermissionError):  # a file, a directory, /dev/null: never hangs up (epoll_ctl(2))
            self._hangups.register(fd, event)

    def _add_path(self, path: str) -> None:
        directory, name = os.path.split(os.path.abspath(path))
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:
            raise NamespaceUnavailable(f"cannot watch {path}: {os.strerror(ctypes.get_errno())}")
        mask = _IN_DELETE | _IN_MOVED_FROM | _IN_DELETE_SELF | _IN_MOVE_SELF
        if libc.inotify_add_watch(fd, os.fsencode(directory), ctypes.c_uint32(mask)) < 0:
            os.close(fd)
            raise NamespaceUnavailable(f"cannot watch {path}: {os.strerror(ctypes.get_errno())}")
        self._own.append(fd)
        if not os.path.lexists(path):
            raise NamespaceUnavailable(f"{path} is gone")
        self._loop.add_reader(fd, self._on_inotify, fd, path, os.fsencode(name))
        self._fds.append(fd)

    def _on_inotify(self, fd: int, path: str, name: bytes) -> None:
        try:
            data = os.read(fd, 4096)
        except OSError:
            return
        at = 0
        while at + _EVENT.size <= len(data):
            _, mask, _, length = _EVENT.unpack_from(data, at)
            entry = data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
            at += _EVENT.size + length
            gone = mask & (_IN_DELETE_SELF | _IN_MOVE_SELF | _IN_UNMOUNT) or entry == name
            if gone or (mask & _IN_Q_OVERFLOW and not os.path.lexists(path)):  # events were lost, perhaps ours
                self._fire()
                return

    def _fire(self) -> None:
        self.close()
        self._ended()

    def close(self) -> None:
        """Stop watching."""
        for fd in self._fds:
            self._loop.remove_reader(fd)
        self._fds.clear()
        if self._hangups is not None:
            self._loop.remove_reader(self._hangups.fileno())
            self._hangups.close()
            self._hangups = None
        for fd in self._own:
            os.close(fd)
        self._own.clear()
