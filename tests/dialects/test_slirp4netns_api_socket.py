"""The api socket: every reply to the byte, clients that do nothing, a thousand forwards that leave nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from netd.attach.server import AttachServer
from netd.dialects.slirp4netns import api_socket
from netd.dialects.slirp4netns.api_socket import answer
from netd.errors import NoSuchPort
from netd.specs import ForwardSpec, ForwardStatus, NetworkSpec
from tests.attach.harness import PLUGIN, Daemon, Network, Shim, eventually, open_fds

ME = str(os.getpid())


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def add(port: int, proto: str = "tcp", host: str = "127.0.0.1", guest: str = "", guest_port: int = 80) -> bytes:
    """As Podman writes it."""
    return (
        f'{{"execute":"add_hostfwd","arguments":{{"proto":"{proto}","host_addr":"{host}","host_port":{port},'
        f'"guest_addr":"{guest}","guest_port":{guest_port}}}}}\n'
    ).encode()


def remove(id_: int) -> bytes:
    return f'{{"execute":"remove_hostfwd","arguments":{{"id":{id_}}}}}'.encode()


LIST = b'{"execute":"list_hostfwd"}'


def error(text: str) -> bytes:
    return f'{{"error":{{"desc":"bad request: {text}"}}}}'.encode()


class Api:
    """A client of the socket at ``path``, and the network behind it."""

    def __init__(self, path: Path, daemon: Daemon, network: Network) -> None:
        self.path, self.daemon, self.network = path, daemon, network

    async def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, str(self.path))
        return client

    async def read(self, client: socket.socket) -> bytes:
        reply = b""
        async with asyncio.timeout(10):
            while part := await asyncio.get_running_loop().sock_recv(client, 65536):
                reply += part
        client.close()
        return reply

    async def ask(self, request: bytes, shut: bool = False) -> bytes:
        client = await self.connect()
        client.sendall(request)
        if shut:
            client.shutdown(socket.SHUT_WR)
        return await self.read(client)


@pytest_asyncio.fixture
async def api(server: AttachServer, daemon: Daemon, runtime_dir: Path, tmp_path: Path) -> Any:
    before = open_fds()
    path = tmp_path / "api"
    shim = Shim(runtime_dir, "-c", "-a", str(path), ME, "tap0")
    step = await shim.run()
    assert step is not None and step["op"] == "stay"
    network = await daemon.one()
    yield Api(path, daemon, network)
    for forward in network.forwards():
        network.remove_forward(forward.id)
    shim.close()
    await daemon.none()
    await eventually(lambda: open_fds() == before, "the descriptors of before")


# --- replies -------------------------------------------------------------------------------------------------------


async def test_podmans_session(api: Api) -> None:
    tcp, udp = free_port(), free_port(socket.SOCK_DGRAM)
    assert await api.ask(LIST) == b'{"entries":[]}'
    assert await api.ask(add(tcp), shut=True) == b'{"return":{"id":1}}'
    assert await api.ask(add(udp, "udp", "0.0.0.0", "10.0.2.100", 53), shut=True) == b'{"return":{"id":2}}'
    with socket.create_connection(("127.0.0.1", tcp)):
        pass
    entries = (
        f'{{"id":1,"proto":"tcp","host_addr":"127.0.0.1","host_port":{tcp},"guest_addr":"10.0.2.100","guest_port":80}},'
        f'{{"id":2,"proto":"udp","host_addr":"0.0.0.0","host_port":{udp},"guest_addr":"10.0.2.100","guest_port":53}}'
    )
    assert await api.ask(LIST) == f'{{"entries":[{entries}]}}'.encode()
    assert await api.ask(add(tcp), shut=True) == error("add_hostfwd: slirp_add_hostfwd failed")
    assert await api.ask(remove(1)) == b'{"return":{}}'
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", tcp))
    assert await api.ask(remove(1)) == error("remove_hostfwd: bad arguments.id")
    assert await api.ask(add(tcp), shut=True) == b'{"return":{"id":3}}', "an id was given out again"
    assert api.daemon.changes == 4, "persist after each change, and only then"


async def test_what_others_published_is_listed_and_can_be_removed(api: Api) -> None:
    first = free_port()
    api.network.add_forward(ForwardSpec("tcp", first, 8000, range=1), "api")
    reply = json.loads(await api.ask(LIST))
    assert reply["entries"][0] == {
        "id": 1, "proto": "tcp", "host_addr": "0.0.0.0", "host_port": first, "guest_addr": "10.0.2.100",
        "guest_port": 8000,
    }  # fmt: skip
    assert await api.ask(remove(1)) == b'{"return":{}}'


A = "add_hostfwd: bad arguments."
OK = b'{"return":{"id":1}}'
FIELDS: dict[str, Any] = {
    "proto": "tcp",
    "host_addr": "127.0.0.1",
    "host_port": 8080,
    "guest_addr": "",
    "guest_port": 80,
}


def request(**changes: Any) -> bytes:
    arguments = {key: value for key, value in {**FIELDS, **changes}.items() if value is not ...}
    return json.dumps({"execute": "add_hostfwd", "arguments": arguments}).encode()


TABLE: list[tuple[str, bytes, bytes]] = [
    ("nothing", b"", error("cannot parse JSON")),
    ("a newline", b"\n", error("cannot parse JSON")),
    ("no JSON", b"hello", error("cannot parse JSON")),
    ("no UTF-8", b"\xff{}", error("cannot parse JSON")),
    ("half an object", b'{"execute":', error("cannot parse JSON")),
    ("deep", b"[" * 4000, error("cannot parse JSON")),
    ("an unfinished comment", b"/*" * 2000, error("cannot parse JSON")),
    ("an array", b"[]", error("json_object() failed")),
    ("a number", b"7", error("json_object() failed")),
    ("a string", b'"list_hostfwd"', error("json_object() failed")),
    ("null", b"null", error("json_object() failed")),
    ("no execute", b"{}", error("no execute found")),
    ("execute a number", b'{"execute":7}', error("no execute found")),
    ("execute null", b'{"execute":null}', error("no execute found")),
    ("unknown", b'{"execute":"quit"}', error("unknown execute")),
    ("empty command", b'{"execute":""}', error("unknown execute")),
    ("4095 bytes", b'{"execute":"list_hostfwd"}'.ljust(4095), b'{"entries":[]}'),
    ("4096 bytes", b'{"execute":"list_hostfwd"}'.ljust(4096), error("too large message")),
    ("spaces", b' \r\n\t{ "execute" : "list_hostfwd" , "arguments" : { } } ', b'{"entries":[]}'),
    ("a comment", b'/* a */ {"execute":"list_hostfwd"}', error("cannot parse JSON")),
    ("a comment inside", b'{"execute": // b\n "list_hostfwd"}', error("cannot parse JSON")),
    ("a comment behind", b'{"execute":"list_hostfwd"} // c', b'{"entries":[]}'),
    ("a byte order mark", b'\xef\xbb\xbf{"execute":"list_hostfwd"}', b'{"entries":[]}'),
    ("a form feed", b'\x0c{"execute":"list_hostfwd"}', b'{"entries":[]}'),
    ("a string that is no UTF-8", b'{"execute":"list_hostfwd","a":"\xff"}', b'{"entries":[]}'),
    ("a key twice", b'{"execute":"list_hostfwd","execute":"quit"}', error("cannot parse JSON")),
    ("a key twice inside", b'{"execute":"list_hostfwd","a":{"b":1,"b":1}}', error("cannot parse JSON")),
    ("NaN", b'{"execute":"list_hostfwd","a":NaN}', error("cannot parse JSON")),
    ("Infinity", b'{"execute":"list_hostfwd","a":-Infinity}', error("cannot parse JSON")),
    ("1e999", b'{"execute":"list_hostfwd","a":1e999}', error("cannot parse JSON")),
    ("a comment in a string", b'{"execute":"list_hostfwd//"}', error("unknown execute")),
    ("two objects", b'{"execute":"list_hostfwd"}{"execute":"quit"}', b'{"entries":[]}'),
    ("text behind", b'{"execute":"list_hostfwd"} garbage', b'{"entries":[]}'),
    ("escapes", b'{"\\u0065xecute":"list\\u005fhostfwd"}', b'{"entries":[]}'),
    ("add", request(), OK),
    ("add udp", request(proto="udp"), OK),
    ("no proto", request(proto=...), error(A + "proto")),
    ("no arguments", b'{"execute":"add_hostfwd"}', error(A + "proto")),
    ("arguments an array", b'{"execute":"add_hostfwd","arguments":[]}', error(A + "proto")),
    ("sctp", request(proto="sctp"), error(A + "proto")),
    ("TCP", request(proto="TCP"), error(A + "proto")),
    ("tcp6", request(proto="tcp6"), error(A + "proto")),
    ("proto a number", request(proto=6), error(A + "proto")),
    ("proto an object", request(proto={}), error(A + "proto")),
    ("no host_addr", request(host_addr=...), OK),
    ("empty host_addr", request(host_addr=""), OK),
    ("host_addr a number", request(host_addr=1), OK),
    ("host_addr a name", request(host_addr="localhost"), error(A + "host_addr")),
    ("host_addr IPv6", request(host_addr="::"), error(A + "host_addr")),
    ("host_addr Podman's [::]", request(host_addr="::1"), error(A + "host_addr")),
    ("host_addr short", request(host_addr="127.1"), error(A + "host_addr")),
    ("no host_port", request(host_port=...), error(A + "host_port")),
    ("host_port 0", request(host_port=0), error(A + "host_port")),
    ("host_port a string", request(host_port="80"), error(A + "host_port")),
    ("host_port true", request(host_port=True), error(A + "host_port")),
    ("host_port -1", request(host_port=-1), error(A + "host_port")),
    ("host_port 83622", request(host_port=83622), error(A + "host_port")),
    ("host_port 1e300", request().replace(b"8080", b"1e300"), error(A + "host_port")),
    ("host_port NaN", request().replace(b"8080", b"NaN"), error("cannot parse JSON")),
    ("host_port a fraction", request(host_port=18087.9), OK),
    ("no guest_addr", request(guest_addr=...), OK),
    ("guest_addr", request(guest_addr="10.0.2.17"), OK),
    ("guest_addr a name", request(guest_addr="web"), error(A + "guest_addr")),
    ("guest_addr that the network refuses", request(guest_addr="203.0.113.1"), error(A + "guest_addr")),
    ("no guest_port", request(guest_port=...), error(A + "guest_port")),
    ("guest_port 0", request(guest_port=0), error(A + "guest_port")),
    ("guest_port 70000", request(guest_port=70000), error(A + "guest_port")),
    ("guest_port a string", request(guest_port="x"), error(A + "guest_port")),
    ("an address that is not ours", request(host_addr="192.0.2.1"), error("add_hostfwd: slirp_add_hostfwd failed")),
    ("remove nothing", b'{"execute":"remove_hostfwd"}', error("remove_hostfwd: bad arguments.id")),
    ("remove 7", remove(7), error("remove_hostfwd: bad arguments.id")),
    ("remove 0", remove(0), error("remove_hostfwd: bad arguments.id")),
    ("remove a string", b'{"execute":"remove_hostfwd","arguments":{"id":"1"}}',
     error("remove_hostfwd: bad arguments.id")),
    ("remove 1e99", b'{"execute":"remove_hostfwd","arguments":{"id":1e99}}',
     error("remove_hostfwd: bad arguments.id")),
]  # fmt: skip


@pytest.mark.parametrize(("said", "reply"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
async def test_replies_to_the_byte(api: Api, said: bytes, reply: bytes) -> None:
    for port in (b"8080", b"18087.9"):  # on this machine it may be taken
        said = said.replace(port, str(free_port()).encode() + port[5:])
    assert await api.ask(said, shut=said == b"") == reply


async def test_a_fraction_of_a_port_is_cut_off(api: Api) -> None:
    port = free_port()
    assert await api.ask(request(host_port=port + 0.9)) == OK
    assert api.network.forwards()[0].spec.host_port == port


async def test_a_range_has_an_entry_for_each_port() -> None:
    forward = ForwardStatus(4, ForwardSpec("udp", 5000, 6000, "127.0.0.1", 3, "10.0.2.9"), "api", "listening", 0)
    network: Any = SimpleNamespace(spec=NetworkSpec(), forwards=lambda: [forward])
    reply, changed = answer(network, LIST)
    assert not changed
    assert [(e["id"], e["host_port"], e["guest_addr"], e["guest_port"]) for e in json.loads(reply)["entries"]] == [
        (4, 5000 + n, "10.0.2.9", 6000 + n) for n in range(3)
    ]


class Forwards:
    """A network for which every forward succeeds."""

    name = "n"
    spec = NetworkSpec()

    def add_forward(self, spec: ForwardSpec, origin: str) -> ForwardStatus:
        assert 0 < spec.host_port < 65536 and 0 < spec.container_port < 65536 and spec.protocol in ("tcp", "udp")
        return ForwardStatus(1, spec, origin, "listening", 0)

    def remove_forward(self, id_: int) -> None:
        raise NoSuchPort("none")

    def forwards(self) -> list[ForwardStatus]:
        return []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["tcp", "udp"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from([*FIELDS, "id"]), inner, max_size=6),
    max_leaves=8,
)


@settings(deadline=None, max_examples=500)
@given(
    st.binary(max_size=200)
    | st.builds(lambda value: json.dumps(value).encode(), JSON)
    | st.builds(
        lambda command, arguments: json.dumps({"execute": command, "arguments": arguments}).encode(),
        st.sampled_from(["add_hostfwd", "remove_hostfwd", "list_hostfwd"]) | JSON,
        JSON,
    )
)
def test_no_request_is_too_much_for_it(said: bytes) -> None:
    reply, changed = answer(Forwards(), said)  # type: ignore[arg-type]
    assert set(json.loads(reply)) <= {"return", "error", "entries"} and len(json.loads(reply)) == 1
    assert changed == reply.startswith(b'{"return"')


# --- clients -------------------------------------------------------------------------------------------------------


async def test_a_request_in_two_writes_is_judged_by_the_first(api: Api) -> None:
    client = await api.connect()
    client.sendall(LIST[:9])
    assert await api.read(client) == error("cannot parse JSON")


async def test_much_more_than_is_read_does_not_lose_the_reply(api: Api) -> None:
    assert await api.ask(b"x" * 9000) == error("too large message")


async def test_a_client_that_is_gone_before_the_reply(api: Api) -> None:
    for _ in range(20):
        client = await api.connect()
        client.sendall(LIST)
        client.close()
        (await api.connect()).close()
    assert await api.ask(LIST) == b'{"entries":[]}'


async def test_silent_clients_keep_nobody_out(api: Api) -> None:
    before = open_fds()
    silent = [await api.connect() for _ in range(3 * api_socket.MAX_CLIENTS)]
    port = free_port()
    assert await asyncio.wait_for(api.ask(add(port)), 1) == b'{"return":{"id":1}}'
    await eventually(
        lambda: open_fds() <= before + len(silent) + api_socket.MAX_CLIENTS + 1, "no more clients than are allowed"
    )
    assert silent[0].recv(10) == b"", "the oldest was not sent away"
    for client in silent:
        client.close()


async def test_a_silent_client_is_sent_away_in_the_end(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_socket, "DEADLINE", 0.05)
    client = await api.connect()
    assert await api.read(client) == b""


async def test_a_client_that_does_not_read_holds_nobody(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_socket, "DEADLINE", 0.3)
    entries = [ForwardStatus(n, ForwardSpec("tcp", 1, 1, "", 2000), "api", "listening", 0) for n in range(5)]
    monkeypatch.setattr(api.network, "forwards", lambda: entries)
    deaf = await api.connect()
    deaf.sendall(LIST)
    reply = await api.ask(LIST)
    assert len(json.loads(reply)["entries"]) == 10000 and len(reply) > 500_000
    monkeypatch.undo()
    deaf.close()


async def test_thirty_clients_at_once_are_all_served(api: Api) -> None:
    replies = await asyncio.gather(*(api.ask(LIST) for _ in range(30)))
    assert replies == [b'{"entries":[]}'] * 30


async def test_a_thousand_forwards_leave_nothing_behind(api: Api) -> None:
    await api.ask(LIST)
    before = open_fds()
    port = free_port()
    for number in range(1, 1001):
        assert await api.ask(add(port, ("tcp", "udp")[number % 2])) == f'{{"return":{{"id":{number}}}}}'.encode()
        assert await api.ask(remove(number)) == b'{"return":{}}'
    assert open_fds() == before
    assert await api.ask(LIST) == b'{"entries":[]}'


async def test_netcat(api: Api) -> None:
    nc = shutil.which("nc")
    if nc is None or "-U" not in subprocess.run([nc, "-h"], check=False, capture_output=True, text=True).stderr:
        pytest.skip("no nc with -U")
    port = free_port()
    for said, reply in ((add(port), OK), (LIST, None), (remove(1), b'{"return":{}}')):
        done = await asyncio.to_thread(
            subprocess.run, [nc, "-U", "-N", str(api.path)], input=said, capture_output=True, timeout=10
        )
        assert done.returncode == 0
        assert done.stdout == reply if reply else len(json.loads(done.stdout)["entries"]) == 1


# --- over the network's life ---------------------------------------------------------------------------------------


async def test_is_listening_before_ready_is_said(
    server: AttachServer, daemon: Daemon, runtime_dir: Path, tmp_path: Path
) -> None:
    """What Podman does: it takes the file's presence for the listener, and a stale file is there from the last time."""
    path = tmp_path / "api"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    reader, writer = os.pipe()
    shim = await asyncio.to_thread(
        lambda: subprocess.Popen(
            [PLUGIN / "slirp4netns", "-r", str(writer), "-a", str(path), ME, "tap0"],
            pass_fds=[writer],
            env={**os.environ, "NETD_RUNTIME_DIR": str(runtime_dir)},
            stdout=subprocess.DEVNULL,
        )
    )
    os.close(writer)
    assert await asyncio.to_thread(os.read, reader, 1) == b"1"
    api = Api(path, daemon, await daemon.one())
    assert await api.ask(LIST) == b'{"entries":[]}'
    shim.kill()
    await asyncio.to_thread(shim.wait)
    os.close(reader)
    await daemon.none()


