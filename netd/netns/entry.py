"""The way into a network namespace, for a process that does not come back. Used by the agent's children alone.

Sources: namespaces(7), user_namespaces(7), ioctl_ns(2), setns(2).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat

from netd.errors import NamespaceUnavailable

# linux/nsfs.h, in the encoding of asm-generic/ioctl.h (x86, arm, riscv, s390, loongarch).
NS_GET_USERNS, NS_GET_NSTYPE = 0xB701, 0xB703
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000

libc = ctypes.CDLL(None, use_errno=True)


def setns(fd: int, kind: int) -> None:
    """setns(2); os.setns is of Python 3.12. Raises OSError."""
    if libc.setns(fd, kind) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def enter(netns_fd: int) -> None:
    """Moves this process into the network namespace, by way of the user namespace that owns it.

    The owner of a user namespace, outside of it, has all capabilities in it and in its descendants
    (user_namespaces(7)), so this needs no privilege. Raises NamespaceUnavailable.
    """
    try:
        # nsfs inodes are regular files; nothing else gets an ioctl from us.
        if not stat.S_ISREG(os.fstat(netns_fd).st_mode) or fcntl.ioctl(netns_fd, NS_GET_NSTYPE) != CLONE_NEWNET:
            raise NamespaceUnavailable("this is not a network namespace")
    except OSError as e:
        raise NamespaceUnavailable(
            "this is not a network namespace",
            "a namespace's path outside of the mount namespace that has it is an empty file",
        ) from e
    try:
        userns_fd = fcntl.ioctl(netns_fd, NS_GET_USERNS)
    except OSError as e:
        raise _not_ours(e) from e
    try:
        owner, own = os.fstat(userns_fd), os.stat("/proc/self/ns/user")
        if (owner.st_dev, owner.st_ino) != (own.st_dev, own.st_ino):  # entering one's own is EINVAL
            setns(userns_fd, CLONE_NEWUSER)
        setns(netns_fd, CLONE_NEWNET)
    except OSError as e:
        raise _not_ours(e) from e
    finally:
        os.close(userns_fd)


def _not_ours(e: OSError) -> NamespaceUnavailable:
    if e.errno == errno.EPERM:
        return NamespaceUnavailable(
            f"the network namespace is not of user {os.getuid()}",
            "its user namespace must be made by the user that netd runs as",
        )
    return NamespaceUnavailable(f"the network namespace cannot be entered: {e.strerror}")
