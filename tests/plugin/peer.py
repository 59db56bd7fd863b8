"""The daemon's end of a shim's connection, and shims that are started against it."""

from __future__ import annotations

import array
import json
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

from tests.attach.harness import PLUGIN

SHIM = PLUGIN / "netd-shim"
PARTS = {name: PLUGIN / "shim" / f"{name}.py" for name in ("main", "steps", "absent")}


def altered(directory: Path, part: str, old: str, new: str) -> Path:
    """slirp4netns of a copy of the plugin in ``directory`` whose ``part`` reads ``new`` instead of ``old``."""
    plugin = directory / "altered"
    shutil.copytree(PLUGIN, plugin, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    path = plugin / "shim" / f"{part}.py"
    source = path.read_text()
    assert source.count(old) == 1
    path.write_text(source.replace(old, new))
    return plugin / "slirp4netns"


class Peer:
    """The daemon's end of one shim's connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.sock = connection
        self.sock.settimeout(10)

    def hello(self) -> dict[str, Any]:
        return dict(json.loads(self.sock.recv(1 << 20)))

    def tell(self, op: str, **fields: Any) -> None:
        self.sock.send(json.dumps({"op": op, **fields}).encode())

    def answer(self) -> tuple[dict[str, Any], int]:
        data, ancillary, _, _ = self.sock.recvmsg(1 << 16, socket.CMSG_SPACE(64))
        fds = array.array("i")
        for _, _, content in ancillary:
            fds.frombytes(content)
        assert len(fds) <= 1
        return json.loads(data), fds[0] if fds else -1

    def ask(self, op: str, **fields: Any) -> tuple[dict[str, Any], int]:
        self.tell(op, **fields)
        return self.answer()

    def exit(self, status: int = 0, stdout: str = "", stderr: str = "") -> None:
        self.tell("exit", status=status, stdout=stdout, stderr=stderr)

    def stay(self) -> None:
        self.tell("stay", stdout="", stderr="")

    def ended(self) -> bool:
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True


class Bench:
    """A listening daemon's socket, and shims that are started against it."""

    def __init__(self, runtime_dir: Path) -> None:
        self.dir = runtime_dir
        self.env = {"NETD_RUNTIME_DIR": str(runtime_dir), "PATH": os.environ["PATH"]}
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(runtime_dir / "attach.sock"))
        self.listener.listen()
        self.listener.settimeout(10)
        self.running: list[subprocess.Popen[bytes]] = []
        self.peers: list[Peer] = []

    def start(self, *argv: str | bytes, program: Path = PLUGIN / "slirp4netns", **more: Any) -> subprocess.Popen[bytes]:
        options: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "env": self.env,
            **more,
        }
        shim = subprocess.Popen([program, *argv], **options)
        self.running.append(shim)
        return shim

    def peer(self) -> Peer:
        peer = Peer(self.listener.accept()[0])
        self.peers.append(peer)
        return peer

    def meet(self, *argv: str | bytes, **more: Any) -> tuple[subprocess.Popen[bytes], Peer]:
        """Start a shim and read its hello."""
        shim = self.start(*argv, **more)
        peer = self.peer()
        peer.hello()
        return shim, peer

    def close(self) -> None:
        self.listener.close()
        for peer in self.peers:
            peer.sock.close()
        for shim in self.running:
            shim.kill()
            shim.wait()
            for stream in (shim.stdout, shim.stderr):
                if stream is not None:
                    stream.close()


def output(shim: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    out, err = shim.communicate(timeout=20)
    return shim.returncode, out.decode(errors="surrogateescape"), err.decode(errors="surrogateescape")
