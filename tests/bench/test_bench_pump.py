"""The load: real servers and clients over the loopback."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PUMP = Path(__file__).resolve().parents[2] / "bench" / "pump.py"


@contextlib.contextmanager
def server(mode, address="127.0.0.1"):
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind((address, 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-I", "-S", str(PUMP), mode, address, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "listening\n"
            yield port
        finally:
            process.terminate()


def client(*args):
    command = [sys.executable, "-I", "-S", str(PUMP), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("size", [1, 200_000])  # more than one read
def test_request_and_response(size):
    with server("echo") as port:
        got = client("rr", "127.0.0.1", port, 0.2, size)
    assert got["n"] > 0
    assert 0 < got["p50"] <= got["p99"] <= got["max"]
    assert got["n"] * got["p50"] < 0.5


def test_the_same_over_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("needs IPv6 on the loopback")
    with server("echo", "::1") as port:
        assert client("rr", "::1", port, 0.1, 1)["n"] > 0


def test_clients_share_the_count_of_connections():
    with server("greet") as port:
        got = client("connect", "127.0.0.1", port, 20, 4, 200)
    assert (got["n"], got["failed"]) == (200, 0)


def test_refused_connections_are_counted():
    with socket.socket() as bound:  # bound and not listening: refused
        bound.bind(("127.0.0.1", 0))
        got = client("connect", "127.0.0.1", bound.getsockname()[1], 20, 2, 10)
    assert (got["n"], got["failed"]) == (0, 10)


def test_connections_are_kept_until_the_client_is_told():
    with server("hold") as port:
        command = [sys.executable, "-I", "-S", str(PUMP), "keep", "127.0.0.1", str(port), "50"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert json.loads(process.stdout.readline())["n"] == 50
            sockets = [fd for fd in Path(f"/proc/{process.pid}/fd").iterdir() if "socket" in os.readlink(fd)]
            assert len(sockets) == 50
            process.stdin.close()
            assert process.wait(10) == 0


def test_management_requests_in_both_forms(tmp_path):
    path = str(tmp_path / "s")
    replies = {b"GET ": b"HTTP/1.1 200 OK\r\n\r\n[]", b'{"ex': b'{"entries":[]}'}
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(path)
        s.listen()
        s.settimeout(0.2)
        for kind, start in (("rest", b"GET "), ("slirp", b'{"ex')):
            command = [sys.executable, "-I", "-S", str(PUMP), "api", path, kind, "0.03"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                served = 0
                while process.poll() is None:
                    try:
                        peer, _ = s.accept()
                    except TimeoutError:
                        continue
                    with peer:
                        request = peer.recv(4096)
                        assert request.startswith(start)
                        peer.sendall(replies[start])
                        served += 1
                got = json.loads(process.stdout.read())
            assert got["n"] == served > 0
            assert got["failed"] == 0
