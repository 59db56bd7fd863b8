"""What a network is called, and who is taken for Podman: by its variables, its log file, its api socket."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from netd.attach.message import Hello
from netd.dialects.slirp4netns import command
from tests.attach.harness import PLUGIN, Daemon, Network, Shim

ME = str(os.getpid())
CID = "0123456789ab" + "c" * 52
LOG = f"/run/user/1000/libpod/tmp/slirp4netns-{CID}.log (deleted)"

pytestmark = pytest.mark.usefixtures("server")


def hello(fd1: str = "", **env: str) -> Hello:
    return Hello(version=1, argv0="slirp4netns", argv=[], cwd="/", pid=1, env=env, fd1=fd1)


@pytest.mark.parametrize(
    ("fd1", "api", "name"),
    [
        (LOG, "", CID[:12]),
        (LOG.removesuffix(" (deleted)"), "", CID[:12]),
        ("/tmp/podman-run-0/libpod/tmp/slirp4netns-rootless-netns.log (deleted)", "", "rootless-netns"),
        ("", f"/run/user/1000/libpod/tmp/{CID}.net", CID[:12]),
        ("/dev/null", "", ""),
        ("pipe:[4711]", "/tmp/slirp4netns.sock", ""),
        ("/tmp/slirp4netns-../../x.log", "", ""),
        ("/tmp/slirp4netns-ABC.log", f"/tmp/x{CID}.net", ""),
    ],
)
def test_the_name_is_the_containers_id(fd1: str, api: str, name: str) -> None:
    assert command.network_name(hello(fd1), api) == name


def test_podman_is_known_by_its_variable_or_its_log() -> None:
    assert command.called_by_podman(hello(_CONTAINERS_USERNS_CONFIGURED="done"))
    assert command.called_by_podman(hello(LOG))
    assert not command.called_by_podman(hello("/dev/null", _CONTAINERS_ROOTLESS_UID="1000"))


async def test_help_is_without_sandbox_only_for_podman(runtime_dir: Path) -> None:
    for env, there in (({}, True), ({"_CONTAINERS_USERNS_CONFIGURED": "done"}, False)):
        done = await asyncio.to_thread(
            subprocess.run, [PLUGIN / "slirp4netns", "--help"], capture_output=True, text=True,
            env={**os.environ, "NETD_RUNTIME_DIR": str(runtime_dir), **env},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "") and ("--enable-sandbox" in done.stdout) == there


async def attached(daemon: Daemon, runtime_dir: Path, **more: Any) -> tuple[Shim, Network]:
    before = set(daemon.networks)
    shim = Shim(runtime_dir, ME, "tap0", **more)
    step = await shim.run()
    assert step is not None and step["op"] == "stay", step
    [new] = set(daemon.networks) - before
    return shim, daemon.networks[new]


async def test_a_name_that_is_being_given_back_is_waited_for(daemon: Daemon, runtime_dir: Path) -> None:
    first, network = await attached(daemon, runtime_dir, fd1=LOG)
    loop = asyncio.get_running_loop()
    loop.call_later(0.05, first.close)
    second, network = await attached(daemon, runtime_dir, fd1=LOG)
    assert network.name == CID[:12] and len(daemon.networks) == 1
    second.close()
    await daemon.none()


async def test_a_name_that_stays_taken_is_done_without(daemon: Daemon, runtime_dir: Path) -> None:
    first, one = await attached(daemon, runtime_dir, fd1="/x/slirp4netns-rootless-netns.log")
    second, two = await attached(daemon, runtime_dir, fd1="/y/slirp4netns-rootless-netns.log")
    assert one.name == "rootless-netns" and two.name == two.id
    assert not [observer for observer in daemon.observers if "free_name" in repr(observer)]
    first.close()
    second.close()
    await daemon.none()