async def test_is_served_again_after_a_restart(daemon: Daemon, runtime_dir: Path, tmp_path: Path) -> None:
    """A restored network has its held listener; a request that came in between waits in its backlog."""
    path = tmp_path / "api"
    first = AttachServer(daemon)  # type: ignore[arg-type]
    await first.start(None)
    shim = Shim(runtime_dir, "-a", str(path), ME, "tap0")
    await shim.run()
    api = Api(path, daemon, await daemon.one())
    port = free_port()
    assert await api.ask(add(port)) == OK
    silent = await api.connect()
    await api.ask(LIST)  # accepted after it
    await first.stop()
    assert silent.recv(1) == b""
    silent.close()
    waiting = await api.connect()
    waiting.sendall(LIST)
    second = AttachServer(daemon)  # type: ignore[arg-type]
    await second.start(None)
    assert len(json.loads(await api.read(waiting))["entries"]) == 1
    assert await api.ask(remove(1)) == b'{"return":{}}'
    late = Daemon._tell  # a daemon may also announce its networks once the servers are there
    late(daemon, "attached", api.network)
    assert await api.ask(LIST) == b'{"entries":[]}'
    await second.stop()
    shim.close()
    await daemon.none()


async def test_ends_with_the_network(api: Api) -> None:
    client = await api.connect()
    await api.ask(LIST)
    await api.daemon.detach(api.network)  # type: ignore[arg-type]
    assert await api.read(client) == b""
    with pytest.raises(ConnectionRefusedError):
        await api.connect()
