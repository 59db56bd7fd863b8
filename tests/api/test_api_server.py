"""The server itself: who may connect, what it does with bad clients, its socket's life."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netd.api import app, routes
from netd.api.app import ApiServer, listen
from netd.errors import NetdError
from tests.api.client import call, exchange, open_fds, parse
from tests.standin import Daemon, ServerThread


@pytest_asyncio.fixture
async def socket_path(runtime_dir: Path, api: ApiServer) -> Path:
    path = runtime_dir / "api.sock"
    await call(path, "GET", "/_ping")
    return path


async def still_serves(path: Path) -> None:
    assert (await asyncio.wait_for(call(path, "GET", "/_ping"), 2)).body == b"OK"


# ---- the socket's life


async def test_mode_and_removal(runtime_dir: Path, daemon: Daemon) -> None:
    server = ApiServer(daemon)  # type: ignore[arg-type]
    await server.start(None)
    path = runtime_dir / "api.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await server.stop()
    await server.stop()
    assert not path.exists()


async def test_a_stale_socket_is_replaced(runtime_dir: Path, daemon: Daemon) -> None:
    path = runtime_dir / "api.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = ApiServer(daemon)  # type: ignore[arg-type]
    await server.start(None)
    await still_serves(path)
    await server.stop()


async def test_a_live_daemon_is_not_replaced(runtime_dir: Path, api: ApiServer, daemon: Daemon) -> None:
    with pytest.raises(NetdError, match="another netd answers"):
        await ApiServer(daemon).start(None)  # type: ignore[arg-type]
    await still_serves(runtime_dir / "api.sock")


def test_a_live_daemon_with_a_full_backlog_is_not_replaced(runtime_dir: Path) -> None:
    path = runtime_dir / "api.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as client:
        busy.bind(str(path))
        busy.listen(0)
        client.connect(str(path))
        with pytest.raises(NetdError, match="another netd answers"):
            listen(path)


def test_what_is_no_socket_is_left_alone(runtime_dir: Path) -> None:
    path = runtime_dir / "api.sock"
    path.write_text("mine")
    with pytest.raises(NetdError, match="not a socket"):
        listen(path)
    assert path.read_text() == "mine"


async def test_a_given_listener_keeps_its_file(runtime_dir: Path, daemon: Daemon) -> None:
    path = runtime_dir / "other.sock"
    server = ApiServer(daemon)  # type: ignore[arg-type]
    await server.start(listen(path))
    await still_serves(path)
    await server.stop()
    assert path.exists()


async def test_a_successors_file_is_not_removed(runtime_dir: Path, daemon: Daemon) -> None:
    path = runtime_dir / "api.sock"
    server = ApiServer(daemon)  # type: ignore[arg-type]
    await server.start(None)
    path.unlink()
    with listen(path):
        await server.stop()
        assert path.exists()


async def test_requests_in_flight_end_when_it_stops(runtime_dir: Path, daemon: Daemon, netns_pid: int) -> None:
    server = ApiServer(daemon)  # type: ignore[arg-type]
    await server.start(None)
    path = runtime_dir / "api.sock"
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"GET /_ping HTTP/1.1\r\nHost: netd\r\n\r\n")  # stays open, idle
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    daemon.gate = asyncio.Event()
    attach = asyncio.create_task(call(path, "POST", "/v1/networks", {"pid": netns_pid}))
    await asyncio.wait_for(daemon.waiting.wait(), 5)
    stop = asyncio.create_task(server.stop())
    await asyncio.sleep(0)
    daemon.gate.set()
    assert (await attach).status == 201
    await asyncio.wait_for(stop, 2)
    while await reader.read(4096):
        pass  # until it is closed
    writer.close()
    with pytest.raises(FileNotFoundError):
        await call(path, "GET", "/_ping")


async def test_stopping_says_so_on_open_connections(runtime_dir: Path, daemon: Daemon) -> None:
    server = ApiServer(daemon)  # type: ignore[arg-type]
    await server.start(None)
    server._stopping = True
    answer = await call(runtime_dir / "api.sock", "GET", "/healthz")
    assert (answer.status, answer.json["code"], answer.headers["retry-after"]) == (503, "shutting_down", "1")
    await server.stop()


# ---- who may connect


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv for a second uid")
def test_a_second_uid_is_refused(runtime_dir: Path) -> None:
    client = f"""if True:
        import socket
        s = socket.socket(socket.AF_UNIX)
        s.connect({str(runtime_dir / "api.sock")!r})
        try:
            s.sendall(b"GET /v1/info HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
        except BrokenPipeError:
            pass  # refused before we said a word
        while data := s.recv(4096):
            print(data.decode(), end="", flush=True)
        """
    with ServerThread(runtime_dir) as server:
        other = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", sys.executable, "-c", client]
        by_mode = subprocess.run(other, capture_output=True, check=False, timeout=20)
        assert b"PermissionError" in by_mode.stderr
        server.socket.chmod(0o666)  # even then
        by_uid = subprocess.run(other, capture_output=True, check=False, timeout=20)
        assert by_uid.stdout.startswith(b"HTTP/1.1 403 Forbidden"), by_uid
        assert json.loads(by_uid.stdout.partition(b"\r\n\r\n")[2])["code"] == "forbidden"
        own = subprocess.run([sys.executable, "-c", client], capture_output=True, check=False, timeout=20)
        assert own.stdout.startswith(b"HTTP/1.1 200"), own


# ---- bad clients


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500, {400}),
        (b"GET / HTTP/9.9\r\n\r\n", {400}),
        (b"GET /%zz\xff HTTP/1.1\r\nHost: x\r\n\r\n", {400, 404}),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", {400}),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", {400}),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n", {400}),
        (b"POST /v1/networks HTTP/1.1\r\nContent-Length: -1\r\n\r\n", {400}),
        (b"POST /v1/networks HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", {400}),
        (b"POST /v1/networks HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", {400}),
        (b"CONNECT 10.0.0.1:80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {404, 405, 400}),
    ],
)
async def test_garbage(socket_path: Path, sent: bytes, statuses: set[int]) -> None:
    before = await open_fds()
    reader, writer = await asyncio.open_unix_connection(str(socket_path))
    writer.write(sent)
    answer = parse(await asyncio.wait_for(reader.read(), 5))
    writer.close()
    await writer.wait_closed()
    assert answer.status in statuses, answer
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert answer.json["status"] == answer.status
    await still_serves(socket_path)
    assert await open_fds() == before


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=300),
        st.tuples(st.sampled_from([b"GET", b"POST", b"DELETE"]), st.binary(max_size=60), st.binary(max_size=200)).map(
            lambda parts: b"%s /v1/networks%s HTTP/1.1\r\n%s\r\n\r\n" % parts
        ),
    )
)
async def test_any_bytes(socket_path: Path, sent: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(str(socket_path))
    writer.write(sent)
    writer.write_eof()
    said = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    await writer.wait_closed()
    assert not said or said.startswith(b"HTTP/1."), said
    assert b"Traceback" not in said
    await still_serves(socket_path)


async def test_a_large_body_is_413(socket_path: Path) -> None:
    for raw in (b"x" * (64 << 10) + b"x", b"x" * 10_000_000):
        answer = await call(socket_path, "POST", "/v1/networks", raw=raw)
        assert (answer.status, answer.json["code"]) == (413, "body_too_large")
    exactly = b'{"pid":4194304' + b" " * ((64 << 10) - 15) + b"}"
    assert (await call(socket_path, "POST", "/v1/networks", raw=exactly)).status == 422


async def test_a_large_chunked_body_is_413(socket_path: Path) -> None:
    head = b"POST /v1/networks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = parse(await exchange(socket_path, head + (b"4000\r\n" + b"x" * 0x4000 + b"\r\n") * 8 + b"0\r\n\r\n"))
    assert answer.status == 413


async def test_a_compressed_body_is_not_unpacked(socket_path: Path) -> None:
    head = b"POST /v1/networks HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    sent = head + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n"
    assert parse(await exchange(socket_path, sent + b"\x1f\x8b\x08\x00")).json["code"] == "bad_json"


async def test_a_body_that_does_not_come(socket_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "BODY_TIMEOUT", 0.05)
    sent = b"POST /v1/networks HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{"
    answer = parse(await exchange(socket_path, sent))
    assert (answer.status, answer.json["code"]) == (408, "request_timeout")


@pytest.mark.parametrize("sent", [b"", b"GET / HTT", b"GET / HTTP/1.1\r\nX: y\r\n"])
async def test_a_silent_client_is_cut_off(socket_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(app, "SILENT_TIMEOUT", 0.05)
    before = await open_fds()
    try:
        assert await exchange(socket_path, sent) == b""
    except ConnectionResetError:
        pass
    assert await open_fds() == before


async def test_a_half_sent_second_request_is_cut_off(socket_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "REQUEST_TIMEOUT", 0.05)
    said = await exchange(socket_path, b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\nGET /_pi")
    assert said.count(b"HTTP/1.1 200") == 1


async def test_a_client_that_does_not_read_is_cut_off(
    socket_path: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "REQUEST_TIMEOUT", 0.3)
    before = await open_fds()
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.setblocking(False)
        deaf.connect(str(socket_path))
        request = b"GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
        loop = asyncio.get_running_loop()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            async with asyncio.timeout(10):
                while True:  # pipelined without an end; the server must neither grow nor wait for ever
                    await loop.sock_sendall(deaf, request * 50)
        await still_serves(socket_path)
    assert await open_fds() == before


async def test_a_hundred_idle_connections(socket_path: Path) -> None:
    before = await open_fds()
    idle = [await asyncio.open_unix_connection(str(socket_path)) for _ in range(100)]
    for number, (_, writer) in enumerate(idle):
        writer.write(b"GET /v1/info HTTP/1.1\r\nX-Half: "[: number % 34])
    await still_serves(socket_path)
    for _, writer in idle:
        writer.close()
        await writer.wait_closed()
    await still_serves(socket_path)
    assert await open_fds() == before


async def test_connections_have_a_bound(socket_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "MAX_CONNECTIONS", 3)
    open_ones = [await asyncio.open_unix_connection(str(socket_path)) for _ in range(3)]
    answer = parse(await exchange(socket_path, b""))
    assert (answer.status, answer.json["code"]) == (503, "too_many_connections")
    for _, writer in open_ones:
        writer.close()
        await writer.wait_closed()
    await still_serves(socket_path)


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_no_descriptors_left(
    socket_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(app, "ACCEPT_PAUSE", 0.05)
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        with no_more_descriptors():
            client.connect(str(socket_path))
            await loop.sock_sendall(client, b"GET /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            turns = 0
            while "cannot accept" not in caplog.text:
                await asyncio.sleep(0)
                turns += 1
                assert turns < 100
            for _ in range(100):
                await asyncio.sleep(0)
            assert caplog.text.count("cannot accept") == 1, "it pauses instead of spinning"
            assert os.strerror(errno.EMFILE) in caplog.text
        assert (await asyncio.wait_for(loop.sock_recv(client, 100), 5)).startswith(b"HTTP/1.1 200")


async def test_keep_alive_and_pipelining(socket_path: Path) -> None:
    request = b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n"
    said = await exchange(socket_path, request * 4 + b"GET /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert said.count(b"HTTP/1.1 200 OK") == 5


async def test_http_1_0(socket_path: Path) -> None:
    answer = parse(await exchange(socket_path, b"GET /v1/version HTTP/1.0\r\n\r\n"))
    assert answer.status == 200
    assert "transfer-encoding" not in answer.headers


async def test_a_client_that_leaves_during_an_attach(socket_path: Path, daemon: Daemon, netns_pid: int) -> None:
    daemon.gate = asyncio.Event()
    payload = json.dumps({"pid": netns_pid, "name": "web"}).encode()
    _, writer = await asyncio.open_unix_connection(str(socket_path))
    writer.write(b"POST /v1/networks HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(payload), payload))
    await asyncio.wait_for(daemon.waiting.wait(), 5)
    writer.close()
    await writer.wait_closed()
    await still_serves(socket_path)
    daemon.gate.set()
    await open_fds()  # some turns of the loop
    assert (await call(socket_path, "DELETE", "/v1/networks/web")).status == 204
