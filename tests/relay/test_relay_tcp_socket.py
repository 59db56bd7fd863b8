"""How many clients wait."""

from __future__ import annotations

import socket

from netd.relay.tcp_socket import accept, waiting


def test_how_many_wait() -> None:
    for family, ip in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.create_server((ip, 0), family=family) as listener:
            listener.setblocking(False)
            assert waiting(listener) == 0
            clients = [socket.create_connection(listener.getsockname()[:2]) for _ in range(3)]
            for left in (3, 2, 1):
                assert waiting(listener) == left
                accept(listener)[0].close()
            assert waiting(listener) == 0
            for client in clients:
                client.close()
