"""A shim that stays survives the daemon's restart: the test is the service manager and keeps the descriptors meanwhile.

The real manager is in tests/systemd; here the daemon may be killed at will, as often as is needed.
"""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netd import store
from tests.attach.harness import PLUGIN, TREE


class Manager:
    """Starts ``netd serve`` with sockets and stored descriptors, and keeps what it is told to keep (sd_notify(3))."""

    def __init__(self, runtime_dir: Path) -> None:
        self.dir = runtime_dir
        self.listeners: dict[str, socket.socket] = {}
        for name, kind in (("attach", socket.SOCK_SEQPACKET), ("api", socket.SOCK_STREAM)):
            self.listeners[name] = socket.socket(socket.AF_UNIX, kind)
            self.listeners[name].bind(str(runtime_dir / f"{name}.sock"))
            self.listeners[name].listen()
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notified.bind(str(runtime_dir / "notify"))
        self.stored: dict[str, list[int]] = {}
        self.pid = 0

    def start(self) -> None:
        """Until READY=1."""
        passed = [("listen", sock.fileno()) for sock in self.listeners.values()]
        passed += [(name, fd) for name, fds in self.stored.items() for fd in fds]
        env = {**os.environ, "NETD_RUNTIME_DIR": str(self.dir), "NOTIFY_SOCKET": str(self.dir / "notify")}
        env |= {"LISTEN_FDS": str(len(passed)), "LISTEN_FDNAMES": ":".join(name for name, _ in passed)}
        env["PYTHONPATH"] = str(TREE)
        self.pid = os.fork()
        if not self.pid:
            try:
                spare = [os.dup(fd) for _, fd in passed]
                room = max(spare, default=0) + 1
                high = [os.dup2(fd, room + i) for i, fd in enumerate(spare)]
                for i, fd in enumerate(high):
                    os.dup2(fd, 3 + i)
                os.closerange(3 + len(high), room + len(high))
                env["LISTEN_PID"] = str(os.getpid())
                os.execve(sys.executable, [sys.executable, "-m", "netd", "serve"], env)
            finally:
                os._exit(127)
        while not self.listen(10):
            pass

    def listen(self, seconds: float) -> bool:
        """Take in what the daemon says; True at READY=1, False at anything else. AssertionError if it says nothing."""
        assert select.select([self.notified], [], [], seconds)[0], "the daemon says nothing"
        data, ancillary, _, _ = self.notified.recvmsg(65536, socket.CMSG_SPACE(1024))
        fds = array.array("i")
        for _, _, content in ancillary:
            fds.frombytes(content)
        said = dict(line.split("=", 1) for line in data.decode().splitlines())
        if "FDSTORE" in said:
            self.stored.setdefault(said["FDNAME"], []).extend(fds)
        if "FDSTOREREMOVE" in said:
            for fd in self.stored.pop(said["FDNAME"], []):
                os.close(fd)
        return "READY" in said

    def settle(self, seconds: float = 0.2) -> None:
        """Take in all that is said until it is quiet: the store is then what a crash would leave."""
        while select.select([self.notified], [], [], seconds)[0]:
            self.listen(0)

    def end(self, number: signal.Signals) -> None:
        self.settle()
        os.kill(self.pid, number)
        os.waitpid(self.pid, 0)
        self.pid = 0
        self.settle()

    def close(self) -> None:
        if self.pid:
            self.end(signal.SIGKILL)
        for fds in self.stored.values():
            for fd in fds:
                os.close(fd)
        self.stored.clear()
        for sock in (*self.listeners.values(), self.notified):
            sock.close()


@pytest.fixture
def manager() -> Iterator[Manager]:
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip(f"/dev/net/tun is not usable by uid {os.getuid()}")
    with tempfile.TemporaryDirectory(prefix="netd-") as path:
        manager = Manager(Path(path))
        yield manager
        manager.close()


