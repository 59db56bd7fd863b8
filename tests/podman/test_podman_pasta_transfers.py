"""Whole transfers, by md5, through published ports and outwards: the sixteen of 505-networking-pasta.bats, and both ways."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.machine.machine import HOST, WORLD, Machine, until
from tests.podman.podman import PASTA, Podman
from tests.podman.probes import HOST6, PYTHON, USR, WORLD6, settled

pytestmark = [PASTA, pytest.mark.usefixtures("world")]

MD5 = "24558545bdd1d9b7cdd0c14678e3494e"  # of the world's 30 MB

# Takes what comes on the port, TCP to its end, UDP to an empty datagram, and answers "BYTES MD5"; any number of times.
SINK = """
import hashlib, socket, sys
kind = socket.SOCK_STREAM if sys.argv[1] == "tcp" else socket.SOCK_DGRAM
s = socket.socket(socket.AF_INET6, kind)
s.bind(("::", 7001))
if kind == socket.SOCK_STREAM: s.listen()
print("up", flush=True)
while True:
    size, md5 = 0, hashlib.md5()
    c, peer = s.accept() if kind == socket.SOCK_STREAM else (s, None)
    while True:
        data, sender = c.recvfrom(65536)
        peer = sender or peer
        if not data: break
        size += len(data); md5.update(data)
    answer = f"{size} {md5.hexdigest()}".encode()
    if kind == socket.SOCK_STREAM: c.sendall(answer); c.close()
    else: s.sendto(answer, peer)
"""

# Sends BYTES random bytes, UDP in datagrams of 8 kB one right after the other; prints what it sent and the answer.
SOURCE = """
import hashlib, json, os, socket, sys
protocol, address, port, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
data = os.urandom(size)
s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET,
                  socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
s.settimeout(30 if protocol == "tcp" else 5)
s.connect((address, port))
if protocol == "tcp": s.sendall(data); s.shutdown(socket.SHUT_WR)
else:
    for at in range(0, size, 8192): s.send(data[at:at + 8192])
    s.send(b"")
got = b""
while part := s.recv(1000):
    got += part
    if protocol == "udp": break
print(json.dumps([f"{size} {hashlib.md5(data).hexdigest()}", got.decode()]))
"""


@pytest.mark.parametrize("side", ["tap", "loopback"])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_small_and_large(podman: Podman, machine: Machine, protocol: str, family: int, side: str) -> None:
    address = {(4, "tap"): HOST, (6, "tap"): HOST6, (4, "loopback"): "127.0.0.1", (6, "loopback"): "::1"}[family, side]
    podman.up("sink", USR, "-p", f"9100:7001/{protocol}", "--", *PYTHON, SINK, protocol)
    until(lambda: podman("logs", "sink") == "up", "sink in the container")
    settled(podman, "sink")
    wmem_default = int(Path("/proc/sys/net/core/wmem_default").read_text())
    for size in (2048, 10 << 20 if protocol == "tcp" else wmem_default // 4):
        sent, answer = json.loads(machine.run([*PYTHON, SOURCE, protocol, address, "9100", str(size)]))
        assert answer == sent
    if side == "tap":
        sent, answer = json.loads(machine.world([*PYTHON, SOURCE, protocol, address, "9100", "20000"]))
        assert answer == sent


@pytest.mark.parametrize("address", [WORLD, WORLD6])
def test_outwards_and_back(podman: Podman, address: str) -> None:
    """10 MB from the container to an echo of the world's, and back."""
    echo = """
import hashlib, os, socket, sys, threading
s = socket.create_connection((sys.argv[1], 7)); s.settimeout(30)
data = os.urandom(10 << 20)
def send(): s.sendall(data); s.shutdown(socket.SHUT_WR)
threading.Thread(target=send).start()
md5, size = hashlib.md5(), 0
while part := s.recv(1 << 18): md5.update(part); size += len(part)
print(size, md5.hexdigest() == hashlib.md5(data).hexdigest())
"""
    assert podman.run(USR, "--", *PYTHON, echo, address) == f"{10 << 20} True"


@pytest.mark.parametrize("mtu", [1500, 65520])
def test_a_download(podman: Podman, mtu: int) -> None:
    """30 MB, twice; the second address is IPv6."""
    for address in (WORLD, f"[{WORLD6}]"):
        fetch = f"wget -qO- http://{address}/bytes/30000000 | md5sum"
        assert podman.run(f"--network=pasta:-m,{mtu}", "--", "sh", "-c", fetch).split()[0] == MD5


@pytest.mark.parametrize("size", [1, 1400, 8000, 60000])
def test_datagrams_outwards(podman: Podman, size: int) -> None:
    """Larger than the MTU of the world's link, so in fragments there, and back."""
    ask = """
import os, socket, sys
for address in sys.argv[2:]:
    s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)
    data = os.urandom(int(sys.argv[1]))
    s.sendto(data, (address, 7))
    print(s.recv(65536) == data)
"""
    assert podman.run(USR, "--", *PYTHON, ask, str(size), WORLD, WORLD6).split() == ["True", "True"]
