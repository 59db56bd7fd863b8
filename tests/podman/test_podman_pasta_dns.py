"""Names: the forwarded server's address that Podman has pasta answer at, and those that the user chose."""

from __future__ import annotations

import pytest

from tests.machine.machine import WORLD, Machine
from tests.podman.podman import PASTA, Podman
from tests.podman.probes import PYTHON, USR, WORLD6

pytestmark = [PASTA, pytest.mark.usefixtures("world")]

# One query over UDP or TCP, by hand: "RCODE ANSWERS TC".
QUERY = """
import socket, struct, sys
protocol, server, name, kind = sys.argv[1:]
q = struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0) + b"".join(bytes([len(x)]) + x.encode() for x in name.split(".")) + b"\\0" + struct.pack(">HH", int(kind), 1)
s = socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
s.settimeout(5)
s.connect((server, 53))
if protocol == "tcp":
    s.sendall(struct.pack(">H", len(q)) + q)
    f = s.makefile("rb"); r = f.read(struct.unpack(">H", f.read(2))[0])
else:
    s.send(q); r = s.recv(4096)
id, flags, _, answers, _, _ = struct.unpack(">HHHHHH", r[:12])
assert id == 7
print(flags & 15, answers, int(bool(flags & 0x200)))
"""


def query(podman: Podman, options: list[str], *words: str) -> str:
    return podman.run(USR, *options, "--", *PYTHON, QUERY, *words)


def test_a_name(podman: Podman) -> None:
    for name in ("world", "l.test"):
        said = podman.run("--", "nslookup", name)
        assert "169.254.1.1" in said.splitlines()[0] and WORLD in said.split("Name:", 1)[1], said
    assert "NXDOMAIN" in podman.run("--", "nslookup", "nowhere", status=1)


def test_resolv_conf(podman: Podman) -> None:
    lines = podman.run("--", "grep", "nameserver", "/etc/resolv.conf").splitlines()
    assert lines[0] == "nameserver 169.254.1.1"


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_a_query_by_either_protocol(podman: Podman, protocol: str) -> None:
    assert query(podman, [], protocol, "169.254.1.1", "world", "1") == "0 1 0"
    assert query(podman, [], protocol, "169.254.1.1", "nowhere", "1") == "3 0 0"
    assert query(podman, [], protocol, "169.254.1.1", "big.test", "16") == ("0 0 1" if protocol == "udp" else "0 20 0")


@pytest.mark.parametrize("address", ["198.51.100.1", "2001:db8::53"])
def test_an_address_of_the_users_choice(podman: Podman, machine: Machine, address: str) -> None:
    """--dns-forward: asked explicitly it answers, and it is the first name server.

    A server for IPv6 needs one of the host's that is reached by IPv6.
    """
    options = [f"--network=pasta:--dns-forward,{address}"]
    if ":" in address:
        machine.run(["sh", "-c", f"echo nameserver {WORLD6} >>/etc/resolv.conf"], "root")
    try:
        first = podman.run(*options, "--", "grep", "nameserver", "/etc/resolv.conf").splitlines()[0]
        assert first == f"nameserver {address}"
        for protocol in ("udp", "tcp"):
            assert query(podman, options, protocol, address, "world", "1") == "0 1 0"
    finally:
        machine.run(["sh", "-c", f"echo nameserver {WORLD} >/etc/resolv.conf"], "root")


def test_dns_option_of_podmans_own(podman: Podman) -> None:
    """``--dns`` goes to that server itself, through the network."""
    said = podman.run(f"--dns={WORLD}", "--", "nslookup", "world")
    assert WORLD in said.splitlines()[0] and WORLD in said.split("Name:", 1)[1]
    assert podman.run("--dns=none", "--", "sh", "-c", "cat /etc/resolv.conf 2>/dev/null; true") == ""