@pytest.fixture
def netns_pid() -> Iterator[int]:
    sleeper = subprocess.Popen(
        ["unshare", "-rn", "sh", "-c", "echo; exec sleep 600"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert sleeper.stdout is not None
    if not sleeper.stdout.readline():
        pytest.skip("user namespaces are not permitted here")
    yield sleeper.pid
    sleeper.kill()
    sleeper.wait()
    sleeper.stdout.close()


def ask(path: Path, execute: str, **arguments: Any) -> Any:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(json.dumps({"execute": execute, "arguments": arguments}).encode())
        return json.loads(client.makefile("rb").read())


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_staying_shim_survives_restarts(
    manager: Manager, netns_pid: int, tmp_path: Path, how: signal.Signals
) -> None:
    manager.start()
    api = tmp_path / "api"
    exit_fd, other = os.pipe()
    ready, writer = os.pipe()
    argv = ["-c", "-e", str(exit_fd), "-r", str(writer), "-a", str(api), str(netns_pid), "tap0"]
    env = {**os.environ, "NETD_RUNTIME_DIR": str(manager.dir)}
    shim = subprocess.Popen(
        [PLUGIN / "slirp4netns", *argv], pass_fds=[exit_fd, writer], env=env, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for fd in (exit_fd, writer):
        os.close(fd)
    assert os.read(ready, 1) == b"1"
    os.close(ready)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    forward = {"proto": "tcp", "host_addr": "127.0.0.1", "host_port": port, "guest_port": 80}
    assert ask(api, "add_hostfwd", **forward) == {"return": {"id": 1}}
    for _ in range(2):
        manager.end(how)
        assert shim.poll() is None
        waiting = socket.socket(socket.AF_UNIX)  # while there is no daemon
        waiting.connect(str(api))
        waiting.sendall(b'{"execute":"list_hostfwd"}')
        manager.start()
        waiting.settimeout(10)
        assert [entry["host_port"] for entry in json.loads(waiting.recv(4096))["entries"]] == [port]
        waiting.close()
        assert ask(api, "add_hostfwd", **forward) == {
            "error": {"desc": "bad request: add_hostfwd: slirp_add_hostfwd failed"}
        }
    assert ask(api, "remove_hostfwd", id=1) == {"return": {}}
    manager.settle()  # until the store has let go of the listener too, the port is taken
    assert ask(api, "add_hostfwd", **forward) == {"return": {"id": 2}}
    os.close(other)
    _, err = shim.communicate(timeout=10)
    assert (shim.returncode, err) == (0, "exitfd event\ndo_slirp is exiting\n")
    assert not api.exists()
    manager.settle(store.LATER + 0.2)
    assert set(manager.stored) == {"state"}, "the store keeps nothing of a network that has ended"


def test_a_shim_that_ended_while_there_was_no_daemon(manager: Manager, netns_pid: int) -> None:
    manager.start()
    env = {**os.environ, "NETD_RUNTIME_DIR": str(manager.dir)}
    ready, writer = os.pipe()
    argv = ["-c", "-r", str(writer), str(netns_pid), "tap0"]
    shim = subprocess.Popen([PLUGIN / "slirp4netns", *argv], pass_fds=[writer], env=env, stdout=subprocess.DEVNULL)
    os.close(writer)
    assert os.read(ready, 1) == b"1"
    os.close(ready)
    manager.end(signal.SIGKILL)
    shim.kill()
    shim.wait()
    manager.start()
    end = time.monotonic() + 10
    while set(manager.stored) != {"state"}:
        assert time.monotonic() < end, manager.stored
        manager.settle()


def test_a_daemon_that_is_gone_for_good(manager: Manager, netns_pid: int) -> None:
    """Stopped, and the store given up: one line, and a status that is not 0."""
    manager.start()
    env = {**os.environ, "NETD_RUNTIME_DIR": str(manager.dir)}
    ready, writer = os.pipe()
    argv = ["-c", "-r", str(writer), str(netns_pid), "tap0"]
    shim = subprocess.Popen(
        [PLUGIN / "slirp4netns", *argv], pass_fds=[writer], env=env, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(writer)
    assert os.read(ready, 1) == b"1"
    os.close(ready)
    manager.end(signal.SIGTERM)
    assert shim.poll() is None
    manager.close()
    _, err = shim.communicate(timeout=10)
    assert (shim.returncode, err) == (1, "slirp4netns: netd: lost the daemon: it went away\n")
