"""Forwards that take what they can get, that wait for an address, and that belong to one interface of the host."""

from __future__ import annotations

import os
import resource
import socket

import pytest

from netd.errors import AddressUnavailable, LimitReached, PortInUse
from netd.relay.listeners import listen
from netd.specs import ForwardSpec

_FREE = 20000  # below the ephemeral ports


def taken(port: int) -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", port))
    sock.listen()
    return sock


def ports_of(sockets: list[list[socket.socket]]) -> list[int]:
    found = [sock.getsockname()[1] for port in sockets for sock in port]
    for port in sockets:
        for sock in port:
            sock.close()
    return found


def test_ports_in_use_are_left_out() -> None:
    with taken(_FREE + 1):
        spec = ForwardSpec("tcp", _FREE, 80, "127.0.0.1", range=3, best_effort=True)
        assert ports_of(listen(spec, {})) == [_FREE, _FREE + 2]


def test_none_at_all_is_an_error() -> None:
    with taken(_FREE), pytest.raises(PortInUse):
        listen(ForwardSpec("tcp", _FREE, 80, "127.0.0.1", best_effort=True), {})


def test_without_it_one_port_in_use_refuses_all_and_leaves_nothing() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with taken(_FREE + 1), pytest.raises(PortInUse):
        listen(ForwardSpec("tcp", _FREE, 80, "127.0.0.1", range=3), {})
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_address_that_is_not_there_yet() -> None:
    with pytest.raises(AddressUnavailable):
        listen(ForwardSpec("tcp", _FREE, 80, "198.51.100.77"), {})
    for ip in ("198.51.100.77", "2001:db8::77"):
        for protocol in ("tcp", "udp"):
            assert ports_of(listen(ForwardSpec(protocol, _FREE, 80, ip, freebind=True), {})) == [_FREE]


def test_only_what_comes_in_by_that_interface() -> None:
    [[sock]] = listen(ForwardSpec("tcp", _FREE, 80, "0.0.0.0", interface="lo"), {})
    with sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b"lo"
        socket.create_connection(("127.0.0.1", _FREE)).close()
    with pytest.raises(AddressUnavailable, match="nosuch0"):
        listen(ForwardSpec("tcp", _FREE, 80, "0.0.0.0", interface="nosuch0"), {})


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_one_socket_for_both_families(protocol: str) -> None:
    [[sock]] = listen(ForwardSpec(protocol, _FREE, 80, dual_stack=True), {})
    with sock:
        assert sock.family == socket.AF_INET6 and sock.getsockname()[:2] == ("::", _FREE)
        for ip in ("0.0.0.0", "127.0.0.1", "::", "::1"):
            with pytest.raises(PortInUse):
                listen(ForwardSpec(protocol, _FREE, 80, ip), {})
    [[sock]] = listen(ForwardSpec(protocol, _FREE, 80, "::"), {})
    with sock:  # that was IPv6's alone
        assert ports_of(listen(ForwardSpec(protocol, _FREE, 80, "0.0.0.0"), {})) == [_FREE]


def test_half_of_the_descriptors_are_not_for_best_effort() -> None:
    """``-t all`` must not take what other networks need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
    try:
        sockets = listen(ForwardSpec("tcp", _FREE, 80, "127.0.0.1", range=400, best_effort=True), {})
        assert len(sockets) == 400 and max(sock.fileno() for port in sockets for sock in port) < 150
        with pytest.raises(LimitReached):
            listen(ForwardSpec("udp", _FREE, 80, "127.0.0.1", best_effort=True), {})
        [[other]] = listen(ForwardSpec("udp", _FREE, 80, "127.0.0.1"), {})
        other.close()
        assert len(ports_of(sockets)) > 50
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
