"""The two whose work together is tested: the user's daemon and the user's Podman."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.machine.machine import IMAGE, Machine, Program, until

GENUINE = os.environ.get("NETD_PODMAN_CMD", "netd") == "genuine"  # the packaged program instead, see conftest


def podman_version() -> tuple[int, ...]:
    """The version of the machine's Podman, (0,) for none."""
    try:
        said = subprocess.run(["podman", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return (0,)
    return tuple(int(part) for part in said.split()[2].split("-")[0].split(".")[:2])


VERSION = podman_version()
# What marks a module whose tests run with pasta, not slirp4netns, as Podman's network command.
PASTA = pytest.mark.parametrize("machine", ["pasta"], indirect=True, ids=[""])


class Daemon:
    """``netd serve`` as the machine's user, or, with the genuine program, none at all."""

    def __init__(self, machine: Machine, log: Path) -> None:
        self.machine, self.log = machine, log
        self.directory = machine.root / str(machine.runtime_dir / "netd").lstrip("/")
        self._program: Program | None = None

    def start(self) -> None:
        with self.log.open("a") as log:
            self._program = self.machine.start(
                [sys.executable, "-m", "netd", "serve"],
                stdout=log,
            )
        until(self._answers, f"sockets in {self.directory}; netd serve said: {self.log.read_text()}")

    def warm_up(self) -> None:
        """One container and one request, so that what is opened once is open."""
        self.machine.run(["podman", "run", "--rm", IMAGE, "true"])
        until(lambda: not self.networks(), "end of the first network")

    def _answers(self) -> bool:
        assert self._program is not None and self._program.poll() is None, f"netd serve ended: {self.log.read_text()}"
        for name, kind in (("attach.sock", socket.SOCK_SEQPACKET), ("api.sock", socket.SOCK_STREAM)):
            with socket.socket(socket.AF_UNIX, kind) as s:
                try:
                    s.connect(str(self.directory / name))
                except OSError:
                    return False
        return True

    def stop(self, sig: int = signal.SIGTERM) -> int | None:
        """Its exit status; None when none ran."""
        program, self._program = self._program, None
        return program.end(sig) if program else None

    def descriptors(self) -> Counter[str]:
        """What it has open, and how often; sockets of one kind are alike."""
        links: Counter[str] = Counter()
        if self._program:
            for link in Path(f"/proc/{self._program.inner}/fd").iterdir():
                with suppress(FileNotFoundError):
                    links[os.readlink(link).split("[")[0]] += 1  # socket:[123], pipe:[123], net:[123]
        return links

    def command(self, *words: str, status: int | None = 0) -> str:
        """``netd WORDS`` as the user, to its end: its output."""
        return self.machine.run([sys.executable, "-m", "netd", *words], status=status)

    def networks(self) -> list[dict[str, Any]]:
        """What ``netd ps`` lists."""
        listed = json.loads(self.command("ps", "--format", "json"))
        assert isinstance(listed, list)
        return listed


class Podman:
    """The machine user's ``podman``."""

    def __init__(self, machine: Machine, daemon: Daemon) -> None:
        self.machine, self.daemon = machine, daemon
        self.environment: dict[str, str] = {}  # of every command from now on, besides the user's

    def __call__(self, *words: str, env: Mapping[str, str] | None = None, **options: Any) -> str:
        """``podman WORDS`` to its end: its output. Options are those of Machine.run."""
        return self.machine.run(["podman", *words], env={**self.environment, **(env or {})}, **options)

    def run(self, *words: str, **options: Any) -> str:
        """``podman run --rm OPTION… -- COMMAND…`` on the test image; its output."""
        at = words.index("--") if "--" in words else 0
        return self("run", "--rm", *words[:at], IMAGE, *words[at + ("--" in words) :], **options)

    def up(self, name: str, *words: str, **options: Any) -> str:
        """``podman run -d --name NAME OPTION… -- COMMAND…`` on the test image; its output, the container's id."""
        at = words.index("--")
        return self("run", "-d", "--name", name, *words[:at], IMAGE, *words[at + 1 :], **options)

    def answers(self, url: str, who: str = "user") -> str:
        """The page at url as soon as there is one (the server in the container may be slower than Podman)."""
        return until(lambda: self.machine.run(["curl", "-sf", "-m", "5", url], who, status=None), f"answer from {url}")

    def network_commands(self) -> list[list[str]]:
        """The arguments of every network command that runs."""
        words = {"slirp4netns": ("slirp4netns", "tap0"), "pasta": ("pasta", "--netns")}[self.machine.command]
        argvs = [argv for _, argv in self.machine.processes(*words) if "conmon" not in argv[0]]
        return [argv for argv in argvs if not argv[0].endswith("podman")]

    def left(self) -> dict[str, int]:
        """What a container's network consists of, counted. Zero of all is nothing left."""
        runtime = self.machine.root / str(self.machine.runtime_dir).lstrip("/")
        listeners = self.machine.run(["ss", "-H", "-ltun"]) if self.machine.has_world else ""
        counts = {
            "network commands": len(self.network_commands()),
            "namespace files": len(
                [*runtime.glob("netns/*"), *runtime.glob("containers/networks/rootless-netns/root*")]
            ),
            "listening sockets": len(listeners.splitlines()),
        }
        if not GENUINE:
            counts["api socket files"] = len(list(runtime.glob("libpod/tmp/*.net")))
            counts["TAP devices of the daemon's"] = self.daemon.descriptors()["/dev/net/tun"]
        return counts

    def clear(self) -> None:
        """Removes every container, pod and network."""
        self("rm", "-fa", "-t0")
        self("pod", "rm", "-fa", "-t0")
        self("network", "prune", "-f")
