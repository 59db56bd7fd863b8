"""The attach server over its real socket: who is served, what is refused, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from netd.attach import conversation
from netd.attach import server as server_module
from netd.attach.server import AttachServer
from netd.errors import NamespaceUnavailable, NetdError
from netd.specs import Lifeline
from tests.attach.harness import PLUGIN, Daemon, Shim, eventually, mode_of, open_fds

ATTACH = ("-c", "-r", "4", str(os.getpid()), "tap0")


@pytest_asyncio.fixture
async def fds_before(server: AttachServer) -> int:
    return open_fds()  # while the loop runs: it has some of its own


async def test_serves_a_shim(server: AttachServer, daemon: Daemon, runtime_dir: Path) -> None:
    assert mode_of(runtime_dir / "attach.sock") == 0o600
    shim = Shim(runtime_dir, "--version")
    step = await shim.run()
    assert step is not None and step["op"] == "exit" and step["status"] == 0
    assert step["stdout"].startswith("slirp4netns version ")
    assert await shim.receive() is None
    shim.close()


@pytest.mark.parametrize("name", ["netd-shim", "../../etc/passwd", "", "pasta.avx2"])
async def test_other_names_get_one_line(server: AttachServer, runtime_dir: Path, name: str) -> None:
    shim = Shim(runtime_dir, "-c", argv0=f"/usr/libexec/netd/{name}")
    step = await shim.run()
    line = f"{os.path.basename(name)}: netd: call this program by the name slirp4netns, pasta or pesto\n"
    assert step == {"op": "exit", "status": 1, "stdout": "", "stderr": line}
    shim.close()


async def output(*command: str, **options: Any) -> str:
    """What a program prints while this loop turns."""
    done = await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True, text=True, **options)
    assert isinstance(done.stdout, str)
    return done.stdout


# --- a shim may end at any step ------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", range(6))
async def test_a_shim_that_ends_at_any_step_leaves_nothing(
    server: AttachServer, daemon: Daemon, runtime_dir: Path, tmp_path: Path, fds_before: int, steps: int
) -> None:
    ready, writer = os.pipe()
    kept, exit_fd = os.pipe()
    argv = ("-e", "3", "-a", str(tmp_path / "api"), "--userns-path=/proc/self/ns/user", *ATTACH)
    shim = Shim(runtime_dir, *argv, fds={3: kept, 4: writer})
    if steps == 0:
        pass  # connected, said nothing
    else:
        await shim.run(steps)
        assert len(shim.steps) == steps, "the conversation is shorter than this test thinks"
    shim.close()
    for fd in (ready, writer, kept, exit_fd):
        os.close(fd)
    await eventually(lambda: open_fds() == fds_before, "the descriptors of before")
    assert not daemon.networks


async def test_the_conversation_has_the_length_that_test_thinks(
    server: AttachServer, daemon: Daemon, runtime_dir: Path, tmp_path: Path
) -> None:
    ready, writer = os.pipe()
    kept, exit_fd = os.pipe()
    argv = ("-e", "3", "-a", str(tmp_path / "api"), "--userns-path=/proc/self/ns/user", *ATTACH)
    shim = Shim(runtime_dir, *argv, fds={3: kept, 4: writer})
    last = await shim.run()
    assert [step["op"] for step in shim.steps] == ["open", "open", "fd", "fd", "listen", "stay"]
    assert last is not None and "Starting slirp" in last["stdout"]
    assert os.read(ready, 10) == b"1"
    os.close(writer)
    await eventually(lambda: os.read(ready, 10) == b"", "the ready descriptor's end")
    network = await daemon.one()
    assert network.lifeline.kind == "shim" and set(network.held) == {"exit_fd", "slirp_api"}
    shim.close()
    await daemon.none()
    for fd in (ready, kept, exit_fd):
        os.close(fd)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_shim_that_is_killed_during_the_attach_leaves_nothing(
    server: AttachServer, daemon: Daemon, runtime_dir: Path, fds_before: int, number: signal.Signals
) -> None:
    """The real program, while the daemon is busy with the namespace."""
    daemon.gate = asyncio.Event()
    ready, writer = os.pipe()
    env = {**os.environ, "NETD_RUNTIME_DIR": str(runtime_dir)}
    argv = ("-c", "-r", str(writer), str(os.getpid()), "tap0")
    shim = await asyncio.to_thread(
        lambda: subprocess.Popen([PLUGIN / "slirp4netns", *argv], pass_fds=[writer], env=env)
    )
    os.close(writer)
    await daemon.attaching.wait()
    shim.send_signal(number)
    assert await asyncio.to_thread(shim.wait) == -number
    daemon.gate.set()
    await daemon.none()
    await eventually(lambda: open_fds() == fds_before + 1, "the descriptors of before")
    assert os.read(ready, 1) == b"", "ready was said for a network that had ended"
    os.close(ready)


# --- messages that are none ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "no JSON"),
        (b"{}", "version None"),
        (json.dumps({"version": 99}).encode(), "version 99"),
        (b"[" * 60000, "no JSON"),
        (b" " * 65537, "longer than 65536 bytes"),
        (b"x" * 150_000, "longer than 65536 bytes"),
    ],
)
async def test_garbage_is_answered_with_one_clear_line(
    server: AttachServer, daemon: Daemon, runtime_dir: Path, fds_before: int, data: bytes, complaint: str
) -> None:
    shim = Shim(runtime_dir)
    shim.send(data)
    step = await shim.receive()
    assert step is not None and (step["op"], step["status"]) == ("exit", 1)
    first = step["stderr"].splitlines()[0]
    assert first.startswith("netd: ") and complaint in first
    assert await shim.receive() is None
    shim.close()
    await eventually(lambda: open_fds() == fds_before, "the descriptors of before")


@pytest.mark.parametrize("count", [1, 4, 100])
async def test_descriptors_that_nobody_asked_for_are_closed(
    server: AttachServer, runtime_dir: Path, fds_before: int, count: int
) -> None:
    reader, writer = os.pipe()
    for hello in (True, False):
        shim = Shim(runtime_dir, *ATTACH)
        if hello:
            shim.send(shim.hello, *[writer] * count)
        else:
            shim.send(shim.hello)
            assert await shim.receive() == {"op": "open", "path": f"/proc/{os.getpid()}/ns/net", "real": False}
            shim.send({"ok": True}, *[writer] * (count + 1))
        step = await shim.receive()
        assert step is not None and step["op"] == "exit" and "descriptors" in step["stderr"]
        shim.close()
    os.close(writer)
    await eventually(lambda: open_fds() == fds_before + 1, "the descriptors of before")
    assert os.read(reader, 1) == b""
    os.close(reader)


@pytest.mark.parametrize("answer", [b"\x00", b"{}", b'{"ok":false,"errno":2,"error":"lie"}', b"[]"])
async def test_an_answer_that_is_none_does_not_cost_a_descriptor(
    server: AttachServer, runtime_dir: Path, fds_before: int, answer: bytes
) -> None:
    reader, writer = os.pipe()
    shim = Shim(runtime_dir, *ATTACH)
    shim.send(shim.hello)
    await shim.receive()
    shim.send(answer, writer)
    step = await shim.receive()
    assert step is not None and (step["op"], step["status"]) == ("exit", 1)
    shim.close()
    os.close(reader)
    os.close(writer)
    await eventually(lambda: open_fds() == fds_before, "the descriptors of before")


async def test_a_silent_shim_is_sent_away(
    server: AttachServer, runtime_dir: Path, fds_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = conversation.Conversation.__init__.__defaults__
    monkeypatch.setattr(conversation.Conversation.__init__, "__defaults__", (0.1,))
    assert defaults == (conversation.STEP_DEADLINE,) and 0 < conversation.STEP_DEADLINE < 10
    silent = Shim(runtime_dir)
    assert await silent.receive() is None
    halfway = Shim(runtime_dir, *ATTACH)
    halfway.send(halfway.hello)
    step = await halfway.receive()
    assert step is not None and step["op"] == "open"
    assert await halfway.receive() is None
    silent.close()
    halfway.close()
    await eventually(lambda: open_fds() == fds_before, "the descriptors of before")


async def test_many_silent_shims_do_not_keep_others_out_for_ever(
    server: AttachServer, runtime_dir: Path, fds_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation.Conversation.__init__, "__defaults__", (0.3,))
    monkeypatch.setattr(server_module, "MAX_CONVERSATIONS", 8)
    silent = [Shim(runtime_dir) for _ in range(40)]
    await eventually(lambda: open_fds() >= fds_before + 40 + 8, "eight conversations")
    assert open_fds() == fds_before + 40 + 8
    for shim in silent[20:]:
        shim.close()
    last = Shim(runtime_dir, "--version")
    step = await last.run()
    assert step is not None and step["status"] == 0
    for shim in [*silent[:20], last]:
        shim.close()
    await eventually(lambda: open_fds() == fds_before, "the descriptors of before")


# --- whose daemon it is --------------------------------------------------------------------------------------------

STRANGER = """
import json, os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect(sys.argv[1])
s.send(json.dumps({"version": 1, "argv0": "slirp4netns", "argv": ["--version"], "cwd": "/", "pid": 1,
                   "env": {}, "fd1": ""}).encode())
