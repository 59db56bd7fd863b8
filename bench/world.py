"""Namespaces of the benchmark's own: a host, an outside host behind a veth pair, and guests.

    outside (O) 10.91.0.2 ──veth── 10.91.0.1 host (H): the programs under test ──TAP── guest, guest, …

``enter`` runs the benchmark again inside new mount, PID and network namespaces: its network namespace *is* H, and
when it ends, however it ends, the kernel ends every process it started and takes mounts and namespaces away.
A guest is a user and network namespace owned by ``USER``, an ordinary uid, and the programs under test run
under that uid without any privilege, as rootless Podman would run them. The machine's own network is not touched.

Congestion control is cubic on every socket (DESIGN: BBR, the default of some kernels, halves local figures). A
kernel that restricts cubic refuses the sysctl in a new namespace, so it is also set on each route (ip-route(8),
``congctl``), which also covers the sockets of the programs under test.
"""

from __future__ import annotations

import contextlib
import copy
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
USER = 47001  # needs no account
HOST, OUTSIDE = "10.91.0.1", "10.91.0.2"
HOST6, OUTSIDE6, PREFIX6 = "fd91::1", "fd91::2", "fd91::/64"
CONGESTION = "cubic"
SCRATCH = "NETD_BENCH_SCRATCH"
FILES = 65536  # RLIMIT_NOFILE of everything here: no program is to fail for that where it may be had
PYTHON = "/usr/bin/python3"

# Metrics of one program's connections are not to start the next one's, nor addresses to wait for a duplicate's answer.
SYSCTLS = f"""
echo {CONGESTION} > /proc/sys/net/ipv4/tcp_congestion_control
echo 10000 65000 > /proc/sys/net/ipv4/ip_local_port_range
echo 1 > /proc/sys/net/ipv4/tcp_no_metrics_save
echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
echo 0 > /proc/sys/net/ipv6/conf/all/accept_dad
"""
LOOPBACK = f"""
ip link set lo up
ip route replace local 127.0.0.0/8 dev lo table local proto kernel scope host src 127.0.0.1 congctl {CONGESTION}
"""


class BenchError(Exception):
    """A measurement, or a program under test, that did not work; the message goes into the table."""


def compiled() -> Path | None:
    """The directory with netd as an installation has it; None where there is none. BenchError: of other sources."""
    site = next(ROOT.glob("build/compiled/lib/python*/site-packages"), None)
    if site is not None:
        for source in ROOT.glob("netd/**/*.py"):
            copy = site / source.relative_to(ROOT)
            if not copy.exists() or copy.read_bytes() != source.read_bytes():
                raise BenchError(f"{source.relative_to(ROOT)} has changed since netd was compiled: make compiled")
    return site


def enter(script: Path, argv: list[str]) -> int:
    """Run ``script`` again in namespaces of its own; returns its exit status. Needs root."""
    if os.geteuid() != 0:
        print("bench: needs root, to make a network of its own (sudo make bench)", file=sys.stderr)
        return 1
    scratch = tempfile.mkdtemp(prefix="netd-bench-")
    os.chmod(scratch, 0o755)
    spaces = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", *spaces, "--", sys.executable, str(script), *argv]
    inner = subprocess.Popen(command, env={**os.environ, SCRATCH: scratch})

    def end(number: int, frame: FrameType | None) -> None:
        inner.kill()  # unshare: --kill-child takes the rest with it

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, end)
    try:
        while True:
            try:
                status = inner.wait()
                return status if status >= 0 else 128 - status
            except KeyboardInterrupt:  # the terminal sent it to the one inside too, which cleans up
                with contextlib.suppress(subprocess.TimeoutExpired):
                    inner.wait(10)
                inner.kill()
    finally:
        os.rmdir(scratch)


def inside() -> bool:
    return SCRATCH in os.environ


def as_user() -> dict[str, Any]:
    """Arguments of ``subprocess.Popen`` that give up root for ``USER``."""
    return {"user": USER, "group": USER, "extra_groups": []}


