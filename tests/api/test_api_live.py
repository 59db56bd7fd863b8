"""The API in front of the real daemon: namespaces, TAPs and forwards that carry bytes; its answers as described."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from netd.stack.counters import Counters
from tests.api.client import Answer, call
from tests.api.schema import check
from tests.standin import process_in_netns


def unusable() -> str:
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as exc:
        return f"/dev/net/tun: {exc.strerror}"
    return ""


pytestmark = pytest.mark.skipif(bool(unusable()), reason=unusable())


class Live:
    """A daemon process and its API."""

    def __init__(self, directory: Path, pid: int) -> None:
        self.socket = directory / "api.sock"
        self.pid = pid

    async def call(self, method: str, target: str, body: Any = None) -> Answer:
        return await call(self.socket, method, target, body)

    async def attach(self, pid: int, **more: Any) -> dict[str, Any]:
        answer = await self.call("POST", "/v1/networks", {"pid": pid, **more})
        assert answer.status == 201, answer.body
        network: dict[str, Any] = answer.json
        return network

    async def fds(self) -> int:
        """Its descriptors, when the connections that ended are closed."""
        counts = [-1]
        while len(counts) < 4 or len(set(counts[-3:])) > 1:
            await asyncio.sleep(0.02)
            counts.append(len(os.listdir(f"/proc/{self.pid}/fd")))
        return counts[-1]

    async def ends(self, ref: str) -> None:
        """Wait until the network is gone by itself."""
        end = time.monotonic() + 10
        while (await self.call("GET", f"/v1/networks/{ref}")).status != 404:
            assert time.monotonic() < end, "it is still there"


@contextmanager
def serving(directory: Path, *wrapper: str) -> Iterator[Live]:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("NETD_", "LISTEN_", "NOTIFY_"))}
    env["NETD_CONFIG"] = "/nonexistent"
    serve = [*wrapper, sys.executable, "-m", "netd", "serve", "--runtime-dir", str(directory)]
    with subprocess.Popen(serve, env=env, stderr=subprocess.PIPE, text=True) as daemon:
        assert daemon.stderr is not None
        try:
            while "ready" not in (line := daemon.stderr.readline()):
                assert line, "the daemon did not start"
            yield Live(directory, daemon.pid)
        finally:
            daemon.terminate()
            daemon.communicate(timeout=20)
    assert daemon.returncode == 0


@pytest.fixture
def live(runtime_dir: Path) -> Iterator[Live]:
    with serving(runtime_dir) as found:
        with socket.socket(socket.AF_UNIX) as first:  # with which uvloop opens a descriptor of its own
            first.connect(str(found.socket))
        yield found


def enter(pid: int, script: str) -> subprocess.Popen[str]:
    """A Python in the namespaces of ``pid``."""
    inside = ["nsenter", "--preserve-credentials", "-U", "-n", "-t", str(pid), sys.executable, "-c", script]
    return subprocess.Popen(inside, stdout=subprocess.PIPE, text=True)


async def test_a_network_and_its_forwards_carry_bytes(live: Live, netns_pid: int) -> None:
    before = await live.fds()
    network = await live.attach(netns_pid, name="web", ports=[{"container_port": 80, "host_ip": "127.0.0.1"}])
    assert network["netns_inode"] == os.stat(f"/proc/{netns_pid}/ns/net").st_ino
    declared = network["ports"][0]
    added = (await live.call("POST", "/v1/networks/web/ports", {"container_port": 80, "host_ip": "127.0.0.1"})).json
    assert (declared["origin"], added["origin"], added["id"]) == ("run", "api", declared["id"] + 1)
    server = """if True:
        import socket
        s = socket.create_server(("", 80))
        print("listening", flush=True)
        for _ in range(2):
            conn, peer = s.accept()
            conn.sendall(conn.recv(100).upper())
        """
    with enter(netns_pid, server) as inside:
        assert inside.stdout is not None
        assert inside.stdout.readline() == "listening\n"
        for port in (declared, added):
            with socket.create_connection(("127.0.0.1", port["host_port"]), 10) as conn:
                conn.sendall(b"hello")
                assert conn.recv(100) == b"HELLO"
    status = (await live.call("GET", "/v1/networks/web")).json
    assert status["counters"]["rx_bytes"] > 0
    assert status["counters"]["tx_bytes"] > 0
    assert (await live.call("DELETE", f"/v1/networks/web/ports/{added['id']}")).status == 204
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", added["host_port"]), 5)
    assert (await live.call("DELETE", "/v1/networks/web")).status == 204
    with enter(netns_pid, "import socket; print([name for _, name in socket.if_nameindex()])") as inside:
        assert inside.communicate(timeout=20)[0] == "['lo']\n"
    assert await live.fds() == before


async def test_the_counters_all_have_a_family(live: Live, netns_pid: int) -> None:
    network = await live.attach(netns_pid, name="web")
    spliced = {"spliced_refused", "spliced_over_limit", "spliced_unavailable", "drop_spliced_udp"}
    assert set(network["counters"]) == set(Counters.__slots__) | spliced
    text = (await live.call("GET", "/metrics")).body.decode()
    who = f'{{id="{network["id"]}",name="web"'
    samples = [line for line in text.splitlines() if who in line and not line.startswith("netd_flows{")]
    assert len(samples) == len(Counters.__slots__) + len(spliced)
    assert "nan" not in text.lower()


async def test_conflicts(live: Live, netns_pid: int) -> None:
    web = await live.attach(netns_pid, name="web", ports=[{"container_port": 80}])
    taken = web["ports"][0]["host_port"]
    with process_in_netns() as other:
        again = await live.call("POST", "/v1/networks", {"pid": other, "name": "web"})
        assert (again.status, again.json["code"]) == (409, "network_exists")
        twice = await live.call("POST", "/v1/networks", {"pid": netns_pid})
        assert (twice.status, twice.json["code"]) == (409, "network_exists")
        before = await live.fds()
        busy = {
            "pid": other,
            "name": "db",
            "ports": [{"container_port": 1}, {"container_port": 80, "host_port": taken}],
        }
        answer = await live.call("POST", "/v1/networks", busy)
        assert (answer.status, answer.json["code"], answer.json["holder"]) == (409, "port_in_use", {"network": "web"})
        assert "netd port ls web" in answer.json["hint"]
        assert [n["name"] for n in (await live.call("GET", "/v1/networks")).json] == ["web"], "all or nothing"
        assert await live.fds() == before
    nowhere = await live.call("POST", "/v1/networks/web/ports", {"container_port": 80, "host_ip": "192.0.2.1"})
    assert (nowhere.status, nowhere.json["code"]) == (422, "address_unavailable")


async def test_the_end_of_the_process_ends_the_network(live: Live) -> None:
    before = await live.fds()
    with process_in_netns() as pid:
        network = await live.attach(pid)
    await live.ends(network["id"])
    assert await live.fds() == before


async def test_an_explicit_network_outlives_the_process(live: Live) -> None:
    with process_in_netns() as pid:
        network = await live.attach(pid, lifeline="explicit")
        await live.call("GET", "/_ping")
    assert (await live.call("GET", f"/v1/networks/{network['id']}")).json["lifeline"] == "explicit"
    assert (await live.call("DELETE", f"/v1/networks/{network['id']}")).status == 204


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a namespace's file")
async def test_the_unlink_of_the_path_ends_the_network(runtime_dir: Path, netns_pid: int) -> None:
    file = runtime_dir / "netns"
    file.touch()
    mount = f'mount --bind /proc/{netns_pid}/ns/net {file}; exec "$@"'
    with serving(runtime_dir, "unshare", "-m", "--propagation", "private", "sh", "-c", mount, "sh") as live:
        answer = await live.call("POST", "/v1/networks", {"netns": str(file)})
        assert answer.status == 201, answer.body
        assert (answer.json["lifeline"], answer.json["lifeline_path"]) == ("path", str(file))
        file.unlink()  # for us an empty file; the daemon sees its mount go
        await live.ends(answer.json["id"])
    # A file that is a namespace only elsewhere is told apart.
    file.touch()
    with serving(runtime_dir) as live:
        answer = await live.call("POST", "/v1/networks", {"netns": str(file)})
        assert (answer.status, answer.json["code"]) == (422, "namespace_unavailable")
        assert "empty file from here" in answer.json["hint"]


async def test_answers_are_as_described(live: Live, netns_pid: int) -> None:
    document = (await live.call("GET", "/v1/openapi.json")).json
    await live.attach(netns_pid, name="web", ports=[{"container_port": 80}, {"container_port": 53, "protocol": "udp"}])
    values = {"id": "web", "port_id": "1"}
    for path, operations in document["paths"].items():
        if "get" not in operations:
            continue
        answer = await live.call("GET", path.format(**values))
        ((media, content),) = operations["get"]["responses"]["200"]["content"].items()
        assert answer.status == 200
        assert answer.headers["content-type"].startswith(media)
        check(answer.json if media.endswith("json") else answer.body.decode(), content["schema"], document)
    info = (await live.call("GET", "/v1/info")).json
    assert (info["pid"], info["networks"], info["ports"], info["event_loop"]) == (live.pid, 1, 2, "uvloop")


async def test_garbage_on_the_socket_is_nobodys_loss(live: Live, netns_pid: int) -> None:
    """A ping through the TAP goes on while the socket is stuffed; afterwards every descriptor is back."""
    await live.attach(netns_pid, name="web", ports=[{"container_port": 7, "host_ip": "127.0.0.1"}])
    port = (await live.call("GET", "/v1/networks/web/ports")).json[0]["host_port"]
    echo = """if True:
        import socket
        s = socket.create_server(("", 7))
        print("listening", flush=True)
        conn, peer = s.accept()
        while data := conn.recv(100):
            conn.sendall(data)
        """
    with enter(netns_pid, echo) as inside:
        assert inside.stdout is not None
        assert inside.stdout.readline() == "listening\n"
        with socket.create_connection(("127.0.0.1", port), 10) as conn:
            before = await live.fds()
            bad = []
            for number in range(100):
                sock = socket.socket(socket.AF_UNIX)
                sock.connect(str(live.socket))
                sock.sendall(
                    [b"GET /v1/inf", os.urandom(200), b"POST /v1/networks HTTP/1.1\r\nContent-Le", b""][number % 4]
                )
                bad.append(sock)
                conn.sendall(b"%03d" % number)
                assert select.select([conn], [], [], 2)[0], "the echo came late"
                assert conn.recv(100) == b"%03d" % number
            assert (await live.call("GET", "/_ping")).status == 200
            for sock in bad:
                sock.close()
            assert await live.fds() == before
