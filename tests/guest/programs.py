"""Programs of the distribution, run in a guest while the daemon turns in this process."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.lab import PATH, World, aside
from tests.stage import Guest

GATEWAY6, DNS6, GUEST6 = "fd00::2", "fd00::3", "fd00::100"
SIX = {"cidr6": "fd00::/64", "guest_ip6": GUEST6, "gateway_ip6": GATEWAY6, "dns_ip6": DNS6}  # fields of NetworkSpec
SECONDS = 30.0


def needs(*names: str) -> Callable[[Any], Any]:
    """Skips a test where a program is missing, and says which."""
    absent = [name for name in names if shutil.which(name, path=PATH) is None]
    return pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)}")


def start(place: Any, *command: str, **how: Any) -> subprocess.Popen[str]:
    """A program in a namespace, its messages among its output."""
    with place.entered():
        return subprocess.Popen(
            command,
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **how},
            text=True,
            env={**os.environ, "PATH": PATH, "LC_ALL": "C"},
        )


async def outcome(process: subprocess.Popen[str], stdin: str | None = None) -> tuple[int, str]:
    """(exit status, output) of a program that was started; it is ended where it takes too long."""
    try:
        out, _ = await aside(lambda: process.communicate(stdin, timeout=SECONDS))
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
        raise AssertionError(f"{process.args} does not end: {out}") from None
    print(f"$ {' '.join(map(str, process.args))}\n{out}")  # type: ignore[arg-type]
    return process.returncode, out


async def says(guest: Guest, *command: str, status: int = 0) -> str:
    """What the program prints; it must end with ``status``."""
    code, out = await outcome(start(guest, *command))
    assert code == status, out
    return out


def open_ping_sockets(world: World) -> None:
    """The host's owner lets its users ping; a new namespace lets nobody (icmp(7))."""
    world.host.sysctl("ping_group_range", f"{os.getgid()} {os.getgid()}")
