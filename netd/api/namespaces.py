"""From ``{"pid": N}`` or ``{"netns": "/path"}`` to an open namespace and its lifeline, as the daemon sees both."""

from __future__ import annotations

import fcntl
import os
import re
import select
import stat

from netd.errors import InvalidSpec, NamespaceUnavailable
from netd.specs import Lifeline

NS_GET_NSTYPE = 0xB703  # linux/nsfs.h: _IO(NSIO, 0x3), ioctl_ns(2)
CLONE_NEWNET = 0x40000000  # linux/sched.h

_PROC_PATH = re.compile(r"/proc/([1-9][0-9]*)/ns/net")


def open_namespace(pid: int | None, path: str | None, lifeline: str | None) -> tuple[int, Lifeline]:
    """The namespace's fd and what ends it; both are the caller's. ``/proc/N/ns/net`` is the same as pid N.

    Errors: NamespaceUnavailable, InvalidSpec (the host's own namespace, a lifeline that does not fit).
    """
    if path is not None and (match := _PROC_PATH.fullmatch(path)):
        pid, path = int(match[1]), None
    if pid is not None:
        return _of_process(pid, lifeline or "pidfd")
    if path is None:
        raise InvalidSpec("neither a pid nor a path was given")
    return _of_path(path, lifeline or "path")


def _of_process(pid: int, kind: str) -> tuple[int, Lifeline]:
    if kind == "path":
        raise InvalidSpec("a process has no path to watch: its lifeline is pidfd or explicit")
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:  # ESRCH; EINVAL for a thread's id; EOVERFLOW-like refusals of absurd numbers
        raise NamespaceUnavailable(f"there is no process {pid}") from None
    try:
        netns = _open_netns(f"/proc/{pid}/ns/net", f"the network namespace of process {pid}")
        try:
            # The number may have passed on to another process in between: the first owner must still live.
            watch = select.poll()
            watch.register(pidfd, select.POLLIN)
            if watch.poll(0):
                raise NamespaceUnavailable(f"process {pid} has ended")
        except BaseException:
            os.close(netns)
            raise
    except BaseException:
        os.close(pidfd)
        raise
    if kind == "pidfd":
        return netns, Lifeline("pidfd", fd=pidfd)
    os.close(pidfd)
    return netns, Lifeline("explicit")


def _of_path(path: str, kind: str) -> tuple[int, Lifeline]:
    if kind == "pidfd":
        raise InvalidSpec("a path has no process to watch: its lifeline is path or explicit")
    if kind == "path" and path.startswith("/proc/"):
        raise InvalidSpec(f"{path} is never unlinked, so its lifeline cannot be the path", "give the pid of a process")
    netns = _open_netns(path, path)
    return netns, Lifeline(kind, path=path if kind == "path" else "")


def _open_netns(path: str, what: str) -> int:
    try:
        # A namespace's file is a regular one; opening a fifo or a device could wait or have an effect.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise NamespaceUnavailable(f"{what} is not a network namespace")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except PermissionError:
        raise NamespaceUnavailable(f"{what} is not ours: permission denied") from None
    except OSError as exc:
        raise NamespaceUnavailable(f"{what}: {os.strerror(exc.errno or 0)}") from None
    try:
        if fcntl.ioctl(fd, NS_GET_NSTYPE) != CLONE_NEWNET:
            raise NamespaceUnavailable(f"{what} is a namespace, but not a network namespace")
        if os.path.samestat(os.fstat(fd), os.stat("/proc/self/ns/net")):
            raise InvalidSpec(f"{what} is the host's own network namespace")
    except OSError:  # ENOTTY: not on nsfs
        os.close(fd)
        raise NamespaceUnavailable(
            f"{what} is not a network namespace",
            "a namespace mounted by rootless Podman is an empty file from here: give the pid of a process in it",
        ) from None
    except BaseException:
        os.close(fd)
        raise
    return fd
