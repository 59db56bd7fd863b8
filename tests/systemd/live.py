"""Run by test_live.py as a normal user in a session of tests/machine/user-systemd: the daemon itself as a service.

The tests build on each other: one namespace, attached by the shim, lives through a restart and a kill -9.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TREE = Path(__file__).resolve().parents[2]
UNITS = Path.home() / ".config/systemd/user"
RUNTIME = Path(os.environ["XDG_RUNTIME_DIR"]) / "netd"
PORT = 18080
BACK_WITHIN = 1.0  # seconds after a restart until everything works again


def systemctl(*words: str) -> str:
    done = subprocess.run(["systemctl", "--user", *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"systemctl {words}: {done.stderr}"
    return done.stdout.strip()


def show(what: str) -> str:
    return systemctl("show", "-P", what, "netd.service")


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, subprocess.getoutput("journalctl --user -u netd --no-pager -o cat")
        time.sleep(0.02)


class Connection(http.client.HTTPConnection):
    """HTTP over api.sock."""

    def __init__(self) -> None:
        super().__init__("netd", timeout=10)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(str(RUNTIME / "api.sock"))


def call(method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    connection = Connection()
    try:
        text = None if body is None else json.dumps(body)
        connection.request(method, path, text, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        return answer.status, json.loads(content) if content else None
    finally:
        connection.close()


def fetch(port: int = PORT) -> bytes:
    """What the guest's web server says through the published port; b"" where the connection is refused or reset."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            sock.sendall(b"GET /page HTTP/1.0\r\n\r\n")
            answer = b""
            while chunk := sock.recv(4096):
                answer += chunk
            return answer.partition(b"\r\n\r\n")[2]
    except OSError:
        return b""


class Container:
    """A namespace with a web server, and the shim that attached it."""

    def __init__(self, directory: Path) -> None:
        (directory / "page").write_bytes(b"hello from inside\n")
        command = ["unshare", "--user", "--map-root-user", "--net", "--mount", "sh", "-c", "echo; exec sleep 600"]
        self.target = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.target.stdout is not None
        self.target.stdout.readline()
        ready, say = os.pipe()
        shim = TREE / "plugin/slirp4netns"
        words = ["-c", "--mtu=65520", "--disable-host-loopback", "-r", str(say), str(self.target.pid), "tap0"]
        self.shim = subprocess.Popen([shim, *words], pass_fds=(say,), stdout=subprocess.DEVNULL)
        os.close(say)
        assert os.read(ready, 1) == b"1"
        os.close(ready)
        self.server = subprocess.Popen([*self.inside, "busybox", "httpd", "-f", "-p", "80", "-h", str(directory)])

    @property
    def inside(self) -> list[str]:
        return ["nsenter", "-t", str(self.target.pid), "-U", "--preserve-credentials", "-n"]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self.inside, *command], check=False, capture_output=True, text=True, timeout=20)

    def ping(self) -> bool:
        return self.run("ping", "-c1", "-W1", "10.0.2.2").returncode == 0

    def end(self) -> None:
        for process in (self.server, self.shim, self.target):
            process.kill()
            process.wait()


@pytest.fixture(scope="module", autouse=True)
def units() -> Iterator[None]:
    UNITS.mkdir(parents=True, exist_ok=True)
    service = (TREE / "systemd/netd.service").read_text()
    service = service.replace("@NETD@", f"{sys.executable} -P -m netd")
    service = service.replace("[Service]\n", f"[Service]\nEnvironment=PYTHONPATH={TREE}\n", 1)
    (UNITS / "netd.service").write_text(service)
    (UNITS / "netd.socket").write_text((TREE / "systemd/netd.socket").read_text())
    systemctl("daemon-reload")
    yield
    systemctl("stop", "netd.socket", "netd.service")


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    made = Container(tmp_path_factory.mktemp("www"))
    yield made
    made.end()


def test_start_by_hand_says_ready() -> None:
    systemctl("start", "netd.service")
    assert (show("ActiveState"), show("StatusText")) == ("active", "0 networks")
    assert call("GET", "/v1/networks") == (200, [])
    systemctl("stop", "netd.service", "netd.socket")


def test_the_socket_alone_is_enough(container: Container) -> None:
    """Runs after the container has been attached: by the shim, through socket activation or systemctl start."""
    assert show("ActiveState") == "active"
    assert container.ping()
    status, networks = call("GET", "/v1/networks")
    assert status == 200 and [network["guest_ip"] for network in networks] == ["10.0.2.100"]


def test_a_forward_comes_and_goes(container: Container) -> None:
    (network,) = call("GET", "/v1/networks")[1]
    ports = f"/v1/networks/{network['id']}/ports"
    wanted = {"protocol": "tcp", "host_port": PORT, "container_port": 80}
    status, made = call("POST", ports, wanted)
    assert status == 201
    until(lambda: fetch() == b"hello from inside\n")
    assert call("DELETE", f"{ports}/{made['id']}")[0] == 204
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", PORT), timeout=5)
    assert call("POST", ports, wanted)[0] == 201


def survives(container: Container, restart: Callable[[], object]) -> None:
    """``restart`` the daemon: a new process, the same TAP, forward and network, working within a second."""
    pid, (network,) = show("MainPID"), call("GET", "/v1/networks")[1]
    index = container.run("cat", "/sys/class/net/tap0/ifindex").stdout
    mac = container.run("ip", "-br", "link", "show", "tap0").stdout
    restart()
    until(lambda: show("MainPID") not in (pid, "0"))
    began = time.monotonic()
    assert fetch() == b"hello from inside\n"
    assert container.ping()
    assert time.monotonic() - began < BACK_WITHIN
    assert container.run("cat", "/sys/class/net/tap0/ifindex").stdout == index
    assert container.run("ip", "-br", "link", "show", "tap0").stdout == mac
    (again,) = call("GET", "/v1/networks")[1]
    assert (again["id"], again["ports"]) == (network["id"], network["ports"])
    assert container.shim.poll() is None


def test_restart(container: Container) -> None:
    survives(container, lambda: systemctl("restart", "netd.service"))


def test_kill_9(container: Container) -> None:
    survives(container, lambda: os.kill(int(show("MainPID")), signal.SIGKILL))


def test_the_end_of_the_shim_after_restarts_is_still_seen(container: Container) -> None:
    container.shim.terminate()
    until(lambda: call("GET", "/v1/networks") == (200, []))
    until(lambda: "tap0" not in container.run("ip", "-br", "link").stdout)
    until(lambda: show("NFileDescriptorStore") == "1")  # the record alone


def test_stop_ends_everything(tmp_path: Path) -> None:
    container = Container(tmp_path)
    try:
        assert container.ping()
        systemctl("stop", "netd.socket", "netd.service")
        version = int(subprocess.check_output(["systemctl", "--version"], text=True).split()[1])
        if version < 254:  # FileDescriptorStorePreserve=: from then on a stop keeps the networks
            assert container.shim.wait(timeout=10) != 0
            until(lambda: "tap0" not in container.run("ip", "-br", "link").stdout)
    finally:
        container.end()