print(s.recv(100000).decode())
"""


async def test_a_second_uid_is_refused_even_where_the_files_let_it_in(
    server: AttachServer, daemon: Daemon, runtime_dir: Path
) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can be somebody else")
    path = runtime_dir / "attach.sock"
    path.chmod(0o666)
    step = json.loads(await output(sys.executable, "-c", STRANGER, str(path)))
    assert (step["op"], step["status"]) == ("exit", 1)
    assert step["stderr"] == "netd: this daemon is of uid 0 and serves nobody else\n"


# --- errors of the daemon's own ------------------------------------------------------------------------------------


async def test_an_error_with_a_hint(server: AttachServer, daemon: Daemon, runtime_dir: Path, fds_before: int) -> None:
    daemon.fails = NamespaceUnavailable("the namespace is gone", hint="start it again")
    shim = Shim(runtime_dir, *ATTACH)
    step = await shim.run()
    assert step is not None and step["status"] == 1
    assert step["stderr"] == (
        "netd: the namespace is gone (start it again)\nsetns(CLONE_NEWNET): Operation not permitted\nchild failed(1)\n"
    )
    shim.close()
    await eventually(lambda: open_fds() == fds_before, "the descriptors of before")


async def test_a_mistake_of_ours_is_told_and_logged(
    server: AttachServer, daemon: Daemon, runtime_dir: Path, fds_before: int, caplog: Any
) -> None:
    async def broken(spec: object, netns_fd: int, lifeline: Lifeline, held: dict[str, int], tap: object) -> None:
        for fd in (netns_fd, lifeline.fd, *held.values()):
            os.close(fd)
        raise ZeroDivisionError("a bug")

    daemon.attach = broken  # type: ignore[method-assign,assignment]
    shim = Shim(runtime_dir, *ATTACH)
    step = await shim.run()
    assert step is not None and step["stderr"] == "netd: an error inside the daemon; its log says more\n"
    shim.close()
    await eventually(lambda: "a bug" in caplog.text, "a log entry")
    again = Shim(runtime_dir, "-v")
    step = await again.run()
    assert step is not None and step["status"] == 0
    again.close()
    await eventually(lambda: open_fds() == fds_before, "the descriptors of before")


# --- the end -------------------------------------------------------------------------------------------------------


async def test_stopping_ends_conversations_and_keeps_networks(daemon: Daemon, runtime_dir: Path) -> None:
    server = AttachServer(daemon)  # type: ignore[arg-type]
    await server.start(None)
    staying = Shim(runtime_dir, *ATTACH)
    step = await staying.run()
    assert step is not None and step["op"] == "stay"
    talking = Shim(runtime_dir, *ATTACH)
    talking.send(talking.hello)
    await talking.receive()
    await server.stop()
    assert await talking.receive() is None
    assert len(daemon.networks) == 1 and daemon.observers == []
    assert not (runtime_dir / "attach.sock").exists()
    staying.close()
    talking.close()
    await daemon.none()


async def test_a_listener_that_was_passed_is_used_and_its_file_left(daemon: Daemon, runtime_dir: Path) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(runtime_dir / "attach.sock"))
    listener.listen()
    early = Shim(runtime_dir, "-v")
    early.send(early.hello)  # before there is a daemon
    server = AttachServer(daemon)  # type: ignore[arg-type]
    await server.start(listener)
    step = await early.receive()
    assert step is not None and step["status"] == 0
    early.close()
    await server.stop()
    assert (runtime_dir / "attach.sock").exists()


async def test_a_stale_socket_is_replaced_and_a_live_one_is_not(daemon: Daemon, runtime_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
        stale.bind(str(runtime_dir / "attach.sock"))
    first, second = (AttachServer(daemon) for _ in range(2))  # type: ignore[arg-type]
    await first.start(None)
    with pytest.raises(NetdError, match="already running"):
        await second.start(None)
    await second.stop()
    shim = Shim(runtime_dir, "-v")
    assert await shim.run() is not None
    shim.close()
    await first.stop()


async def test_a_directory_that_cannot_be_listened_in(daemon: Daemon, runtime_dir: Path) -> None:
    daemon.settings.runtime_dir = runtime_dir / "missing"
    before = open_fds()
    with pytest.raises(NetdError, match=r"cannot listen on .*/missing/attach.sock: No such file or directory"):
        await AttachServer(daemon).start(None)  # type: ignore[arg-type]
    assert open_fds() == before


async def test_a_long_runtime_directory(daemon: Daemon, runtime_dir: Path) -> None:
    deep = runtime_dir / ("d" * 120)
    deep.mkdir()
    daemon.settings.runtime_dir = deep
    server = AttachServer(daemon)  # type: ignore[arg-type]
    await server.start(None)
    out = await output(str(PLUGIN / "slirp4netns"), "-v", env={**os.environ, "NETD_RUNTIME_DIR": str(deep)})
    assert out.startswith("slirp4netns version")
    await server.stop()
    assert not (deep / "attach.sock").exists()
