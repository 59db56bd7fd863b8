"""A caller of its own making: a namespace with a TAP in it, whose descriptor it hands over."""

from __future__ import annotations

import array
import os
import socket
import subprocess
import sys
from types import TracebackType

import pytest

IFF_TUN, IFF_TAP, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x0002, 0x0100, 0x1000, 0x4000

_PROGRAM = """
import array, fcntl, os, socket, struct, subprocess, sys
fd = os.open("/dev/net/tun", int(sys.argv[4]))
if int(sys.argv[2]):
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", sys.argv[3].encode(), int(sys.argv[2])))
for command in sys.stdin.read().splitlines():
    subprocess.run(command.split(), check=True)
with socket.socket(fileno=int(sys.argv[1])) as link:
    link.sendmsg([b"tap"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
    os.close(fd)
    link.recv(1)
"""


class Caller:
    """``fd`` is the TAP's, or a bare one of /dev/net/tun where ``flags`` is 0; ``pid`` is a process in the namespace."""

    def __init__(
        self, flags: int = IFF_TAP | IFF_NO_PI, *commands: str, name: str = "tap0", mode: int = os.O_RDWR
    ) -> None:
        if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
            pytest.skip(f"/dev/net/tun is not usable by uid {os.getuid()}")
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            words = [str(theirs.fileno()), str(flags), name, str(mode)]
            self._process = subprocess.Popen(
                ["unshare", "-rn", sys.executable, "-c", _PROGRAM, *words],
                pass_fds=[theirs.fileno()], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        assert self._process.stdin is not None and self._process.stderr is not None
        self._process.stdin.write("\n".join(commands))
        self._process.stdin.close()
        self.pid = self._process.pid
        self._link.settimeout(20)
        _, ancillary, _, _ = self._link.recvmsg(16, socket.CMSG_SPACE(16))
        if not ancillary:
            said = self._process.stderr.read()
            self._process.stderr.close()
            self._process.wait()
            self._link.close()
            pytest.skip(f"no TAP in a namespace of one's own: {said.strip().splitlines()[-1:]}")
        self.fd = array.array("i", ancillary[0][2])[0]

    def run(self, *command: str) -> str:
        """In the namespace."""
        enter = ["nsenter", "-t", str(self.pid), "-U", "-n", "--preserve-credentials"]
        done = subprocess.run([*enter, *command], check=False, capture_output=True, text=True, timeout=20)
        return done.stdout + done.stderr

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self._link.close()
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()
