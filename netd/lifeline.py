"""What ends a network: a pipe's hang-up, a process's end, a shim's death, a file's unlink. Watched on the loop.

A hang-up is waited for with an epoll of its own, which the loop watches in turn: the loop's readers would also be
called, and without end, for data that lies in the pipe. Its content is its owner's and is not read.

All paths share one inotify(7): a user has 128 of them at most, each would hear of every other's path in the same
directory, and to close one holds up the loop for some 10 ms (synchronize_srcu() in fs/notify/mark.c).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import struct
from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from netd.errors import NamespaceUnavailable
from netd.specs import Lifeline

_IN_MOVED_FROM, _IN_DELETE, _IN_DELETE_SELF, _IN_MOVE_SELF = 0x40, 0x200, 0x400, 0x800  # sys/inotify.h
_IN_UNMOUNT, _IN_Q_OVERFLOW, _IN_IGNORED = 0x2000, 0x4000, 0x8000
KINDS_HELD = ("exit_fd", "pidfd")  # further lifelines, by their keys in ``Network.held``
SETTLED = 10.0  # seconds after which a container's first process has long been in its namespace
# Podman's own name for one; nobody enters it later but into a container that is there.
_PODMANS = re.compile(r"/netns/netns-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
_EVENT = struct.Struct("=iIII")  # struct inotify_event: wd mask cookie len, then the name


@dataclass(eq=False, slots=True)
class Awaited:
    """A path that somebody waits for."""

    path: str
    gone: Callable[[], None]
    name: bytes = b""  # in its directory
    watch: int = -1  # the kernel's, of that directory


class Unlinks:
    """Paths that are waited for to go, by whoever asks. One for a loop; ``close`` it when nobody waits any more."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = -1
        self._waiting: dict[int, set[Awaited]] = {}  # by watch
        with contextlib.suppress(NamespaceUnavailable):  # the user's are all in use; ``add`` says so
            self._open("")

    def add(self, path: str, gone: Callable[[], None]) -> Awaited:
        """Have ``gone`` called, once, when ``path`` has gone. NamespaceUnavailable if it has, or cannot be watched."""
        if self._fd < 0:
            self._open(path)
        directory, name = os.path.split(os.path.abspath(path))
        mask = ctypes.c_uint32(_IN_DELETE | _IN_MOVED_FROM | _IN_DELETE_SELF | _IN_MOVE_SELF)
        watch = self._checked(path, self._libc.inotify_add_watch(self._fd, os.fsencode(directory), mask))
        one = Awaited(path, gone, os.fsencode(name), watch)
        self._waiting.setdefault(watch, set()).add(one)  # the kernel has one watch for a directory
        if not os.path.lexists(path):
            self.discard(one)
            raise NamespaceUnavailable(f"{path} is gone")
        return one

    def _open(self, path: str) -> None:
        self._fd = self._checked(path, self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._loop.add_reader(self._fd, self._on_events)

    def _checked(self, path: str, result: int) -> int:
        if result < 0:
            raise NamespaceUnavailable(f"cannot watch {path}: {os.strerror(ctypes.get_errno())}")
        return result

    def discard(self, one: Awaited) -> None:
        """Wait for it no longer. Idempotent."""
        there = self._waiting.get(one.watch)
        if there is None or one not in there:
            return
        there.remove(one)
        if not there:
            del self._waiting[one.watch]
            self._libc.inotify_rm_watch(self._fd, one.watch)  # EINVAL: the directory has gone

    def close(self) -> None:
        """Let go of everything."""
        self._waiting.clear()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _on_events(self) -> None:
        try:
            data = os.read(self._fd, 4096)
        except OSError:
            return
        at = 0
        while at + _EVENT.size <= len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, at)
            name = data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
            at += _EVENT.size + length
            if mask & _IN_Q_OVERFLOW:  # events were lost, of whichever directory
                gone = [one for there in self._waiting.values() for one in there if not os.path.lexists(one.path)]
            elif mask & (_IN_DELETE_SELF | _IN_MOVE_SELF | _IN_UNMOUNT | _IN_IGNORED):
                gone = list(self._waiting.get(watch, ()))
            else:
                gone = [one for one in self._waiting.get(watch, ()) if one.name == name]
            for one in gone:
                if one in self._waiting.get(one.watch, ()):  # not let go of by one before
                    self.discard(one)
                    one.gone()


class Watch:
    """Calls ``ended`` once. ``close`` stops watching and closes what this class opened, not the lifeline's own fd."""

    def __init__(self, loop: AbstractEventLoop, unlinks: Unlinks, ended: Callable[[], None]) -> None:
        self._loop = loop
        self._unlinks = unlinks
        self._ended = ended
        self._paths: list[Awaited] = []
        self._hangups: select.epoll | None = None

    def add(self, lifeline: Lifeline) -> None:
        """Begin to watch. NamespaceUnavailable if it has ended already."""
        if lifeline.path:
            self._paths.append(self._unlinks.add(lifeline.path, self._fire))
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

    def _fire(self) -> None:
        self.close()
        self._ended()

    def close(self) -> None:
        """Stop watching."""
        for path in self._paths:
            self._unlinks.discard(path)
        self._paths.clear()
        if self._hangups is not None:
            self._loop.remove_reader(self._hangups.fileno())
            self._hangups.close()
            self._hangups = None


def has_ended(lifeline: Lifeline, held: Mapping[str, int]) -> bool:
    """True if the end of one is known to the kernel, though it may not have been looked at yet."""
    if lifeline.path and not os.path.lexists(lifeline.path):
        return True
    poller = select.poll()
    for kind, fd in ((lifeline.kind, lifeline.fd), *((kind, held.get(kind, -1)) for kind in KINDS_HELD)):
        if fd >= 0:
            poller.register(fd, {"pidfd": select.POLLIN, "shim": select.POLLRDHUP}.get(kind, 0))
    return bool(poller.poll(0))


def is_deserted(lifeline: Lifeline, netns_inode: int, age: float) -> bool:
    """True if a container of Podman's, ``age`` seconds old, was killed and Podman has not heard of it.

    A unit that kills its cgroup takes Podman's watcher along (conmon); the path of the namespace stays until
    `podman rm`. Asks every process where it is, some 10 us each. All that may be in there can be asked: who made a user
    namespace may trace what is in it (ptrace(2), PTRACE_MODE_READ).
    """
    if not netns_inode or age < SETTLED or lifeline.kind != "path" or not _PODMANS.search(lifeline.path):
        return False
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{pid}/ns/net").st_ino == netns_inode:
                    return False
    return True
