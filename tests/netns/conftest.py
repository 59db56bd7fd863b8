"""Real namespaces, the real agent, the real kernel."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop

uvloop.new_event_loop().close()  # libuv keeps a pipe for signals from its first loop on

PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
Run = Callable[[Coroutine[Any, Any, Any]], Any]


def program(name: str) -> str:
    found = shutil.which(name, path=PATH)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


class Namespace:
    """A network namespace in a user namespace of its own, held by a process that sleeps in it."""

    def __init__(self, *unshare: str) -> None:
        command = [program("unshare"), *(unshare or ("--user", "--map-root-user", "--net"))]
        self.holder = subprocess.Popen(
            [*command, "sh", "-c", "echo up; exec sleep 600"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.holder.stdout is not None and self.holder.stderr is not None
        if self.holder.stdout.readline() != "up\n":
            said = self.holder.communicate()[1].strip()
            pytest.skip(f"no user namespaces for uid {os.getuid()}: {said}")
        self.pid = self.holder.pid
        self.fd = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)

    def run(self, *command: str) -> str:
        """Runs a program in there, as its root."""
        enter = [program("nsenter"), "--target", str(self.pid), "--user", "--net", "--preserve-credentials"]
        environment = {**os.environ, "PATH": PATH}
        done = subprocess.run([*enter, *command], check=False, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ip(self, *words: str) -> Any:
        return json.loads(self.run("ip", "-json", "-details", *words) or "[]")

    def link(self, name: str) -> dict[str, Any]:
        [found] = self.ip("link", "show", "dev", name)
        assert isinstance(found, dict)
        return found

    def names(self) -> set[str]:
        return {link["ifname"] for link in self.ip("link", "show")}

    def addresses(self, name: str) -> list[str]:
        [found] = self.ip("-4", "address", "show", "dev", name) or [{"addr_info": []}]
        return [f"{a['local']}/{a['prefixlen']}" for a in found["addr_info"]]

    def default_routes(self) -> list[tuple[str, str]]:
        return [(r["gateway"], r["dev"]) for r in self.ip("-4", "route", "show", "default")]

    def close(self) -> None:
        os.close(self.fd)
        self.holder.kill()
        self.holder.communicate()


def open_fds() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def no_fd_is_lost() -> Iterator[None]:
    before = open_fds()
    yield
    assert open_fds() == before


@pytest.fixture
def run(no_fd_is_lost: None) -> Iterator[Run]:
    """Runs a coroutine, on the loop that netd has."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner.run


@pytest.fixture
def make_namespace(no_fd_is_lost: None) -> Iterator[Callable[..., Namespace]]:
    made: list[Namespace] = []

    def make(*unshare: str) -> Namespace:
        made.append(Namespace(*unshare))
        return made[-1]

    yield make
    for namespace in made:
        namespace.close()


@pytest.fixture
def namespace(make_namespace: Callable[..., Namespace]) -> Namespace:
    return make_namespace()


@pytest.fixture
def tun() -> None:
    """For tests that make a TAP."""
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip(f"/dev/net/tun is not usable by uid {os.getuid()}")
