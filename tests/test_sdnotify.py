"""Notifications and passed descriptors, against a real socket and a real child process."""

from __future__ import annotations

import array
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from netd import sdnotify
from netd.sdnotify import Notifier
from tests.lab import open_fds

TREE = Path(__file__).resolve().parents[1]


def receive(sock: socket.socket) -> tuple[list[str], list[int]]:
    data, ancillary, _, _ = sock.recvmsg(65536, socket.CMSG_SPACE(253 * 4))
    fds = array.array("i")
    for _, _, content in ancillary:
        fds.frombytes(content)
    return data.decode().split("\n"), list(fds)


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    name = str(tmp_path / "notify") if request.param == "path" else f"@netd-test-{os.getpid()}"
    sock.bind(name.replace("@", "\0"))
    sock.settimeout(5)
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    request.addfinalizer(sock.close)
    return sock


def test_lines_and_descriptors(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_fds()
    notifier = Notifier()
    assert notifier.present and "NOTIFY_SOCKET" not in os.environ  # not for our children
    notifier.send("READY=1", "STATUS=fine")
    assert receive(manager) == (["READY=1", "STATUS=fine"], [])
    reading, writing = os.pipe()
    notifier.store("a.tap", [reading, writing])
    lines, fds = receive(manager)
    assert lines == ["FDSTORE=1", "FDNAME=a.tap"]
    os.write(fds[1], b"the same pipe")
    assert os.read(reading, 100) == b"the same pipe"
    notifier.unstore("a.tap")
    assert receive(manager) == (["FDSTOREREMOVE=1", "FDNAME=a.tap"], [])
    for fd in (reading, writing, *fds):
        os.close(fd)
    notifier.close()
    assert not notifier.present
    notifier.send("READY=1")
    assert open_fds() == before


def test_more_descriptors_than_fit_into_one_message(manager: socket.socket) -> None:
    notifier = Notifier()
    notifier.store("many", [0] * 600)
    sizes = []
    for _ in range(3):
        lines, fds = receive(manager)
        assert lines == ["FDSTORE=1", "FDNAME=many"]
        sizes.append(len(fds))
        for fd in fds:
            os.close(fd)
    assert sizes == [253, 253, 94]
    notifier.close()


def test_without_a_service_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notifier = Notifier()
    assert not notifier.present and notifier.watchdog_seconds == 0
    notifier.send("READY=1")
    notifier.store("a", [0])
    notifier.unstore("a")
    notifier.close()


@pytest.mark.parametrize("address", ["/nowhere/notify", "@nobody-listens-here", "vsock:2:9999", "x" * 300])
def test_a_service_manager_that_is_not_there_is_none(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """A NOTIFY_SOCKET left over in the environment must not keep the daemon from starting."""
    before = open_fds()
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notifier = Notifier()
    assert not notifier.present
    assert open_fds() == before


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [("30000000", "", 30.0), ("500000", "own", 0.5), ("30000000", "1", 0.0), ("", "own", 0.0), ("soon", "own", 0.0)],
)
def test_watchdog(monkeypatch: pytest.MonkeyPatch, usec: str, pid: str, seconds: float) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    if pid:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert Notifier().watchdog_seconds == seconds


ASK = """
import json, os, fcntl
from netd.sdnotify import listen_fds
fds = listen_fds()
print(json.dumps([fds, [bool(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC) for _, fd in fds],
                  [k for k in os.environ if k.startswith("LISTEN")]]))
"""
START = (
    "import os, sys; os.environ['LISTEN_PID'] = os.environ['LISTEN_PID'] or str(os.getpid()); "
    "[os.set_inheritable(fd, True) for fd in (3, 4)]; os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])"
)


def passed(count: str, names: str, pid: str = "") -> tuple[list[list[object]], list[bool], list[str]]:
    """What a process with two descriptors at 3 and 4 and this environment makes of it."""
    environment = {**os.environ, "LISTEN_FDS": count, "LISTEN_PID": pid, "PYTHONPATH": str(TREE)}
    if names != "absent":
        environment["LISTEN_FDNAMES"] = names
    done = subprocess.run(
        ["sh", "-c", 'exec 3</dev/null 4</dev/null; exec "$0" "$@"', sys.executable, "-c", START, ASK],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_passed_descriptors() -> None:
    assert passed("2", "attach:a.tap") == [[["attach", 3], ["a.tap", 4]], [True, True], []]
    assert passed("2", "attach") == [[["attach", 3], ["unknown", 4]], [True, True], []]
    assert passed("2", "absent")[0] == [["unknown", 3], ["unknown", 4]]
    assert passed("0", "")[0] == []
    for count, pid in (("2", "1"), ("", ""), ("-1", ""), ("two", "")):
        assert passed(count, "a:b", pid) == [[], [], []]


def test_nothing_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LISTEN_PID", raising=False)
    assert sdnotify.listen_fds() == []
