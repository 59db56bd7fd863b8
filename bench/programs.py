"""How each program under test is started, given published ports, and ended.

An ``Attachment`` is one guest connected by one program. slirp4netns and pasta are one process per guest; netd is one
daemon for all of them (``start`` … ``stop``), reached through its shim with pasta's command line.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from bench import procs
from bench.world import ROOT, BenchError, Guest, World, as_user, until

READY_LIMIT = 15.0  # seconds an attach may take
# The kernel divides CPU time among sessions first, then within each (sched(7), autogroup). In earnest no program shares
# one with what it serves: pasta makes its own, systemd makes one for the daemon, and what a container runs has another
# than the Podman that started slirp4netns.
OWN_SESSION = {"start_new_session": True}


class Attachment(ABC):
    """A guest with a network. ``seconds`` is the time from starting the command until it said that it is ready."""

    guest_ip = "10.0.2.100"
    api: tuple[str, str] | None = None  # (socket path, pump.py's kind) of the management interface

    def __init__(self, program: Program, guest: Guest) -> None:
        self.program = program
        self.guest = guest
        self.seconds = 0.0

    @abstractmethod
    def pids(self) -> list[int]:
        """Every process that exists because of this network, those shared with others included."""

    @abstractmethod
    def close(self) -> None:
        """End it."""


class Program(ABC):
    """One program under test."""

    name = ""
    has_api = False

    def __init__(self, world: World, binary: str) -> None:
        self.world = world
        self.binary = binary
        self.slirp4netns = binary  # what is called by that name

    def version(self) -> str:
        try:
            out = subprocess.run([self.binary, "--version"], capture_output=True, text=True, timeout=5, check=False)
        except (OSError, subprocess.SubprocessError):
            return "unknown"
        lines = [line for line in out.stdout.splitlines() if line and not line.startswith("Failed to send")]
        return lines[0] if lines else "unknown"

    def start(self) -> None:  # noqa: B027 - most need nothing
        """Whatever must run before the first attach."""

    def stop(self) -> None:  # noqa: B027
        """The reverse of ``start``; harmless without it."""

    def environment(self) -> dict[str, str]:
        """Of the command that attaches."""
        return {"PATH": os.environ["PATH"], "HOME": "/"}

    def base_pids(self) -> list[int]:
        """Processes that exist without any network."""
        return []

    @abstractmethod
    def attach(
        self, guest: Guest, mtu: int, tcp: Mapping[int, int], udp: Mapping[int, int], ipv6: bool = False
    ) -> Attachment:
        """Connect ``guest``; ``tcp`` and ``udp`` map host ports to guest ports. BenchError where that fails."""


class Slirp4netns(Program):
    name = "slirp4netns"
    has_api = True

    def attach(
        self, guest: Guest, mtu: int, tcp: Mapping[int, int], udp: Mapping[int, int], ipv6: bool = False
    ) -> Attachment:
        network = SlirpNetwork(self, guest, mtu, bool(tcp or udp), ipv6)
        try:
            for protocol, ports in (("tcp", tcp), ("udp", udp)):
                for host_port, guest_port in ports.items():
                    network.publish(protocol, host_port, guest_port)
        except BaseException:
            network.close()
            raise
        return ready(network, ipv6)


class SlirpNetwork(Attachment):
    """Started as Podman does: exit and ready pipes, and the API socket only where ports are published."""

    def __init__(self, program: Slirp4netns, guest: Guest, mtu: int, api: bool, ipv6: bool) -> None:
        super().__init__(program, guest)
        self.folder = program.world.folder("s")  # short: a socket's path has 107 bytes
        container = secrets.token_hex(32)
        self.socket = str(self.folder / f"{container}.net")
        self.log = self.folder / f"slirp4netns-{container}.log"
        ready, ready_end = os.pipe()
        exit_end, self.exit = os.pipe()
        argv = [program.binary, "--configure", f"--mtu={mtu}", f"--exit-fd={exit_end}", f"--ready-fd={ready_end}"]
        if ipv6:
            argv.append("--enable-ipv6")
        if api:
            argv.append(f"--api-socket={self.socket}")
            self.api = (self.socket, "slirp")
        with self.log.open("w") as log:
            before = time.perf_counter()
            self.process = program.world.start(
                [*argv, str(guest.pid), "tap0"],
                pass_fds=(ready_end, exit_end),
                stdout=log,
                stderr=log,
                env=program.environment(),
                **OWN_SESSION,
                **as_user(),
            )
        os.close(ready_end)
        os.close(exit_end)
        try:
            self._await_ready(ready)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(ready)
        self.seconds = time.perf_counter() - before

    def _await_ready(self, ready: int) -> None:
        readable, _, _ = select.select([ready], [], [], READY_LIMIT)
        if readable and os.read(ready, 1) == b"1":
            return
        self.process.poll()
        log = self.log.read_text().strip().splitlines()
        why = " / ".join(log[-3:]) or (f"exit status {self.process.returncode}" if readable else "no answer")
        raise BenchError(f"not ready: {why[:300]}")

    def publish(self, protocol: str, host_port: int, guest_port: int) -> None:
        # slirp4netns only takes dotted addresses, and one request per connection.
        where = {"proto": protocol, "host_addr": "0.0.0.0", "host_port": host_port, "guest_port": guest_port}
        request = json.dumps({"execute": "add_hostfwd", "arguments": {**where, "guest_addr": ""}})
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(5)
            s.connect(self.socket)
            s.sendall(request.encode())
            s.shutdown(socket.SHUT_WR)
            reply = s.recv(4096)
        if b"return" not in reply:
            raise BenchError(f"publishing port {host_port}: {reply.decode(errors='replace')[:200]}")

    def pids(self) -> list[int]:
        return [*self.program.base_pids(), *procs.tree(self.process.pid)]

    def close(self) -> None:
        os.close(self.exit)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(3)
        self.program.world.end(self.process)
        shutil.rmtree(self.folder, ignore_errors=True)


class Netd(Program):
    name = "netd"
    has_api = True

    def __init__(self, world: World, wrapper: list[str] | None = None) -> None:
        super().__init__(world, str(world.tree / "plugin" / "pasta"))
        self.slirp4netns = str(Path(self.binary).with_name("slirp4netns"))
        self.command = wrapper or ["-m", "netd", "serve"]  # of the interpreter; a profiler has its own
        self.daemon: subprocess.Popen[str] | None = None
        self.folder = Path()

    def version(self) -> str:
        for line in (ROOT / "pyproject.toml").read_text().splitlines():
            if line.startswith("version"):
                how = "as Python" if self.world.site == ROOT else "its packet path compiled"
                return "netd " + line.split('"')[1] + ", " + how
        return "unknown"

    def environment(self) -> dict[str, str]:
        run = str(self.folder)
        return {**super().environment(), "HOME": run, "XDG_RUNTIME_DIR": run, "NETD_RUNTIME_DIR": run}

    def start(self) -> None:
        self.folder = self.world.folder("netd")
        with (self.folder / "log").open("w") as log:
            self.daemon = self.world.start(
                [self.world.python(), *self.command],
                cwd=self.world.tree,
                env={**self.environment(), "PYTHONPATH": str(self.world.tree), "PYTHONDONTWRITEBYTECODE": "1"},
                stdout=log,
                stderr=log,
                **OWN_SESSION,
                **as_user(),
            )
        until("netd serve", self._answers, READY_LIMIT)

    def _answers(self) -> bool:
        assert self.daemon is not None
        if self.daemon.poll() is not None:
            raise BenchError(f"netd serve ended with {self.daemon.returncode}: {self.last_words()}")
        try:
            for name, kind in (("attach.sock", socket.SOCK_SEQPACKET), ("api.sock", socket.SOCK_STREAM)):
                with socket.socket(socket.AF_UNIX, kind) as s:
                    s.connect(str(self.folder / name))
        except OSError:
            return False
        return True

    def last_words(self) -> str:
        lines = (self.folder / "log").read_text(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "no message"

    def base_pids(self) -> list[int]:
        return procs.tree(self.daemon.pid) if self.daemon is not None else []

    def attach(
        self, guest: Guest, mtu: int, tcp: Mapping[int, int], udp: Mapping[int, int], ipv6: bool = False
    ) -> Attachment:
        return ready(NetdNetwork(self, guest, pasta_words(mtu, tcp, udp, ipv6)), ipv6)

    def ask(self, *words: str) -> str:
        """What the command ``netd`` says, as the user whose daemon it is. BenchError."""
        command = [self.world.python(), "-m", "netd", *words]
        here = {"cwd": self.world.tree, "env": self.environment(), **as_user()}
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False, **here)
        if done.returncode:
            raise BenchError(f"netd {words[0]}: {(done.stderr.strip().splitlines() or ['no message'])[0][:200]}")
        return done.stdout

    def stop(self) -> None:
        if self.daemon is not None:
            self.world.end(self.daemon)
            self.daemon = None
            shutil.rmtree(self.folder, ignore_errors=True)


class NetdNetwork(Attachment):
    """Called as Podman 5 and 6 do: by the name of pasta, in the background, where no process stays."""

    def __init__(self, program: Netd, guest: Guest, words: list[str]) -> None:
        super().__init__(program, guest)
        self.netd = program
        self.api = (str(program.folder / "api.sock"), "rest")
        self.seconds = run_until_ready(program, [program.binary, *words, str(guest.pid)])
        inode = os.stat(f"/proc/{guest.pid}/ns/net").st_ino
        networks = json.loads(program.ask("ps", "--format", "json"))
        self.id = next(network["id"] for network in networks if network["netns_inode"] == inode)

    def pids(self) -> list[int]:
        return self.netd.base_pids()

    def close(self) -> None:
        if self.netd.daemon is not None and self.netd.daemon.poll() is None:
            self.netd.ask("detach", "--ignore", self.id)


class Pasta(Program):
    name = "pasta"

    def attach(
        self, guest: Guest, mtu: int, tcp: Mapping[int, int], udp: Mapping[int, int], ipv6: bool = False
    ) -> Attachment:
        return ready(PastaNetwork(self, guest, pasta_words(mtu, tcp, udp, ipv6)), ipv6)


class PastaNetwork(Attachment):
    def __init__(self, program: Pasta, guest: Guest, words: list[str]) -> None:
        super().__init__(program, guest)
        self.folder = program.world.folder("pasta")
        pid_file = self.folder / "pid"
        self.pid = 0
        self.seconds = run_until_ready(program, [program.binary, *words, "-P", str(pid_file), str(guest.pid)])
        self.pid = int(pid_file.read_text())

    def pids(self) -> list[int]:
        return procs.tree(self.pid)

    def close(self) -> None:
        if self.pid:
            self._end()
            self.pid = 0
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self) -> None:
        """SIGTERM, and SIGKILL where that does not help. PID 1 of the namespace, that is us, inherited the process."""
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGTERM)
            end = time.monotonic() + 3
            while not os.waitpid(self.pid, os.WNOHANG)[0]:
                if time.monotonic() > end:
                    os.kill(self.pid, signal.SIGKILL)
                    os.waitpid(self.pid, 0)
                    return
                time.sleep(0.005)


def pasta_words(mtu: int, tcp: Mapping[int, int], udp: Mapping[int, int], ipv6: bool) -> list[str]:
    """The command line of pasta for such a network, but for whose it is."""
    address = ["--config-net", "-a", Attachment.guest_ip, "-n", "24", "-g", "10.0.2.2", "-m", str(mtu)]
    address += ["-a", "fd00::100", "-g", "fd00::2"] if ipv6 else ["-4"]
    ports: list[str] = []
    for option, wanted in (("-t", tcp), ("-u", udp)):
        ports += [option, ",".join(f"{h}:{g}" for h, g in wanted.items()) or "none"]
    return ["-q", *address, *ports, "-T", "none", "-U", "none", "-I", "tap0"]


def run_until_ready(program: Program, argv: list[str]) -> float:
    """Seconds until the command has ended with status 0: that is how pasta says that it is ready. BenchError."""
    before = time.perf_counter()
    command = program.world.start(
        argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=program.environment(), **as_user()
    )
    try:
        status = command.wait(READY_LIMIT)
    except subprocess.TimeoutExpired:
        raise BenchError("not ready: no answer") from None
    finally:
        seconds = time.perf_counter() - before
        assert command.stderr is not None
        words = [] if command.returncode is None else command.stderr.read().splitlines()
        program.world.end(command)
    if status:
        said = [line for line in words if not line.startswith("Failed to send")]
        raise BenchError(f"not ready: {(said or ['no message'])[-1][:200]}")
    return seconds


def ready(network: Attachment, ipv6: bool) -> Attachment:
    """``network``, when its guest is as the measurements want it. BenchError."""
    try:
        network.guest.set_congestion_control()
        if ipv6:
            network.guest.await_ipv6()
    except BaseException:
        network.close()
        raise
    return network


def installed(world: World, peers: list[str], netd_only: bool) -> tuple[list[Program], list[str]]:
    """The programs there are, netd first, and a remark for each that is missing.

    ``peers`` are paths of binaries to use in place of the installed one; the file's name says which it stands for.
    """
    programs: list[Program] = []
    missing = []
    netd = Netd(world)
    if Path(netd.binary).exists() and (ROOT / "netd" / "__main__.py").exists():
        programs.append(netd)
    else:
        missing.append("netd: not in this tree")
    for kind in () if netd_only else (Slirp4netns, Pasta):
        given = [p for p in peers if kind.name in Path(p).name]
        binary = given[-1] if given else shutil.which(kind.name)
        if binary:
            programs.append(kind(world, binary))
        else:
            missing.append(f"{kind.name}: not installed")
    for path in peers:
        if not any(name in Path(path).name for name in ("slirp4netns", "pasta")):
            raise BenchError(f"--peer {path}: the file's name contains neither slirp4netns nor pasta")
    return programs, missing
