"""The service manager's two protocols: notifications (sd_notify(3)) and passed or stored descriptors (sd_listen_fds(3),
FileDescriptorStoreMax= in systemd.service(5)). Without a service manager every call does nothing.
"""

from __future__ import annotations

import array
import logging
import os
import socket

logger = logging.getLogger(__name__)

_SCM_MAX_FD = 253  # unix(7)
_FIRST_FD = 3


def listen_fds() -> list[tuple[str, int]]:
    """(name, fd) of every descriptor handed to this process, in order; the environment is cleared of them."""
    pid, count, names = (os.environ.pop(key, "") for key in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    labels = names.split(":") if names else []
    fds = []
    for index in range(int(count)):
        fd = _FIRST_FD + index
        os.set_inheritable(fd, False)
        fds.append((labels[index] if index < len(labels) else "unknown", fd))
    return fds


class Notifier:
    """Messages to ``NOTIFY_SOCKET``."""

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        self._sock: socket.socket | None = None
        self._address = "\0" + address[1:] if address.startswith("@") else address
        if address:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            try:
                sock.connect(self._address)
            except OSError as e:  # a leftover of the environment must not keep us from serving
                logger.warning("nobody listens at NOTIFY_SOCKET %s: %s", address, e)
                sock.close()
            else:
                self._sock = sock
        microseconds = os.environ.pop("WATCHDOG_USEC", "")
        own = os.environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_seconds = int(microseconds) / 1e6 if microseconds.isdigit() and own else 0.0

    @property
    def present(self) -> bool:
        """A service manager listens."""
        return self._sock is not None

    def send(self, *lines: str, fds: list[int] | None = None) -> None:
        """One notification. OSError where the service manager does not take it."""
        if self._sock is None:
            return
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        # With its address each time: a service manager that was re-executed may have another socket there.
        self._sock.sendmsg(["\n".join(lines).encode()], ancillary, 0, self._address)

    def store(self, name: str, fds: list[int], watched: bool = True) -> None:
        """Keep duplicates of ``fds`` under ``name`` beyond our own end; ``watched``: until one hangs up."""
        more = () if watched else ("FDPOLL=0",)  # since systemd 246; before, it watches all the same
        for start in range(0, len(fds), _SCM_MAX_FD):
            self.send("FDSTORE=1", f"FDNAME={name}", *more, fds=fds[start : start + _SCM_MAX_FD])

    def unstore(self, name: str) -> None:
        """Let go of all descriptors of that name."""
        self.send("FDSTOREREMOVE=1", f"FDNAME={name}")

    def close(self) -> None:
        """Close the connection."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
