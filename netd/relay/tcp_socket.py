"""TCP sockets of the packet path: opened, accepted, prepared, reset.

They are objects of the C type that ``socket.socket`` is built on. What that adds in Python (enums of its numbers, files
made of it) costs a connection 10 to 20 µs and is not used here.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, Final

from netd.relay.sockaddr import Sockaddr
from netd.relay.source import Source

TcpSocket = socket.SocketType

_INET: Final = int(socket.AF_INET)
_INET6: Final = int(socket.AF_INET6)
_STREAM: Final = int(socket.SOCK_STREAM)
_NEW: Final = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
_TCP: Final = int(socket.IPPROTO_TCP)
_SOCKET: Final = int(socket.SOL_SOCKET)
_NODELAY: Final = int(socket.TCP_NODELAY)
_KEEPALIVE: Final = int(socket.SO_KEEPALIVE)
_LINGER: Final = int(socket.SO_LINGER)

_INFO: Final = int(socket.TCP_INFO)
_BACKLOG: Final = struct.Struct("24xI")  # tcpi_unacked of struct tcp_info, which a listener uses so (tcp_get_info())
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close sends RST (socket(7))


def open_for(address: Sockaddr, source: Source) -> TcpSocket:
    """A non-blocking socket for ``address``, bound to ``source``. OSError."""
    sock = TcpSocket(_INET6 if ":" in address[0] else _INET, _NEW)
    try:
        source.bind(sock, address[0])
    except OSError:
        sock.close()
        raise
    return sock


def waiting(listener: TcpSocket) -> int:
    """How many connections there are to accept. OSError."""
    return int(_BACKLOG.unpack(listener.getsockopt(_TCP, _INFO, _BACKLOG.size))[0])


def accept(listener: TcpSocket) -> tuple[TcpSocket, Any]:
    """The next connection of a non-blocking listener, non-blocking, and its peer's address. OSError."""
    fd, peer = listener._accept()  # type: ignore[attr-defined]  # which socket.accept is built on
    sock = TcpSocket(_INET if len(peer) == 2 else _INET6, _STREAM, 0, fd)
    sock.setblocking(False)
    return sock, peer


def prepare(sock: TcpSocket) -> None:
    """The options of a connection's socket, or of a listener: those it accepts inherit them (tcp(7))."""
    sock.setsockopt(_TCP, _NODELAY, 1)  # the guest's kernel has done its Nagle already
    sock.setsockopt(_SOCKET, _KEEPALIVE, 1)  # after net.ipv4.tcp_keepalive_time, two hours


def push(sock: TcpSocket) -> None:
    """Send what MSG_MORE has held back: TCP_NODELAY does, also where it was set already (tcp(7))."""
    try:
        sock.setsockopt(_TCP, _NODELAY, 1)
    except OSError:
        pass  # the connection has failed, as the next call will say


def reset_on_close(sock: TcpSocket) -> None:
    """Closing it will send RST to the peer."""
    try:
        sock.setsockopt(_SOCKET, _LINGER, _RESET)
    except OSError:
        pass  # the kernel has reset it already
