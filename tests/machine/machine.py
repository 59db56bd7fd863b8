"""The Python face of ``tests/machine/rootless``: a normal user's machine for as long as a test session needs it.

    with Machine() as machine:
        machine.run(["podman", "info"])              # as the user
        machine.world(["curl", "http://10.77.0.2"])  # on the outside host

Nothing remains after it, whatever becomes of this process.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

T = TypeVar("T")

TREE = Path(__file__).resolve().parents[2]
IMAGE = "localhost/netd-test"
HOST, WORLD = "10.77.0.2", "10.77.0.1"  # who is at the two ends of the host's eth0
CANNOT = 77  # exit status of tests/machine/rootless where it is not its fault
REFUSING, SILENT = "10.77.0.9", "10.77.0.10"  # in the world: nothing listens; port 53 never answers (see world.py)


class Unavailable(Exception):
    """Rootless Podman cannot run on this machine; the text says why."""


class Failed(AssertionError):
    """A command ended otherwise than expected; the text has its output."""


def until(ask: Callable[[], T], what: str, seconds: float = 10) -> T:
    """The first true answer of ask(), which is asked every 20 ms; AssertionError naming what after seconds."""
    deadline = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        time.sleep(0.02)
    return answer


class Program(subprocess.Popen[str]):
    """A running command of the machine's. ``inner`` is its own pid, as seen from out here."""

    inner: int

    def send_signal(self, sig: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.inner, sig)

    def end(self, sig: int = signal.SIGTERM, seconds: float = 10) -> int:
        """Sends the signal and waits; SIGKILL after seconds. The exit status, as Popen has it."""
        self.send_signal(sig)
        try:
            return self.wait(seconds)
        except subprocess.TimeoutExpired:
            self.send_signal(signal.SIGKILL)
            raise


class Machine:
    """One ``rootless -H``. ``shim``: Podman's network command is the tree's, not the packaged one.

    ``command`` says which it is: "slirp4netns", or "pasta" from Podman 5 on.
    """

    def __init__(self, shim: bool = False, command: str = "slirp4netns") -> None:
        self.command = command
        for name in ("podman", "crun", "newuidmap"):
            if shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin") is None:
                raise Unavailable(f"{name} is not installed (tests/machine/install)")
        options = ["-n", command, "-p", sys.executable, *(["-s"] if shim else []), "-H"]
        self._holder = subprocess.Popen(
            [str(TREE / "tests/machine/rootless"), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout
        words = self._holder.stdout.readline().split()
        if len(words) != 2:
            said = self._holder.communicate()[1].strip()
            raise (Unavailable if self._holder.returncode == CANNOT else Failed)(said)
        self.pid = int(words[0])  # of the machine's first process; 0: this very machine, without a world of its own
        self.root = Path(f"/proc/{self.pid}/root" if self.pid else "/")  # the machine's files, seen from here
        found = (self.root / words[1].lstrip("/")).read_bytes().decode()
        self.environment = dict(v.split("=", 1) for v in found.split("\0") if v)
        self.user = self.environment["USER"]
        self.runtime_dir = Path(self.environment["XDG_RUNTIME_DIR"])  # as the machine's user sees it

    @property
    def has_world(self) -> bool:
        """Whether there is an outside host, and whether the machine's network is ours to change."""
        return bool(self.pid)

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends it and every process in it."""
        self._holder.communicate(timeout=30)

    def _enter(self, command: Sequence[str], who: str, env: Mapping[str, str]) -> list[str]:
        variables = [f"{k}={v}" for k, v in {**self.environment, **env}.items()]
        if not self.pid:
            if who != "user":
                raise Unavailable("needs root: the network here is not ours to change")
            return ["env", "-i", *variables, *command]
        enter = ["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-p", "-n"]
        if who == "world":
            enter[-1] = f"--net=/proc/{self.pid}/root/run/netns/world"
        if who == "user":
            status = (self.root / "etc/passwd").read_text()
            uid, gid = next(line.split(":")[2:4] for line in status.splitlines() if line.startswith(f"{self.user}:"))
            home = f"--wd=/proc/{self.pid}/root{self.environment['HOME']}"
            drop = ["setpriv", "--reuid", uid, "--regid", gid, "--init-groups", "--inh-caps=-all"]
            return [*enter, home, "--", *drop, "env", "-i", *variables, *command]
        return [*enter, "--", "env", *(f"{k}={v}" for k, v in env.items()), *command]

    def start(
        self, command: Sequence[str], who: str = "user", env: Mapping[str, str] | None = None, **popen: Any
    ) -> Program:
        """Starts a command as the machine's user, its root, or root of the world ("user", "root", "world")."""
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        program = Program(
            self._enter(command, who, env or {}), **{"text": True, "errors": "replace", **options, **popen}
        )
        program.inner = program.pid
        if self.pid:  # nsenter forks: a process cannot enter a PID namespace itself
            children = Path(f"/proc/{program.pid}/task/{program.pid}/children")

            def child() -> str:
                try:
                    return children.read_text()
                except OSError:
                    return str(program.pid)

            program.inner = int(
                until(lambda: child() or (str(program.pid) if program.poll() is not None else ""), "child").split()[0]
            )
        return program

    def run(
        self, command: Sequence[str], who: str = "user", status: int | None = 0, timeout: float = 60,
        env: Mapping[str, str] | None = None, stdin: str | bytes | IO[Any] | None = None,
    ) -> str:  # fmt: skip
        """Runs a command to its end: what it wrote (stdout and stderr), less the last newline.

        Failed when its exit status is not as expected (None: any) or it takes longer than timeout.
        """
        feed = isinstance(stdin, str | bytes)
        source = subprocess.PIPE if feed else (subprocess.DEVNULL if stdin is None else stdin)
        with self.start(
            command, who, env, stdin=source, **({"text": None, "errors": None} if isinstance(stdin, bytes) else {})
        ) as program:
            try:
                out, _ = program.communicate(stdin if feed else None, timeout)  # type: ignore[arg-type]
            except subprocess.TimeoutExpired as e:
                program.send_signal(signal.SIGKILL)
                said = e.output.decode(errors="replace") if isinstance(e.output, bytes) else e.output
                raise Failed(f"{' '.join(command)}: not done after {timeout} s\n{said}") from None
        text = out.decode(errors="replace") if isinstance(out, bytes) else out
        if status is not None and program.returncode != status:
            raise Failed(f"{' '.join(command)}: exit status {program.returncode}, not {status}\n{text}")
        return text.rstrip("\n")

    def world(self, command: Sequence[str], **options: Any) -> str:
        """The same on the outside host."""
        return self.run(command, "world", **options)

    def import_image(self) -> None:
        """Gives the user's Podman the image ``localhost/netd-test``."""
        with subprocess.Popen([str(TREE / "tests/machine/image")], stdout=subprocess.PIPE) as tar:
            self.run(["podman", "import", "-q", "-", IMAGE], stdin=tar.stdout)
        if tar.returncode:
            raise Unavailable("tests/machine/image failed: see above")

    def processes(self, *words: str) -> list[tuple[int, list[str]]]:
        """(pid, argv) of the machine's processes whose arguments contain every one of words; zombies are named []."""
        found = []
        own = os.readlink(f"/proc/{self.pid or 'self'}/ns/pid")
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with suppress(OSError):
                # Genuine pasta makes a PID namespace of its own below the machine's.
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                if own in (os.readlink(entry / "ns/pid"), os.readlink(f"/proc/{parent}/ns/pid")):
                    argv = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
                    if all(any(w in a for a in argv) for w in words):
                        found.append((int(entry.name), argv))
        return found
