"""One call of slirp4netns against a daemon without packets: what is asked for, who stays, what ends it and how."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from netd.attach.server import AttachServer
from netd.dialects.slirp4netns import command
from netd.errors import NamespaceUnavailable, NetworkExists, TapUnavailable
from netd.specs import NetworkSpec
from tests.attach.harness import PLUGIN, Daemon, Shim, eventually, open_fds

ME = str(os.getpid())
CID = "0123456789ab" + "c" * 52
LOG = f"/run/user/1000/libpod/tmp/slirp4netns-{CID}.log (deleted)"


@pytest_asyncio.fixture(autouse=True)
async def nothing_is_left(server: AttachServer, daemon: Daemon) -> Any:
    before = open_fds()
    yield
    daemon.close()
    await eventually(lambda: open_fds() == before, "the descriptors of before")


@pytest.fixture
def pipe() -> Any:
    """Make pipes that are closed in the end."""
    made: list[int] = []

    def make() -> tuple[int, int]:
        fds = os.pipe()
        made.extend(fds)
        return fds

    yield make
    for fd in made:
        try:
            os.close(fd)
        except OSError:
            pass  # the test has


@dataclass
class Program:
    """The real shim, running."""

    process: subprocess.Popen[str]

    async def end(self) -> tuple[int, str, str]:
        out, err = await asyncio.to_thread(self.process.communicate, None, 20)
        return self.process.returncode, out, err


@pytest.fixture
def start(runtime_dir: Path) -> Any:
    running: list[Program] = []

    async def start(*argv: str, fds: tuple[int, ...] = (), **more: Any) -> Program:
        env = {**os.environ, "NETD_RUNTIME_DIR": str(runtime_dir), **more.pop("env", {})}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": env, **more}
        process = await asyncio.to_thread(
            lambda: subprocess.Popen([PLUGIN / "slirp4netns", *argv], pass_fds=fds, **options)
        )
        running.append(Program(process))
        return running[-1]

    yield start
    for program in running:
        program.process.kill()
        program.process.wait()
        for stream in (program.process.stdout, program.process.stderr):
            if stream is not None:
                stream.close()


async def ready(reader: int) -> bytes:
    """What is written to a ready pipe until its last writer is gone."""
    said = b""
    while part := await asyncio.to_thread(os.read, reader, 100):
        said += part
    return said


# --- what the daemon is asked for ----------------------------------------------------------------------------------

SIX = {"cidr6": "fd00::/64", "gateway_ip6": "fd00::2", "dns_ip6": "fd00::3", "router_ip6": "fe80::2"}
SPECS: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    ("-c", {"configure": True}),
    ("-c -m 65520", {"configure": True, "mtu": 65520}),
    ("--disable-host-loopback", {"allow_host_loopback": False}),
    ("--disable-dns", {"dns_ip": ""}),
    ("--cidr=192.168.128.0/18",
     {"cidr": "192.168.128.0/18", "guest_ip": "192.168.128.100", "gateway_ip": "192.168.128.2",
      "dns_ip": "192.168.128.3"}),
    ("--cidr=10.0.2.128/25",
     {"cidr": "10.0.2.128/25", "guest_ip": "10.0.2.228", "gateway_ip": "10.0.2.130", "dns_ip": "10.0.2.131"}),
    ("-c --macaddress=2:3", {"configure": True, "mac": "02:03:00:00:00:00"}),
    ("--outbound-addr=192.0.2.7", {"outbound_ip": "192.0.2.7"}),
    ("--outbound-addr=lo", {"outbound_ip": "127.0.0.1"}),
    ("--outbound-addr6=::1 --enable-sandbox", {}),
    ("--enable-ipv6 --enable-seccomp --enable-sandbox --outbound-addr6=::1", {**SIX, "outbound_ip6": "::1"}),
    ("-6 --outbound-addr6=lo", {**SIX, "outbound_ip6": "::1"}),
    ("-6 --disable-dns", {**SIX, "dns_ip": "", "dns_ip6": ""}),
    ("-6 --outbound-addr=lo", {**SIX, "outbound_ip": "127.0.0.1"}),
    # Podman 4.3, Podman 5, Buildah of 4.3, RootlessKit
    ("--disable-host-loopback --mtu=65520 --enable-seccomp --enable-ipv6 -c -e 3 -r 4",
     {**SIX, "allow_host_loopback": False, "mtu": 65520, "configure": True}),
    ("--disable-host-loopback --mtu=65520 --enable-seccomp --enable-ipv6 -c -r 3 -e 4",
     {**SIX, "allow_host_loopback": False, "mtu": 65520, "configure": True}),
    ("--mtu 65520 -r 3 -c", {"mtu": 65520, "configure": True}),
    ("--mtu 1400 -r 3 --disable-host-loopback --cidr 10.1.0.0/24 --enable-sandbox",
     {"mtu": 1400, "allow_host_loopback": False, "cidr": "10.1.0.0/24", "guest_ip": "10.1.0.100",
      "gateway_ip": "10.1.0.2", "dns_ip": "10.1.0.3"}),
]  # fmt: skip
DEFAULT = {"origin": "slirp4netns", "configure": False, "mtu": 1500, "allow_host_loopback": True}


@pytest.mark.parametrize(("words", "expected"), SPECS, ids=[words or "nothing" for words, _ in SPECS])
async def test_asks_for_what_is_meant(
    daemon: Daemon, runtime_dir: Path, pipe: Any, words: str, expected: dict[str, Any]
) -> None:
    (kept, _), (_, other) = pipe(), pipe()
    shim = Shim(runtime_dir, *words.split(), ME, "tap7", fds={3: kept, 4: other})
    step = await shim.run()
    assert step is not None and step["op"] == "stay", step
    network = await daemon.one()
    spec = {name: getattr(network.spec, name) for name in NetworkSpec.__slots__}
    wanted = {name: getattr(NetworkSpec(), name) for name in NetworkSpec.__slots__}
    wanted |= {**DEFAULT, "ifname": "tap7", "name": network.id, **expected}
    assert spec == wanted
    assert network.netns_inode == os.stat("/proc/self/ns/net").st_ino
    assert step["stderr"] == ""
    base = wanted["gateway_ip"].rsplit(".", 1)[0]
    text = step["stdout"]
    assert f"* MTU:             {wanted['mtu']}\n" in text and f"* Gateway:         {base}." in text
    assert ("WARNING: 127.0.0.1:*" in text) == wanted["allow_host_loopback"]
    assert text.count("WARNING: Support for IPv6") == ("ipv6" in words or "-6" in words.split())
    shim.close()
    await daemon.none()


async def test_the_target_may_be_a_path(daemon: Daemon, runtime_dir: Path) -> None:
    shim = Shim(runtime_dir, "--netns-type=path", "/proc/self/ns/net", "tap0")
    step = await shim.run()
    assert step is not None and step["op"] == "stay"
    assert shim.steps[0] == {"op": "open", "path": "/proc/self/ns/net", "real": False}
    shim.close()
    await daemon.none()


async def test_userns_path_only_has_to_exist(daemon: Daemon, runtime_dir: Path) -> None:
    for path, ok in (("/proc/self/ns/user", True), ("/etc/passwd", True), ("/nonexistent/user", False)):
        shim = Shim(runtime_dir, f"--userns-path={path}", ME, "tap0")
        step = await shim.run()
        assert step is not None and (step["op"] == "stay") == ok
        if not ok:
            assert step["stderr"] == f"userns path doesn't exist: {path}\n" and "Usage: " in step["stdout"]
        shim.close()
        await daemon.none()


# --- who stays, what ends it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["-e {0} -r {1}", "-r {1} -e {0}"])
async def test_podmans_call_leaves_no_process(
    daemon: Daemon, start: Any, pipe: Any, tmp_path: Path, order: str
) -> None:
    """With its log file as stdout and an exit fd, in the order of Podman 4.3 and of 5."""
    (exit_fd, conmon), (reader, ready_fd) = pipe(), pipe()
    options = order.format(exit_fd, ready_fd).split()
    log = tmp_path / f"slirp4netns-{CID}.log"
    with log.open("w+b") as out:
        log.unlink()
        argv = ["--mtu=65520", "-c", *options, "--netns-type=path", "/proc/self/ns/net", "tap0"]
        shim = await start(*argv, fds=(exit_fd, ready_fd), stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        os.close(ready_fd)
        os.close(exit_fd)
        assert await ready(reader) == b"1"
        assert await asyncio.to_thread(shim.process.wait, 10) == 0
        out.seek(0)
        assert b"Starting slirp" in out.read()
    network = await daemon.one()
    assert (network.lifeline.kind, network.held, network.name) == ("exit_fd", {}, CID[:12])
    os.write(conmon, b"data does not end it")
    await asyncio.sleep(0)
    os.close(conmon)
    await daemon.none()


async def test_a_bridge_network_keeps_its_process(daemon: Daemon, start: Any, pipe: Any, tmp_path: Path) -> None:
    reader, ready_fd = pipe()
    with (tmp_path / "slirp4netns-rootless-netns.log").open("wb") as out:
        argv = ["-c", "-r", str(ready_fd), "--netns-type=path", "/proc/self/ns/net", "tap0"]
        shim = await start(*argv, fds=(ready_fd,), stdout=out, stderr=out)
        os.close(ready_fd)
        assert await ready(reader) == b"1"
    network = await daemon.one()
    assert (network.lifeline.kind, network.name) == ("shim", "rootless-netns")
    assert shim.process.poll() is None
    shim.process.send_signal(signal.SIGTERM)
    await daemon.none()
    assert await asyncio.to_thread(shim.process.wait) == -signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_by_hand_any_signal_ends_the_network(daemon: Daemon, start: Any, number: signal.Signals) -> None:
    shim = await start("-c", ME, "tap0")
    await daemon.one()
    assert shim.process.poll() is None
    shim.process.send_signal(number)
    await daemon.none()
    assert (await shim.end())[0] == -number


async def test_by_hand_the_exit_fd_ends_both(daemon: Daemon, start: Any, pipe: Any, tmp_path: Path) -> None:
    """No Podman: the process stays in spite of the exit fd, and exits 0 by it, taking its api socket away."""
    exit_fd, other = pipe()
    api = tmp_path / "api"
    shim = await start("-e", str(exit_fd), "-a", str(api), ME, "tap0", fds=(exit_fd,))
    os.close(exit_fd)
    network = await daemon.one()
    assert network.lifeline.kind == "shim" and set(network.held) == {"exit_fd", "slirp_api"}
    assert shim.process.poll() is None and api.exists()
    os.close(other)
    status, out, err = await shim.end()
    assert (status, err) == (0, "exitfd event\ndo_slirp is exiting\n") and "Starting slirp" in out
    assert not daemon.networks and not api.exists()


async def test_a_sandboxed_one_leaves_its_api_socket_as_the_real_one_must(
    daemon: Daemon, start: Any, pipe: Any, tmp_path: Path
) -> None:
    exit_fd, other = pipe()
    api = tmp_path / "api"
    shim = await start("--enable-sandbox", "-e", str(exit_fd), "-a", str(api), ME, "tap0", fds=(exit_fd,))
    os.close(exit_fd)
    await daemon.one()
    os.close(other)
    assert (await shim.end())[0] == 0
    assert api.exists()


async def test_a_signal_leaves_the_api_socket_behind(daemon: Daemon, start: Any, tmp_path: Path) -> None:
    api = tmp_path / "api"
    for _ in range(2):  # and the second one replaces the file of the first
        shim = await start("-a", str(api), ME, "tap0")
        await daemon.one()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(api))
        shim.process.send_signal(signal.SIGTERM)
        await daemon.none()
        assert (await shim.end())[0] == -signal.SIGTERM
        assert api.exists()


async def test_detached_by_command_is_one_line_and_exit_1(daemon: Daemon, start: Any) -> None:
    shim = await start(ME, "tap0")
    network = await daemon.one()
    await daemon.detach(network)  # type: ignore[arg-type]
    status, _, err = await shim.end()
    assert (status, err) == (1, f"netd: the network {network.name} was detached\n")


async def test_the_end_of_the_target_ends_nothing(daemon: Daemon, start: Any) -> None:
    sleeper = await asyncio.to_thread(subprocess.Popen, ["sleep", "600"])
    shim = await start(str(sleeper.pid), "tap0")
    network = await daemon.one()
    sleeper.kill()
    await asyncio.to_thread(sleeper.wait)
    await asyncio.sleep(0.05)
    assert network.id in daemon.networks and shim.process.poll() is None


# --- descriptors that are none, or odd -----------------------------------------------------------------------------


async def test_an_exit_fd_that_is_not_open_ends_at_once_but_ready_is_said(
    daemon: Daemon, start: Any, pipe: Any
) -> None:
    reader, ready_fd = pipe()
    shim = await start("-e", "99", "-r", str(ready_fd), ME, "tap0", fds=(ready_fd,))
    os.close(ready_fd)
    assert await ready(reader) == b"1"
    status, out, err = await shim.end()
    assert (status, err) == (0, "exitfd event\ndo_slirp is exiting\n") and "Starting slirp" in out
    assert not daemon.networks


@pytest.mark.parametrize("path", ["/dev/null", "/etc/passwd", "/"])
async def test_an_exit_fd_that_cannot_hang_up_is_none(daemon: Daemon, runtime_dir: Path, path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    shim = Shim(runtime_dir, "-e", "3", ME, "tap0", fds={3: fd}, fd1=LOG)
    step = await shim.run()
    assert step is not None and step["op"] == "stay"
    assert (await daemon.one()).held == {}
    shim.close()
    os.close(fd)
    await daemon.none()


async def test_an_exit_fd_that_hung_up_before(daemon: Daemon, start: Any, pipe: Any) -> None:
    exit_fd, other = pipe()
    os.close(other)
    shim = await start("-e", str(exit_fd), ME, "tap0", fds=(exit_fd,))
    assert (await shim.end())[0] == 0
    await daemon.none()


async def test_a_ready_fd_that_is_not_open_is_no_error(daemon: Daemon, start: Any) -> None:
    shim = await start("-r", "99", ME, "tap0")
    await daemon.one()
    assert shim.process.poll() is None


async def test_a_full_ready_pipe_does_not_hold_the_daemon(daemon: Daemon, runtime_dir: Path, pipe: Any) -> None:
    _, writer = pipe()
    os.set_blocking(writer, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writer, b"x" * 65536)
    os.set_blocking(writer, True)
    shim = Shim(runtime_dir, "-r", "4", ME, "tap0", fds={4: writer})
    step = await shim.run()
    assert step is not None and step["op"] == "stay"
    await daemon.one()
    shim.close()
    await daemon.none()


async def test_one_descriptor_for_both(daemon: Daemon, runtime_dir: Path) -> None:
    ours, theirs = socket.socketpair()
    shim = Shim(runtime_dir, "-e", "3", "-r", "3", ME, "tap0", fds={3: theirs.fileno()})
    step = await shim.run()
    assert step is not None and step["op"] == "stay"
    theirs.close()
    assert ours.recv(10) == b"1"
    ours.close()
    await daemon.none()
    shim.close()


# --- refusals ------------------------------------------------------------------------------------------------------


async def refused(runtime_dir: Path, *argv: str, **more: Any) -> dict[str, Any]:
    shim = Shim(runtime_dir, *argv, **more)
    step = await shim.run()
    shim.close()
    assert step is not None and (step["op"], step["status"]) == ("exit", 1)
    return step


async def test_targets_that_are_none(daemon: Daemon, runtime_dir: Path) -> None:
    missing = "existing path expected when --netns-type=path: No such file or directory\n"
    for argv, stderr in (
        (["99999999", "t"], "/proc/99999999/ns/net: No such file or directory\nchild failed(1)\n"),
        (["--netns-type=path", "/nonexistent", "t"], missing),
        (["--netns-type=path", "", "t"], missing),
        (["--netns-type=path", "/etc/passwd", "t"], "setns(CLONE_NEWNET): Invalid argument\nchild failed(1)\n"),
        (["--netns-type=path", "/proc/self/ns/user", "t"], "setns(CLONE_NEWNET): Invalid argument\nchild failed(1)\n"),
        (["--netns-type=path", "/", "t"], "setns(CLONE_NEWNET): Invalid argument\nchild failed(1)\n"),
    ):
        step = await refused(runtime_dir, *argv)
        assert step["stderr"] == stderr
        assert step["stdout"].startswith("Usage: ") == (stderr == missing)
    assert not daemon.networks


async def test_api_sockets_that_cannot_be(daemon: Daemon, runtime_dir: Path, tmp_path: Path) -> None:
    ending = "do_slirp is exiting\ndo_slirp failed\nparent failed\n"
    step = await refused(runtime_dir, "-a", "x" * 108, ME, "t")
    assert step["stderr"] == f"the specified API socket path is too long (>= 108)\n{ending}"
    step = await refused(runtime_dir, "-a", "/nonexistent/x", ME, "t")
    assert step["stderr"] == f"api_bindlisten: bind: No such file or directory\n{ending}"
    assert not daemon.networks


async def test_a_network_that_cannot_be_made(daemon: Daemon, runtime_dir: Path, pipe: Any) -> None:
    daemon.fails = TapUnavailable("lo is there already and is not a TAP")
    reader, writer = pipe()
    step = await refused(runtime_dir, "-r", "4", "-6", ME, "lo", fds={4: writer})
    os.close(writer)
    assert step["stderr"] == "netd: lo is there already and is not a TAP\nchild failed(1)\n"
    assert step["stdout"] == "WARNING: Support for IPv6 is experimental\n"
    assert await ready(reader) == b""


async def test_why_there_is_no_network_is_said_in_both_tongues(daemon: Daemon, runtime_dir: Path) -> None:
    for error, stderr in (
        (NamespaceUnavailable("not yours", "make it yourself"),
         "netd: not yours (make it yourself)\nsetns(CLONE_NEWNET): Operation not permitted\nchild failed(1)\n"),
        (NetworkExists("there is one at tap0"),
         "netd: there is one at tap0\nioctl(TUNSETIFF): Device or resource busy\nchild failed(1)\n"),
    ):  # fmt: skip
        daemon.fails = error
        assert (await refused(runtime_dir, ME, "tap0"))["stderr"] == stderr


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "tap%d", "a:1"])
async def test_interface_names_that_are_none(daemon: Daemon, runtime_dir: Path, name: str) -> None:
    step = await refused(runtime_dir, ME, name)
    assert step["stderr"] == "ioctl(TUNSETIFF): Invalid argument\nchild failed(1)\n"


async def test_a_daemon_that_takes_too_long(
    daemon: Daemon, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch, pipe: Any
) -> None:
    assert command.ATTACH_DEADLINE < 10  # the shim's own patience
    monkeypatch.setattr(command, "ATTACH_DEADLINE", 0.05)
    daemon.gate = asyncio.Event()
    step = await refused(runtime_dir, ME, "tap0")
    assert step["stderr"] == "netd: the network was not ready in 0.05 s\nchild failed(1)\n"


@pytest.mark.parametrize(
    "option", ["--outbound-addr=nope0", "--outbound-addr=" + "x" * 300, "--outbound-addr=300.1.1.1"]
)
async def test_outbound_addresses_that_are_none(daemon: Daemon, runtime_dir: Path, option: str) -> None:
    step = await refused(runtime_dir, option, ME, "tap0")
    assert step["stderr"] == "outbound-addr has to be valid ipv4 address or interface name."


def test_interfaces_are_looked_up() -> None:
    assert command.interface_ipv4("") == "" and command.interface_ipv4("192.0.2.1") == "192.0.2.1"
    assert command.interface_ipv4("lo") == "127.0.0.1" and command.interface_ipv4("nope0") is None
    assert command.interface_ipv6("") == "" and command.interface_ipv6("2001:DB8::1") == "2001:db8::1"
    assert command.interface_ipv6("nope0") is None and command.interface_ipv6("fe80::1%lo") is None
    with open("/proc/net/if_inet6") as table:
        has_loopback = any(line.split()[-1] == "lo" for line in table)
    assert command.interface_ipv6("lo") == ("::1" if has_loopback else None)


# --- the daemon ends -----------------------------------------------------------------------------------------------

DAEMON = """
import asyncio, sys, pathlib
sys.path.insert(0, sys.argv[1])
from netd.attach.server import AttachServer
from tests.attach.harness import Daemon
async def main():
    daemon = Daemon(pathlib.Path(sys.argv[2]))
    await AttachServer(daemon).start(None)
    print("ready", flush=True)
    await daemon.one(60)
    print("attached", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_daemon_that_dies_takes_the_shim_along_with_one_line(
    start: Any, tmp_path: Path, number: signal.Signals
) -> None:
    tree = str(PLUGIN.parent)

    def run() -> subprocess.Popen[str]:
        other = subprocess.Popen([sys.executable, "-c", DAEMON, tree, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
        return other

    other = await asyncio.to_thread(run)
    shim = await start(ME, "tap0", env={"NETD_RUNTIME_DIR": str(tmp_path)})
    assert other.stdout is not None
    assert await asyncio.to_thread(other.stdout.readline) == "attached\n"
    other.send_signal(number)
    status, _, err = await shim.end()
    assert (status, err) == (1, "slirp4netns: netd: lost the daemon: it went away\n")
    await asyncio.to_thread(other.wait)
    other.stdout.close()
