"""systemd's side of the fd store, on a real socket: FDSTORE, FDSTOREREMOVE, names, duplicates, dropped hang-ups.

See sd_notify(3), sd_pid_notify_with_fds(3), FileDescriptorStoreMax= in systemd.service(5), and service_add_fd_store in
systemd's src/core/service.c.
"""

from __future__ import annotations

import array
import ctypes
import os
import platform
import select
import socket
import threading
from pathlib import Path

_KCMP = {"x86_64": 312, "aarch64": 272, "riscv64": 272, "s390x": 343, "ppc64le": 354}.get(platform.machine(), 0)
_libc = ctypes.CDLL(None, use_errno=True)


def _same_file(a: int, b: int) -> bool:
    """kcmp(2), KCMP_FILE: two descriptors of one open file."""
    pid = os.getpid()
    return bool(_KCMP) and _libc.syscall(_KCMP, pid, pid, 0, a, b) == 0


class ServiceManager:
    """``NOTIFY_SOCKET`` and a store of at most ``limit`` descriptors."""

    def __init__(self, directory: Path, limit: int = 4096) -> None:
        self.path = str(directory / "notify")
        self.limit = limit
        self.store: list[tuple[str, int]] = []
        self.ever: set[str] = set()  # names of all that has been in there
        self._unwatched: set[str] = set()
        self._inodes: dict[tuple[int, int], list[int]] = {}
        self.lines: list[str] = []  # everything that is not about the store
        self.duplicates = self.refused = 0
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(self.path)
        self._synced = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            data, ancillary, _, _ = self._sock.recvmsg(65536, socket.CMSG_SPACE(253 * 4), socket.MSG_CMSG_CLOEXEC)
            fds = array.array("i")
            for _, _, content in ancillary:
                fds.frombytes(content)
            lines = data.decode().split("\n")
            if lines == ["STOP"]:
                return
            if lines == ["SYNC"]:
                self._synced.set()
                continue
            fields = dict(line.split("=", 1) for line in lines)
            name = fields.get("FDNAME", "stored")
            if "FDSTOREREMOVE" in fields:
                self._drop([entry for entry in self.store if entry[0] == name])
            elif "FDSTORE" in fields:
                self.ever.add(name)
                if fields.get("FDPOLL") == "0":
                    self._unwatched.add(name)
                for fd in fds:
                    self._keep(name, fd)
                fds = array.array("i")
            else:
                self.lines += lines
            for fd in fds:
                os.close(fd)

    def _keep(self, name: str, fd: int) -> None:
        stat = os.fstat(fd)
        alike = self._inodes.setdefault((stat.st_dev, stat.st_ino), [])
        if any(other in alike and _same_file(fd, other) for _, other in self.store if alike):
            self.duplicates += 1
            os.close(fd)
        elif len(self.store) >= self.limit:
            self.refused += 1
            os.close(fd)
        else:
            self.store.append((name, fd))
            alike.append(fd)

    def _drop(self, entries: list[tuple[str, int]]) -> None:
        for entry in entries:
            self.store.remove(entry)
            for alike in self._inodes.values():
                if entry[1] in alike:
                    alike.remove(entry[1])
            os.close(entry[1])

    def _send(self, message: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(message, self.path)

    def settle(self) -> None:
        """Everything sent until now is looked at, what has hung up is dropped (on_fd_store_io)."""
        self._synced.clear()
        self._send(b"SYNC")
        assert self._synced.wait(10)
        for entry in list(self.store):
            if entry[0] in self._unwatched:
                continue
            poll = select.poll()
            poll.register(entry[1], 0)
            if any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0)):
                self._drop([entry])

    def names(self) -> list[str]:
        """Of what is in the store, one for each descriptor."""
        self.settle()
        return sorted(name for name, _ in self.store)

    def hand_over(self) -> list[tuple[str, int]]:
        """Copies of all of it, as the next start of the service gets them; not in the order they came in."""
        self.settle()
        return [(name, os.dup(fd)) for name, fd in reversed(self.store)]

    def close(self) -> None:
        """The service is stopped for good: the store is emptied."""
        self._send(b"STOP")
        self._thread.join()
        self._sock.close()
        os.unlink(self.path)
        self._drop(list(self.store))
