"""A daemon for one ``netd run``: its own runtime directory, and a guard that takes both away when we are gone.

The guard is a forked process in a session of its own. It starts ``python -m netd serve``, waits for our end of a pipe
to close or for the daemon to end, and removes the directory. We may be killed with SIGKILL: the guard tidies up.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

from netd.cli import isolation
from netd.cli.client import Client
from netd.cli.failure import EXIT_FAILED, Failure

TYPE_CHECKING = False  # importing typing would cost every command 2 ms
if TYPE_CHECKING:
    from typing import NoReturn

START_TIMEOUT = 20.0  # seconds until the daemon must answer
STOP_TIMEOUT = 5.0  # seconds between SIGTERM and SIGKILL
POLL = 0.005  # seconds between two looks at its socket
MAX_SOCKET_PATH = 107  # bytes, unix(7)


class PrivateDaemon:
    """A context: entering starts the daemon and does not wait, leaving ends it and does."""

    def __init__(self, verbose: bool = False) -> None:
        self._verbose = verbose

    def __enter__(self) -> PrivateDaemon:
        check_tun()
        self._directory = choose_directory()
        self._log = os.memfd_create("netd-log")
        life, self._life = os.pipe()
        sys.stdout.flush()
        self._guard = os.fork()
        if self._guard == 0:
            try:
                os.close(self._life)
                _guard(life, self._directory, 2 if self._verbose else self._log)
            finally:
                os._exit(EXIT_FAILED)
        os.close(life)
        return self

    def __exit__(self, *_: object) -> None:
        self._release()
        os.close(self._log)

    def wait(self) -> Client:
        """A client, once the daemon answers. Failure with the daemon's own last words if it does not."""
        client = Client(os.path.join(self._directory, "api.sock"))
        end = time.monotonic() + START_TIMEOUT
        while time.monotonic() < end:
            if os.path.exists(client.path) and client.answers(START_TIMEOUT):
                return client
            if self._guard and os.waitpid(self._guard, os.WNOHANG)[0]:
                self._guard = 0
                break
            time.sleep(POLL)
        words = os.pread(self._log, 1 << 16, 0).decode(errors="replace").strip().splitlines()
        last = next((line for line in reversed(words) if not line.startswith("hint: ")), "it said nothing")
        raise Failure(f"the private daemon did not start: {last.removeprefix('Error: ')}")

    def _release(self) -> None:
        if self._life >= 0:
            os.close(self._life)
            self._life = -1
        if self._guard:
            os.waitpid(self._guard, 0)
            self._guard = 0


def check_tun() -> None:
    """Failure if /dev/net/tun cannot be used, before anything is started."""
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except PermissionError:
        raise Failure("/dev/net/tun: permission denied", "as root: chmod 0666 /dev/net/tun") from None
    except OSError as exc:
        raise Failure(f"/dev/net/tun: {exc.strerror}", "as root: modprobe tun") from None


def choose_directory() -> str:
    """A new name for a directory, short enough for sockets in it. The guard makes it, so that the guard removes it."""
    tried = (os.environ.get("XDG_RUNTIME_DIR"), os.environ.get("TMPDIR"), "/tmp", "/var/tmp")
    for base in tried:
        if base and len(os.fsencode(base)) < MAX_SOCKET_PATH - 40 and os.access(base, os.W_OK | os.X_OK):
            return os.path.join(base, f"netd-run-{os.getpid()}-{os.urandom(4).hex()}")
    raise Failure("no directory for the private daemon's sockets", "set TMPDIR to one that can be written")


def _guard(life: int, directory: str, log: int) -> NoReturn:
    """In the guard: keep the daemon while ``life`` is open, then leave nothing."""
    os.setsid()  # the terminal's signals are not for us
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    os.dup2(log, 2)
    kept = {life}
    top = max(int(name) for name in os.listdir("/proc/self/fd"))
    for fd in range(3, top + 1):  # what our caller holds open must not stay open because of us
        if fd not in kept:
            try:
                os.close(fd)
            except OSError:
                pass
    os.chdir("/")
    os.mkdir(directory, 0o700)
    daemon = _start_daemon(directory)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # we end when there is nothing left to tidy
    watched = os.pidfd_open(daemon)
    poller = select.poll()
    poller.register(life, select.POLLHUP)
    poller.register(watched, select.POLLIN)
    poller.poll()
    poller.unregister(life)
    os.kill(daemon, signal.SIGTERM)
    if not poller.poll(STOP_TIMEOUT * 1000):
        os.kill(daemon, signal.SIGKILL)
    os.waitpid(daemon, 0)
    for name in os.listdir(directory):
        try:
            os.unlink(os.path.join(directory, name))
        except FileNotFoundError:
            pass
    os.rmdir(directory)
    os._exit(0)


def _start_daemon(directory: str) -> int:
    guard = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        isolation.die_with(guard, signal.SIGTERM)
        # -P: a "netd" or "json.py" in the caller's directory is none of our business.
        os.execve(
            sys.executable,
            [sys.executable, "-P", "-m", "netd", "serve", "--runtime-dir", directory],
            environment(),
        )
    finally:
        os._exit(EXIT_FAILED)


def environment() -> dict[str, str]:
    """Ours, without what a service manager told us, and so that the daemon is of the same netd as this command."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("LISTEN_", "NETD_", "WATCHDOG_"))}
    env.pop("NOTIFY_SOCKET", None)
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if not root.endswith("-packages"):  # a source tree, not an installation
        env["PYTHONPATH"] = root + (":" + env["PYTHONPATH"] if env.get("PYTHONPATH") else "")
    return env
