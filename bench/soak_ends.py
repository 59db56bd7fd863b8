"""The two ends of soak.py's transfers: ``python3 -I -S soak_ends.py give|take ADDRESS PORT BYTES [listen]``.

``give`` sends BYTES that never repeat, ``take`` reads to the end of the stream; with ``listen`` the end waits at
ADDRESS for the other, and says so. Each prints one line of JSON: bytes, md5, seconds, and the longest time in which
nothing came or went. An end that stands still for STILL seconds says so, and keeps its socket until its input ends: it
can be looked at. A giver whose socket takes nothing does not stand still while what it has is acknowledged: a socket is
writable only once a third of its buffer is free, and that may be megabytes.
"""

from __future__ import annotations

import array
import fcntl
import hashlib
import json
import os
import socket
import sys
import time

# Linux waits 0.2 s for an acknowledgment and twice as long each next time; at 5 % it comes to 6.4 s in one of some
# thousand cases, and that is no standstill.
STILL = 15.0
_BLOCK = 1 << 20
_SIOCOUTQ = 0x5411  # tcp(7): what is not acknowledged


def opened(address: str, port: int, listen: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if not listen:
        sock = socket.socket(family)
        sock.settimeout(STILL)
        sock.connect((address, port))
        return sock
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen()
        print("listening", flush=True)
        sock, _ = listener.accept()
    sock.settimeout(STILL)
    return sock


class End:
    """What passes, its digest, and the longest pause."""

    def __init__(self) -> None:
        self.digest = hashlib.md5(usedforsecurity=False)
        self.size = 0
        self.pause = 0.0
        self.acknowledged = 0
        self.begin = self.last = time.monotonic()

    def passed(self, data: memoryview, now: float) -> None:
        self.pause = max(self.pause, now - self.last)
        self.size += len(data)
        self.digest.update(data)
        self.last = time.monotonic()  # what the digest takes is no pause

    def give(self, sock: socket.socket, size: int) -> None:
        block = bytearray(os.urandom(_BLOCK))
        view = memoryview(block)
        while self.size < size:
            block[:8] = self.size.to_bytes(8, "big")
            left = view[: size - self.size]
            while left:
                try:
                    sent = sock.send(left)
                except TimeoutError:
                    if not self.moves(sock):
                        raise
                    continue
                self.passed(left[:sent], time.monotonic())
                left = left[sent:]
        sock.shutdown(socket.SHUT_WR)
        while True:
            try:
                sock.recv(1)  # the end of the other's stream: everything has arrived
            except TimeoutError:
                if self.moves(sock):
                    continue
                raise
            return

    def moves(self, sock: socket.socket) -> bool:
        """Whether more has been acknowledged than when last asked."""
        waiting = array.array("i", (0,))
        fcntl.ioctl(sock, _SIOCOUTQ, waiting)
        before, self.acknowledged = self.acknowledged, self.size - waiting[0]
        return self.acknowledged > before

    def take(self, sock: socket.socket, size: int) -> None:
        view = memoryview(bytearray(_BLOCK))
        while count := sock.recv_into(view):
            self.passed(view[:count], time.monotonic())

    def as_json(self, wrong: str) -> str:
        seconds = self.last - self.begin
        return json.dumps({"bytes": self.size, "md5": self.digest.hexdigest(), "seconds": seconds, "pause": self.pause,
                           "wrong": wrong})  # fmt: skip


def main(role: str, address: str, port: str, size: str, *listen: str) -> int:
    sock = opened(address, int(port), bool(listen))
    end, wrong = End(), ""
    try:
        (end.give if role == "give" else end.take)(sock, int(size))
    except TimeoutError:
        wrong = f"stood still for {STILL:g} s"
    except OSError as e:
        wrong = e.strerror or str(e)
    print(end.as_json(wrong), flush=True)
    if wrong:
        sys.stdin.read()
    sock.close()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
