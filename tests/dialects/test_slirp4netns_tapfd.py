"""--netns-type=tapfd: the caller opens and configures the TAP, the shim sends it, the daemon serves and keeps it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from netd.attach.server import AttachServer
from tests.attach.harness import PLUGIN, Daemon, Shim
from tests.dialects.tap_maker import IFF_NO_PI, IFF_TAP, IFF_TUN, IFF_VNET_HDR, Caller
from tests.dialects.test_slirp4netns_restart import Manager, ask, manager

__all__ = ["manager"]  # a fixture

CONFIGURED = (
    "ip link set lo up",
    "ip link set tap0 up",
    "ip addr add 10.0.2.100/24 dev tap0",
    "ip route add default via 10.0.2.2",
)
PING = ("ping", "-c1", "-W5", "10.0.2.2")


# --- what the daemon is asked for ----------------------------------------------------------------------------------


@pytest.mark.parametrize("vnet_hdr", [0, IFF_VNET_HDR])
async def test_the_daemon_gets_the_tap(server: AttachServer, daemon: Daemon, runtime_dir: Path, vnet_hdr: int) -> None:
    with Caller(IFF_TAP | IFF_NO_PI | vnet_hdr, name="eth3") as caller:
        shim = Shim(runtime_dir, "--netns-type=tapfd", "--enable-sandbox", "-r", "4", "9", fds={9: caller.fd})
        step = await shim.run()
        assert step is not None and step["op"] == "stay" and step["stdout"].startswith("Starting slirp\n")
        assert [step["op"] for step in shim.steps] == ["fd", "fd", "stay"], "no namespace is opened"
        network = await daemon.one()
        assert network.tap is not None and network.tap.vnet_hdr == bool(vnet_hdr)
        assert (network.spec.ifname, network.spec.configure) == ("eth3", False)
        assert network.netns_inode == os.stat(f"/proc/{caller.pid}/ns/net").st_ino
        shim.close()
        await daemon.none()


@pytest.mark.parametrize(
    ("flags", "number", "complaint"),
    [
        (IFF_TAP | IFF_NO_PI, "5", "Bad file descriptor"),
        (0, "9", "the descriptor is one of /dev/net/tun without a device (TUNSETIFF)"),
        (IFF_TUN | IFF_NO_PI, "9", "the descriptor is a TUN's; netd needs Ethernet frames (IFF_TAP)"),
        (IFF_TAP, "9", "the TAP puts packet information before each frame; open it with IFF_NO_PI"),
    ],
)
async def test_a_descriptor_that_is_of_no_use(
    server: AttachServer, daemon: Daemon, runtime_dir: Path, flags: int, number: str, complaint: str
) -> None:
    with Caller(flags) as caller:
        shim = Shim(runtime_dir, "--netns-type=tapfd", number, fds={9: caller.fd})
        step = await shim.run()
        assert step is not None and (step["op"], step["status"], step["stdout"]) == ("exit", 1, "")
        assert step["stderr"] == f"netd: --netns-type=tapfd {number}: {complaint}\nparent failed\n"
        shim.close()
    assert not daemon.networks


# --- with a real daemon, shim and kernel ---------------------------------------------------------------------------


class Programs:
    """Shims of one daemon, killed in the end."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.running: list[subprocess.Popen[str]] = []

    def start(self, *argv: str, fds: tuple[int, ...]) -> subprocess.Popen[str]:
        env = {**os.environ, "NETD_RUNTIME_DIR": str(self.manager.dir)}
        self.running.append(
            subprocess.Popen(
                [PLUGIN / "slirp4netns", "--netns-type=tapfd", *argv], pass_fds=fds, env=env, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
        return self.running[-1]

    def start_ready(self, *argv: str, fds: tuple[int, ...]) -> subprocess.Popen[str]:
        reading, writing = os.pipe()
        shim = self.start("-r", str(writing), *argv, fds=(*fds, writing))
        os.close(writing)
        said = os.read(reading, 1)
        os.close(reading)
        assert said == b"1", shim.communicate(timeout=10)
        return shim


@pytest.fixture
def programs(manager: Manager) -> Iterator[Programs]:
    programs = Programs(manager)
    manager.start()
    yield programs
    for shim in programs.running:
        shim.kill()
        shim.communicate()


@pytest.mark.parametrize("vnet_hdr", [0, IFF_VNET_HDR])
def test_traffic_restarts_and_the_end(manager: Manager, programs: Programs, tmp_path: Path, vnet_hdr: int) -> None:
    """The caller keeps its descriptor, and with it the device: only the traffic ends with the shim."""
    with Caller(IFF_TAP | IFF_NO_PI | vnet_hdr, *CONFIGURED) as caller:
        api = tmp_path / "api"
        shim = programs.start_ready("-a", str(api), str(caller.fd), fds=(caller.fd,))
        assert "1 received" in caller.run(*PING)
        assert ask(api, "list_hostfwd") == {"entries": []}
        for how in (signal.SIGTERM, signal.SIGKILL):
            manager.end(how)
            assert shim.poll() is None
            manager.start()
            assert "1 received" in caller.run(*PING), f"not after {how.name}"
        shim.kill()
        shim.communicate()
        manager.settle()
        assert set(manager.stored) == {"state"}
        assert "tap0" in caller.run("ip", "-br", "link") and "0 received" in caller.run("ping", "-c1", "-W1", PING[-1])
        programs.start_ready(str(caller.fd), fds=(caller.fd,))
        assert "1 received" in caller.run(*PING)


def test_one_tap_has_one_network(manager: Manager, programs: Programs) -> None:
    """Handed over twice, or named by its namespace as well; the same name elsewhere is another device."""
    with Caller(IFF_TAP | IFF_NO_PI, *CONFIGURED) as caller, Caller(IFF_TAP | IFF_NO_PI, *CONFIGURED) as other:
        programs.start_ready(str(caller.fd), fds=(caller.fd,))
        programs.start_ready(str(other.fd), fds=(other.fd,))
        second = programs.start(str(caller.fd), fds=(caller.fd,))
        assert "has a network at tap0 already" in second.communicate(timeout=10)[1] and second.returncode == 1
        by_pid = programs.start("--netns-type=pid", str(caller.pid), "tap0", fds=())
        assert "ioctl(TUNSETIFF): Device or resource busy" in by_pid.communicate(timeout=10)[1]
        for each in (caller, other):
            assert "1 received" in each.run(*PING)


def test_a_tap_that_is_deleted_ends_it(manager: Manager, programs: Programs) -> None:
    with Caller(IFF_TAP | IFF_NO_PI, *CONFIGURED) as caller:
        shim = programs.start_ready(str(caller.fd), fds=(caller.fd,))
        caller.run("ip", "link", "delete", "tap0")
        _, err = shim.communicate(timeout=10)
        assert shim.returncode == 1 and err.endswith("was detached\n")