def until(what: str, true: Callable[[], bool], seconds: float = 5.0, step: float = 0.005) -> None:
    """Wait until ``true()``; BenchError after ``seconds``."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise BenchError(f"{what}: not within {seconds:g} s")
        time.sleep(step)


class Place:
    """A network namespace in which things are started. ``pid`` is a process that lives in it."""

    def __init__(self, world: World, pid: int, enter: bool = True) -> None:
        self.world = world
        self.pid = pid
        self.prefix = ["nsenter", f"--net=/proc/{pid}/ns/net", "--"] if enter else []

    def start(self, argv: list[str], **how: Any) -> subprocess.Popen[str]:
        """Start a program here; the world ends it at the latest."""
        return self.world.start([*self.prefix, *argv], **how)

    def run(self, argv: list[str], seconds: float = 10.0, **how: Any) -> str:
        """Run a program here to its end and return what it printed; BenchError where it fails or takes longer."""
        process = self.start(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)
        name = Path(argv[0]).name
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{name}: not done within {seconds:g} s") from None
        finally:
            self.world.end(process)
        if process.returncode:
            lines = (err.strip() or out.strip() or "no message").splitlines()
            raise BenchError(f"{name}: {lines[-1][:200]}")
        return str(out)

    def listens(self, port: int, table: str = "tcp") -> bool:
        """Whether a socket listens on (TCP) or is bound to (UDP) ``port`` (proc(5), /proc/net/tcp)."""
        want, state = f"{port:04X}", "0A" if table == "tcp" else "07"
        for name in (table, table + "6"):
            for line in Path(f"/proc/{self.pid}/net/{name}").read_text().splitlines()[1:]:
                columns = line.split()
                if columns[1].endswith(":" + want) and columns[3] == state:
                    return True
        return False

    def counter(self, name: str) -> int:
        """A counter of TCP here by its name in /proc/net/netstat; 0 where the kernel has none of that name."""
        lines = Path(f"/proc/{self.pid}/net/netstat").read_text().splitlines()
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            found = dict(zip(names.split(), values.split(), strict=True))
            if name in found:
                return int(found[name])
        return 0

    @contextlib.contextmanager
    def serving(self, argv: list[str], port: int) -> Iterator[subprocess.Popen[str]]:
        """A server that is up when the block begins and ended when it ends."""
        process = self.start(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until(f"{Path(argv[0]).name} on port {port}", lambda: self.listens(port))
            yield process
        finally:
            self.world.end(process)


class Guest(Place):
    """A user and network namespace owned by ``USER``, with loopback up and nothing else."""

    def __init__(self, world: World) -> None:
        shell = ["sh", "-c", f"{SYSCTLS}\n{LOOPBACK}\necho ready; exec cat"]
        self.keeper = world.start(
            ["unshare", "--user", "--map-root-user", "--net", *shell],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # the sysctl that is refused
            **as_user(),
        )
        assert self.keeper.stdout is not None
        if self.keeper.stdout.readline() != "ready\n":
            raise BenchError(f"uid {USER} cannot make a user and network namespace")
        super().__init__(world, self.keeper.pid)

    def set_congestion_control(self) -> None:
        """Put ``CONGESTION`` on the routes that the program under test has made."""
        lines = self.run(["ip", "-4", "route", "show"]).splitlines()
        batch = "".join(f"route replace {line.strip()} congctl {CONGESTION}\n" for line in lines)
        self.run(["sh", "-c", f"ip -batch - <<'E'\n{batch}E"])

    def await_ipv6(self) -> None:
        """Wait for a global IPv6 address and a default route, and put ``CONGESTION`` on a route to outside."""
        if not Path("/proc/sys/net/ipv6").exists():
            raise BenchError("the machine has no IPv6")
        route: list[str] = []

        def there() -> bool:
            addresses = self.run(["ip", "-6", "-o", "address", "show", "scope", "global"])
            route[:] = self.run(["ip", "-6", "route", "show", "default"]).split()[1:5]  # via ADDRESS dev NAME
            return bool(route) and any("tentative" not in line for line in addresses.splitlines())

        until("an IPv6 address and a default route in the guest", there, 5, 0.05)
        self.run(["ip", "-6", "route", "replace", PREFIX6, *route, "congctl", CONGESTION])

    def close(self) -> None:
        self.world.end(self.keeper)


class World:
    """H, O and what is started in them. Use it as a context manager, inside ``enter``.

    ``site``: the directory that netd is taken from.
    """

    def __init__(self, site: Path | None = None) -> None:
        self.site = site or ROOT
        self.scratch = Path(os.environ[SCRATCH])
        self.tree = self.scratch / "tree"  # a copy of what is measured: edits meanwhile do not reach it
        self.venv = self.scratch / "venv"
        self.processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> World:
        try:
            self._set_up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set_up(self) -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard if hard < 0 else max(FILES, hard)))
        except ValueError:  # not even root may raise it here
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.host = Place(self, os.getpid(), enter=False)
        run = self.host.run
        run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(self.scratch)])
        self.venv.mkdir()
        if sys.prefix != sys.base_prefix:
            run(["mount", "--bind", sys.prefix, str(self.venv)])
        self._take(self.site)
        node = self.scratch / "tun"  # rootless users may open it on any usual machine; here it may be 0600
        os.mknod(node, 0o666 | 0o020000, os.makedev(10, 200))
        node.chmod(0o666)
        run(["mount", "--bind", str(node), "/dev/net/tun"])
        holder = self.start(
            ["unshare", "--net", "sh", "-c", "echo ready; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert holder.stdout is not None
        holder.stdout.readline()
        self.outside = Place(self, holder.pid)
        route = f"dev veth0 proto kernel scope link congctl {CONGESTION}"
        ends = ((self.host, HOST, HOST6, holder.pid), (self.outside, OUTSIDE, OUTSIDE6, 0))
        for place, address, address6, peer in ends:
            if peer:
                place.run(["ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", str(peer)])
            script = (
                f"{SYSCTLS}\nset -e\n{LOOPBACK}\nip addr add {address}/24 dev veth0\nip link set veth0 up\n"
                f"ip route replace 10.91.0.0/24 src {address} {route}\n"
                f"ip route replace local {address} dev veth0 table local proto kernel scope host src {address}"
                f" congctl {CONGESTION}\n"
            )
            place.run(["sh", "-c", script])
            with contextlib.suppress(BenchError):  # no IPv6 on this machine: its rows say so
                place.run(["ip", "-6", "address", "add", f"{address6}/64", "dev", "veth0", "nodad"])
                place.run(["ip", "-6", "route", "replace", PREFIX6, "dev", "veth0", "congctl", CONGESTION])
        # Default routes, for pasta, which takes addresses from their interface. Nothing answers there.
        self.host.run(["ip", "route", "add", "default", "via", "10.91.0.254", "congctl", CONGESTION])
        with contextlib.suppress(BenchError):
            self.host.run(["ip", "-6", "route", "add", "default", "via", "fd91::fe", "dev", "veth0"])

    def python(self) -> str:
        """The interpreter that runs this, by a path that USER can follow."""
        if sys.prefix == sys.base_prefix:
            return sys.executable
        return str(self.venv / "bin" / "python")

    def pump(self, *args: object) -> list[str]:
        """The command line of one of pump.py's modes."""
        return [PYTHON, "-I", "-S", str(self.tree / "bench" / "pump.py"), *map(str, args)]

    def with_netd_of(self, site: Path) -> World:
        """The same networks and processes with another netd."""
        other = copy.copy(self)
        other.site = site
        other.tree = Path(tempfile.mkdtemp(prefix="tree-", dir=self.scratch))
        other.tree.chmod(0o755)
        other._take(site)
        return other

    def _take(self, site: Path) -> None:
        for part in (site / "netd", ROOT / "plugin", ROOT / "bench"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(part, self.tree / part.name, symlinks=True, ignore=ignored)
        for library in site.glob("netd__mypyc*.so"):
            shutil.copy(library, self.tree)
        # As an installation has it: USER could not write the bytecode, and compiling costs time and memory.
        self.host.run([sys.executable, "-m", "compileall", "-q", str(self.tree / "netd")], 60)

    def folder(self, name: str) -> Path:
        """A new directory of USER's, mode 0700."""
        path = Path(tempfile.mkdtemp(prefix=name + "-", dir=self.scratch))
        os.chown(path, USER, USER)
        return path

    def start(self, argv: list[str], **how: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(argv, text=True, **{"stdin": subprocess.DEVNULL, **how})
        self.processes.append(process)
        return process

    def end(self, process: subprocess.Popen[str], seconds: float = 3.0) -> None:
        """End one process and what it needs reading; harmless where it has ended."""
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process in self.processes:
            self.processes.remove(process)

    def sweep(self) -> list[str]:
        """End what a broken measurement left, and return its names. All but O's keeper is ours: our PID namespace."""
        left = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) not in (1, self.outside.pid):
                with contextlib.suppress(OSError):
                    name = Path(f"/proc/{entry}/comm").read_text().strip()
                    dead = "State:\tZ" in Path(f"/proc/{entry}/status").read_text()
                    os.kill(int(entry), signal.SIGKILL)
                    left += [] if dead else [name]
        self.processes = [p for p in self.processes if p.pid == self.outside.pid]
        with contextlib.suppress(ChildProcessError):
            end = time.monotonic() + 3
            while time.monotonic() < end:
                os.waitpid(-1, os.WNOHANG)
                if not set(filter(str.isdigit, os.listdir("/proc"))) - {"1", str(self.outside.pid)}:
                    break
                time.sleep(0.01)
        return left

    def close(self) -> None:
        for process in reversed(self.processes.copy()):
            self.end(process, 1.0)
